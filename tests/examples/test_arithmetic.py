"""The example of sums: its demonstrations and reward, and a run that is killed in the middle."""

import json
import re
import runpy
import signal
import time

import _crashing
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


def _run(run, *flags):
    return started("arithmetic", run, *SMALL, "--epochs", str(EPOCHS), *flags)


def test_a_worker_in_a_process_of_its_own_samples_with_checkpoints(tmp_path):
    """It waits for the first, and samples once with each that it finds, up to the last."""
    run, worker = tmp_path / "run", tmp_path / "own" / "worker"
    sampling = _run(tmp_path / "own", "--follow", run, "--timeout", "120")
    training = _run(run)

    def wait_for(files):
        while sampling.poll() is None and not list((worker / "answers").glob(files)):
            time.sleep(0.05)

    stopped = 0
    while training.poll() is None and not stopped:
        time.sleep(0.01)
        if stopped := _crashing.newest(run):
            training.send_signal(signal.SIGSTOP)
    wait_for("*.jsonl")
    training.send_signal(signal.SIGCONT)
    finished(training)
    wait_for(f"{EPOCHS:06}.jsonl")
    while sampling.poll() is None:  # the second signal ends its wait, before the last record
        sampling.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    printed, _ = sampling.communicate(timeout=60)
    assert sampling.returncode == 128 + signal.SIGTERM, printed

    files = sorted((worker / "answers").iterdir())
    followed = [int(file.stem) for file in files]
    assert followed[0] < followed[-1] == EPOCHS
    records = [json.loads(line) for line in (worker / "metrics.jsonl").read_text().splitlines()]
    assert [record["follow/epoch"] for record in records] == followed[:-1]
    assert [record["step"] for record in records] == [4 * epoch for epoch in followed[:-1]]
    for file, record in zip(files[:-1], records, strict=True):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(lines) == 4
        for line in lines:
            a, b = re.fullmatch(r"(\d+)\+(\d+)=", line["prompt"]).groups()
            assert line["reward"] == (line["answer"] == f"{int(a) + int(b)}.")
        mean = np.mean([line["reward"] for line in lines])
        assert record["sample/reward"] == pytest.approx(mean)


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
