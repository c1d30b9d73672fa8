"""The CartPole example as a user runs it, also killed in the middle of training."""

import re

import pytest
from running import fingerprint, finished, killed_after, started

SMALL = (
    *("--envs", "2", "--steps", "8", "--batch-size", "8", "--passes", "2"),
    *("--epochs", "40", "--checkpointing.max-cost", "None"),
)


def _run(run, *flags):
    return started("cartpole", run, *SMALL, *flags)


@pytest.mark.soak  # smaller tests hold the same law
def test_it_resumes_bit_for_bit_after_a_kill(tmp_path):
    """Including environments, random numbers, schedule and evaluations."""
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
def test_a_mistake_is_reported(tmp_path, flags, said):
    printed, _ = (process := _run(tmp_path / "run", *flags)).communicate(timeout=120)
    assert process.returncode != 0
    assert said in printed
