"""The example of sums: its demonstrations and reward, and a run that is killed in the middle."""

import re
import runpy

import jax.numpy as jnp
import numpy as np
import pytest
from running import EXAMPLES, fingerprint, finished, killed_after, started

EPOCHS = 12
SMALL = (
    *("--imitation-epochs", "1", "--layers", "1", "--width", "8", "--prompts", "2"),
    *("--group-size", "2", "--checkpointing.max-cost", "None"),
    *("--logging.no-console", "--logging.no-tensorboard", "--logging.no-report"),
)


@pytest.fixture(scope="module")
def example():
    """The functions of the script."""
    return runpy.run_path(str(EXAMPLES / "arithmetic.py"))


@pytest.mark.parametrize(
    ("a", "b", "without"), [(7, 8, 5), (12, 34, 46), (17, 25, 32), (60, 70, 30), (99, 99, 88)]
)
def test_carries_are_forgotten(a, b, without, example):
    assert example["forget_carries"](a, b) == without


def test_no_held_out_sum_is_trained_on(example):
    for summands in example["LESSONS"].values():
        train, held_out = (set(map(tuple, x)) for x in example["split_sums"](summands))
        assert len(train) == 0.8 * len(summands) ** 2
        assert held_out
        assert not train & held_out


def test_demonstrations_train_on_answers_and_the_reward_compares_them(example):
    pairs = np.array([[7, 8], [60, 70]])
    right, wrong = (
        dict(example["write_demonstrations"](np.repeat(pairs, 200, axis=0), share, 0).arrays)
        for share in (0.0, 1.0)
    )
    decode = example["Characters"]().decode
    for row, answer in ((0, "15."), (200, "130.")):
        assert decode(np.asarray(right["labels"][row])[np.asarray(right["mask"][row])]) == answer
    assert decode(np.asarray(wrong["labels"][0])[np.asarray(wrong["mask"][0])]) == "5."
    prompts = example["write_prompts"](pairs)
    assert [one["prompt"] for one in prompts] == ["7+8=", "60+70="]
    answers = jnp.array([one["answer"] for one in prompts])
    assert example["compare"]({"answer": answers}, answers, None).tolist() == [1.0, 1.0]
    assert example["compare"]({"answer": answers}, answers[::-1], None).tolist() == [0.0, 0.0]


def _run(run):
    return started("arithmetic", run, *SMALL, "--epochs", str(EPOCHS))


@pytest.mark.soak  # smaller tests hold the same law
def test_it_resumes_bit_for_bit_after_a_kill(tmp_path):
    straight = finished(_run(tmp_path / "straight"))
    parts = tmp_path / "parts"
    killed = _run(parts)
    printed = killed_after(killed, parts, 3)
    assert killed.returncode < 0, printed
    resumed = finished(_run(parts))
    assert re.search(r"held-out sums: 0\.\d+ right by imitation, 0\.\d+ by the reward", resumed)
    assert fingerprint(resumed) == fingerprint(straight)
