"""Rewards of texts on the host: plain Python, on threads of their own, within a time limit."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trainer.checks.arguments import require_function, require_integer, require_number
from trainer.checks.suggestions import suggest_and_list

log = logging.getLogger("entracte")

ON_FAILURE = ("raise", "zero")
"""What becomes of a reward whose function raises, or is late."""


@dataclasses.dataclass(frozen=True)
class HostReward:
    """A reward of texts, computed on the host; `grpo` calls it once for each group of answers.

    Calls run on worker threads, so that a signal or a time limit ends the wait for a slow one. A
    call that is late cannot be ended: its thread is left behind, and does not keep the process from
    ending. A run repeats bit for bit if the function is deterministic and none is late. On several
    processes each calls it for groups of its own, and all get the rewards of all.

    Args:
        function: `(prompts, answers, examples) -> rewards`: lists of as many texts, texts, and
            dicts with the other fields of each prompt; a finite number for each answer. A prompt of
            messages is what the chat template writes. An answer is what follows the prompt in the
            decoded text, spaces included; special tokens are left out if the tokenizer's `decode`
            does so.
        seconds: that one call may take.
        on_failure: `raise` ends the run if a call raises an exception or is late; with `zero` the
            rewards of its group are 0, a warning is logged, and `failed` counts it. A result that
            is no finite number for each answer ends the run in any case.
        threads: calls that run at once.

    Raises:
        TypeError, ValueError: the function does not take three arguments, or a setting is out of
            range.

    >>> def right(prompts, answers, examples):
    ...     return [float(a == str(e["sum"])) for a, e in zip(answers, examples)]
    >>> reward = HostReward(right, seconds=5.0)
    >>> reward.function(["1+1="] * 2, ["2", "3"], [{"sum": 2}] * 2)
    [1.0, 0.0]
    """

    function: Callable[[list[str], list[str], list[Mapping[str, Any]]], Sequence[float]]
    _: dataclasses.KW_ONLY
    seconds: float = 60.0
    on_failure: str = "raise"
    threads: int = 1

    def __post_init__(self) -> None:
        require_function(
            "HostReward", self.function, "(prompts, answers, examples) -> list of rewards"
        )
        if not require_number("HostReward: seconds", self.seconds) > 0:
            raise ValueError(f"HostReward: seconds must be above 0; got {self.seconds}")
        if self.on_failure not in ON_FAILURE:
            raise ValueError(
                f"HostReward: on_failure must be 'raise' or 'zero'; got {self.on_failure!r}"
                f"{suggest_and_list(self.on_failure, ON_FAILURE)}"
            )
        require_integer("HostReward: threads", self.threads, 1)


class AnswerGroup(NamedTuple):
    """The answers of one call."""

    prompts: list[str]
    answers: list[str]
    examples: list[Mapping[str, Any]]


def compute_host_rewards(
    reward: HostReward, groups: Sequence[AnswerGroup]
) -> tuple[np.ndarray, np.ndarray]:
    """Call a reward for each group, and wait for all.

    Returns:
        The rewards of all answers in order, float32 `[answer]`, and whether the call of each
        failed, bool `[answer]`.

    Raises:
        TimeoutError: a call is late, and `reward.on_failure` is `raise`; so are exceptions of it.
        TypeError, ValueError: a result is no finite number for each answer.
    """
    rewards, failed = [], []
    for group, (result, error) in zip(groups, _call_all(reward, groups), strict=True):
        if error is None:
            rewards.append(_to_numbers(result, group))
        else:
            if reward.on_failure == "raise":
                error.add_note(f"in the reward of answers to the prompt {group.prompts[0]!r:.100}")
                raise error
            log.warning(
                "the reward of %d answers to the prompt %.100r is 0: %s: %s",
                len(group.answers),
                group.prompts[0],
                type(error).__name__,
                error,
            )
            rewards.append(np.zeros(len(group.answers), np.float32))
        failed.append(np.full(len(group.answers), error is not None))
    return np.concatenate(rewards), np.concatenate(failed)


class _Call:
    """A call of the function, made by a worker thread."""

    def __init__(self, group: AnswerGroup) -> None:
        self.group = group
        self.began: float | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self.left_behind = False


def _call_all(
    reward: HostReward, groups: Sequence[AnswerGroup]
) -> Iterator[tuple[Any, BaseException | None]]:
    """Yield the result of each call in order, and the exception that it raised."""
    calls = [_Call(group) for group in groups]
    waiting: queue.SimpleQueue[_Call] = queue.SimpleQueue()
    for call in calls:
        waiting.put(call)
    for _ in range(min(reward.threads, len(calls))):
        _start_worker(reward, waiting)
    try:
        for call in calls:
            while not call.ended.wait(_seconds_left(reward, call)):
                if _seconds_left(reward, call) <= 0:
                    call.left_behind = True
                    break
            if not call.left_behind:
                yield call.result, call.error
                continue
            _start_worker(reward, waiting)
            late = (
                f"the reward function took longer than its limit of {reward.seconds:g} seconds, "
                "and its thread is left behind: HostReward(..., seconds=...) sets the limit, "
                "on_failure='zero' lets training go on"
            )
            yield None, TimeoutError(late)
    finally:
        while not waiting.empty():  # after a failure the workers have nothing more to do
            try:
                waiting.get_nowait()
            except queue.Empty:
                break


def _seconds_left(reward: HostReward, call: _Call) -> float:
    began = call.began
    return reward.seconds if began is None else max(began + reward.seconds - time.monotonic(), 0.0)


def _start_worker(reward: HostReward, waiting: queue.SimpleQueue[_Call]) -> None:
    def work() -> None:
        while True:
            try:
                call = waiting.get_nowait()
            except queue.Empty:
                return
            call.began = time.monotonic()
            try:
                call.result = reward.function(*call.group)
            except BaseException as error:  # whatever it is, the main thread raises it
                call.error = error
            call.ended.set()
            if call.left_behind:
                return

    # A daemon: a call that hangs must not keep the process from ending.
    threading.Thread(target=work, name="reward", daemon=True).start()


def _to_numbers(result: Any, group: AnswerGroup) -> np.ndarray:
    """Check what the function returned."""
    count = len(group.answers)
    required = f"the reward function must return a finite number for each of the {count} answers"
    try:
        with np.errstate(over="ignore"):  # what is no float32 is refused below
            numbers = np.asarray(result, np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{required}; got {result!r:.100}") from error
    if numbers.shape != (count,):
        raise ValueError(f"{required}, [{count}]; got shape {list(numbers.shape)}")
    if not np.isfinite(numbers).all():
        index = int(np.argmin(np.isfinite(numbers)))
        raise ValueError(
            f"{required}; got {numbers[index]} for the answer {group.answers[index]!r:.100} to the "
            f"prompt {group.prompts[index]!r:.100}"
        )
    return numbers
