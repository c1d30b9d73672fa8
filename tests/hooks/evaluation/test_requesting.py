"""Requests for evaluation: for each wanted checkpoint, once it is complete, and no other."""

from __future__ import annotations

import logging
import shutil
import threading

import pytest

import hooks
import trainer
from hooks import request_evaluation
from hooks.testing import check_hook
from trainer import Checkpoints
from trainer.runs import Run, Store
from trainer.runs.requests import list_requests


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "digits")


def saving(run, **settings):
    return hooks.save_checkpoints(run.directory, **{"max_cost": None, **settings})


def requested(run, suite="full"):
    """Return the epochs of the checkpoints whose evaluation was requested."""
    with Store(run.url) as store:
        return sorted(one.epoch for one in list_requests(store, run.name) if one.suite == suite)


def interrupt_at(number, error=trainer.Interrupt):
    def end_early(state, metrics):
        if int(state.epoch) == number:
            raise error("enough")
        return state

    return hooks.observe(end_early)


@pytest.mark.parametrize("first", [True, False])
def test_each_checkpoint_is_requested_once_wherever_the_hook_stands(state, phase, run, first):
    asking = request_evaluation(run, "full")
    chain = [asking, saving(run, keep=1)] if first else [saving(run, keep=1), asking]
    trainer.fit(state, phase, epochs=4, hooks=chain)
    assert requested(run) == [1, 2, 3, 4]
    with Store(run.url) as store:
        checksums = {one.epoch: one.checksum for one in list_requests(store, run.name)}
        checkpoints = {one.epoch: one.checksum for one in store.checkpoints(run.name)}
    assert checksums[4] == checkpoints[4]
    assert len(set(checksums.values())) == 4


def test_every_requests_fewer(state, phase, run):
    requesting = hooks.every(2, request_evaluation(run, "full"))
    chain = [requesting, request_evaluation(run, "quick"), saving(run)]
    trainer.fit(state, phase, epochs=5, hooks=chain)
    assert requested(run) == [2, 4]
    assert requested(run, "quick") == [1, 2, 3, 4, 5]


def test_without_a_checkpoint_the_next_one_is_requested(state, phase, run):
    requesting = hooks.every(2, request_evaluation(run, "full"))
    saves = hooks.when(lambda state, metrics: int(state.epoch) in (1, 3, 8), saving(run))
    trainer.fit(state, phase, epochs=9, hooks=[requesting, saves])
    assert requested(run) == [3, 8]  # 8 stands for 4 and 6 as well


def test_a_checkpoint_is_requested_at_the_next_event_after_it_is_complete(
    state, phase, run, monkeypatch
):
    writing, resume = threading.Event(), threading.Event()
    publish = trainer.checkpoints.publishing.publish

    def slowly(stage, number, *content):
        if number == 1:
            writing.set()
            assert resume.wait(30)
        publish(stage, number, *content)

    monkeypatch.setattr(trainer.checkpoints.publishing, "publish", slowly)
    seen = []

    def look(state, metrics):
        seen.append((int(state.epoch), queued(run)))
        if int(state.epoch) == 2:
            assert writing.wait(30)
            resume.set()
            trainer.checkpoints.wait_for_saves()
        return state

    saves = hooks.when(lambda state, metrics: int(state.epoch) == 1, saving(run))
    chain = [request_evaluation(run, "full"), saves, look]
    trainer.fit(state, phase, epochs=3, hooks=chain)
    assert seen == [(1, 0), (2, 0), (3, 1)]


def queued(run):
    """Return how many requests the run has queued; see `_count`."""
    return len(QUEUED.get(run.name, []))


QUEUED: dict[str, list[int]] = {}


@pytest.fixture(autouse=True)
def _count(monkeypatch):
    request = Run.request_evaluation
    QUEUED.clear()

    def counting(self, suite, epoch):
        QUEUED.setdefault(self.name, []).append(epoch)
        return request(self, suite, epoch)

    monkeypatch.setattr(Run, "request_evaluation", counting)


@pytest.mark.parametrize("first", [True, False])
def test_earlier_requests_are_sent_before_a_save(state, phase, run, monkeypatch, first):
    """The hook state holds only the newest: a kill would lose the others."""
    save, seen = Checkpoints.save, []

    def saving_now(self, state, **settings):
        seen.append((int(state.epoch), list(QUEUED.get(run.name, []))))
        save(self, state, **settings)

    monkeypatch.setattr(Checkpoints, "save", saving_now)
    requesting = request_evaluation(run, "full")
    chain = [requesting, saving(run)] if first else [saving(run), requesting]
    trainer.fit(state, phase, epochs=4, hooks=chain)
    assert seen == [(1, []), (2, [1]), (3, [1, 2]), (4, [1, 2, 3])]


@pytest.mark.parametrize("others", [[], [hooks.heartbeat], [hooks.Database, hooks.heartbeat]])
def test_a_run_that_fails_requests_what_it_saved(state, phase, run, others):
    def fail(state, metrics):
        if int(state.epoch) == 3:
            raise ValueError("no")
        return state

    with pytest.raises(ValueError, match="no"):
        trainer.fit(
            state,
            phase,
            epochs=5,
            hooks=[
                request_evaluation(run, "full"),
                saving(run),
                fail,
                *(hooks.log_metrics(o(run)) if o is hooks.Database else o(run) for o in others),
            ],
        )
    assert requested(run) == [1, 2]
    with Store(run.url) as store:
        assert store.run(run.name).state == "failed"
        assert "no" in store.run(run.name).error


@pytest.mark.parametrize(("period", "number"), [(1, 3), (2, 3), (2, 4), (3, 5)])
def test_law_5_a_run_that_resumes_requests_the_same(state, phase, tmp_path, period, number):
    def go(name, *others):
        run = Run(tmp_path / name)
        requesting = hooks.every(period, request_evaluation(run, "full"))
        end, _ = trainer.fit(
            state, phase, epochs=6, hooks=[requesting, *others, saving(run, keep=1)]
        )
        return run, end

    run, whole = go("whole")
    go("part", interrupt_at(number))
    again, end = go("part")
    assert trainer.fingerprint(end) == trainer.fingerprint(whole)
    assert requested(again) == requested(run) == list(range(period, 7, period))


@pytest.mark.parametrize("lost", ["before the request", "no checkpoint then"])
def test_what_was_wanted_before_a_kill_is_requested(state, phase, run, lost):
    """After a kill between a save and the request, only the saved hook state is left."""
    wanted = 3 if lost == "before the request" else 2
    hook_state = {"request_evaluation/full": {"wanted": wanted}}
    with Checkpoints(run.directory) as checkpoints:
        checkpoints.save(
            state.replace(epoch=state.epoch + 3, step=state.step + 3, hook_state=hook_state)
        )
    trainer.fit(state, phase, epochs=3, hooks=[request_evaluation(run, "full"), saving(run)])
    assert requested(run) == [3]


def test_a_damaged_checkpoint_that_is_saved_again_is_requested_again(state, phase, run):
    chain = [request_evaluation(run, "full"), saving(run)]
    trainer.fit(state, phase, epochs=3, hooks=chain)
    for file in (run.directory / "checkpoints" / "3" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    other = trainer.Phase(
        "train", lambda state, data: (state.replace(step=state.step + 1), None, {})
    )
    trainer.fit(state, other, epochs=3, hooks=[request_evaluation(run, "full"), saving(run)])
    with Store(run.url) as store:
        checksums = {one.epoch: one.checksum for one in list_requests(store, run.name)}
        assert checksums == {one.epoch: one.checksum for one in store.checkpoints(run.name)}


def test_a_run_that_starts_fresh_requests_again(state, phase, run):
    chain = [request_evaluation(run, "full"), saving(run)]
    trainer.fit(state, phase, epochs=3, hooks=chain)
    shutil.rmtree(run.directory / "checkpoints")
    trainer.fit(state, phase, epochs=1, hooks=[request_evaluation(run, "full"), saving(run)])
    assert requested(run) == [1]


def test_without_checkpoints_it_says_what_is_missing(state, phase, run, caplog):
    trainer.fit(state, phase, epochs=2, hooks=request_evaluation(run, "full"))
    assert requested(run) == []
    (message,) = [one.message for one in caplog.records if "save_checkpoints" in one.message]
    assert "no checkpoint was saved" in message
    assert "since epoch 1" in message


def test_law_3_it_changes_nothing_and_keeps_the_laws(state, phase, run, caplog):
    caplog.set_level(logging.ERROR, "entracte")
    alone, _ = trainer.fit(state, phase, epochs=3, hooks=saving(Run(run.directory / "alone")))
    chain = [request_evaluation(run, "full"), saving(run)]
    observed, _ = trainer.fit(state, phase, epochs=3, hooks=chain)
    assert trainer.fingerprint(observed.replace(hook_state={})) == trainer.fingerprint(alone)
    check_hook(request_evaluation(run, "full"), state, {})


def test_a_dry_run_requests_nothing(state, phase, run):
    def fail(state, metrics):
        raise RuntimeError("no")

    chain = [request_evaluation(run, "full"), saving(run), hooks.on("end", fail)]
    with pytest.raises(RuntimeError):
        trainer.fit(state, phase, epochs=1, hooks=chain, dry_run=True)
    with Store(run.url) as store:
        assert store.runs() == []


@pytest.mark.parametrize("suite", ["", "a/b", "-x", "a\nb"])
def test_a_suite_needs_a_name(run, suite):
    with pytest.raises(ValueError, match="a suite needs a name"):
        request_evaluation(run, suite)


def test_it_needs_a_run():
    with pytest.raises(TypeError, match="request_evaluation takes a recorded run"):
        request_evaluation("runs/digits", "full")
