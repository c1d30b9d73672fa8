"""What several processes agree on. Two real ones are in tests/reliability."""

import jax
import numpy as np
import pytest

from trainer.host import processes
from trainer.host.processes import StopReasons, agree_on_stop, check_same, from_main_process

NOTHING = StopReasons(stop=False, interrupt=False, signal=0)


@pytest.fixture
def others(monkeypatch):
    """Pretend that there are two processes, and that the other one gave this."""

    def pretend(gathered):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(processes, "_gather", gathered)

    return pretend


def test_one_process_decides_alone():
    for ending in (NOTHING, StopReasons(stop=True, interrupt=True, signal=2)):
        assert agree_on_stop(ending) == ending
    assert from_main_process({"a": 0.1}) == {"a": 0.1}
    check_same("anything")


@pytest.mark.parametrize(
    ("mine", "theirs", "together"),
    [
        ((0, 0, 0), (0, 0, 0), (False, False, 0)),
        ((0, 0, 0), (0, 0, 15), (False, False, 15)),
        ((0, 0, 2), (0, 1, 0), (False, True, 2)),
        ((1, 0, 0), (1, 0, 15), (True, False, 15)),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_reason_of_one_process_ends_all(others, mine, theirs, together, place):
    def gathered(values):
        return np.insert(np.array([theirs]), place, values, axis=0)

    others(gathered)
    assert agree_on_stop(StopReasons(*mine)) == StopReasons(*together)


@pytest.mark.parametrize("mine", [False, True])
def test_hooks_that_decide_differently_end_in_an_error_on_every_process(others, mine):
    others(lambda values: np.array([values, [not mine, 0, 0]]))
    with pytest.raises(RuntimeError, match="decided to stop and the others did not"):
        agree_on_stop(NOTHING._replace(stop=mine))


@pytest.mark.parametrize("value", [0.1, -0.0, 1e300, float("inf"), 5e-324])
def test_the_main_process_s_values_arrive_bit_for_bit(others, value):
    others(lambda values: np.array([np.array([value, 2.0]).view(np.uint32), values]))
    got = from_main_process({"mine": 7.0, "too": 7.0})
    assert got == {"mine": value, "too": 2.0}
    assert np.signbit(got["mine"]) == np.signbit(value)


def test_processes_that_run_different_things_raise(others):
    others(lambda values: np.array([values, values]))
    check_same("20 epochs")
    others(lambda values: np.array([values, values + 1]))
    with pytest.raises(RuntimeError, match=r"something else than \[1\].*here: 20 epochs"):
        check_same("20 epochs")
