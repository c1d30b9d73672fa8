"""Profiling: traces of the requested epochs only, closed whatever happens."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import hooks
import trainer
from hooks.monitoring.profiling import profile
from hooks.testing import check_hook


class Profiler:
    """Replaces JAX's profiler: records its calls, and which epochs ran under a trace."""

    def __init__(self):
        self.calls = []
        self.tracing = False

    def start_trace(self, directory):
        if self.tracing:
            raise RuntimeError("Only one profile may be run at a time.")
        self.tracing = True
        self.calls.append([])

    def stop_trace(self):
        self.tracing = False


@pytest.fixture
def profiler(monkeypatch):
    profiler = Profiler()
    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, getattr(profiler, name))
    return profiler


@pytest.fixture
def traced(profiler):
    """A phase that notes the epochs which ran under a trace."""

    def pieces(state, check, position):
        if profiler.tracing:
            profiler.calls[-1].append(int(state.epoch) + 1)
        yield np.float32(0), None

    feed = trainer.data.source.Feed(pieces, np.float32(0), None, None, lambda state, check: None)
    phase = trainer.Phase("train", lambda state, data: (state, None, {}))
    phase.__dict__["feed"] = feed
    return phase


@pytest.mark.parametrize(
    ("epochs", "found"),
    [
        ((2, 3), [[2, 3]]),
        (range(1, 3), [[1, 2]]),
        ((4,), [[4]]),
        ((5, 6), [[5]]),
        ((6, 7), []),
    ],
)
def test_it_traces_only_these_epochs(state, profiler, traced, tmp_path, epochs, found):
    trainer.fit(state, traced, epochs=5, hooks=profile(tmp_path, epochs=epochs))
    assert profiler.calls == found
    assert not profiler.tracing


@pytest.mark.parametrize(("done", "found"), [(1, [[2, 3]]), (2, [[3]]), (3, []), (4, [])])
def test_a_resumed_run_traces_the_remaining_epochs(state, profiler, traced, tmp_path, done, found):
    begun, _ = trainer.fit(state, traced, epochs=done)
    trainer.fit(begun, traced, epochs=5, hooks=profile(tmp_path))
    assert profiler.calls == found


def test_a_run_that_fails_or_stops_ends_the_trace(state, profiler, traced, tmp_path):
    def fail(state, metrics):
        if int(state.epoch) == 2:
            raise RuntimeError("enough")
        return state

    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(state, traced, epochs=5, hooks=[fail, profile(tmp_path)])
    assert (profiler.calls, profiler.tracing) == ([[2]], False)

    stop = hooks.every(2, lambda state, metrics: state.replace(stop=True))
    trainer.fit(state, traced, epochs=5, hooks=[stop, profile(tmp_path, epochs=(3, 4))])
    assert len(profiler.calls) == 1


@pytest.mark.parametrize("epochs", [(), (0, 1), (2, 4)])
def test_epochs_must_be_consecutive(tmp_path, epochs):
    with pytest.raises(ValueError, match="consecutive epochs, counted from 1"):
        profile(tmp_path, epochs=epochs)


@pytest.mark.parametrize("epochs", [(1, 2), (3,), (2, 3, 4), (4,)])
def test_two_profiles_of_a_run_may_not_overlap_or_touch(state, profiler, traced, tmp_path, epochs):
    both = [profile(tmp_path), profile(tmp_path, epochs=epochs)]
    with pytest.raises(ValueError, match="there must be an epoch between two profiles"):
        trainer.fit(state, traced, epochs=7, hooks=both)
    assert profiler.calls == []
    trainer.fit(state, traced, epochs=7, hooks=[profile(tmp_path, epochs=(5,)), both[0]])
    assert profiler.calls == [[2, 3], [5]]


def test_an_active_trace_is_an_error(state, profiler, traced, tmp_path):
    profiler.start_trace("elsewhere")
    with pytest.raises(RuntimeError, match="one profile") as raised:
        trainer.fit(state, traced, epochs=5, hooks=profile(tmp_path))
    assert "profile of epochs 2 to 3" in raised.value.__notes__[0]
    assert profiler.tracing  # only its owner may end it


def test_a_real_trace_is_where_tensorboard_looks_for_it_and_changes_nothing(start, train, tmp_path):
    plain, _ = trainer.fit(start, train, epochs=3)
    traced, _ = trainer.fit(start, train, epochs=3, hooks=profile(tmp_path, epochs=(2,)))
    assert trainer.fingerprint(plain) == trainer.fingerprint(traced)
    (file,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    planes = {plane.name: plane for plane in jax.profiler.ProfileData.from_file(str(file)).planes}
    events = [event for line in planes["/host:CPU"].lines for event in line.events]
    assert any("execute" in event.name.lower() for event in events)


def test_it_holds_the_laws(state, profiler, tmp_path):
    check_hook(profile(tmp_path, epochs=(1,)), state, {})
    assert not profiler.tracing
