"""The population example: it trains, plots its returns, and resumes bit for bit."""

import pytest
from running import fingerprint, finished, started

SMALL = (
    *("--members", "3", "--envs", "2", "--steps", "8", "--batch-size", "8", "--passes", "1"),
    *("--schedule.steps", "100", "--checkpointing.max-cost", "None"),
    *("--logging.no-console", "--logging.no-tensorboard", "--logging.no-report"),
)


def _printed(run, epochs):
    return finished(started("population", run, *SMALL, "--epochs", str(epochs)))


def test_a_population_trains_and_plots_its_returns(tmp_path):
    assert "0 of 3 members reached 475\n" in _printed(tmp_path, 2)
    assert (tmp_path / "spread.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.soak  # smaller tests hold the same law
def test_a_population_resumes_bit_for_bit(tmp_path):
    straight = _printed(tmp_path / "straight", 2)
    for epochs in (1, 2):
        parts = _printed(tmp_path / "parts", epochs)
    assert fingerprint(parts) == fingerprint(straight)
