"""What overlap dispatched for nothing is let go when the run ends, whatever ended it."""

import contextlib
import gc
import logging
import threading

import jax
import numpy as np
import optax
import pytest

import hooks
import models
import trainer
from trainer import data, losses
from trainer.host import time_spans

WIDTH = 12_351  # no other array has this size


@pytest.fixture(scope="module")
def wide():
    """A task with parameters of a size of their own, its batches, and a state."""
    arrays = {"inputs": np.ones((32, WIDTH), np.float32), "labels": np.zeros(32, np.int32)}
    network = models.mlp(hidden=(2,))
    task = trainer.supervised(network, losses.classification, optax.sgd(0.1))
    batches = [{k: a[n : n + 4] for k, a in arrays.items()} for n in range(0, 32, 4)]
    return task, batches, task.init(jax.random.key(0), batches[0])


def count_states():
    return sum(array.shape == (WIDTH, 2) for array in jax.live_arrays())


@contextlib.contextmanager
def without_garbage_collection():
    """Free by reference counts alone: what is in a cycle stays, as it may for a long time."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def stop(state, metrics):
    return state.replace(stop=int(state.epoch) == 3)


def interrupt(state, metrics):
    if state.epoch == 3:
        raise trainer.Interrupt
    return state


def fail(state, metrics):
    if state.epoch == 3:
        raise ValueError("no more")
    return state


@pytest.mark.parametrize("end", [stop, interrupt, fail])
@pytest.mark.parametrize("reads", ["all it has", "an error"])
def test_an_early_epoch_frees_its_state_and_closes_its_data(wide, end, reads):
    task, batches, start = wide
    opened, closed, at_end = [], [], []

    def factory(seed, epoch):
        if reads == "an error" and epoch == 3:
            raise OSError("the disk is gone")
        opened.append(epoch)
        return iterate(epoch)

    def iterate(epoch):
        try:
            yield from batches
        finally:
            closed.append(epoch)

    def look(state, metrics):
        at_end.extend(closed)
        return state

    phase = trainer.training(task.step, data.Stream(factory, superbatch=2))
    given = count_states()
    with without_garbage_collection():
        try:
            chain = [end, hooks.on("end", look)]
            trainer.fit(start, phase, epochs=5, hooks=chain, overlap=True)
        except ValueError as error:
            error.__traceback__ = None
        assert count_states() == given
    assert closed == opened
    assert at_end == (closed if end is stop else [])


def test_an_evaluation_dispatched_early_frees_its_state_after_an_error(wide):
    task, batches, start = wide
    val = trainer.evaluation(task.measure, data.Stream(batches, superbatch=2))
    evaluate = hooks.evaluate(val)
    phase = trainer.training(task.step, data.Stream(batches))
    given = count_states()
    with without_garbage_collection():
        with pytest.raises(ValueError, match="no more") as caught:
            trainer.fit(start, phase, epochs=5, hooks=[fail, evaluate], overlap=True)
        caught.value.__traceback__ = None
        del caught
        assert count_states() == given


def test_an_evaluation_that_fails_early_frees_its_state(wide, caplog):
    task, batches, start = wide
    caplog.set_level(logging.CRITICAL, "entracte")  # a captured record would hold the error

    def factory(seed, epoch):
        if epoch == 2:
            raise OSError("the disk is gone")
        return batches

    val = trainer.evaluation(task.measure, data.Stream(factory, superbatch=2), name="val")
    phase = trainer.training(task.step, data.Stream(batches))
    given, during = count_states(), []

    def look(state, metrics):
        during.append(count_states() - given)
        return state

    chain = [hooks.guard(hooks.evaluate(val)), hooks.on("end", look)]
    with without_garbage_collection():
        history = trainer.fit(start, phase, epochs=3, hooks=chain, overlap=True)[1]
    assert ["val/loss" in epoch for epoch in history] == [True, False, True]
    assert during == [1]  # the last


def test_runs_in_several_threads_share_an_evaluation(start, train, val):
    evaluate, both = hooks.evaluate(val), threading.Barrier(2, timeout=60)
    expected = trainer.fit(start, train, epochs=4, hooks=evaluate)[1]
    found, evaluations = [], []

    def meet(state, metrics):
        both.wait()
        return state

    def train_one():
        chain = [meet, evaluate]
        found.append(trainer.fit(start, train, epochs=4, hooks=chain, overlap=True)[1])

    def note(span):
        if span.path[-1] == ("dispatch", "val"):
            evaluations.append(span)

    stop_listening = time_spans.add_listener(note)
    threads = [threading.Thread(target=train_one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stop_listening()
    scores = [[epoch["val/loss"] for epoch in history] for history in (expected, *found)]
    assert scores == [scores[0]] * 3
    assert len(evaluations) == 2 * 4  # none is computed twice


def test_progress_of_what_was_dispatched_early_is_shown_in_its_turn(start, train, val):
    shown = []

    def look(state, metrics):
        (epoch, *_) = time_spans.list_open_spans(threading.get_ident())
        shown.append([(one.phase, one.done, one.total) for one in epoch.steps])
        return state

    stop_listening = time_spans.add_listener(lambda span: None)
    for overlap in (False, True):
        trainer.fit(start, train, epochs=3, hooks=[look, hooks.evaluate(val)], overlap=overlap)
    stop_listening()
    assert shown == [[("train", 6, 6)]] * 6


@pytest.mark.parametrize(("event", "states"), [("epoch", 2), ("error", 3)])
def test_hooks_at_error_keep_one_state_more(wide, event, states):
    task, batches, start = wide
    phase, most = trainer.training(task.step, data.Stream(batches)), []
    given = count_states()

    def look(state, metrics):
        return state

    def count(state):
        most.append(count_states() - given + 1)  # and that of the epoch that is dispatched next

    chain = [trainer.Hook(look, "look", prepare=count), hooks.on(event, look)]
    with without_garbage_collection():
        trainer.fit(start, phase, epochs=3, hooks=chain, overlap=True)
    assert most == [states] * 2
