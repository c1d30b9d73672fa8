"""Overlap: the next epoch computes while hooks run, and no bit or decision depends on it."""

import dataclasses
import gc
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import models
import trainer
from trainer import Phase, data, fingerprint, losses
from trainer.host import time_spans
from trainer.loop.epochs import Forecast

EPOCHS = 6


def without_times(history):
    return [{k: v for k, v in epoch.items() if not k.startswith("time/")} for epoch in history]


def train_both(start, program, make_hooks, epochs=EPOCHS):
    """Train without overlap and with it; return both results, and what the hooks saw."""
    results = []
    for overlap in (False, True):
        seen = []

        def look(state, metrics, seen=seen):
            numbers = {k: v for k, v in metrics.items() if not k.startswith("time/")}
            seen.append((fingerprint(state), numbers))
            return state

        after, history = trainer.fit(
            start, program, epochs=epochs, hooks=[*make_hooks(), look], overlap=overlap
        )
        results.append((fingerprint(after), without_times(history), seen))
    return results


def scale(factor):
    def touch(state, metrics):
        return state.replace(params=jax.tree.map(lambda leaf: leaf * factor, state.params))

    return touch


def stop_at(number):
    def stop(state, metrics):
        return state.replace(stop=int(state.epoch) == number)

    return stop


CHAINS = {
    "none": lambda val: [],
    "every second epoch touched": lambda val: [hooks.every(2, scale(0.5))],
    "every epoch touched": lambda val: [scale(0.9)],
    "stopped": lambda val: [stop_at(3)],
    "evaluated": lambda val: [hooks.evaluate(val)],
    "evaluated every second epoch, then touched": lambda val: [
        hooks.every(2, hooks.evaluate(val)),
        hooks.every(3, scale(2.0)),
    ],
    "touched, then evaluated": lambda val: [hooks.every(3, scale(2.0)), hooks.evaluate(val)],
    "averaged, and the average evaluated": lambda val: [
        hooks.average_params(0.5),
        hooks.evaluate(val, params="average_params"),
    ],
    "kept, and restored at the end": lambda val: [
        hooks.evaluate(val),
        hooks.keep_best("val/loss"),
        hooks.on("train", scale(1.0)),
    ],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_no_bit_and_no_decision_differs(start, train, val, chain):
    serial, overlapped = train_both(start, train, lambda: CHAINS[chain](val))
    assert overlapped == serial
    assert len(serial[2]) == (3 if chain == "stopped" else EPOCHS)


def make_streams(task, digits):
    batches = [
        {name: np.asarray(array)[n : n + 32] for name, array in digits[0].arrays.items()}
        for n in (0, 32, 64, 96, 128)
    ]

    def shuffled(seed, epoch):
        order = np.random.default_rng((seed, epoch)).permutation(len(batches))
        return (batches[place] for place in order)

    return {
        "a pass an epoch": data.Stream(shuffled, superbatch=2),
        "part of a pass": data.Stream(shuffled, superbatch=2, steps_per_epoch=3),
        "indexed": data.MemoryMap(
            {name: np.asarray(array) for name, array in digits[0].arrays.items()}, 32, superbatch=2
        ),
        "an iterable": data.Stream(dict(enumerate(batches)).values(), superbatch=2),
    }


@pytest.mark.parametrize("kind", ["a pass an epoch", "part of a pass", "indexed", "an iterable"])
def test_streams_read_the_same(start, task, digits, kind):
    phase = trainer.training(task.step, make_streams(task, digits)[kind])
    make = lambda: [hooks.every(3, scale(0.5))]  # noqa: E731
    serial, overlapped = train_both(start, phase, make)
    assert overlapped == serial


def test_hooks_within_an_epoch_see_the_host_part_that_the_epoch_before_left(state):
    program = [
        Phase("rollout", lambda s, d: (s, s.params["w"], {"size": s.params["w"].sum()})),
        Phase("update", lambda s, d: (s.replace(params={**s.params, "w": d * 0.5}), None, {})),
    ]

    def count(state, metrics):
        return hooks_seen.append(dict(state.hook_state)) or state

    def make():
        return [
            hooks.on("rollout", hooks.stateful("seen", lambda s: 0, tally)),
            hooks.stateful("done", lambda s: 0, tally),
            hooks.on("update", count),
        ]

    def tally(number, state, metrics):
        return number + 1, state

    hooks_seen = []
    serial, overlapped = train_both(state, program, make)
    assert overlapped == serial
    assert hooks_seen[:EPOCHS] == hooks_seen[EPOCHS:]
    assert hooks_seen[-1]["done"] == EPOCHS - 1


@pytest.fixture
def dispatched(monkeypatch):
    """The names of phases in the order in which their computations are sent to the device."""
    names, run = [], time_spans.span

    def note(kind, name="", number=None):
        if kind == "dispatch":
            names.append(name)
        return run(kind, name, number)

    monkeypatch.setattr("trainer.phases.phase.span", note)
    return names


def noted(dispatched, name):
    def note(state, metrics):
        dispatched.append(name)
        return state

    return note


def test_the_next_epoch_is_dispatched_before_the_hooks_run(state, phase, dispatched):
    note = noted(dispatched, "hook")
    trainer.fit(state, phase, epochs=3, hooks=note, overlap=True)
    assert dispatched == ["train", "train", "hook", "train", "hook", "hook"]
    dispatched.clear()
    trainer.fit(state, phase, epochs=3, hooks=note)
    assert dispatched == ["train", "hook"] * 3


def test_an_evaluation_is_dispatched_before_the_next_epoch(start, train, val, dispatched):
    chain = [hooks.every(2, hooks.evaluate(val)), noted(dispatched, "hook")]
    trainer.fit(start, train, epochs=4, hooks=chain, overlap=True)
    first, second = ["train", "train", "hook"], ["val", "train", "hook"]
    assert dispatched == [*first, *second, "train", "hook", "val", "hook"]


def test_an_epoch_after_each_change_is_computed_again_but_not_for_long(state, phase, dispatched):
    trainer.fit(state, phase, epochs=20, hooks=scale(1.0), overlap=True)
    assert len(dispatched) == 21
    dispatched.clear()
    trainer.fit(state, phase, epochs=20, hooks=hooks.every(10, scale(1.0)), overlap=True)
    assert len(dispatched) == 21  # after epoch 10; after 20 there is none


def test_the_forecast_waits_twice_as_long_after_each_miss():
    forecast, waits = Forecast(), []
    for _ in range(6):
        forecast.learn(changed=True, tried=True)
        quiet = 0
        while not forecast.expects_no_change():
            forecast.learn(changed=False, tried=False)
            quiet += 1
        waits.append(quiet)
    assert waits == [1, 2, 4, 8, 16, 16]
    for _ in range(5):
        forecast.learn(changed=False, tried=True)
    forecast.learn(changed=True, tried=True)
    assert not forecast.expects_no_change()
    forecast.learn(changed=False, tried=False)
    assert forecast.expects_no_change()


def test_an_error_of_the_data_is_raised_in_its_turn(start, task, digits, tmp_path):
    batches = make_streams(task, digits)["a pass an epoch"].batches

    def failing(seed, epoch):
        if epoch == 3:
            raise OSError("the disk is gone")
        return batches(seed, epoch)

    phase = trainer.training(task.step, data.Stream(failing, superbatch=2))
    seen = []

    def look(state, metrics):
        seen.append(int(state.epoch))
        return state

    chain = [look, hooks.save_checkpoints(tmp_path, max_cost=None)]
    with pytest.raises(OSError, match="the disk is gone") as caught:
        trainer.fit(start, phase, epochs=5, hooks=chain, overlap=True)
    assert "in phase 'train' of epoch 4" in caught.value.__notes__
    assert seen == [1, 2, 3]
    assert trainer.Checkpoints(tmp_path, read_only=True).latest() == 3


def test_a_stopped_run_returns_the_state_of_its_last_epoch_and_resumes(start, train, val, tmp_path):
    def make(folder):
        return [
            hooks.evaluate(val),
            hooks.average_params(0.5),
            hooks.save_checkpoints(tmp_path / folder, max_cost=None),
        ]

    whole, _ = trainer.fit(start, train, epochs=5, hooks=make("whole"))

    def interrupt(state, metrics):
        if state.epoch == 2:
            raise trainer.Interrupt
        return state

    part, _ = trainer.fit(start, train, epochs=5, hooks=[interrupt, *make("parts")], overlap=True)
    assert int(part.epoch) == 2
    resumed, _ = trainer.fit(start, train, epochs=5, hooks=make("parts"), overlap=True)
    assert fingerprint(resumed) == fingerprint(whole)


def test_a_complete_run_has_nothing_to_overlap(state, phase):
    done, _ = trainer.fit(state, phase, epochs=2)
    again, history = trainer.fit(done, phase, epochs=2, overlap=True)
    assert (fingerprint(again), history) == (fingerprint(done), [])


def test_two_states_are_in_memory_at_most(task):
    width = 12_347  # no other array has this size
    arrays = {"inputs": np.ones((8, width), np.float32), "labels": np.zeros(8, np.int32)}
    task = trainer.supervised(models.mlp(hidden=(2,)), losses.classification, optax.sgd(0.1))
    source = data.Arrays(arrays, batch_size=4)
    start = task.init(jax.random.key(0), source.example)
    during, before = [], []

    def count(counts):
        gc.collect()
        counts.append(sum(array.shape == (width, 2) for array in jax.live_arrays()))

    def look(state, metrics):
        count(during)
        return state

    hook = trainer.Hook(look, "look", prepare=lambda state: count(before))
    trainer.fit(start, trainer.training(task.step, source), epochs=5, hooks=hook, overlap=True)
    given = 1
    assert before == [given + 1] * 4
    assert during == [given + 2] * 5


def test_times_are_from_the_landing_of_one_epoch_to_that_of_the_next(state, phase):
    def wait(state, metrics):
        time.sleep(0.05)
        return state

    _, history = trainer.fit(state, phase, epochs=4, hooks=wait, overlap=True)
    assert history[0]["time/epoch_seconds"] < 0.05
    assert all(epoch["time/epoch_seconds"] >= 0.05 for epoch in history[1:])


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("effects", "'train' waits for the hooks of the epoch before it, since it has effects"),
        ("single steps", "'train' waits .* its single steps fill the device's queue"),
        ("data", "'train' waits .* its data cannot be read early, discarded, and read again"),
        ("hooks", "'update' waits .* hooks run before it: look"),
    ],
)
def test_what_cannot_overlap_is_said(start, task, digits, state, caplog, what, reason):
    def shout(state, data):
        jax.debug.callback(lambda: None)
        return state, None, {}

    def look(state, metrics):
        return state

    chain, begin = [hooks.on("epoch", look)], state
    if what == "effects":
        program = [Phase("train", shout)]
    elif what == "hooks":
        chain = [hooks.on("train", look)]
        program = [Phase(name, lambda s, d: (s, jnp.ones(()), {})) for name in ("train", "update")]
    else:
        iterable = make_streams(task, digits)["an iterable"]
        kinds = {"single steps": (digits[0], "step"), "data": (iterable, "auto")}
        source, executor = kinds[what]
        program, begin = [trainer.training(task.step, source, executor=executor)], start
    trainer.fit(begin, program, epochs=2, hooks=chain, overlap=True)
    (notice,) = (r.getMessage() for r in caplog.records if "overlap=True" in r.getMessage())
    assert re.search(reason, notice)


def test_without_overlap_hooks_prepare_while_the_epoch_is_computed(state, phase):
    seen = []

    def look(state, metrics):
        seen.append(("run", int(state.epoch)))
        return state

    hook = trainer.Hook(
        look, "look", prepare=lambda state: seen.append(("prepare", int(state.epoch)))
    )
    waits = dataclasses.replace(hook, name="waits", prepare_waits=True, prepare=pytest.fail)
    trainer.fit(state, phase, epochs=2, hooks=[hook, waits])
    assert seen == [("prepare", 1), ("run", 1), ("run", 1), ("prepare", 2), ("run", 2), ("run", 2)]


def test_hooks_that_change_the_state_are_rarely_prepared_for(state, phase):
    prepared = []

    def double(state, metrics):
        return state.replace(params=jax.tree.map(lambda leaf: 2 * leaf, state.params))

    hook = trainer.Hook(
        lambda state, metrics: state, "look", prepare=lambda state: prepared.append(state)
    )
    trainer.fit(state, phase, epochs=20, hooks=[double, hook])
    assert len(prepared) == 1


@pytest.mark.parametrize("change", [False, True])
def test_an_evaluation_that_was_prepared_measures_what_hooks_before_it_left(task, digits, change):
    """The law: nothing but time depends on when it was sent."""
    train, val = digits
    start = task.init(jax.random.key(0), train.example)
    evaluate = hooks.evaluate(trainer.evaluation(task.measure, val))
    assert not evaluate.prepare_waits

    def double(state, metrics):
        if not change:
            return state
        return state.replace(params=jax.tree.map(lambda leaf: 2 * leaf, state.params))

    histories = []
    for hook in (evaluate, dataclasses.replace(evaluate, prepare=None)):
        _, history = trainer.fit(
            start, trainer.training(task.step, train), epochs=3, hooks=[double, hook]
        )
        histories.append(without_times(history))
    assert histories[0] == histories[1]
    assert "val/loss" in histories[0][0]
