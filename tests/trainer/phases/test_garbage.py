"""The pause of Python's collection of cyclic garbage."""

import gc

import pytest

from trainer import Phase
from trainer.phases.compilation import pause_gc


@pytest.fixture(autouse=True)
def collecting():
    """Garbage is collected before and after each test."""
    gc.enable()
    yield
    assert gc.isenabled()


def test_it_is_paused_within_and_goes_on_after_an_error():
    enabled = []

    @pause_gc()
    def fail():
        enabled.append(gc.isenabled())
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert enabled == [False]
    assert gc.isenabled()


def test_a_pause_within_a_pause_does_not_end_it():
    with pause_gc():
        with pause_gc():
            assert not gc.isenabled()
        assert not gc.isenabled()


def test_where_it_is_off_it_stays_off():
    gc.disable()
    with pause_gc():
        pass
    assert not gc.isenabled()
    gc.enable()


def test_tracing_a_phase_collects_nothing(state):
    collections = []

    def note(phase, info):
        collections.append(phase)

    def measure(state, data):
        kept = [[number] for number in range(20_000)]  # some 28 collections, were they not paused
        return state, None, {"size": state.params["w"][0] + len(kept)}

    phase = Phase("rollout", measure)
    gc.collect()
    gc.callbacks.append(note)
    try:
        phase.infer_shapes(state)
        within = len(collections)
    finally:
        gc.callbacks.remove(note)
    assert within <= 4  # before and after the pause
