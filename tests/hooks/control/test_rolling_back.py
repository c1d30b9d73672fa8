"""Rolling back when a run diverges."""

import logging
import math
import re
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hooks
import trainer
from hooks import testing
from hooks.control.rolling_back import compute_z_score
from trainer import Checkpoints, Metrics, TrainState, data, fingerprint
from trainer.loop.hook_states import init_hook_states
from trainer.state import DEVICE_FIELDS

pytestmark = pytest.mark.usefixtures("compiled_quickly")

NAN, SPIKE = "roll_back_on_nan", "roll_back_on_spike/train/loss/2"
FINE = {"train/loss": 1.0}


@pytest.fixture(autouse=True)
def _listening(caplog):
    caplog.set_level(logging.INFO, "entracte")


def with_hook_state(hook, state):
    """Return the state that a run starts with: with the first hook state."""
    return init_hook_states(trainer.hook.flatten_hooks(hook), state)


def rate(state):
    return float(state.opt_state.hyperparams["learning_rate"])


def spoil(state, field="params", leaf="w", value=jnp.nan):
    return state.replace(**{field: {**getattr(state, field), leaf: jnp.array([1.0, value])}})


def best_so_far(value):
    return (optax.EmptyState(), {"best": jnp.float32(value)})


# What is a spike.


@pytest.mark.parametrize(
    ("value", "window", "mode", "deviations"),
    [
        (7.0, [1.0, 3.0], "min", 5.0),
        (7.0, [1.0, 3.0], "max", -5.0),
        (-3.0, [1.0, 3.0], "max", 5.0),
        (9.0, [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0], "min", 2.0),  # mean 5, deviation 2
        (2.06, [2.0, 2.0], "min", 3.0),  # flat: the deviation counts as 0.02
        (-2.06, [-2.0, -2.0], "max", 3.0),
        (9.0, [np.nan, 3.0], "min", 0.0),
        (9.0, [0.0, 0.0], "min", 0.0),
        (1e308, [1e308, 1.7e308], "min", 0.0),  # the mean is beyond float64
    ],
)
def test_deviations_are_those_worked_by_hand(value, window, mode, deviations):
    assert compute_z_score(value, np.array(window), mode) == pytest.approx(deviations)


@pytest.mark.parametrize(
    ("losses", "rollbacks"),
    [
        ([1.0, 3.0, 6.9], []),
        ([1.0, 3.0, 7.1], [3]),  # mean 2, deviation 1
        ([1.0, 9e9], []),  # the window is not full
        ([1.0, 3.0, 7.1, 7.1], [3, 4]),  # values that were rolled back do not count
        ([1.0, 3.0, 2.0, 5.1], [4]),  # mean 2.5, deviation 0.5
        ([1.0, 3.0, 2.0, 4.9], []),
        ([3.0, 1.0, -50.0], []),
        ([1.0, math.nan, 3.0, math.inf, 8.1], [2, 4, 5]),
    ],
)
def test_a_spike_is_beyond_the_threshold_of_a_full_window(state, losses, rollbacks):
    hook = hooks.roll_back_on_spike("train/loss", window=2, threshold=5.0, max_rollbacks=9)
    state = with_hook_state(hook, state)
    for number, loss in enumerate(losses, 1):
        state = hook(state.replace(epoch=jnp.int32(number)), {"train/loss": loss})
    kept = state.hook_state[SPIKE]
    assert kept["epochs"][16 - kept["count"] :].tolist() == rollbacks


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.integers(2, 4))
def test_within_the_threshold_it_never_rolls_back(losses, window):
    hook = hooks.roll_back_on_spike("train/loss", window=window, threshold=3.0)
    state = with_hook_state(
        hook, TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    )
    good: list[float] = []
    name = f"roll_back_on_spike/train/loss/{window}"
    for loss in losses:
        before, last = state, np.array(good[-window:])
        state = hook(state, {"train/loss": loss})
        limit = 3.0 * max(last.std(), 0.01 * abs(last.mean())) if len(good) >= window else 0.0
        if limit == 0.0 or loss - last.mean() <= limit * (1 + 1e-9):
            assert state.hook_state[name]["count"] == before.hook_state[name]["count"] == 0
            assert all(getattr(state, f) is getattr(before, f) for f in DEVICE_FIELDS)
            good.append(loss)
        elif loss - last.mean() > limit * (1 - 1e-9):
            assert state.hook_state[name]["count"] == 1
            return


# What is not good.


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("named", [(), ("train/loss",), ("val/loss", "train/loss")])
def test_a_metric_that_is_not_finite_restores_the_good_state(state, wrong, named):
    hook = hooks.roll_back_on_nan(*named)
    state = hook(with_hook_state(hook, state), {"train/loss": 1.0, "val/loss": 1.0})
    later = state.replace(params={"w": jnp.zeros(2), "b": jnp.ones(())}, epoch=jnp.int32(1))
    after = hook(later, {"train/loss": wrong, "val/loss": 1.0})
    chex.assert_trees_all_equal(after.params, state.params)
    assert not after.stop


def test_metrics_that_are_not_named_are_not_checked(state):
    hook = hooks.roll_back_on_nan("train/loss")
    state = with_hook_state(hook, state)
    assert hook(state, {**FINE, "val/loss": math.nan}).params is state.params
    assert hook(state, {"val/loss": 1.0}) is state
    assert hook.reads == ("train/loss",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: spoil(s), "params/w is not finite"),
        (lambda s: spoil(s, value=jnp.inf), "params/w is not finite"),
        (lambda s: spoil(s, "model_state", "mean"), "model_state/mean is not finite"),
        (lambda s: s.replace(opt_state=best_so_far(jnp.nan)), "opt_state/1/best is not finite"),
        (lambda s: s.replace(opt_state=best_so_far(jnp.inf)), None),
        (lambda s: s.replace(carry={"scale": jnp.float32(jnp.inf)}), None),
    ],
)
@pytest.mark.parametrize(
    "hook", [hooks.roll_back_on_nan(), hooks.roll_back_on_spike("train/loss")], ids=["nan", "spike"]
)
def test_a_state_that_is_not_good_is_rolled_back(state, hook, change, said, caplog):
    first = state.replace(
        model_state={"mean": jnp.zeros(2), "seen": jnp.int32(3), "key": jax.random.key(1)},
        opt_state=best_so_far(jnp.inf),
        carry={"scale": jnp.float32(1)},
    )
    first = with_hook_state(hook, first)
    bad = change(first)
    after = hook(bad, FINE)
    if said is None:
        assert all(getattr(after, field) is getattr(bad, field) for field in DEVICE_FIELDS)
        assert not caplog.records
    else:
        for field in ("params", "opt_state", "model_state", "carry"):
            chex.assert_trees_all_equal(getattr(after, field), getattr(first, field))
        assert said in caplog.text


def test_the_good_state_is_that_of_the_last_good_event(state, caplog):
    hook = hooks.roll_back_on_nan()
    state = with_hook_state(hook, state)
    for epoch in (1, 2):
        params = {"w": jnp.full(2, epoch * 1.0), "b": jnp.zeros(())}
        state = hook(state.replace(params=params, epoch=jnp.int32(epoch)), FINE)
    after = hook(spoil(state).replace(epoch=jnp.int32(3), step=jnp.int32(30)), FINE)
    assert after.params["w"].tolist() == [2.0, 2.0]
    assert (int(after.epoch), int(after.step)) == (3, 30)
    assert after.hook_state[NAN]["epochs"].tolist() == [*[-1] * 15, 3]
    assert "rolled back at epoch 3 (1 of 3) to the state of epoch 2, learning rate 0.1" in (
        caplog.text
    )


def test_the_carry_is_restored_except_stream_positions(state):
    hook = hooks.roll_back_on_nan()
    state = with_hook_state(
        hook, state.replace(carry={"position/train": jnp.int32(1), "env": jnp.int32(1)})
    )
    assert state.hook_state[NAN]["good"]["carry"].keys() == {"env"}
    later = spoil(state).replace(carry={"position/train": jnp.int32(2), "env": jnp.int32(2)})
    assert hook(later, FINE).carry == {"position/train": 2, "env": 1}


def test_a_carry_may_be_any_pytree(state):
    hook = hooks.roll_back_on_nan()
    state = with_hook_state(hook, state.replace(carry=(jnp.int32(1),)))
    assert hook(spoil(state).replace(carry=(jnp.int32(2),)), FINE).carry == (1,)


# The learning rate, and the end.


@pytest.mark.parametrize("nested", [False, True])
def test_the_learning_rate_is_scaled_at_each_rollback(state, nested):
    hook = hooks.roll_back_on_nan(learning_rate_scale=0.5)
    if nested:
        state = state.replace(opt_state=optax.MaskedState({"all": (state.opt_state,)}))
    rate_of = lambda s: rate(s.replace(opt_state=s.opt_state[0]["all"][0]) if nested else s)  # noqa: E731
    state = with_hook_state(hook, state)
    rates = []
    for loss in (1.0, math.nan, math.nan, 1.0, math.nan, 1.0, math.nan):
        state = hook(state, {"train/loss": loss})
        rates.append(rate_of(state))
    assert rates == pytest.approx([0.1, 0.05, 0.025, 0.025, 0.0125, 0.0125, 0.0125])
    assert state.stop


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (optax.sgd(0.1), "without it"),
        (optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(1.0, 0.0, 9)), "a schedule"),
        (optax.inject_hyperparams(optax.clip)(1.0), "without it"),
    ],
)
def test_a_learning_rate_that_cannot_be_set_is_refused_before_training(
    state, phase, optimizer, said
):
    state = state.replace(opt_state=optimizer.init(state.params))
    trainer.fit(state, phase, epochs=1, hooks=hooks.roll_back_on_nan())
    scaling = hooks.roll_back_on_nan(learning_rate_scale=0.5)
    with pytest.raises(ValueError, match=f"inject_hyperparams.*{said}.*or leave"):
        trainer.fit(state, phase, epochs=1, hooks=scaling)


def test_a_run_that_starts_with_nan_is_refused(state, phase):
    with pytest.raises(ValueError, match="params/w is not finite: start with finite"):
        trainer.fit(spoil(state), phase, epochs=1, hooks=hooks.roll_back_on_nan())


def test_after_the_last_rollback_it_stops_with_the_good_state_and_a_report(state, caplog):
    hook = hooks.roll_back_on_nan("train/loss", max_rollbacks=2)
    state = with_hook_state(hook, state)
    steps = {"train/loss": np.array([1.0, math.nan]), "train/grad_norm": np.array([math.inf, 1.0])}
    for epoch in (4, 6, 7):
        assert not state.stop
        bad = spoil(state).replace(epoch=jnp.int32(epoch), step=jnp.int32(40))
        state = hook(bad, Metrics({"train/loss": math.nan}, steps=steps))
    assert state.stop
    chex.assert_tree_all_finite(state.params)
    assert state.hook_state[NAN]["count"] == 2
    (report,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    for part in (
        "stopping at epoch 7, back to the state of epoch 0, learning rate 0.1",
        "train/loss is nan, params/w is not finite",
        "first not finite: train/grad_norm at step 39",
        "rolled back 2 times before, last at epochs [4 6]",
        "Try a smaller learning rate",
    ):
        assert part in report


def test_a_long_list_of_faults_is_shortened(state, caplog):
    hook = hooks.roll_back_on_nan()
    state = with_hook_state(hook, state)
    hook(spoil(state), dict.fromkeys("abcd", math.nan))
    assert "a is nan, b is nan, c is nan and 2 more" in caplog.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_rollbacks": 0}, "max_rollbacks must be at least 1"),
        ({"learning_rate_scale": 0.0}, "in (0, 1)"),
        ({"learning_rate_scale": 1.0}, "in (0, 1)"),
        ({"window": 1}, "window must be at least 2"),
        ({"threshold": 0.0}, "threshold must be a positive"),
        ({"threshold": math.nan}, "threshold must be a positive"),
        ({"mode": "best"}, "'min' or 'max'"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        hooks.roll_back_on_spike("train/loss", **settings)
    assert said in str(error.value)
    if settings.keys() <= {"max_rollbacks", "learning_rate_scale"}:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            hooks.roll_back_on_nan(**settings)
        assert said in str(error.value)


# Real runs.

WRONG = (2, 4)
"""Epochs, counted from 0, in which training diverges."""


def step(state, batch):
    """Train on a batch; in the wrong epochs loss and parameters are nan."""
    wrong = (state.epoch == WRONG[0]) | (state.epoch == WRONG[1])
    seen = batch["inputs"][:, 0]
    params = {"w": state.params["w"] * 0.9 + 0.1 * seen.mean() + jnp.where(wrong, jnp.nan, 0.0)}
    after = state.replace(step=state.step + 1, params=params)
    return after, {"loss": jnp.where(wrong, jnp.nan, 1.0), "first": seen[0], "second": seen[1]}


def jump(state, batch):
    """Train on a batch; in the wrong epochs all is finite, but the loss jumps."""
    after, measured = step(state.replace(epoch=jnp.int32(0)), batch)
    wrong = (state.epoch == WRONG[0]) | (state.epoch == WRONG[1])
    params = jax.tree.map(lambda w: jnp.where(wrong, 1e6, w), after.params)
    measured["loss"] = jnp.where(wrong, 1e6, 1.0 + 0.01 * state.epoch)
    return after.replace(params=params, epoch=state.epoch), measured


EXAMPLES = {"inputs": np.arange(40, dtype=np.float32)[:, None]}


def make_batches(seed, number):
    order = np.random.default_rng((seed, number)).permutation(40)
    for place in range(0, 40, 2):
        yield {"inputs": EXAMPLES["inputs"][order[place : place + 2]]}


ARRAYS = trainer.training(step, data.Arrays(EXAMPLES, 2))
STREAM = trainer.training(step, data.Stream(make_batches, 2, steps_per_epoch=3))
JUMPS = trainer.training(jump, data.Stream(make_batches, 2, steps_per_epoch=3))


def make_state():
    params = {"w": jnp.zeros(())}
    opt_state = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5).init(params)
    return TrainState.create(params=params, opt_state=opt_state, rng=jax.random.key(0))


@pytest.mark.parametrize("phase", [ARRAYS, STREAM], ids=["arrays", "a stream"])
def test_a_run_rolls_back_and_continues_with_other_data(phase):
    states, orders = {}, []

    def note(state, metrics):
        states[int(state.epoch)] = (float(state.params["w"]), int(state.step))
        orders.append(metrics.steps["train/first"].tolist())
        return state

    chain = [hooks.roll_back_on_nan(learning_rate_scale=0.5), hooks.observe(note)]
    state, history = trainer.fit(make_state(), phase, epochs=6, hooks=chain)
    assert len(history) == 6
    assert not state.stop
    assert np.isfinite(float(state.params["w"]))
    assert (states[3][0], states[5][0]) == (states[2][0], states[4][0])
    assert states[4][0] != states[3][0]
    assert [steps for _, steps in states.values()] == [n * len(orders[0]) for n in range(1, 7)]
    assert len({tuple(order) for order in orders}) == 6
    assert rate(state) == pytest.approx(0.125)
    if phase is STREAM:
        assert len({first for order in orders for first in order}) == 18  # no batch comes twice


def test_law_8_the_phase_is_not_traced_again(state):
    traced = []

    def shrink(state, data):
        traced.append(state)
        wrong = jnp.where(state.epoch == 1, jnp.nan, 0.5)
        params = jax.tree.map(lambda w: w * wrong, state.params)
        return state.replace(params=params, step=state.step + 1), None, {"loss": wrong}

    phase = trainer.Phase("train", shrink)
    trainer.fit(state, phase, epochs=1)
    before = len(traced)
    chain = hooks.roll_back_on_nan(learning_rate_scale=0.5)
    state, _ = trainer.fit(state, phase, epochs=4, hooks=chain)
    assert state.hook_state[NAN]["count"] == 1
    assert len(traced) == before


def test_a_run_that_keeps_diverging_ends_with_a_finite_state(state, caplog):
    def nan(state, data):
        params = jax.tree.map(lambda w: w * jnp.nan, state.params)
        return (
            state.replace(params=params, step=state.step + 1),
            None,
            {"loss": jnp.float32(jnp.nan)},
        )

    chain = hooks.roll_back_on_nan("train/loss", max_rollbacks=2, learning_rate_scale=0.1)
    state, history = trainer.fit(state, trainer.Phase("train", nan), epochs=9, hooks=chain)
    assert state.stop
    assert len(history) == 3
    chex.assert_tree_all_finite(state.params)
    assert rate(state) == pytest.approx(0.001)
    assert "at epochs [1 2]" in caplog.text


# Law 5, with the good state in the hook state and in a directory.


def make_hook(kind, directory):
    settings = {"learning_rate_scale": 0.5, "directory": directory}
    if kind == "nan":
        return hooks.roll_back_on_nan("train/loss", **settings)
    return hooks.roll_back_on_spike("train/loss", window=2, **settings)


def saved_run(kind, directory, *, in_state, interrupt=None):
    """Train with checkpoints; if asked, interrupt at an epoch and resume."""

    def end_early(state, metrics):
        if int(state.epoch) == interrupt:
            raise trainer.Interrupt("enough")
        return state

    chain = [
        make_hook(kind, None if in_state else directory),
        hooks.save_checkpoints(directory, max_cost=None),
    ]
    phase = STREAM if kind == "nan" else JUMPS
    if interrupt:
        first, _ = trainer.fit(make_state(), phase, epochs=6, hooks=[end_early, *chain])
        assert int(first.epoch) == interrupt
    return trainer.fit(make_state(), phase, epochs=6, hooks=chain)[0]


@pytest.mark.parametrize("in_state", [True, False], ids=["hook state", "directory"])
@pytest.mark.parametrize("kind", ["nan", "spike"])
def test_law_5_interrupted_at_any_epoch_it_resumes_bit_for_bit(kind, in_state, tmp_path):
    straight = saved_run(kind, tmp_path / "straight", in_state=in_state)
    name = (NAN if kind == "nan" else SPIKE) + ("" if in_state else "/directory")
    assert straight.hook_state[name]["epochs"].tolist() == [*[-1] * 14, 3, 5]
    assert rate(straight) == pytest.approx(0.125)
    assert abs(float(straight.params["w"])) < 40
    for epoch in range(1, 6):
        resumed = saved_run(kind, tmp_path / str(epoch), in_state=in_state, interrupt=epoch)
        assert fingerprint(resumed) == fingerprint(straight), epoch


def test_a_run_resumes_with_other_settings(tmp_path, caplog):
    """With more rollbacks, as after a stop; with another window the hook starts fresh."""

    def run(times, epochs, window=2):
        chain = [
            hooks.roll_back_on_nan(max_rollbacks=times),
            hooks.roll_back_on_spike("train/loss", window=window, threshold=1e9),
            hooks.save_checkpoints(tmp_path, max_cost=None),
        ]
        return trainer.fit(make_state(), STREAM, epochs=epochs, hooks=chain, ignore_stop=True)[0]

    assert run(1, 6).stop
    with caplog.at_level(logging.INFO, "entracte"):
        state = run(5, 8, window=3)
    assert state.hook_state[NAN]["count"] >= 1
    assert f"{SPIKE} is dropped" in caplog.text
    assert int(state.epoch) == 8


def test_it_runs_at_epochs_only():
    with pytest.raises(ValueError, match="runs at 'epoch' already"):
        hooks.on("train", hooks.roll_back_on_nan())


def test_both_places_of_the_good_state_train_the_same(tmp_path):
    kept = saved_run("nan", tmp_path / "in_state", in_state=True)
    read = saved_run("nan", tmp_path / "read", in_state=False)
    assert "good" not in read.hook_state[f"{NAN}/directory"]
    assert fingerprint(kept.replace(hook_state={})) == fingerprint(read.replace(hook_state={}))


# From a directory.


def save(directory, *states):
    with Checkpoints(directory) as checkpoints:
        for state in states:
            checkpoints.save(state)


def numbered(hook, state, epoch, w):
    params = {"w": jnp.array(w, jnp.float32), "b": jnp.zeros(())}
    return with_hook_state(hook, state.replace(params=params, epoch=jnp.int32(epoch)))


def test_it_restores_the_newest_good_checkpoint_of_an_earlier_epoch(state, tmp_path, caplog):
    hook = hooks.roll_back_on_nan(directory=tmp_path)
    one, two, later = (numbered(hook, state, n, [n, n]) for n in (1, 2, 9))
    bad = numbered(hook, state, 3, [0, 0]).replace(params=spoil(state).params)
    damaged = numbered(hook, state, 4, [4, 4])
    save(tmp_path, bad, damaged, later)  # the three newest are kept
    save(tmp_path, one)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        checkpoints.save(one)
        checkpoints.save(two)
    for file in (tmp_path / "checkpoints" / "4").rglob("*"):
        if file.is_file() and file.name != "manifest.json":
            file.write_bytes(b"")
    after = hook(spoil(two).replace(epoch=jnp.int32(5)), FINE)
    assert after.params["w"].tolist() == [2.0, 2.0]
    assert int(after.epoch) == 5
    assert re.search(r"skipped a damaged checkpoint: \w+ 4 ", caplog.text)
    assert "skipped the checkpoint of epoch 3, in which params/w is not finite" in caplog.text


def test_the_learning_rate_of_an_old_checkpoint_is_scaled_for_every_rollback(state, tmp_path):
    hook = hooks.roll_back_on_nan(learning_rate_scale=0.5, directory=tmp_path, max_rollbacks=2)
    state = with_hook_state(hook, state)
    save(tmp_path, state)
    rates = []
    for epoch in (1, 2, 3):
        state = hook(spoil(state).replace(epoch=jnp.int32(epoch)), FINE)
        rates.append(rate(state))
    assert rates == pytest.approx([0.05, 0.025, 0.025])
    assert state.stop
    chex.assert_tree_all_finite(state.params)


def test_without_a_checkpoint_it_stops_and_logs_a_remedy(state, tmp_path, caplog):
    hook = hooks.roll_back_on_nan(directory=tmp_path / "none")
    state = with_hook_state(hook, state)
    assert hook(state, FINE) is state
    assert hook(spoil(state), FINE).stop
    assert "Place save_checkpoints(..., max_cost=None)" in caplog.text
    assert not (tmp_path / "none").exists()


def test_it_waits_for_a_save_in_progress(state, tmp_path, monkeypatch):
    from trainer.checkpoints import publishing

    hook = hooks.roll_back_on_nan(directory=tmp_path)
    one, two = (numbered(hook, state, n, [n, n]) for n in (1, 2))
    save(tmp_path, one)
    asked, publish = threading.Event(), publishing.publish

    def late(*arguments):
        assert asked.wait(10)
        publish(*arguments)

    monkeypatch.setattr(publishing, "publish", late)
    with Checkpoints(tmp_path) as writer:
        writer.save(two)
        timer = threading.Timer(0.05, asked.set)
        timer.start()
        after = hook(spoil(two).replace(epoch=jnp.int32(3)), FINE)
        timer.join()
    assert after.params["w"].tolist() == [2.0, 2.0]


def test_they_keep_the_laws(state, tmp_path):
    save(tmp_path, state)
    later = state.replace(epoch=jnp.int32(1))
    for settings in ({}, {"learning_rate_scale": 0.5}, {"directory": tmp_path}):
        for hook in (
            hooks.roll_back_on_nan("train/loss", **settings),
            hooks.roll_back_on_spike("train/loss", window=2, **settings),
        ):
            for loss in (1.0, math.nan):
                testing.check_hook(hook, later, {"train/loss": loss})
