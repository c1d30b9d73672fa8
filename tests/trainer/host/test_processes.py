"""What several processes agree on. Two real ones are in tests/reliability."""

import jax
import numpy as np
import pytest

from trainer.host import exchange
from trainer.host.exchange import FailedElsewhereError, exchange_words, pack_message
from trainer.host.processes import (
    NO_STOP,
    StopReasons,
    check_same,
    combine_reasons,
    exchange_numbers,
    fail_together,
    from_main_process,
)


@pytest.fixture
def others(monkeypatch):
    """Pretend that there are two processes; a function of this one's message gives all messages."""

    def pretend(gathered):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(exchange, "_gather", lambda mine: np.array(gathered(mine)))

    return pretend


def replace_words(message, numbers):
    """Return a message with other numbers."""
    words = np.array(numbers, np.float64).view(np.uint32)
    changed = message.copy()
    changed[4 : 4 + len(words)] = words
    return changed


def test_one_process_decides_alone():
    for ending in (NO_STOP, StopReasons(stop=True, interrupt=True, signal=2)):
        assert combine_reasons(np.array([ending])) == ending
    assert from_main_process({"a": 0.1}) == {"a": 0.1}
    check_same("anything")
    with pytest.raises(OSError, match="no room"):
        from_main_process({"a": 0.1}, OSError("no room"))


@pytest.mark.parametrize(
    ("mine", "theirs", "together"),
    [
        ((0, 0, 0), (0, 0, 0), (False, False, 0)),
        ((0, 0, 0), (0, 0, 15), (False, False, 15)),
        ((0, 0, 2), (0, 1, 0), (False, True, 2)),
        ((1, 0, 0), (1, 0, 15), (True, False, 15)),
    ],
)
def test_a_reason_of_one_process_ends_all(mine, theirs, together):
    for found in ([mine, theirs], [theirs, mine]):
        assert combine_reasons(np.array(found)) == StopReasons(*together)


def test_hooks_that_decide_differently_end_in_an_error_on_every_process():
    with pytest.raises(RuntimeError, match=r"\[1\] decided to stop and the others did not"):
        combine_reasons(np.array([[0, 0, 0], [1, 0, 0]]))


@pytest.mark.parametrize("value", [0.1, -0.0, 1e300, float("inf"), 5e-324])
def test_the_main_process_s_values_arrive_bit_for_bit(others, value):
    others(lambda message: [replace_words(message, [value, 2.0]), message])
    got = from_main_process({"mine": 7.0, "too": 7.0})
    assert got == {"mine": value, "too": 2.0}
    assert np.signbit(got["mine"]) == np.signbit(value)


def test_more_numbers_than_fit_a_message_arrive_in_several(others):
    sizes = []
    others(lambda message: sizes.append(len(message)) or [message, message])
    numbers = np.arange(150) / 7
    np.testing.assert_array_equal(exchange_numbers("many", numbers), [numbers, numbers])
    assert len(set(sizes)) == 1
    assert len(sizes) == 3


def test_processes_that_run_different_things_raise(others):
    others(lambda message: [message, message])
    check_same("20 epochs")
    others(lambda message: [message, message + np.eye(256, dtype=np.uint32)[4]])
    with pytest.raises(RuntimeError, match=r"something else than \[1\].*here: 20 epochs"):
        check_same("20 epochs")


def test_processes_at_different_places_of_their_programs_raise_and_name_both(others):
    others(lambda message: [message, pack_message("opening runs/a")])
    with pytest.raises(
        FailedElsewhereError, match="is at 'a save' and process 1 at 'opening runs/a'"
    ):
        exchange_words("a save", np.zeros(0, np.uint32))
    with pytest.raises(FailedElsewhereError, match="process 1 at 'opening runs/a'"):
        exchange_words("opening runs/a", np.zeros(2, np.uint32))


def test_a_failure_of_one_process_is_raised_there_and_named_on_the_others(others):
    error = OSError("no room")
    error.add_note("in hook 'log'")
    others(lambda message: [message, pack_message("a save", failure=error)])
    with (
        pytest.raises(
            FailedElsewhereError,
            match=r"a save failed on process 1.*OSError: no room; in hook 'log'",
        ),
        fail_together("a save"),
    ):
        pass
    with pytest.raises(ZeroDivisionError), fail_together("a save"):
        1 / 0  # noqa: B018
