"""Backtests: hooks run again over recorded runs, and errors about what was not recorded."""

from __future__ import annotations

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hooks
import trainer
from hooks.backtesting.not_recorded import MissingArray, NotRecorded
from hooks.backtesting.past_runs import load_past_run
from trainer import data
from trainer.checkpoints.storage.directory_lock import DirectoryInUse
from trainer.runs import Run, Store

LOSSES = [0.5, 0.4, 0.45, 0.41, 0.3, 0.35, 0.36, 0.37]


@pytest.fixture
def store(tmp_path):
    """A store with a run `digits` of eight epochs, whose directory exists."""
    (tmp_path / "digits").mkdir()
    with Store(tmp_path) as opened:
        opened.register("digits", directory=str(tmp_path / "digits"), host="here", pid=1, time=0.0)
        for epoch, loss in enumerate(LOSSES, 1):
            values = {"val/loss": loss, "train/loss": loss / 2, "said": "Once", "epoch": epoch}
            opened.write_records("digits", epoch, 28 * epoch, values)
        yield opened


def noted(seen):
    """A hook that notes what it sees."""

    def note(state, metrics):
        seen.append((int(state.epoch), int(state.step), dict(metrics)))
        return state

    return note


@pytest.mark.parametrize(("patience", "ended"), [(1, 3), (2, 4), (3, 8), (4, None)])
def test_it_finds_when_a_patience_would_have_stopped_the_run(store, patience, ended):
    found = hooks.backtest(hooks.stop_early("val/loss", patience=patience), "digits", store=store)
    assert (found.run, found.stop_epoch) == ("digits", ended)
    assert [epoch.epoch for epoch in found.epochs] == list(range(1, (ended or 8) + 1))
    if ended:
        assert (found.stopped_by, found.stop_reason) == ("stop_early/val/loss", "stop")
        assert found.epochs[-1].hook_state["stop_early/val/loss"].since == patience
    else:
        assert (found.stopped_by, found.stop_reason) == ("", "")


def test_hooks_do_what_they_did_in_the_run_itself(state, phase, tmp_path):
    def count(memory, state, metrics):
        return memory + metrics["train/loss"], state

    def chain():
        @hooks.writes("halved")
        def score(state, metrics):
            return state.replace(scores={**state.scores, "halved": metrics["train/loss"] / 2})

        return hooks.chain(
            hooks.every(2, hooks.stateful("count", lambda state: 0.0, count)),
            hooks.stop_early("halved", patience=2, mode="max"),
            score,
            hooks.reduce_on_plateau("train/loss", mode="max", patience=1),
        )

    run = Run(tmp_path / "halving")
    trained, history = trainer.fit(
        state, phase, epochs=9, hooks=[score_first(chain()), hooks.log_metrics(hooks.Database(run))]
    )
    found = hooks.backtest(score_first(chain()), tmp_path / "halving", state=state)
    assert found.stop_epoch == int(trained.epoch) == len(history)
    assert found.epochs[-1].hook_state == trained.hook_state
    assert found.epochs[-1].scores == {"halved": history[-1]["halved"]}
    rates = optax.tree.get(trained.opt_state, "learning_rate")
    assert found.epochs[-1].hyperparams == {"learning_rate": float(rates)}
    assert found.epochs[0].hyperparams != found.epochs[-1].hyperparams


def score_first(chain):
    """Return the parts of a chain, hooks that score before those that read the scores."""
    return sorted(chain.parts, key=lambda part: not part.writes)


def test_hooks_see_numbers_in_order_and_are_started_and_ended(store):
    seen, started, ended = [], [], []
    chain = hooks.chain(
        hooks.on("end", noted(ended)), noted(seen), hooks.on("start", noted(started))
    )
    found = hooks.backtest(chain, "digits", store=store)
    assert found.stop_epoch is None
    assert started == [(0, 0, {})]
    assert seen == [
        (n, 28 * n, {"val/loss": loss, "train/loss": loss / 2, "epoch": n})
        for n, loss in enumerate(LOSSES, 1)
    ]
    assert ended == seen[-1:]


def test_metrics_from_before_training_are_seen_at_the_start(store):
    store.write_records("digits", 0, 0, {"val/loss": 2.0})
    seen = []
    hooks.backtest(hooks.on("start", noted(seen)), "digits", store=store)
    assert seen == [(0, 0, {"val/loss": 2.0})]


def test_hooks_at_a_phase_see_its_metrics(store):
    seen = []
    hooks.backtest(hooks.on("train", noted(seen)), "digits", store=store)
    assert seen[1] == (1, 56, {"train/loss": 0.2})  # within the second epoch, one is completed

    def read_output(state, metrics):
        metrics.output["reward"]
        return state

    with pytest.raises(NotRecorded, match="'read_output' uses the output of a phase"):
        hooks.backtest(hooks.on("train", read_output), "digits", store=store)


def test_nan_is_seen_as_nan(store):
    store.write_records("digits", 3, 84, {"train/loss": math.nan})
    found = hooks.backtest(hooks.stop_on_nan(), "digits", store=store)
    assert (found.stop_epoch, found.stopped_by) == (3, "stop_on_nan")


def test_an_interrupt_ends_it_without_end_hooks(store):
    ended = []

    def give_up(state, metrics):
        if int(state.epoch) == 2:
            raise trainer.Interrupt("enough")
        return state

    found = hooks.backtest([give_up, hooks.on("end", noted(ended))], "digits", store=store)
    assert (found.stop_epoch, found.stopped_by, found.stop_reason) == (2, "give_up", "enough")
    assert not ended


def test_it_fills_tensorboard_after_the_fact(store, tmp_path):
    hooks.backtest(hooks.log_metrics(hooks.TensorBoard(tmp_path / "tb")), "digits", store=store)
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    points = [(point.step, point.value) for point in events.Scalars("val/loss")]
    assert points == [(28 * n, pytest.approx(loss)) for n, loss in enumerate(LOSSES, 1)]
    assert [point.value for point in events.Scalars("epoch")] == list(range(1, 9))


def test_a_schedule_is_shown_if_a_state_is_given(store, state):
    schedule = optax.exponential_decay(1.0, 1, 0.5)
    chain = hooks.set_hyperparams(learning_rate=schedule)
    found = hooks.backtest(chain, "digits", store=store, state=state)
    rates = [epoch.hyperparams["learning_rate"] for epoch in found.epochs]
    assert rates == [0.5**n for n in range(1, 9)]
    assert float(state.opt_state.hyperparams["learning_rate"]) == np.float32(0.1)
    with pytest.raises(NotRecorded, match="give backtest the state that the run began with"):
        hooks.backtest(chain, "digits", store=store)


def test_what_is_frozen_is_kept_from_epoch_to_epoch(store):
    from trainer.supervised import optimizers

    params = {"w": jnp.ones(2)}
    frozen = optimizers.frozen(optax.sgd(0.1)).init(params)
    start = trainer.TrainState.create(params=params, opt_state=frozen, rng=jax.random.key(0))
    live = []

    def look(state, metrics):
        live.append(bool(state.opt_state.live))
        return state

    hooks.backtest([hooks.unfreeze_at(4), look], "digits", store=store, state=start)
    assert live == [False, False, True, True, True, True, True, True]


def test_a_hook_that_reads_parameters_is_refused_and_the_checkpoints_are_named(
    state, phase, tmp_path
):
    saving = hooks.save_checkpoints(tmp_path / "run", keep=2, max_cost=None)
    run = Run(tmp_path / "run")
    trainer.fit(state, phase, epochs=5, hooks=[hooks.log_metrics(hooks.Database(run)), saving])
    with pytest.raises(NotRecorded) as caught:
        hooks.backtest(hooks.average_params(), tmp_path / "run", state=state)
    assert str(caught.value) == (
        "hook 'average_params' uses params/b at epoch 1, but only metrics are recorded: run 'run' "
        "has checkpoints of epochs 4, 5"
    )
    assert "in hook 'average_params' at 'epoch' of epoch 1" in caught.value.__notes__
    with pytest.raises(NotRecorded, match=r"uses \w+ at epoch 1.*\n.*state=task.init"):
        hooks.backtest(hooks.average_params(), tmp_path / "run")


def test_at_epochs_with_a_checkpoint_the_state_is_restored(state, phase, tmp_path):
    saving = hooks.save_checkpoints(tmp_path / "run", keep=2, max_cost=None)
    run = Run(tmp_path / "run")
    trained, _ = trainer.fit(
        state, phase, epochs=5, hooks=[hooks.log_metrics(hooks.Database(run)), saving]
    )
    sizes = []

    def look(state, metrics):
        sizes.append(np.asarray(state.params["w"]).tolist())
        return state

    chain = hooks.chain(
        hooks.every(1, look, start=4),
        hooks.set_hyperparams(learning_rate=lambda epoch: epoch),
        hooks.on("start", look),
        hooks.on("end", look),
    )
    found = hooks.backtest(chain, tmp_path / "run", state=state)
    last = np.asarray(trained.params["w"]).tolist()
    assert sizes == [[1.0, -2.0], [last[0] * 2, last[1] * 2], last, last]
    assert [e.hyperparams["learning_rate"] for e in found.epochs] == [1, 2, 3, 4, 5]
    with pytest.raises(NotRecorded, match=r"uses params/w at epoch 3, .* epochs 4, 5"):
        hooks.backtest(hooks.every(1, look, start=3), tmp_path / "run", state=state)


def test_the_best_is_kept_if_all_better_epochs_are_saved(state, phase, tmp_path):
    saving = hooks.save_checkpoints(tmp_path / "run", keep=9, max_cost=None)
    run = Run(tmp_path / "run")
    trained, _ = trainer.fit(
        state, phase, epochs=3, hooks=[hooks.log_metrics(hooks.Database(run)), saving]
    )
    found = hooks.backtest(hooks.keep_best("train/loss"), tmp_path / "run", state=state)
    best = found.epochs[-1].hook_state["keep_best/train/loss"]
    assert best["epoch"] == 3
    assert np.array_equal(best["params"]["w"], trained.params["w"])


def test_a_checkpoint_that_does_not_fit_is_reported_when_it_is_needed(state, phase, tmp_path):
    saving = hooks.save_checkpoints(tmp_path / "run", keep=1, max_cost=None)
    run = Run(tmp_path / "run")
    trainer.fit(state, phase, epochs=2, hooks=[hooks.log_metrics(hooks.Database(run)), saving])
    params = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    other = state.replace(params=params)
    assert hooks.backtest(hooks.stop_on_nan(), tmp_path / "run", state=other).stop_epoch is None
    for hook in (hooks.average_params(), hooks.every(1, hooks.average_params(), start=2)):
        with pytest.raises(NotRecorded) as caught:
            hooks.backtest(hook, tmp_path / "run", state=other)
        told = str(caught.value).split("\n")
        assert told[0].endswith("the given state does not fit checkpoint 2 of run 'run':")
        assert "  params/w: saved float32[2], wanted float32[3]" in told
        assert told[-1].startswith("give the state that the run began with: same")


def test_the_records_of_the_run_itself_are_not_overwritten(state, phase, tmp_path):
    run = Run(tmp_path / "run")
    chain = hooks.chain(hooks.log_metrics(hooks.Database(run)), hooks.stop_on_nan())
    trainer.fit(state, phase, epochs=2, hooks=chain)
    with Store(tmp_path) as store:
        before = store.records("run")
        with pytest.raises(DirectoryInUse, match="recorded by another Run") as caught:
            hooks.backtest(chain, "run", store=store)
        assert "separate writers" in caught.value.__notes__[-1]
        assert store.records("run") == before
    other = Run(tmp_path / "copy")
    hooks.backtest(hooks.log_metrics(hooks.Database(other)), tmp_path / "run")
    with Store(tmp_path) as store:
        assert [record[1:] for record in store.records("copy")] == [r[1:] for r in before]


def test_hooks_that_save_do_nothing_and_are_closed(state, phase, tmp_path, store):
    with pytest.raises(ValueError, match="'never'"):
        trainer.fit(state, phase, epochs=1, hooks=hooks.stop_early("never", patience=1, mode="min"))
    chain = hooks.save_checkpoints(tmp_path / "digits", best="never", mode="min")
    assert hooks.backtest([chain, hooks.stop_on_nan()], "digits", store=store).stop_epoch is None
    assert not list((tmp_path / "digits" / "checkpoints").iterdir())


def test_hooks_are_closed_even_if_one_fails(store):
    closed = []
    keeper = hooks.Hook(
        lambda s, m: s, "keeper", stage="observe", close=lambda error: closed.append(1)
    )

    def fail(state, metrics):
        raise OSError("no answer")

    hooks.backtest(keeper, "digits", store=store)
    with pytest.raises(OSError, match="no answer"):
        hooks.backtest([keeper, fail], "digits", store=store)
    assert closed == [1, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: hooks.stop_early("val/acc", patience=1),
            "reads 'val/acc', which was not recorded",
        ),
        (lambda: hooks.on("rollout", hooks.stop_on_nan()), "runs at phase 'rollout'"),
    ],
)
def test_a_hook_that_would_never_fire_is_refused(store, make, message):
    with pytest.raises(ValueError, match=message):
        hooks.backtest(make(), "digits", store=store)


def test_scores_of_another_hook_may_be_read(store):
    @hooks.writes("gap")
    @hooks.reads("val/loss", "train/loss")
    def measure(state, metrics):
        gap = metrics["val/loss"] - metrics["train/loss"]
        return state.replace(scores={**state.scores, "gap": gap})

    stop = hooks.stop_early("gap", patience=1, mode="min")
    assert hooks.backtest([measure, stop], "digits", store=store).stop_epoch == 3
    with pytest.raises(ValueError, match="reads 'gap'"):
        hooks.backtest([stop, measure], "digits", store=store)


def test_a_run_that_is_unknown_or_has_no_epochs_is_an_error(store, state, tmp_path):
    with pytest.raises(KeyError, match=r"no run 'digit' .*there is: digits"):
        hooks.backtest(hooks.stop_on_nan(), "digit", store=store)
    with pytest.raises(FileNotFoundError):
        hooks.backtest(hooks.stop_on_nan(), tmp_path / "elsewhere" / "digits")
    store.register("new", directory="/new", host="here", pid=1, time=0.0)
    with pytest.raises(ValueError, match="no epoch of run 'new' was recorded"):
        hooks.backtest(hooks.stop_on_nan(), "new", store=store)
    later = state.replace(epoch=jnp.int32(3))
    with pytest.raises(ValueError, match="got one of epoch 3"):
        hooks.backtest(hooks.stop_on_nan(), "digits", store=store, state=later)


def test_a_run_is_found_by_its_directory_or_its_name(store, tmp_path):
    other = tmp_path / "elsewhere" / "digits"
    store.register("renamed", directory=str(other), host="here", pid=1, time=1.0)
    assert load_past_run(other, store=store).row.name == "renamed"
    assert load_past_run(tmp_path / "digits").row.name == "digits"


def test_a_run_without_its_first_records_is_backtested_from_the_first_one(store, state):
    store.register("late", directory="/late", host="here", pid=1, time=0.0)
    for epoch in (5, 6):
        store.write_records("late", epoch, 28 * epoch, {"val/loss": 1.0})
    started = []

    def look(state, metrics):
        started.append(int(state.epoch))
        return state

    found = hooks.backtest(hooks.on("start", look), "late", store=store, state=state)
    assert started == [4]
    assert [epoch.epoch for epoch in found.epochs] == [5, 6]


USES = {
    "arithmetic": lambda leaf: leaf + 1,
    "reflected": lambda leaf: 1 - leaf,
    "comparison": lambda leaf: leaf == leaf,
    "truth": bool,
    "numpy": np.asarray,
    "jax": jnp.asarray,
    "jit": jax.jit(lambda leaf: leaf),
    "index": lambda leaf: leaf[0],
    "attribute": lambda leaf: leaf.mean(),
    "host": jax.device_get,
    "iteration": list,
    "float": float,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_of_a_missing_array_is_an_error(use):
    def refuse(what):
        raise NotRecorded(f"{what} was not recorded")

    with pytest.raises(NotRecorded, match="params/w was not recorded"):
        use(MissingArray("params/w", refuse))


def test_a_thousand_epochs_take_a_moment(tmp_path):
    with Store(tmp_path) as store:
        store.register("long", directory="/long", host="here", pid=1, time=0.0)
        with store.connection.transaction():
            for epoch in range(1, 1001):
                store.write_records("long", epoch, epoch, {"val/loss": 1 / epoch})
        began = time.process_time()
        found = hooks.backtest(hooks.stop_early("val/loss", patience=3), "long", store=store)
        assert len(found.epochs) == 1000
        assert time.process_time() - began < 0.5  # takes 0.03


def test_weights_of_lessons_are_kept_from_epoch_to_epoch(store):
    for epoch in range(1, 9):
        returns = {"rollout/return/easy": epoch / 2, "rollout/return/hard": 0.0}
        store.write_records("digits", epoch, 28 * epoch, returns)
    carry = {"lessons": jnp.array([0.5, 0.5]), "environments": jnp.zeros(3)}
    start = trainer.TrainState.create(params={}, rng=jax.random.key(0), carry=carry)
    weights = []

    def look(state, metrics):
        weights.append(np.asarray(state.carry["lessons"]).tolist())
        return state

    strategy = hooks.thresholds({"easy": 2.0})
    chain = [hooks.adapt_curriculum(("easy", "hard"), strategy), look]
    hooks.backtest(chain, "digits", store=store, state=start)
    assert len(weights) == 8
    assert weights[0][0] > weights[0][1] == 0
    assert weights[-1][1] > 0


def test_an_evaluation_is_repeated_at_epochs_with_checkpoints(state, phase, tmp_path):
    def measure(state, batch):
        return {"size": batch["inputs"] * state.params["w"][0]}

    source = data.Arrays({"inputs": np.ones(5, np.float32)}, batch_size=2)
    val = trainer.evaluation(measure, source)
    saving = hooks.save_checkpoints(tmp_path / "run", keep=2, max_cost=None)
    logging = hooks.log_metrics(hooks.Database(Run(tmp_path / "run")))
    chain = [hooks.evaluate(val), logging, saving]
    _, history = trainer.fit(state, phase, epochs=3, hooks=chain)
    with pytest.raises(NotRecorded, match=r"'evaluate/val' uses .* at epoch 1"):
        hooks.backtest(hooks.evaluate(val), tmp_path / "run", state=state)
    again = hooks.every(1, hooks.evaluate(val), start=2)
    found = hooks.backtest(again, tmp_path / "run", state=state)
    assert [epoch.scores for epoch in found.epochs[1:]] == [
        {"val/size": epoch["val/size"]} for epoch in history[1:]
    ]
