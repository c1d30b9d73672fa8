"""The loop: epochs, events in order, metrics, donation, errors, ends."""

import gc
import logging
import os
import signal
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import trainer
from trainer import Phase, data, fingerprint
from trainer.host.processes import StopReasons
from trainer.loop.events import HookRunner
from trainer.loop.metric_reader import MetricReader


def _recorder(seen):
    def record(state, metrics):
        seen.append((int(state.epoch), dict(metrics)))
        return state

    return record


def test_it_trains_without_validation_and_without_hooks(start, train):
    state = start
    final, history = trainer.fit(state, train, epochs=3)
    assert (int(final.epoch), int(final.step)) == (3, 18)
    losses = [epoch["train/loss"] for epoch in history]
    assert losses == sorted(losses, reverse=True)


def test_epochs_is_the_total_including_earlier_runs(state, phase):
    two, first = trainer.fit(state, phase, epochs=2)
    three, rest = trainer.fit(two, phase, epochs=3)
    assert (len(first), len(rest)) == (2, 1)
    straight, _ = trainer.fit(state, phase, epochs=3)
    assert fingerprint(three) == fingerprint(straight)


@pytest.mark.parametrize("epochs", [2, 1, 0])
def test_nothing_left_to_train_is_logged_and_no_error(state, phase, epochs, caplog):
    caplog.set_level(logging.INFO, "entracte")
    state, _ = trainer.fit(state, phase, epochs=2)
    after, history = trainer.fit(state, phase, epochs=epochs)
    assert history == []
    assert fingerprint(after) == fingerprint(state)
    assert f"nothing to train: 2 of {epochs} epochs are completed" in caplog.text


def test_it_logs_what_it_compiled_and_why(state, phase, caplog):
    caplog.set_level(logging.DEBUG, "entracte")
    trainer.fit(state, phase, epochs=1)
    assert "compiled train in " in caplog.text
    assert "train: executor scan, the phase is one function" in caplog.text
    caplog.clear()
    trainer.fit(state, phase, epochs=1)
    assert "compiled" not in caplog.text


def test_events_come_in_order_and_see_the_metrics_so_far(state):
    program = [
        Phase("rollout", lambda s, d: (s, jnp.arange(2), {"return": jnp.float32(5)})),
        Phase("update", lambda s, d: (s.replace(step=s.step + 2), None, {"loss": d.sum()})),
    ]
    seen = []

    def at(event):
        def note(state, metrics):
            known = sorted(key for key in metrics if not key.startswith("time/"))
            seen.append((event, int(state.epoch), int(state.step), known, metrics.output is None))
            return state

        return hooks.on(event, note)

    names = ["end", "epoch", "update", "rollout", "start"]
    trainer.fit(state, program, epochs=1, hooks=[at(name) for name in names])
    assert seen == [
        ("start", 0, 0, [], True),
        ("rollout", 0, 0, ["rollout/return"], False),
        ("update", 0, 2, ["rollout/return", "update/loss"], True),
        ("epoch", 1, 2, ["rollout/return", "update/loss"], True),
        ("end", 1, 2, ["rollout/return", "update/loss"], True),
    ]


def test_times_are_metrics(state, phase):
    seen = []
    trainer.fit(state, phase, epochs=3, hooks=_recorder(seen))
    for _, metrics in seen:
        assert metrics["time/epoch_seconds"] > 0
        assert metrics["time/steps_per_second"] == pytest.approx(1 / metrics["time/epoch_seconds"])
    assert seen[0][1]["time/hook/record"] == 0
    assert seen[1][1]["time/hook/record"] > 0


def test_scores_reach_later_hooks_history_and_end_but_not_the_next_event(state, phase):
    seen = []

    @hooks.writes("val/loss")
    def score(state, metrics):
        assert state.scores == {}
        return state.replace(scores={"val/loss": np.float32(float(state.epoch))})

    program = hooks.chain(score, _recorder(seen), hooks.on("end", _recorder(seen)))
    final, history = trainer.fit(state, phase, epochs=2, hooks=program)
    assert [metrics["val/loss"] for _, metrics in seen] == [1.0, 2.0, 2.0]
    assert [epoch["val/loss"] for epoch in history] == [1.0, 2.0]
    assert final.scores == {}


def test_stop_ends_after_the_event_and_holds_until_it_is_ignored(state, phase, caplog):
    caplog.set_level(logging.INFO, "entracte")

    def stop_at_two(state, metrics):
        return state.replace(stop=bool(state.epoch == 2))

    stopped, history = trainer.fit(state, phase, epochs=5, hooks=stop_at_two)
    assert (int(stopped.epoch), stopped.stop, len(history)) == (2, True, 2)
    same, history = trainer.fit(stopped, phase, epochs=5)
    assert history == []
    assert fingerprint(same) == fingerprint(stopped)
    assert "stopped at epoch 2 (ignore_stop=True trains on)" in caplog.text
    further, _ = trainer.fit(stopped, phase, epochs=5, ignore_stop=True)
    assert (int(further.epoch), further.stop) == (5, False)


def test_law_1_the_callers_state_stays_readable(start, train):
    state = start
    before = fingerprint(state)
    trainer.fit(state, train, epochs=2)
    assert fingerprint(state) == before


def test_law_1_a_hook_state_stays_readable(start, train):
    def keep(hook_state, state, metrics):
        return {**hook_state, f"{int(state.epoch)}": state.params}, state

    def init(state):
        return {f"{number}": state.params for number in (1, 2, 3)}

    state = start
    keeper = hooks.stateful("keep", init, keep)
    seen = []

    def read(state, metrics):
        kept = state.hook_state["keep"]
        seen.append([float(kept[str(n)]["w"].sum()) for n in range(1, int(state.epoch) + 1)])
        return state

    trainer.fit(state, train, epochs=3, hooks=[keeper, read])
    assert seen[2][:2] == seen[1]
    assert seen[2][:1] == seen[0]
    assert len(set(seen[2])) == 3


def test_an_array_in_a_closure_may_be_deleted_and_then_raises(start, train):
    kept = []

    def keep(state, metrics):
        kept.append(state.params["w"])
        return state

    state, phase = start, train
    trainer.fit(state, phase, epochs=2, hooks=keep)
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        kept[0].sum()
    kept.clear()
    trainer.fit(state, phase, epochs=2, hooks=keep, donate=False)
    chex.assert_tree_all_finite(kept)


def test_leaves_that_share_a_buffer_are_separated(state, phase):
    shared = jnp.ones(4)
    start = state.replace(params={"w": shared, "b": shared}, opt_state=())

    def share(state, metrics):
        return state.replace(params={"w": state.params["w"], "b": state.params["w"]})

    final, _ = trainer.fit(start, phase, epochs=3, hooks=share)
    chex.assert_trees_all_close(final.params["w"], jnp.full(4, 1 / 8))
    assert float(shared.sum()) == 4


def test_a_hook_may_set_numpy_and_python_numbers(state, phase):
    def put(state, metrics):
        params = {"w": np.array([1, 2], np.float32), "b": np.float32(3)}
        return state.replace(params=params)

    final, _ = trainer.fit(state, phase, epochs=2, hooks=put)
    assert isinstance(final.params["w"], jax.Array)


def test_an_optimizer_that_shares_buffers_trains(digits, linear):
    optimizer = optax.contrib.prodigy(1.0)
    task = trainer.supervised(linear, trainer.losses.classification, optimizer)
    state = task.init(jax.random.key(0), digits[0].example)
    final, _ = trainer.fit(state, trainer.training(task.step, digits[0]), epochs=2)
    assert int(final.step) == 12


def test_an_interrupt_finishes_the_event_and_leaves_stop_alone(state, phase):
    seen = []

    def interrupt(state, metrics):
        if int(state.epoch) == 2:
            raise trainer.Interrupt("time is up")
        return state

    program = hooks.chain(interrupt, _recorder(seen), hooks.on("end", _recorder(seen)))
    final, history = trainer.fit(state, phase, epochs=5, hooks=program)
    assert (int(final.epoch), final.stop, len(history)) == (2, False, 2)
    assert [epoch for epoch, _ in seen] == [1, 2]


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_ends_the_run_after_the_epoch_in_the_usual_way(state, phase, number, ends):
    seen, closed = [], []
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def send(state, metrics):
        if int(state.epoch) == 2:
            os.kill(os.getpid(), number)
        return state

    closing = trainer.Hook(_recorder(seen), "closing", close=lambda error: closed.append(True))
    with pytest.raises(ends) as raised:
        trainer.fit(state, phase, epochs=5, hooks=[send, closing])
    assert [epoch for epoch, _ in seen] == [1, 2]
    assert closed == [True]
    if ends is SystemExit:
        assert raised.value.code == 143
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


def _ctrl_c(epoch, times=1):
    def press(state, metrics):
        for _ in range(times if int(state.epoch) == epoch else 0):
            signal.raise_signal(signal.SIGINT)
        return state

    return press


def test_ctrl_c_without_checkpoints_attaches_state_and_history(state, phase):
    with pytest.raises(KeyboardInterrupt) as raised:
        trainer.fit(state, phase, epochs=9, hooks=_ctrl_c(2))
    stopped = raised.value
    straight, history = trainer.fit(state, phase, epochs=2)
    assert fingerprint(stopped.state) == fingerprint(straight)
    losses = [[epoch["train/loss"] for epoch in one] for one in (stopped.history, history)]
    assert losses[0] == losses[1]
    assert any("sys.last_value" in note for note in stopped.__notes__)
    assert type(stopped) is KeyboardInterrupt  # or Python would not end with the signal's status


def test_ctrl_c_returns_on_request(state, phase):
    chain = [_ctrl_c(2), hooks.on("end", lambda state, metrics: 1 / 0)]
    after, history = trainer.fit(state, phase, epochs=9, hooks=chain, return_on_interrupt=True)
    assert (int(after.epoch), len(history)) == (2, 2)


def test_ctrl_c_returns_in_a_notebook_unless_that_is_refused(state, phase, monkeypatch):
    monkeypatch.setattr("trainer.loop.fit.in_notebook", lambda: True)
    after, history = trainer.fit(state, phase, epochs=9, hooks=_ctrl_c(2))
    assert (int(after.epoch), len(history)) == (2, 2)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(state, phase, epochs=9, hooks=_ctrl_c(2), return_on_interrupt=False)


def test_a_second_ctrl_c_attaches_the_newest_readable_state(state, phase):
    with pytest.raises(KeyboardInterrupt) as raised:
        trainer.fit(state, phase, epochs=9, hooks=_ctrl_c(2, times=2), return_on_interrupt=True)
    assert (int(raised.value.state.epoch), len(raised.value.history)) == (2, 1)


def test_ctrl_c_within_an_epoch_attaches_the_state_before_where_it_was_not_donated(
    state, phase, monkeypatch
):
    read, reads = MetricReader.read_all, []

    def interrupted(self, *arguments):
        reads.append(self)
        if len(reads) % 2 == 0:
            raise KeyboardInterrupt
        return read(self, *arguments)

    monkeypatch.setattr(MetricReader, "read_all", interrupted)
    for donate in (False, True):
        with pytest.raises(KeyboardInterrupt) as raised:
            trainer.fit(state, phase, epochs=9, hooks=lambda s, m: s, donate=donate)
        assert (raised.value.state is None) is donate
    assert int(raised.value.history[-1]["train/loss"]) == 3


def test_the_step_never_overflows_and_the_error_comes_before_hooks(state, phase, start, train):
    seen = []
    late = state.replace(step=jnp.int32(2**31 - 3))
    with pytest.raises(OverflowError, match=r"2,147,483,647; this run has taken 2,147,483,647"):
        trainer.fit(late, phase, epochs=5, hooks=_recorder(seen))
    assert [epoch for epoch, _ in seen] == [1, 2]
    late = start.replace(step=jnp.int32(2**31 - 8))  # six steps an epoch, which is known
    with pytest.raises(OverflowError, match="and 6 more do not fit") as raised:
        trainer.fit(late, train, epochs=5, hooks=_recorder(seen))
    assert [epoch for epoch, _ in seen] == [1, 2, 1]
    assert not hasattr(raised.value, "__notes__")  # the second epoch was not begun


def test_the_history_of_a_complete_run_is_the_recorded_one(state, phase, tmp_path):
    lines = hooks.JsonLines(tmp_path / "metrics.jsonl")
    saving = hooks.save_checkpoints(tmp_path, max_cost=None)
    _, first = trainer.fit(state, phase, epochs=3, hooks=[hooks.log_metrics(lines), saving])
    _, again = trainer.fit(state, phase, epochs=3, hooks=[hooks.log_metrics(lines), saving])
    losses = [[epoch["train/loss"] for epoch in one] for one in (first, again)]
    assert losses[0] == losses[1] == [3.0, 1.5, 0.75]
    assert "epoch" not in again[0]
    _, alone = trainer.fit(
        state, phase, epochs=2, hooks=saving
    )  # its metrics are in the checkpoint
    assert alone == [first[-1]]
    _, four = trainer.fit(state, phase, epochs=4, hooks=saving)
    assert len(four) == 1


def test_it_trains_in_a_thread_and_logs_that_it_ignores_signals(state, phase, caplog):
    caplog.set_level(logging.DEBUG, "entracte")
    results = []
    thread = threading.Thread(target=lambda: results.append(trainer.fit(state, phase, epochs=1)))
    thread.start()
    thread.join(60)
    assert int(results[0][0].epoch) == 1
    assert "not in the main thread" in caplog.text


def test_an_exception_keeps_its_type_and_gains_a_note(state, phase):
    def fail(state, metrics):
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost") as raised:
        trainer.fit(state, phase, epochs=1, hooks=fail)
    assert raised.value.__notes__ == ["in hook 'fail' at 'epoch' of epoch 1"]


def test_a_failing_phase_is_named(state):
    def batches(seed, epoch):
        yield {"inputs": np.zeros((1, 1), np.float32)}
        if epoch == 1:
            raise OSError("disk gone")

    def step(state, batch):
        return state.replace(step=state.step + 1), {"loss": batch["inputs"].sum()}

    phase = trainer.training(step, data.Stream(batches))
    with pytest.raises(OSError, match="disk gone") as raised:
        trainer.fit(state, phase, epochs=3)
    assert raised.value.__notes__ == ["in phase 'train' of epoch 2"]


def test_error_hooks_see_the_newest_state_and_cannot_hide_the_error(state, phase):
    seen = []

    def bump(state, metrics):
        return state.replace(params=jax.tree.map(lambda w: w + 1, state.params))

    def fail(state, metrics):
        raise LookupError("lost")

    def look(state, metrics):
        seen.append((float(state.params["b"]), metrics["train/loss"]))
        raise OSError("cannot even look")

    with pytest.raises(LookupError) as raised:
        trainer.fit(state, phase, epochs=1, hooks=[bump, fail, hooks.on("error", look)])
    assert seen == [(1.0, 3.0)]
    assert any("cannot even look" in note for note in raised.value.__notes__)


def test_every_hook_is_closed_in_reverse_order_whatever_happens(state, phase):
    closed = []

    def closing(name, fails=False):
        def close(error):
            closed.append(name)
            if fails:
                raise OSError(f"{name} will not close")

        return trainer.Hook(lambda state, metrics: state, name, close=close)

    def fail(state, metrics):
        raise LookupError("lost")

    parts = [closing("a"), closing("b", fails=True), closing("c")]
    with pytest.raises(LookupError) as raised:
        trainer.fit(state, phase, epochs=1, hooks=[*parts, fail])
    assert closed == ["c", "b", "a"]
    assert any("b will not close" in note for note in raised.value.__notes__)
    with pytest.raises(OSError, match="b will not close"):
        trainer.fit(state, phase, epochs=1, hooks=parts)
    assert closed == ["c", "b", "a"] * 2


@pytest.mark.parametrize(
    ("program", "error", "said"),
    [
        ([], TypeError, "fit trains a Phase, or a sequence"),
        ([lambda state, data: None], TypeError, "fit trains a Phase, or a sequence"),
        ([Phase("epoch", lambda s, d: (s, None, {}))], ValueError, "names of their own"),
        ([Phase("a", lambda s, d: (s, None, {}))] * 2, ValueError, "names of their own"),
    ],
)
def test_a_bad_program_is_refused(state, program, error, said):
    with pytest.raises(error, match=said):
        trainer.fit(state, program, epochs=1)


def test_labels_outside_the_classes_are_refused_before_training(start, train, task, digits):
    arrays = {name: np.array(array) for name, array in digits[0].arrays.items()}
    arrays["labels"][7] = 10
    bad = data.Arrays(arrays, 32)
    with pytest.raises(ValueError, match="0 and 9, as the network has 10.*0 and 10") as raised:
        trainer.fit(start, trainer.training(task.step, bad), epochs=1)
    assert raised.value.__notes__ == ["in checking phase 'train'"]
    evaluate = hooks.evaluate(trainer.evaluation(task.measure, bad))
    with pytest.raises(ValueError, match="got labels between 0 and 10"):
        trainer.fit(start, train, epochs=1, hooks=evaluate)


def test_a_second_signal_ends_at_once(state, phase):
    seen = []

    def send_twice(state, metrics):
        seen.append(int(state.epoch))
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the second signal must end it")

    with pytest.raises(SystemExit) as raised:
        trainer.fit(state, phase, epochs=5, hooks=send_twice)
    assert (raised.value.code, seen) == (143, [1])


def test_a_state_that_was_made_in_jit_trains(phase):
    """In jit its `stop` becomes an array."""
    make = jax.jit(
        lambda key: trainer.TrainState.create(
            params={"w": jnp.ones(2), "b": jnp.zeros(())}, rng=key
        )
    )
    state, _ = trainer.fit(make(jax.random.key(0)), phase, epochs=2)
    assert state.stop is False
    assert float(state.params["w"][0]) == 0.25


def test_a_signal_after_that_of_another_process_counts_as_the_first(state, phase, monkeypatch):
    """As a scheduler sends it to all of them, at slightly different times."""
    agreed = StopReasons(stop=False, interrupt=False, signal=signal.SIGTERM)
    monkeypatch.setattr(HookRunner, "decide", lambda runner, state: agreed)
    saved = []

    def save(state, metrics):
        os.kill(os.getpid(), signal.SIGTERM)
        saved.append(int(state.epoch))
        return state

    last = trainer.Hook(save, "save", event="end", stage="save")
    with pytest.raises(SystemExit) as raised:
        trainer.fit(state, phase, epochs=5, hooks=last)
    assert (raised.value.code, saved) == (143, [1])


def test_the_state_that_fit_was_given_is_not_kept(phase):
    alive = []

    def count(state, metrics):
        gc.collect()
        alive.append(sum(a.shape == (12345,) for a in jax.live_arrays()))
        return state

    def begin():
        params = {"w": jnp.ones(12345), "b": jnp.zeros(())}
        return trainer.TrainState.create(params=params, rng=jax.random.key(0))

    trainer.fit(begin(), phase, epochs=2, hooks=count)
    assert alive == [1, 1]
