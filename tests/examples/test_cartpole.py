"""The CartPole example as a user runs it, killed in the middle of training included."""

import re

import pytest
from running import fingerprint, finished, killed_after, started

SMALL = (
    *("--envs", "2", "--steps", "8", "--batch-size", "8", "--passes", "2"),
    *("--epochs", "40", "--checkpointing.max-cost", "None"),
)


def _run(run, *flags):
    return started("cartpole", run, *SMALL, *flags)


def test_killed_in_the_middle_it_goes_on_with_the_same_bits(tmp_path):
    """Environments, random numbers, schedule, evaluations and all."""
    straight = finished(_run(tmp_path / "straight"))  # the first, which fills the cache
    killed_after(_run(tmp_path / "run"), tmp_path / "run", 2)
    resumed = finished(_run(tmp_path / "run"))
    assert re.search(r"resuming from epoch [1-3]?\d,", resumed.replace("\n", " "))
    assert "missed 475 after 640 steps" in resumed
    assert fingerprint(resumed) == fingerprint(straight)
    for run in ("run", "straight"):
        replays = {file.name for file in (tmp_path / run / "replays").iterdir()}
        assert replays == {"40-0.gif", "40-0.json"}


def test_it_stops_at_the_target(tmp_path):
    printed = finished(_run(tmp_path / "run", "--target", "5"))
    assert "reached 5 after 80 steps" in printed
    assert "val/return" in printed


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--env", "3"), "--envs"), (("--batch-size", "9999"), "do not make minibatches of 9999")],
)
def test_a_mistake_is_told(tmp_path, flags, said):
    printed, _ = (process := _run(tmp_path / "run", *flags)).communicate(timeout=120)
    assert process.returncode != 0
    assert said in printed
