"""Rewards on the host: order, threads, failures and time limits."""

import threading
import time

import numpy as np
import pytest

from trainer.rl import HostReward
from trainer.rl.answering.host_rewards import AnswerGroup, compute_host_rewards

GROUPS = [AnswerGroup([f"p{n}"] * 2, [f"a{n}", ""], [{"n": n}] * 2) for n in range(5)]


def _count(prompts, answers, examples):
    assert [prompt[1:] for prompt in prompts] == [str(example["n"]) for example in examples]
    return [
        example["n"] + 0.5 * bool(answer) for answer, example in zip(answers, examples, strict=True)
    ]


@pytest.mark.parametrize("threads", [1, 3])
def test_rewards_keep_the_order_of_the_answers(threads):
    seen = set()

    def reward(*group):
        seen.add(threading.current_thread().name)
        return _count(*group)

    rewards, failed = compute_host_rewards(HostReward(reward, threads=threads), GROUPS)
    assert rewards.tolist() == [0.5, 0, 1.5, 1, 2.5, 2, 3.5, 3, 4.5, 4]
    assert rewards.dtype == np.float32
    assert not failed.any()
    assert seen == {"reward"}  # not on the training thread


def test_calls_run_at_once_on_several_threads():
    together = threading.Barrier(5, timeout=30)

    def reward(*group):
        together.wait()
        return _count(*group)

    rewards, _ = compute_host_rewards(HostReward(reward, threads=5), GROUPS)
    assert rewards[-1] == 4


def _raise_at_2(prompts, answers, examples):
    if examples[0]["n"] == 2:
        raise RuntimeError("no judge")
    return _count(prompts, answers, examples)


def test_an_exception_ends_the_run_or_gives_0(caplog):
    with pytest.raises(RuntimeError, match="no judge") as caught:
        compute_host_rewards(HostReward(_raise_at_2), GROUPS)
    assert "in the reward of answers to the prompt 'p2'" in caught.value.__notes__
    rewards, failed = compute_host_rewards(HostReward(_raise_at_2, on_failure="zero"), GROUPS)
    assert rewards.tolist() == [0.5, 0, 1.5, 1, 0, 0, 3.5, 3, 4.5, 4]
    assert failed.tolist() == [False] * 4 + [True] * 2 + [False] * 4
    assert "to the prompt 'p2' is 0: RuntimeError: no judge" in caplog.text


def test_a_late_call_is_left_behind():
    release = threading.Event()

    def reward(prompts, answers, examples):
        if examples[0]["n"] == 1:
            release.wait(30)
        return _count(prompts, answers, examples)

    began = time.monotonic()
    late = HostReward(reward, seconds=0.1)
    with pytest.raises(TimeoutError, match=r"longer than its limit of 0\.1 seconds"):
        compute_host_rewards(late, GROUPS)
    zero = HostReward(reward, seconds=0.1, on_failure="zero")
    rewards, failed = compute_host_rewards(zero, GROUPS)
    assert rewards.tolist() == [0.5, 0, 0, 0, 2.5, 2, 3.5, 3, 4.5, 4]
    assert np.flatnonzero(failed).tolist() == [2, 3]
    assert time.monotonic() - began < 20
    release.set()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ([1.0], r"each of the 2 answers, \[2\]; got shape \[1\]"),
        (0.5, r"got shape \[\]"),
        ([1.0, float("nan")], "got nan for the answer '' to the prompt 'p0'"),
        ([1e300, 0.0], "got inf for the answer 'a0'"),
        (["good", "bad"], r"got \['good', 'bad'\]"),
    ],
)
@pytest.mark.parametrize("on_failure", ["raise", "zero"])
def test_a_result_that_is_no_number_for_each_answer_is_refused(result, said, on_failure):
    reward = HostReward(lambda *group: result, on_failure=on_failure)
    with pytest.raises((TypeError, ValueError), match=said):
        compute_host_rewards(reward, GROUPS)


@pytest.mark.parametrize(
    ("function", "settings", "said"),
    [
        (lambda answers: [], {}, r"must be a function \(prompts, answers, examples\)"),
        (_count, {"seconds": 0}, "seconds must be above 0"),
        (_count, {"on_failure": "zeros"}, "must be 'raise' or 'zero'"),
        (_count, {"threads": 0}, "threads must be a whole number of at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(function, settings, said):
    with pytest.raises((TypeError, ValueError), match=said):
        HostReward(function, **settings)
