"""The text example as a user runs it, also killed in the middle of an epoch."""

import itertools
import math
import re

import numpy as np
import pytest
from running import fingerprint, finished, killed_after, started

SMALL = (
    *("--context", "16", "--width", "8", "--layers", "1", "--batch-size", "2"),
    *("--steps-per-epoch", "5", "--schedule.steps", "300", "--checkpointing.max-cost", "None"),
)


def _run(run, *flags):
    return started("text", run, *SMALL, *flags)


@pytest.fixture(scope="module")
def text(script):
    """The script as a module."""
    return script("text")


def test_no_long_held_out_text_is_in_the_training_text(text):
    written, length = text.prose(), 100
    border = int(text.TRAINED * len(written))
    train, held_out = written[:border], written[border:]
    seen = {train[n : n + length] for n in range(len(train) - length + 1)}
    assert len(train) > 200_000
    assert not any(held_out[n : n + length] in seen for n in range(len(held_out) - length + 1))


def test_the_trigram_model_is_a_distribution_and_learns(text):
    random = np.random.default_rng(0)
    train = random.integers(0, 3, 200)
    total = dict.fromkeys(itertools.product(range(3), repeat=2), 0.0)
    for triple in itertools.product(range(3), repeat=3):
        total[triple[:2]] += 2 ** -text.trigram_bits(train, np.array(triple), 3)
    assert all(share == pytest.approx(1) for share in total.values())
    assert text.trigram_bits(train, random.integers(0, 3, 500), 3) > 0.95 * math.log2(3)
    regular = np.tile([0, 1, 2, 2], 100)
    assert text.trigram_bits(regular, regular, 3) < 0.1


def test_it_trains_and_reports_the_comparison(tmp_path):
    printed = finished(_run(tmp_path / "run", "--epochs", "5"))
    assert "samples/0, epoch 5" in printed
    assert re.search(r"held out: \d\.\d{3} bits per character, a trigram model \d\.\d{3}", printed)
    fingerprint(printed)


@pytest.mark.soak  # smaller tests hold the same law
def test_it_resumes_bit_for_bit_after_a_kill_within_an_epoch(tmp_path):
    """Including stream position, sampling and schedule; a pass is thousands of epochs long."""
    straight = finished(_run(tmp_path / "straight", "--epochs", "40"))  # which fills the cache
    killed_after(_run(tmp_path / "run", "--epochs", "40"), tmp_path / "run", 2)
    resumed = finished(_run(tmp_path / "run", "--epochs", "40"))
    assert re.search(r"resuming from epoch [1-3]?\d,", resumed.replace("\n", " "))
    assert fingerprint(resumed) == fingerprint(straight)


def test_a_mistake_is_reported(tmp_path):
    process = _run(tmp_path / "run", "--contxt", "3")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "--context" in printed
