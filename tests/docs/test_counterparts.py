"""Every row of docs/tutorials/counterparts.md, run: a row is named by its cells but the last."""

from __future__ import annotations

import inspect
import json
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import models
import trainer
from hooks.testing import check_hook
from trainer import data, losses, measures, rl
from trainer.loop.lockstep import Lockstep
from trainer.phases.metrics import Metrics
from trainer.rl.environments import Box, Discrete, Environment, TimeStep
from trainer.rl.policy_evaluation import evaluation_of
from trainer.supervised import optimizers

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PAGE = (Path(__file__).parents[2] / "docs" / "tutorials" / "counterparts.md").read_text()
TESTS = {}


def table_rows():
    """Return the last cell of each row of all tables, by the other cells."""
    found = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        cells = [cell.strip("| ") for cell in cells]
        if line.startswith("|") and not line.startswith("|--") and cells[-1] != "here":
            name = " / ".join(cell for cell in cells[:-1] if cell)
            assert name not in found, f"two rows are named {name}"
            found[name] = cells[-1]
    return found


ROWS = table_rows()


def row(name):
    """Declare a test to be of a row."""

    def declare(test):
        assert name not in TESTS, f"two tests are of {name}"
        TESTS[name] = test
        return test

    return declare


def test_every_row_has_its_test_and_every_test_its_row():
    assert ROWS
    assert TESTS.keys() == ROWS.keys()


@pytest.mark.parametrize("name", list(ROWS))
def test_what_a_row_says_is_in_its_test(name):
    """Calls, attributes and strings in code; other words of code are placeholders."""
    source = inspect.getsource(TESTS[name])
    for code in re.findall(r"`([^`]+)`", ROWS[name]):
        said = re.findall(r"""\w+\(|\w+(?:\.\w+)+|"[^"]+\"""", code)
        for part in said:
            assert part in source, f"{part} is not run by the test of {name}"


def shrink(state, data):
    """Halve the parameters in three steps' time."""
    size = jnp.abs(state.params["w"]).sum()
    params = jax.tree.map(lambda w: w / 2, state.params)
    trace = size * jnp.array([1.0, 0.75, 0.5])
    return state.replace(params=params, step=state.step + 3), None, {"loss": trace}


def measure(state, data):
    size = jnp.abs(state.params["w"]).sum()
    return state, None, {"loss": size, "accuracy": 1 / (1 + size)}


def play(state, data):
    """A rollout: what was gone through is handed on."""
    experience = {"reward": jnp.arange(4.0) * state.carry["bonus"]}
    return state, experience, {"return": experience["reward"].sum()}


def learn(state, experience):
    params = jax.tree.map(lambda w: w + experience["reward"].mean(), state.params)
    trace = jnp.array([2.0, 1.0])
    return state.replace(params=params, step=state.step + 2), None, {"loss": trace}


TRAIN, VAL = trainer.Phase("train", shrink), trainer.Phase("val", measure, updates_state=False)
ROLLOUT, UPDATE = trainer.Phase("rollout", play), trainer.Phase("update", learn)
"""Compiled once for all rows."""


@pytest.fixture
def agent(state):
    return state.replace(carry={"bonus": jnp.float32(1)})


def fit(state, hooks=(), epochs=2, program=TRAIN):
    return trainer.fit(state, program, epochs=epochs, hooks=hooks)


class Notes:
    """A hook that notes the epochs and metrics that it is called with."""

    def __init__(self, *keys):
        self.keys, self.epochs, self.seen = keys, [], []

    def __call__(self, state, metrics):
        self.epochs.append(int(state.epoch))
        self.seen.append(tuple(metrics[key] for key in self.keys))
        return state


class Printer:
    """A writer: three methods."""

    def __init__(self):
        self.written = []

    def write(self, step, values):
        self.written.append((step, values.get("train/loss")))

    def flush(self): ...

    def close(self): ...


# From callback classes


@row("`on_train_begin` / `on_train_start` / `on_train_begin`")
def test_train_begins(state):
    notes = Notes()
    fit(state, hooks.on("start", notes))
    assert notes.epochs == [0]


@row("`on_epoch_begin` / `on_train_epoch_start` / `on_epoch_begin`")
def test_an_epoch_begins(state):
    def grow(state, metrics):
        return state.replace(params={**state.params, "w": 2 * state.params["w"]})

    _, history = fit(state, hooks.chain(hooks.on("start", grow), grow), epochs=3)
    assert [epoch["train/loss"] for epoch in history] == [4.5, 4.5, 4.5]  # 0.75 of 6, each time


@row("`on_train_batch_end` / `on_train_batch_end` / `on_step_end`")
def test_a_batch_ends(state):
    seen = []

    def look(state, metrics):
        seen.append(metrics.steps["train/loss"].tolist())
        return state

    fit(state, look)
    assert seen == [[3.0, 2.25, 1.5], [1.5, 1.125, 0.75]]


@row("`on_before_optimizer_step` / `on_pre_optimizer_step`")
def test_before_the_optimizer_steps(linear, digits):
    at_most = optax.chain(optax.clip(1e-3), optax.sgd(1.0))
    task = trainer.supervised(linear, losses.classification, at_most)
    start = task.init(jax.random.key(0), digits[0].example)
    after, _ = jax.jit(task.step)(start, digits[0].example)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), after.params, start.params)
    assert moved["w"] == pytest.approx(1e-3, rel=1e-3)


@row("`on_epoch_end` / `on_train_epoch_end` / `on_epoch_end`")
def test_an_epoch_ends(state):
    notes = Notes("train/loss")
    fit(state, notes)
    assert (notes.epochs, notes.seen) == ([1, 2], [(2.25,), (1.125,)])


@row("`on_test_end` / `on_validation_epoch_end` / `on_evaluate`")
def test_a_validation_ends(state):
    notes, phase = Notes("val/loss"), VAL
    after = hooks.every(2, hooks.evaluate(phase)), hooks.reads("val/loss")(notes)
    fit(state, after, epochs=4)
    assert notes.epochs == [2, 4]
    with pytest.raises(ValueError, match="reads 'val/loss', which nothing writes before it"):
        fit(state, hooks.reads("val/loss")(notes))


@row("`on_train_end` / `on_train_end` / `on_train_end`")
def test_train_ends(state):
    notes = Notes("train/loss")
    fit(state, hooks.on("end", notes))
    assert (notes.epochs, notes.seen) == ([2], [(1.125,)])


@row("`on_exception`")
def test_an_exception(state):
    notes = Notes()

    def fail(state, metrics):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fit(state, [fail, hooks.on("error", notes)])
    assert notes.epochs == [1]


@row("`on_save_checkpoint`")
def test_what_is_saved(state, tmp_path):
    def zero(state, metrics):
        return state.replace(params=jax.tree.map(jnp.zeros_like, state.params))

    fit(state, [hooks.save_checkpoints(tmp_path, max_cost=None), zero])
    saved = trainer.restore(tmp_path, state)
    assert saved.params["w"].tolist() == [0, 0]


@row(
    "`model.stop_training = True` / `trainer.should_stop = True` / "
    "`control.should_training_stop = True`"
)
def test_stopping(state):
    def stop(state, metrics):
        return state.replace(stop=metrics["train/loss"] < 2)

    ended, history = fit(state, stop, epochs=9)
    assert (len(history), ended.stop) == (2, True)


@row("`model.set_weights(...)` / `pl_module.load_state_dict(...)`")
def test_setting_weights(state):
    given = {"w": np.float32([7, 8]), "b": np.float32(0)}  # arrays of jax it would have to copy
    ended, _ = fit(state, lambda state, metrics: state.replace(params=given))
    assert ended.params["w"].tolist() == [7, 8]
    assert state.params["w"].tolist() == [1, -2]


@row('`logs["val_loss"]` / `trainer.callback_metrics["val_loss"]` / `metrics["eval_loss"]`')
def test_reading_a_metric(state):
    seen = []

    def look(state, metrics):
        seen.append(metrics["val/loss"])
        return state

    fit(state, [hooks.evaluate(VAL), look])
    assert seen == [1.5, 0.75]


def counting():
    """Count the epochs, and score the count."""

    def update(count, state, metrics):
        return count + 1, state.replace(scores={**state.scores, "count": float(count + 1)})

    return hooks.writes("count")(hooks.stateful("count", lambda state: 0, update))


@row("attributes of the callback / `state_dict`, `load_state_dict` / `ExportableState`")
def test_remembering(state, tmp_path):
    def count(count, state, metrics):
        return count + 1, state

    def saving():
        return hooks.save_checkpoints(tmp_path, max_cost=None)

    fit(state, [hooks.stateful("count", lambda state: 0, count), saving()], epochs=2)
    ended, _ = fit(state, [hooks.stateful("count", lambda state: 0, count), saving()], epochs=3)
    assert ended.hook_state["count"] == 3


@row(
    '`fit(initial_epoch=...)` / `fit(ckpt_path="last")` / `train(resume_from_checkpoint=True)`',
)
def test_going_on(state, tmp_path):
    runs = [
        fit(state, hooks.save_checkpoints(tmp_path, max_cost=None), epochs=epochs)
        for epochs in (2, 5, 5)
    ]
    assert [len(history) for _, history in runs] == [2, 3, 1]  # a complete run returns its records
    whole, _ = fit(state, epochs=5)
    assert trainer.fingerprint(runs[-1][0]) == trainer.fingerprint(whole)


@row("`LambdaCallback` / `LambdaCallback`")
def test_a_lambda(state):
    ended, _ = fit(state, lambda state, metrics: state.replace(stop=True))
    assert int(ended.epoch) == 1


@row("`ModelCheckpoint`, `BackupAndRestore` / `ModelCheckpoint` / `save_total_limit`")
def test_checkpoints(state, tmp_path):
    worse = (
        hooks.evaluate(VAL),
        lambda state, metrics: state.replace(
            scores={**state.scores, "val/accuracy": 1.0 / int(state.epoch)}
        ),
    )
    saving = hooks.save_checkpoints(
        tmp_path, keep=3, best="val/accuracy", mode="max", max_cost=None
    )
    fit(state, [*worse, saving], epochs=6)
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert kept == [1, 4, 5, 6]


def with_losses(*values):
    """A hook that scores these losses, one an epoch."""

    def score(state, metrics):
        loss = values[int(state.epoch) - 1]
        return state.replace(scores={**state.scores, "val/loss": loss})

    return hooks.writes("val/loss")(score)


@row("`EarlyStopping` / `EarlyStopping` / `EarlyStoppingCallback`")
def test_stopping_early(state):
    losses_seen = with_losses(3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0)
    ended, _ = fit(state, [losses_seen, hooks.stop_early("val/loss", patience=3)], epochs=7)
    assert int(ended.epoch) == 5


@row(
    "`EarlyStopping(restore_best_weights=True)` / `ModelCheckpoint.best_model_path` / "
    "`load_best_model_at_end`"
)
def test_keeping_the_best(state):
    ended, _ = fit(state, [with_losses(3.0, 1.0, 2.0), hooks.keep_best("val/loss")], epochs=3)
    assert ended.params["w"].tolist() == [0.25, -0.5]  # of epoch 2


def rate(state):
    return float(optax.tree.get(state.opt_state, "learning_rate"))


@row("`ReduceLROnPlateau`")
def test_reducing_the_rate(state):
    plateau = with_losses(1.0, 2.0, 2.0, 2.0)
    ended, _ = fit(
        state, [plateau, hooks.reduce_on_plateau("val/loss", factor=0.5, patience=3)], epochs=4
    )
    assert rate(ended) == pytest.approx(0.05)


@row("`LearningRateScheduler` / `lr_scheduler_type`")
def test_scheduling_the_rate(state):
    schedule = optax.piecewise_constant_schedule(0.8, {2: 0.5})
    ended, _ = fit(state, hooks.set_hyperparams(learning_rate=schedule), epochs=3)
    assert rate(ended) == pytest.approx(0.4)


@row("`TerminateOnNaN` / `EarlyStopping(check_finite=True)`")
def test_nan(state):
    def spoil(state, metrics):
        w = state.params["w"] * jnp.where(state.epoch == 2, jnp.nan, 1)
        return state.replace(params={**state.params, "w": w})

    ended, history = fit(state, [hooks.stop_on_nan(), spoil], epochs=6)
    assert (len(history), ended.stop) == (3, True)
    went_on, history = fit(state, [spoil, hooks.roll_back_on_nan()], epochs=6)
    assert len(history) == 6
    assert jnp.isfinite(went_on.params["w"]).all()


@row("`SwapEMAWeights` / `StochasticWeightAveraging`")
def test_averaging(state, linear, digits):
    phase, batch = VAL, digits[0].example
    averaged = [
        hooks.average_params(0.9),
        hooks.swa(start=2),
        hooks.evaluate(phase, params="swa"),
    ]
    ended, history = fit(state, averaged, epochs=3)
    assert history[-1]["val/loss"] == pytest.approx((0.75 + 0.375) / 2)
    assert "average_params" in ended.hook_state
    task = trainer.supervised(linear, losses.classification, optax.sgd(0.1), average=0.999)
    after, _ = jax.jit(task.step)(task.init(jax.random.key(0), batch), batch)
    assert int(after.carry["average"]["updates"]) == 1


@row("`CSVLogger`, `TensorBoard` / `Trainer(logger=...)` / `report_to`")
def test_logging(state, tmp_path):
    path = tmp_path / "metrics.jsonl"
    fit(state, hooks.log_metrics(hooks.JsonLines(path), hooks.TensorBoard(tmp_path)))
    assert len(path.read_text().splitlines()) == 2
    assert list(tmp_path.glob("events.*"))


@row("`fit(verbose=1)` / `RichProgressBar` / `ProgressCallback`")
def test_progress(state, capsys):
    fit(state, hooks.log_metrics(hooks.Console()))
    assert "epoch 2/2" in capsys.readouterr().out


@row("`fit(validation_freq=5)` / `Trainer(check_val_every_n_epoch=5)` / `eval_steps`")
def test_evaluating_now_and_then(state):
    phase, hook = VAL, Notes()
    often = hooks.every(5, hooks.evaluate(phase)), hooks.every_steps(7, hook)
    _, history = fit(state, often, epochs=10)
    assert [n for n, epoch in enumerate(history, 1) if "val/loss" in epoch] == [5, 10]
    assert hook.epochs == [3, 5, 7, 10]  # steps 9, 15, 21, 30


@row("`Timer`")
def test_a_time_limit(state):
    ended, history = fit(state, hooks.time_limit(1e-6), epochs=9)
    assert len(history) < 9
    assert not ended.stop


@row("`DeviceStatsMonitor`")
def test_watching_the_machine(state):
    _, history = fit(state, [hooks.watch_system(), hooks.log_metrics(Printer())])
    assert history[-1]["system/host_memory_gb"] > 0


@row("`LearningRateFinder`")
def test_finding_a_rate(linear, digits):
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=1e-3)
    task, source = trainer.supervised(linear, losses.classification, optimizer), digits[0]
    state = task.init(jax.random.key(0), source.example)
    found = trainer.find_learning_rate(task.step, state, source, steps=30)
    assert 1e-7 < found.valley < 10


@row("`BackboneFinetuning`")
def test_unfreezing(state):
    optimizer = optax.multi_transform(
        {"body": optimizers.frozen(optax.sgd(1.0)), "head": optax.sgd(1.0)},
        {"w": "body", "b": "head"},
    )
    state = state.replace(opt_state=optimizer.init(state.params), epoch=jnp.int32(1))
    hook = hooks.unfreeze_at(3, "body")
    moved = []
    for epoch in (1, 2):
        state = hook(state.replace(epoch=jnp.int32(epoch)), {})
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, state.params), state.opt_state)
        moved.append(updates["w"].tolist())
    assert moved == [[0, 0], [-1, -1]]


# From hooks with a context and a manager


@row("`Hook.should_run(context)`")
def test_whether_it_runs(state):
    hook = Notes()
    fit(state, hooks.when(lambda state, metrics: metrics["train/loss"] < 2, hook), epochs=3)
    assert hook.epochs == [2, 3]


@row("`Hook.run(context)`")
def test_running_it(state):
    hook = Notes("train/loss")
    assert hook(state, {"train/loss": 0.5}) is state
    assert hook.seen == [(0.5,)]


@row("a `HookContext` that hooks change")
def test_changing_what_is_shared(state):
    def hook(state, metrics):
        w = 2 * state.params["w"]
        scores = {**state.scores, "gap": 0.5}
        return state.replace(params={**state.params, "w": w}, scores=scores)

    later = Notes("gap")
    ended, _ = fit(state, [hooks.writes("gap")(hook), later])
    assert ended.params["w"].tolist() == [1, -2]
    assert later.seen == [(0.5,), (0.5,)]


@row("`PeriodicHook(frequency, start_step)`, by epochs")
def test_a_period_in_epochs(state):
    hook = Notes()
    fit(state, hooks.every(10, hook, start=30), epochs=50)
    assert hook.epochs == [30, 40, 50]


@row("`PeriodicHook(frequency, start_step)`, by steps")
def test_a_period_in_steps(state):
    hook = Notes()
    fit(state, hooks.every_steps(10, hook), epochs=10)
    assert hook.epochs == [4, 7, 10]  # steps 12, 21, 30


@row("`CompositeHook([first, second])`")
def test_a_composite(state):
    order = []
    first, second = (
        lambda state, metrics, name=name: (order.append(name), state)[1] for name in "ab"
    )
    fit(state, hooks.chain(first, second))
    assert order == ["a", "b"] * 2


@row("`HookManager.register(hook)` at run time")
def test_registering(state):
    traced = []

    def run(state, data):
        traced.append(1)
        return shrink(state, data)

    phase, hook = trainer.Phase("train", run), Notes()
    part, _ = fit(state, hooks.chain(), epochs=2, program=phase)
    before = len(traced)
    fit(part, hooks.chain(hook), epochs=4, program=phase)
    assert hook.epochs == [3, 4]
    assert len(traced) == before


@row("`HookManager.unregister(name)`, `clear()`")
def test_unregistering(state):
    hook = Notes()
    part, _ = fit(state, hooks.chain(hook), epochs=2)
    fit(part, hooks.chain(), epochs=4)
    assert hook.epochs == [1, 2]
    assert hooks.chain()(state, {}) is state


@row("priorities")
def test_priorities(state):
    order = []

    def hook(state, metrics):
        order.append("look")
        return state

    def decide(state, metrics):
        order.append("decide")
        return state

    fit(state, [hooks.observe(hook), decide], epochs=1)
    assert order == ["decide", "look"]


@row("one random key for all hooks")
def test_keys(state):
    assert state.key("hook/shake") == state.key("hook/shake")
    assert state.key("hook/shake") != state.key("hook/drop")
    assert state.key("hook/shake") != state.replace(epoch=state.epoch + 1).key("hook/shake")


@row("attributes that hooks count in")
def test_counting(state):
    hook = hooks.stateful("count", lambda state: 0, lambda n, state, metrics: (n + 1, state))
    ended, _ = fit(state, hook, epochs=3)
    assert ended.hook_state == {"count": 3}


@row("`EvaluationHook(n_examples)`: a quick one often, a full one rarely")
def test_quick_and_full(state):
    quick = trainer.Phase("quick", measure, updates_state=False)
    full = trainer.Phase("full", measure, updates_state=False)
    often = hooks.every(2, hooks.evaluate(quick)), hooks.every(4, hooks.evaluate(full))
    _, history = fit(state, often, epochs=4)
    assert ["quick/loss" in epoch for epoch in history] == [False, True, False, True]
    assert ["full/loss" in epoch for epoch in history] == [False, False, False, True]


def reset(key, params):
    return jnp.int32(0), jnp.zeros(1)


def step(key, state, action, params):
    state = state + 1
    seen = state.astype(jnp.float32)[None]
    return TimeStep(state, seen, jnp.float32(2), jnp.bool_(False), state >= params)


def policy(params, model_state, x, *, key, train):
    return {"logits": x * params["w"], "value": x[:, 0]}, model_state


ENV = Environment("steps", reset, step, Box((1,)), Discrete(2), jnp.int32(3))
NETWORK = SimpleNamespace(init=lambda key, x: ({"w": jnp.zeros(2)}, {}), apply=policy)


@row("`EvaluationHook(evaluate_all_lessons=True)`")
def test_all_lessons(state):
    env = trainer.rl.lessons(ENV, {"short": jnp.int32(3), "long": jnp.int32(5)})
    phase = evaluation_of(NETWORK, env, lessons=None, episodes=2)
    scores = hooks.evaluate(phase)(state, {}).scores
    assert (scores["val/return/short"], scores["val/return/long"]) == (6, 10)


@row("`LoggingHook`, `MetricsHook`")
def test_a_writer(state):
    writer = Printer()
    fit(state, hooks.log_metrics(writer))
    assert writer.written == [(3, 2.25), (6, 1.125)]


@row("`CheckpointHook`")
def test_a_checkpoint(state, tmp_path):
    ended, _ = fit(state, hooks.save_checkpoints(tmp_path))
    saved = trainer.restore(tmp_path, state)
    assert trainer.fingerprint(saved) == trainer.fingerprint(ended)


@row("asynchronous hooks")
def test_in_the_background(state):
    hook = hooks.observe(Notes())
    notes = hook.function
    fit(state, hooks.background(hook), epochs=3)
    assert notes.epochs == [1, 2, 3]


@row("a hook that depends on another")
def test_dependencies(state):
    hook = hooks.reads("gap")(Notes("gap"))
    gap = hooks.writes("gap")(lambda state, metrics: state.replace(scores={"gap": 1.0}))
    with pytest.raises(ValueError, match="reads 'gap', which nothing writes before it"):
        fit(state, [hook, gap])
    fit(state, [gap, hook])
    assert hook.function.seen == [(1.0,), (1.0,)]


@row("errors that are logged and ignored")
def test_guarding(state, caplog):
    tried = []

    def hook(state, metrics):
        tried.append(1)
        raise OSError("no answer")

    fit(state, hooks.guard(hook, retries=1))
    assert len(tried) == 4
    assert "no answer" in caplog.text
    with pytest.raises(OSError, match="no answer"):
        fit(state, hook)


@row("hooks chosen in a file")
def test_from_a_file(state):
    spec = [{"stop_early": {"metric": "train/loss", "patience": 2}}, "stop_on_nan"]
    chosen = hooks.from_config(spec)
    assert [part.name for part in chosen.parts] == ["stop_early/train/loss", "stop_on_nan"]


@row("timing of hooks")
def test_timing(state):
    seen = []

    def look(state, metrics):
        seen.append(metrics.get("time/hook/stop_early/val/loss"))
        return state

    fit(state, [hooks.evaluate(VAL), hooks.stop_early("val/loss", patience=2), look])
    assert seen[-1] > 0


@row("a patched trainer in a test")
def test_calling_a_hook(state):
    hook, metrics = hooks.stop_early("val/loss", patience=1), {"val/loss": 1.0}
    assert not hook(state, metrics).stop
    check_hook(hook, state, metrics)


@row("worker processes beside the trainer")
def test_a_worker(agent, tmp_path):
    directory = tmp_path / "run"
    trained, _ = fit(agent, hooks.save_checkpoints(directory), epochs=3, program=(ROLLOUT, UPDATE))
    worker, history = fit(agent, hooks.follow_checkpoints(directory), program=ROLLOUT, epochs=1)
    np.testing.assert_array_equal(worker.params["w"], trained.params["w"])
    assert history[0]["rollout/return"] == 6


# From trainers with rollouts


@row("`on_new_training_run`")
def test_a_new_run(state):
    fresh = []

    def hook(state, metrics):
        fresh.append(int(state.epoch) == 0)
        return state

    part, _ = fit(state, hooks.on("start", hook))
    fit(part, hooks.on("start", hook), epochs=3)
    assert fresh == [True, False]
    assert state.epoch == 0


@row("`on_rollout_start`")
def test_a_rollout_starts(agent):
    def hook(state, metrics):
        return state.replace(carry={"bonus": 2 * state.carry["bonus"]})

    _, history = fit(agent, hook, epochs=3, program=(ROLLOUT, UPDATE))
    assert [epoch["rollout/return"] for epoch in history] == [6, 12, 24]


@row("`on_rollout_end`")
def test_a_rollout_ends(agent):
    seen = []

    def hook(state, metrics):
        seen.append((metrics.output["reward"].tolist(), "update/loss" in metrics))
        return state

    fit(agent, hooks.on("rollout", hook), epochs=1, program=(ROLLOUT, UPDATE))
    assert seen == [([0, 1, 2, 3], False)]


@row("`on_mb_end`")
def test_a_minibatch_ends(agent):
    seen = []

    def hook(state, metrics):
        seen.append(metrics.steps["update/loss"].tolist())
        return state

    fit(agent, hooks.on("update", hook), program=(ROLLOUT, UPDATE))
    assert seen == [[2, 1], [2, 1]]


@row("`on_train_phase_end`")
def test_a_train_phase_ends(agent):
    hook = Notes("update/loss", "rollout/return")
    fit(agent, hooks.on("update", hook), program=(ROLLOUT, UPDATE))
    assert (hook.epochs, hook.seen[0]) == ([0, 1], (1.5, 6.0))  # within the epoch


@row("`on_epoch_end`")
def test_an_epoch_of_two_phases_ends(agent):
    hook = Notes("update/loss", "rollout/return")
    fit(agent, hook, program=(ROLLOUT, UPDATE))
    assert (hook.epochs, hook.seen[0]) == ([1, 2], (1.5, 6.0))


@row("`on_training_end`")
def test_training_ends(agent):
    hook = Notes()
    fit(agent, hooks.on("end", hook), program=(ROLLOUT, UPDATE))
    assert hook.epochs == [2]


@row("an attribute of the trainer that each hook reads and writes")
def test_the_state_is_what_is_shared(agent):
    state = trainer.TrainState.create(params={}, rng=jax.random.key(0))
    assert (state.params, state.carry, state.scores, state.hook_state) == ({}, {}, {}, {})
    ended, _ = fit(agent, counting(), program=(ROLLOUT, UPDATE))
    assert (ended.hook_state, ended.scores) == ({"count": 2}, {})


@row("a curriculum's callback")
def test_a_curriculum(state):
    lessons = ["easy", "hard"]
    strategy = hooks.thresholds({"easy": 0.8}, window=1, graduated_weight=1.0)
    state = state.replace(carry={"lessons": jnp.array([1.0, 0.0])})
    hook = hooks.adapt_curriculum(lessons, strategy)
    state = hook(state, {"rollout/return/easy": 0.9})
    assert state.carry["lessons"].tolist() == [0.5, 0.5]


@row("evaluation that adds to the metrics")
def test_evaluation_feeds_the_metrics(state):
    notes = Notes("val/return")
    fit(state, [hooks.evaluate(evaluation_of(NETWORK, ENV, episodes=2)), notes], epochs=1)
    assert notes.seen == [(6.0,)]


@row("stop at a reward")
def test_stopping_at_a_return(agent):
    hook = hooks.stop_at_return(475.0)
    assert not hook(agent, {"rollout/return": 474.0}).stop
    assert hook(agent, {"rollout/return": 475.0}).stop


@row("recording videos")
def test_recording(state, tmp_path):
    env, network = ENV, NETWORK
    hooks.record_replays(network, env, tmp_path)(state, {})
    assert rl.load_replay(tmp_path / "replays" / "0-0.json").episode_return == 6


@row("a loss with a coefficient that decays, set by a hook")
def test_a_coefficient_that_decays():
    def policy(outputs, batch):
        return {"loss": outputs}

    def teacher(outputs, batch):
        return {"loss": 10 * outputs}

    schedule = optax.linear_schedule(1.0, 0.0, transition_steps=2)
    loss = losses.total(policy, (teacher, schedule))
    at = [loss.at_step(jnp.int32(n), jnp.ones(1), {})["loss"].item() for n in range(3)]
    assert at == [11, 6, 1]


@row("hooks that run on rank 0 only")
def test_on_the_lead_alone(state, monkeypatch):
    # Real processes: tests/reliability/test_two_processes.py
    for is_main in (True, False):
        monkeypatch.setattr("trainer.loop.lockstep.is_main_process", lambda on=is_main: on)
        view = Lockstep().prepare_view(hooks.observe(Notes()), state, Metrics(), {})
        assert (view is not None) == is_main


# From libraries for fine-tuning


@pytest.fixture(scope="module")
def language():
    """A tiny Llama, and a tokenizer of words."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {
        word: number for number, word in enumerate(["?", "1", "2", "3", "+", "user:", "bot:", "."])
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    llama = models.Architecture(gated=True, activation="silu", embedding_scale=1.0)
    sizes = {"vocabulary": len(words), "context": 48, "layers": 1, "heads": 2, "width": 8}
    network = models.transformer(**sizes, architecture=llama)
    params, _ = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    return network, params, tokenizer


@row("`AutoModelForCausalLM.from_pretrained(directory)`")
@row("`save_pretrained(directory)`")
def test_weights_of_the_hub(language, tmp_path):
    network, params, _ = language
    directory = tmp_path / "weights"
    models.to_huggingface(network, params, directory)
    _, read = models.from_huggingface(directory)
    jax.tree.map(np.testing.assert_array_equal, read, params)


@row("`SFTTrainer`, with `packing` and `assistant_only_loss`")
def test_supervised_fine_tuning(language, tmp_path):
    network, params, tokenizer = language
    file = tmp_path / "chat.jsonl"
    lines = [{"prompt": "user: 1 + 1 bot:", "completion": " 2 ."}] * 12
    file.write_text("\n".join(map(json.dumps, lines)))
    source = data.chat(file, tokenizer, batch_size=2, length=48)
    assert source.size == 2  # rows of six conversations
    assert source.counts.trained == 12 * 2
    task = trainer.supervised(
        models.pretrained(network, params), losses.language_modeling, optax.adam(1e-2)
    )
    start = task.init(jax.random.key(0), source.example)
    _, history = trainer.fit(start, trainer.training(task.step, source), epochs=3)
    assert history[-1]["train/loss"] < history[0]["train/loss"]


@row("`get_peft_model(model, LoraConfig(r=2))`")
@row("`merge_and_unload()`")
def test_adapters(language):
    network, params, _ = language
    adapted = models.lora(network, params, rank=2)
    tokens = jnp.array([[1, 4, 2, 6]])
    adapters, model_state = adapted.init(jax.random.key(0), tokens)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    state = trainer.TrainState.create(
        params=adapters, model_state=model_state, rng=jax.random.key(0)
    )
    kept = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(state.params)}
    assert kept == {"lora_a", "lora_b"}
    merged = models.merge_lora(adapted, state.params, state.model_state)
    there, here = (
        jax.jit(
            lambda params, state, one=one: one.apply(params, state, tokens, key=None, train=False)[
                0
            ]
        )(*given)
        for one, given in ((adapted, (state.params, state.model_state)), (network, (merged, {})))
    )
    np.testing.assert_allclose(there, here, atol=1e-5)


@row("`DPOTrainer`, with `precompute_ref_log_probs`")
def test_preferences(language, tmp_path):
    network, params, tokenizer = language
    file = tmp_path / "pairs.jsonl"
    pair = {"prompt": "user: 1 + 1 bot:", "chosen": " 2 .", "rejected": " 3 ."}
    file.write_text("\n".join([json.dumps(pair)] * 2))
    pairs = data.preferences(file, tokenizer, batch_size=2, length=8)
    pairs = trainer.add_reference(pairs, network, params)
    task = trainer.supervised(
        models.pretrained(network, params), losses.dpo(beta=0.1), optax.adam(1e-2)
    )
    start = task.init(jax.random.key(0), pairs.example)
    _, history = trainer.fit(start, trainer.training(task.step, pairs), epochs=2)
    assert history[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-5)  # the reference's own
    assert history[1]["train/accuracy"] == 1


@row("`GRPOTrainer(reward_funcs=...)`")
def test_rewards(language):
    network, _, tokenizer = language
    prompts, optimizer = ["user: 1 + 1 bot:", "user: 1 + 2 bot:"], optax.adam(1e-2)

    def reward(examples, tokens, lengths):
        return (tokens[:, 0] == 2).astype(jnp.float32)

    settings = rl.GRPOConfig(prompts=2, group_size=2, length=2)
    learner = rl.grpo(network, tokenizer, prompts, reward, optimizer, settings)
    _, history = trainer.fit(learner.init(jax.random.key(0)), learner.program, epochs=1)
    assert 0 <= history[0]["sample/reward"] <= 1
    assert [phase.name for phase in learner.program] == ["sample", "update"]


@row("`torch.utils.data.DataLoader`")
def test_loaders_of_torch():
    loader = SimpleNamespace(dataset=[], sampler=[], num_workers=0)
    assert isinstance(data.from_torch(loader), data.Stream)


class Table:
    """Columns, with the methods of a `datasets.Dataset` that are read."""

    column_names = ("image", "label")

    def __len__(self):
        return 64

    def __getitem__(self, indices):
        return {"image": np.zeros((len(indices), 2)), "label": indices}

    def with_format(self, kind, columns):
        assert (kind, columns) == ("numpy", ["image", "label"])
        return self


@row("`datasets.Dataset`")
def test_data_sets_of_the_hub():
    dataset = Table()
    source = data.from_datasets(dataset, {"inputs": "image", "labels": "label"}, batch_size=64)
    assert source.example["labels"].tolist() == list(range(64))


@row("`tf.data.Dataset`")
def test_data_sets_of_tensorflow():
    batches = [(np.ones((2, 3)), np.array([0, 1]))]
    dataset = SimpleNamespace(as_numpy_iterator=lambda: iter(batches))
    for source in (data.from_tf(dataset), data.from_tf(lambda seed, number: dataset)):
        assert source.example["labels"].tolist() == [0, 1]


@row("`grain.MapDataset`")
def test_data_sets_of_grain():
    grain = pytest.importorskip("grain")
    dataset = grain.MapDataset.range(8).map(lambda n: {"inputs": np.float32(n)})
    assert data.from_grain(dataset, batch_size=4).example["inputs"].shape == (4,)


@row("`pandas.DataFrame`")
def test_frames_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1, 2], "y": [3, 4], "kind": pandas.Categorical(["b", "a"])})
    source = data.from_pandas(frame, {"inputs": ["x", "y"], "labels": "kind"}, batch_size=2)
    assert source.example["labels"].tolist() == [1, 0]


@row("`torchvision.datasets.ImageFolder`")
def test_pictures_by_class(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        image.new("RGB", (3, 2)).save(tmp_path / name / "1.png")
    directory = tmp_path
    assert data.image_folder(directory, batch_size=2).classes == ("cat", "dog")


@row("`webdataset.WebDataset`")
def test_tar_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("1.cls", "1.npy", "2.cls", "2.npy"):
        with open(name, "wb") as file:
            np.save(file, np.ones(3)) if name.endswith("npy") else file.write(b"7")
    with tarfile.open("train-0.tar", "w") as tar:
        for name in ("1.cls", "1.npy", "2.cls", "2.npy"):
            tar.add(name)
    assert data.tar_shards("train-*.tar", batch_size=2).example["labels"].tolist() == [7, 7]


@row("`sklearn.metrics`, torchmetrics")
@row("`clu.metrics`, metrax")
def test_scores_of_a_whole_split(state):
    arrays = {"inputs": np.eye(2, dtype=np.float32)[[0, 1, 1]], "labels": np.array([0, 1, 0])}
    task = SimpleNamespace(outputs=lambda state, batch: batch["inputs"])

    def values(state, batch):
        return task.outputs(state, batch).argmax(1) == batch["labels"]

    def function(right):
        return right.sum() / 4

    @flax.struct.dataclass
    class Right:
        count: jax.Array

        def merge(self, other):
            return Right(self.count + other.count)

        def compute(self):
            return self.count

    def metrics(state, batch):
        return {"right": Right(values(state, batch).sum())}

    for several, expected in (
        ([measures.over_split(values, {"f1": function})], {"val/f1": 0.5}),
        ([measures.merged(metrics)], {"val/right": 2}),
        (
            [measures.f1(task.outputs), measures.auc(task.outputs)],
            {"val/f1": 2 / 3, "val/precision": 0.75, "val/recall": 0.75, "val/auc": 0.75},
        ),
    ):
        phase = trainer.evaluation(several, data.Arrays(arrays, 2))
        assert trainer.evaluate(state, phase) == pytest.approx(expected)
