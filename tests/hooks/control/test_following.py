"""Following another run: what is loaded and when, waiting, and resuming after an interrupt."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from hooks.control import following
from hooks.testing import check_hook
from trainer import Checkpoints, TrainState


def make_state(value, epoch=0, **carry):
    """A state of the followed run; `step` is ten times the epoch."""
    state = TrainState.create(
        params={"w": jnp.full(2, value)},
        model_state={"mean": jnp.full(1, value)},
        rng=jax.random.key(0),
        carry=carry,
    )
    return state.replace(epoch=jnp.int32(epoch), step=jnp.int32(10 * epoch))


def save(run, epoch, **carry):
    with Checkpoints(run) as checkpoints:
        checkpoints.save(make_state(float(epoch), epoch, **carry))


def statistics(value):
    return {"mean": jnp.full(3, value)}


def measure(state, data):
    return state, None, {"w": state.params["w"][0], "mean": state.model_state["mean"][0]}


MEASURE = trainer.Phase("val", measure, updates_state=False)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def clock(monkeypatch):
    """Let time pass in pauses only; the n-th entry of `then` is called in the n-th pause."""

    class Clock:
        now, pauses, then = 0.0, 0, ()

        def monotonic(self):
            return self.now

        def sleep(self, seconds):
            self.now += seconds
            self.pauses += 1
            if self.pauses <= len(self.then):
                self.then[self.pauses - 1]()

    clock = Clock()
    monkeypatch.setattr(following, "time", clock)
    return clock


def fit(state, epochs, *chain):
    return trainer.fit(state, MEASURE, epochs=epochs, hooks=chain)


def save_at(run, **epochs):
    """Act as the other run: save at the end of this one's epochs, before it polls."""

    def other(state, metrics):
        if (epoch := epochs.get(f"epoch_{int(state.epoch)}")) is not None:
            save(run, epoch)
        return state

    return other


def test_it_keeps_the_laws(run):
    save(run, 3, normalization={"observations": statistics(3.0)})
    state = make_state(0.0, normalization={"observations": statistics(0.0)})
    after = check_hook(hooks.follow_checkpoints(run), state, {"val/w": 1.0})
    assert float(after.params["w"][0]) == 3.0
    assert int(after.step) == 30


def test_metrics_belong_to_the_checkpoint_that_the_epoch_ran_with(run, tmp_path):
    save(run, 1)
    lines = tmp_path / "metrics.jsonl"
    state, history = fit(
        make_state(0.0),
        4,
        save_at(run, epoch_1=5, epoch_3=6),
        hooks.follow_checkpoints(run),
        hooks.log_metrics(hooks.JsonLines(lines)),
    )
    taken = [(epoch["val/w"], epoch["val/mean"], epoch["follow/epoch"]) for epoch in history]
    assert taken == [(1, 1, 1), (5, 5, 5), (5, 5, 5), (6, 6, 6)]
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [(r["step"], r["val/w"]) for r in records] == [(10, 1), (50, 5), (50, 5), (60, 6)]
    loaded = {"epoch": 6, "step": 60, "measured": True, "began": 60}
    assert state.hook_state["follow_checkpoints"] == loaded


def test_fit_returns_the_state_measured_last(run):
    save(run, 1)
    other = save_at(run, epoch_1=2, epoch_2=3)
    state, history = fit(make_state(0.0), 2, other, hooks.follow_checkpoints(run))
    assert history[-1]["val/w"] == float(state.params["w"][0]) == 2.0


@pytest.mark.parametrize(("dry_run", "epoch"), [(False, 1), (True, 0)])
def test_a_program_that_trains_is_refused(dry_run, epoch, run):
    """Before anything is saved; at the second epoch too, which begins at the checkpoint's step."""

    def train(state, data):
        taken = jnp.where(state.epoch == epoch - 1, 0, 4)
        return state.replace(step=state.step + taken), None, {"w": state.params["w"][0]}

    save(run, 3)
    with pytest.raises(
        ValueError, match="took 4 optimizer steps .* lost .* train nothing"
    ) as found:
        trainer.fit(
            make_state(0.0),
            trainer.Phase("train", train),
            epochs=3,
            hooks=hooks.chain(save_at(run, epoch_1=7), hooks.follow_checkpoints(run)),
            dry_run=dry_run,
        )
    assert ("in the dry run" in str(found.value.__notes__)) is dry_run


@pytest.mark.parametrize("wait", [False, True])
def test_an_interrupted_run_resumes_with_the_loaded_checkpoint(run, tmp_path, wait, clock):
    """Also if newer checkpoints were saved meanwhile, or the loaded one is gone."""
    own, lines = tmp_path / "own", tmp_path / "metrics.jsonl"

    def chain():
        return [
            save_at(run, epoch_1=2, epoch_2=3),
            hooks.follow_checkpoints(run, wait=wait),
            hooks.log_metrics(hooks.JsonLines(lines)),
            hooks.save_checkpoints(own, max_cost=None),
        ]

    def end_early(state, metrics):
        if int(state.epoch) == 1:
            raise trainer.Interrupt("enough")
        return state

    save(run, 1)
    fit(make_state(0.0), 3, end_early, *chain())
    with Checkpoints(run, keep=1) as checkpoints:
        checkpoints.save(make_state(9.0, 9))
    _, history = fit(make_state(0.0), 3, *chain())
    assert [epoch["val/w"] for epoch in history] == [2.0, 9.0]
    steps = [json.loads(line)["step"] for line in lines.read_text().splitlines()]
    assert steps == [10, 20, 90]


def test_without_new_checkpoints_it_resumes_bit_for_bit(run, check_resumes):
    save(run, 4)
    check_resumes(lambda: hooks.follow_checkpoints(run), make_state(0.0), MEASURE, epochs=3)


def test_parts_of_carry_that_both_runs_have_are_loaded(run):
    theirs = {"observations": statistics(3.0), "rewards": jnp.ones(8)}
    save(run, 3, normalization=theirs, environment=jnp.ones(4), lessons=jnp.ones(2))
    ours = {"observations": statistics(0.0), "other": jnp.zeros(1)}
    state = make_state(0.0, normalization=ours, environment=jnp.zeros(5), lessons=jnp.zeros(2))
    after = hooks.follow_checkpoints(run)(state, {}, event="start")
    np.testing.assert_array_equal(
        after.carry["normalization"]["observations"]["mean"], np.full(3, 3)
    )
    assert after.carry["normalization"]["other"] is ours["other"]
    assert after.carry["environment"] is state.carry["environment"]
    assert after.carry["lessons"] is state.carry["lessons"]
    assert after.opt_state is state.opt_state
    after = hooks.follow_checkpoints(run, carry=["lessons"])(state, {}, event="start")
    np.testing.assert_array_equal(after.carry["lessons"], np.ones(2))
    assert after.carry["normalization"] is ours


def test_statistics_without_a_place_are_refused(run):
    save(run, 3, normalization={"observations": statistics(3.0)})
    with pytest.raises(
        ValueError, match=r"keeps carry/normalization/observations/\w+.*has no place"
    ):
        hooks.follow_checkpoints(run)(make_state(0.0), {}, event="start")
    after = hooks.follow_checkpoints(run, carry=())(make_state(0.0), {}, event="start")
    assert after.hook_state["follow_checkpoints"]["epoch"] == 3


def test_a_part_of_carry_can_be_named_by_its_path(run):
    save(run, 3, normalization={"observations": statistics(3.0), "rewards": jnp.ones(8)})
    ours = {"observations": statistics(0.0), "rewards": jnp.zeros(2)}
    state = make_state(0.0, normalization=ours)
    with pytest.raises(ValueError, match=r"rewards: saved float32\[8\], wanted float32\[2\]"):
        hooks.follow_checkpoints(run, carry=["normalization"])(state, {}, event="start")
    after = hooks.follow_checkpoints(run)(state, {}, event="start")
    assert float(after.carry["normalization"]["observations"]["mean"][0]) == 3.0
    assert after.carry["normalization"]["rewards"] is ours["rewards"]


def test_another_network_is_refused_before_anything_runs(run):
    save(run, 3)
    state = make_state(0.0).replace(params={"w": jnp.zeros(7)}, model_state={"mean": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"(?s)params/w: saved float32\[2\].*model_state/mean"):
        fit(state, 1, hooks.follow_checkpoints(run))


def test_it_waits_for_a_first_checkpoint(run, clock, caplog):
    caplog.set_level("INFO", "entracte")
    clock.then = [lambda: None, lambda: save(run, 2)]
    _, history = fit(make_state(0.0), 1, hooks.follow_checkpoints(run))
    assert history[0]["val/w"] == 2.0
    assert clock.pauses == 2
    assert caplog.text.count(f"waiting for first checkpoint in {run}, up to 60 s") == 1


@pytest.mark.parametrize("damaged", [False, True])
def test_without_a_first_checkpoint_it_times_out(run, clock, damaged):
    if damaged:
        save(run, 1)
        (run / "checkpoints" / "1" / "manifest.json").write_bytes(b"{}")
    with pytest.raises(TimeoutError, match=f"waited 5 s for first checkpoint in {run}"):
        fit(make_state(0.0), 1, hooks.follow_checkpoints(run, timeout=5.0))
    assert 5.0 <= clock.now < 5.5


def test_with_wait_it_measures_no_checkpoint_twice_and_ends_if_none_comes(
    run, tmp_path, clock, caplog
):
    own, lines = tmp_path / "own", tmp_path / "metrics.jsonl"

    def chain():
        return [
            hooks.follow_checkpoints(run, wait=True, timeout=10.0),
            hooks.log_metrics(hooks.JsonLines(lines)),
            hooks.save_checkpoints(own, max_cost=None),
        ]

    save(run, 1)
    clock.then = [lambda: None, lambda: save(run, 2)]
    state, history = fit(make_state(0.0), 9, *chain())
    assert [epoch["follow/epoch"] for epoch in history] == [1, 2]
    assert not state.stop
    assert f"no checkpoint newer than that of epoch 2 in {run} was saved within 10 s" in caplog.text

    state, history = fit(make_state(0.0), 9, *chain())  # nothing was saved since
    assert len(history) == 2  # as recorded
    assert f"there is still no checkpoint newer than that of epoch 2 in {run}" in caplog.text

    save(run, 3)
    _, history = fit(make_state(0.0), 3, *chain())
    assert [epoch["follow/epoch"] for epoch in history] == [3]
    steps = [json.loads(line)["step"] for line in lines.read_text().splitlines()]
    assert steps == [10, 20, 30]


def test_it_does_not_wait_after_the_last_epoch(run, clock):
    save(run, 1)
    fit(make_state(0.0), 1, hooks.follow_checkpoints(run, wait=True))
    assert clock.pauses == 0


def test_a_dry_run_does_not_wait_for_a_newer_checkpoint(run, clock):
    save(run, 1)
    trainer.fit(
        make_state(0.0),
        MEASURE,
        epochs=1,
        dry_run=True,
        hooks=hooks.follow_checkpoints(run, wait=True),
    )
    assert clock.pauses == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"timeout": 0.0}, "timeout must be positive"), ({"carry": "lessons"}, "sequence of names")],
)
def test_settings_that_make_no_sense_are_refused(run, settings, said):
    with pytest.raises(ValueError, match=said):
        hooks.follow_checkpoints(run, **settings)
