"""An interrupted run that resumes is the run that never stopped."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import optax
import pytest

import hooks
import trainer
from hooks import testing
from trainer import Checkpoints, fingerprint
from trainer.checkpoints import save_worker
from trainer.checkpoints.arrays import array_storage
from trainer.checkpoints.storage.directory_lock import DirectoryInUse


@pytest.fixture
def stages(val):
    """Hooks with a state: patience, an average, what `once` has done."""

    def shrink(state, metrics):
        return state.replace(params=jax.tree.map(lambda w: w * 0.9, state.params))

    return [
        hooks.average_params(0.5),
        hooks.every(2, hooks.evaluate(val, params="average_params")),
        hooks.stop_early("val/loss", patience=50),
        hooks.once(hooks.when(lambda state, metrics: int(state.epoch) == 2, shrink)),
    ]


def _saving(directory, **settings):
    return hooks.save_checkpoints(directory, max_cost=None, **settings)


@pytest.mark.parametrize("k", range(5))
def test_law_5_a_run_resumes_after_a_normal_exit(start, train, stages, tmp_path, k):
    straight, history = trainer.fit(start, train, epochs=5, hooks=stages)
    if k:
        trainer.fit(start, train, epochs=k, hooks=[*stages, _saving(tmp_path)])
    resumed, rest = trainer.fit(start, train, epochs=5, hooks=[*stages, _saving(tmp_path)])
    assert fingerprint(resumed) == fingerprint(straight)
    untimed = [
        {name: value for name, value in epoch.items() if not name.startswith("time/")}
        for epoch in history
    ]
    assert [{n: v for n, v in e.items() if not n.startswith("time/")} for e in rest] == untimed[k:]


@pytest.mark.parametrize("k", range(1, 5))
@pytest.mark.parametrize("place", ["first", "last"])
def test_law_5_a_run_resumes_after_an_exception(start, train, stages, tmp_path, k, place):
    straight, _ = trainer.fit(start, train, epochs=5, hooks=stages)

    def fail(state, metrics):
        if int(state.epoch) == k:
            raise LookupError("lost")
        return state

    failing = [fail, *stages] if place == "first" else [*stages, hooks.observe(fail)]
    with pytest.raises(LookupError):
        trainer.fit(start, train, epochs=5, hooks=[*failing, _saving(tmp_path)])
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest() == (k - 1 or None)
    resumed, history = trainer.fit(start, train, epochs=5, hooks=[*stages, _saving(tmp_path)])
    assert len(history) == 5 - (k - 1)
    assert fingerprint(resumed) == fingerprint(straight)


def test_a_finished_run_returns_the_same_state_again_and_runs_its_end_again(start, train, tmp_path):
    def double(state, metrics):
        assert metrics["train/loss"] > 0
        return state.replace(params=jax.tree.map(lambda w: w * 2, state.params))

    chain = hooks.chain(_saving(tmp_path), hooks.on("end", double))
    first, _ = trainer.fit(start, train, epochs=2, hooks=chain)
    again, history = trainer.fit(start, train, epochs=2, hooks=chain)
    assert len(history) == 1  # the record of the last epoch
    assert fingerprint(again) == fingerprint(first)
    longer, _ = trainer.fit(start, train, epochs=4, hooks=_saving(tmp_path))
    straight, _ = trainer.fit(start, train, epochs=4)
    assert fingerprint(longer) == fingerprint(straight)  # what changed at the end is not saved


def test_law_6_the_checkpoint_is_the_same_wherever_it_is_listed(start, train, stages, tmp_path):
    states = []
    for place in range(len(stages) + 1):
        directory = tmp_path / str(place)
        chain = [*stages[:place], _saving(directory), *stages[place:]]
        final, _ = trainer.fit(start, train, epochs=3, hooks=chain)
        with Checkpoints(directory, read_only=True) as checkpoints:
            states.append(fingerprint(checkpoints.restore(final).state))
    assert set(states) == {fingerprint(final)}


def test_law_3_saving_changes_nothing(start, train, tmp_path):
    alone, _ = trainer.fit(start, train, epochs=3)
    saved, _ = trainer.fit(start, train, epochs=3, hooks=_saving(tmp_path))
    assert fingerprint(alone) == fingerprint(saved)


def test_a_trigger_leaves_restoring_and_the_last_checkpoint_alone(start, train, tmp_path):
    chain = hooks.every(2, _saving(tmp_path, keep=9))
    trainer.fit(start, train, epochs=3, hooks=chain)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [2, 3]
    _, history = trainer.fit(start, train, epochs=5, hooks=chain)
    assert len(history) == 2


def test_an_interrupt_is_saved_and_the_next_run_resumes(start, train, stages, tmp_path):
    straight, _ = trainer.fit(start, train, epochs=4, hooks=stages)

    def interrupt(state, metrics):
        if int(state.epoch) == 2:
            raise trainer.Interrupt("time is up")
        return state

    rarely = hooks.save_checkpoints(tmp_path, max_cost=1e-9)
    trainer.fit(start, train, epochs=4, hooks=[interrupt, *stages, rarely])
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest() == 2
    resumed, history = trainer.fit(start, train, epochs=4, hooks=[*stages, _saving(tmp_path)])
    assert len(history) == 2
    assert fingerprint(resumed) == fingerprint(straight)


def test_saving_waits_if_it_costs_too_much_and_ends_with_a_checkpoint(start, train, tmp_path):
    rarely = hooks.save_checkpoints(tmp_path, keep=99, max_cost=1e-9)
    trainer.fit(start, train, epochs=6, hooks=rarely)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [1, 6]
    always = _saving(tmp_path / "always", keep=99)
    trainer.fit(start, train, epochs=6, hooks=always)
    with Checkpoints(tmp_path / "always", read_only=True) as checkpoints:
        assert checkpoints.epochs() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("max_cost", [0, -1, 1.5])
def test_a_cost_is_a_share(tmp_path, max_cost):
    with pytest.raises(ValueError, match="max_cost must be a share"):
        hooks.save_checkpoints(tmp_path, max_cost=max_cost)


def test_the_newest_and_the_best_are_kept(start, train, tmp_path):
    @hooks.writes("val/loss")
    def score(state, metrics):
        return state.replace(scores={"val/loss": [5, 1, 3, 4, 6, 7][int(state.epoch) - 1]})

    chain = [score, _saving(tmp_path, keep=2, best="val/loss")]
    trainer.fit(start, train, epochs=6, hooks=chain)
    with Checkpoints(tmp_path, best="val/loss", read_only=True) as checkpoints:
        assert checkpoints.epochs() == [2, 5, 6]
        assert checkpoints.best() == 2


def test_the_best_must_be_a_metric_that_is_written(start, train, tmp_path):
    with pytest.raises(ValueError, match="'save_checkpoints' at 'epoch' reads 'val/loss', which"):
        trainer.fit(start, train, epochs=1, hooks=_saving(tmp_path, best="val/loss"))


@pytest.mark.parametrize("event", ["a signal", "nothing"])
def test_a_save_that_never_ends_ends_the_run(start, train, tmp_path, monkeypatch, event):
    gate = threading.Event()
    monkeypatch.setattr(array_storage, "save_arrays", lambda *arguments: gate.wait(60))

    def tell(state, metrics):
        if event == "a signal":
            os.kill(os.getpid(), signal.SIGTERM)
        return state

    began = time.monotonic()
    with pytest.raises(TimeoutError, match="limit of 0.2 seconds"):
        trainer.fit(start, train, epochs=10**6, hooks=[tell, _saving(tmp_path, time_limit=0.2)])
    save_worker._finish()  # what waits at the end of the process
    assert time.monotonic() - began < 50
    gate.set()


def test_running_out_of_memory_in_a_save_ends_the_run(start, train, tmp_path, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr(array_storage, "save_arrays", fail)
    with pytest.raises(MemoryError) as raised:
        trainer.fit(start, train, epochs=10**6, hooks=_saving(tmp_path))
    assert any("while saving epoch 1 to" in note for note in raised.value.__notes__)


def test_a_configuration_that_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="'model/table' is numpy.ndarray"):
        _saving(tmp_path / "run", config={"model": {"table": np.zeros(2)}})
    assert not (tmp_path / "run").exists()


def test_the_directory_of_another_run_is_refused_with_the_differences(
    start, train, digits, tmp_path, linear
):
    trainer.fit(start, train, epochs=1, hooks=_saving(tmp_path, config={"seed": 0, "epochs": 1}))
    trainer.fit(start, train, epochs=2, hooks=_saving(tmp_path, config={"seed": 0, "epochs": 2}))
    with pytest.raises(ValueError, match="(?s)seed.*0.*1"):
        trainer.fit(start, train, epochs=2, hooks=_saving(tmp_path, config={"seed": 1}))
    other = trainer.supervised(linear, trainer.losses.classification, optax.sgd(0.1))
    with pytest.raises(ValueError, match="opt_state"):
        trainer.fit(
            other.init(jax.random.key(0), digits[0].example),
            trainer.training(other.step, digits[0]),
            epochs=2,
            hooks=_saving(tmp_path),
        )


def test_an_unwritable_directory_is_refused_when_the_hook_is_built(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        hooks.save_checkpoints(tmp_path / "file" / "run")


def test_hooks_may_be_added_and_removed_between_runs(start, train, stages, tmp_path, caplog):
    caplog.set_level(logging.INFO, "entracte")
    count = hooks.stateful("count", lambda s: int(s.epoch), lambda m, s, _: (m + 1, s))
    trainer.fit(start, train, epochs=2, hooks=[count, _saving(tmp_path)])
    state, _ = trainer.fit(start, train, epochs=3, hooks=[*stages, _saving(tmp_path)])
    assert "count" not in state.hook_state
    assert state.hook_state["average_params"]["updates"] == 1
    assert "count" in caplog.text
    assert "average_params" in caplog.text
    state, _ = trainer.fit(start, train, epochs=4, hooks=[count, _saving(tmp_path)])
    assert state.hook_state == {"count": 4}


def test_a_decision_to_stop_is_saved(start, train, tmp_path):
    stop = hooks.when(lambda s, m: int(s.epoch) == 2, lambda s, m: s.replace(stop=True))
    trainer.fit(start, train, epochs=5, hooks=[stop, _saving(tmp_path)])
    state, history = trainer.fit(start, train, epochs=5, hooks=_saving(tmp_path))
    assert (state.stop, len(history)) == (True, 1)


def test_a_failed_save_is_raised_and_earlier_checkpoints_stand(start, train, tmp_path, monkeypatch):
    from trainer.checkpoints import manager as module

    checkpoint = module.Checkpoints._write

    def fail(self, stage, snapshot, *rest):
        if snapshot.epoch == 3:
            raise OSError("disk full")
        checkpoint(self, stage, snapshot, *rest)

    monkeypatch.setattr(module.Checkpoints, "_write", fail)
    with pytest.raises(OSError, match="disk full") as raised:
        trainer.fit(start, train, epochs=9, hooks=_saving(tmp_path, keep=9))
    assert any("epoch 3" in note for note in raised.value.__notes__)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [1, 2]


def test_a_failed_save_is_raised_at_the_very_next_event(start, train, tmp_path, monkeypatch):
    from trainer.checkpoints import manager as module

    def fail(*arguments):
        raise OSError("disk full")

    def await_save(state, metrics):
        for thread in threading.enumerate():
            if thread.name == "entracte-save":
                thread.join()
        return state

    monkeypatch.setattr(module.Checkpoints, "_write", fail)
    seen = []
    chain = [
        hooks.on("train", lambda state, metrics: seen.append(int(state.epoch)) or state),
        hooks.every(4, hooks.save_checkpoints(tmp_path, max_cost=None)),
        trainer.Hook(await_save, "await_save", stage="save"),
    ]
    with pytest.raises(OSError, match="disk full") as raised:
        trainer.fit(start, train, epochs=20, hooks=chain)
    assert seen == [0, 1, 2, 3]
    assert raised.value.__notes__[-1] == (
        "of hook 'save_checkpoints/restore', found at 'train' of epoch 5"
    )


def test_an_earlier_save_does_not_count_if_the_directory_is_empty(start, train, tmp_path):
    chain = _saving(tmp_path)
    trainer.fit(start, train, epochs=1, hooks=chain)
    shutil.rmtree(tmp_path / "checkpoints" / "1")
    trainer.fit(start, train, epochs=1, hooks=chain)
    assert (tmp_path / "checkpoints" / "1" / "manifest.json").exists()


def test_the_same_chain_serves_two_runs(start, train, tmp_path):
    chain = _saving(tmp_path)
    for epochs in (1, 3):
        state, _ = trainer.fit(start, train, epochs=epochs, hooks=chain)
    assert int(state.epoch) == 3


def test_the_hook_keeps_the_laws(start, tmp_path):
    testing.check_hook(_saving(tmp_path), start, {"train/loss": 1.0})


CHILD = """
import sys
import jax, jax.numpy as jnp, numpy as np
import hooks, trainer
from trainer import Phase

def step(state, data):
    w = state.params["w"] * 0.99 + jax.random.normal(state.key("noise"), state.params["w"].shape)
    return state.replace(step=state.step + 1, params={"w": w}), None, {"loss": jnp.abs(w).mean()}

state = trainer.TrainState.create(params={"w": jnp.zeros((64, 64))}, rng=jax.random.key(0))
chain = [
    hooks.average_params(0.9),
    hooks.stop_early("train/loss", patience=10**6),
    hooks.observe(lambda s, m: print("epoch", int(s.epoch), flush=True) or s),
    hooks.save_checkpoints(sys.argv[1], max_cost=None),
]
state, _ = trainer.fit(state, Phase("train", step), epochs=int(sys.argv[2]), hooks=chain)
print("fingerprint", trainer.fingerprint(state))
"""


def _run(directory, epochs, *, kill_after=None, delay=0.0):
    """Run the child, kill -9 it a moment after it printed this many epochs; return its output."""
    command = [sys.executable, "-c", CHILD, str(directory), str(epochs)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = []
    try:
        for line in child.stdout:
            lines.append(line.split())
            if kill_after is not None and len(lines) == kill_after:
                time.sleep(delay)
                os.kill(child.pid, signal.SIGKILL)
                break
        child.wait(120)
    finally:
        child.kill()
        child.stdout.close()
        child.wait(10)
    return lines


def test_a_second_process_is_refused_while_the_first_lives(start, train, tmp_path):
    command = [sys.executable, "-c", CHILD, str(tmp_path), "1000000000"]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first:
        try:
            assert first.stdout.readline() == "epoch 1\n"
            second = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert second.returncode == 1
            assert second.stdout == ""
            assert f"{tmp_path} is in use: pid {first.pid} on " in second.stderr
            with Checkpoints(tmp_path, read_only=True) as checkpoints:
                assert checkpoints.epochs()  # to read it is refused to none
        finally:
            first.kill()
    checkpoints = tmp_path / "checkpoints"
    checkpoints.rename(tmp_path / "theirs")  # of another state than this process trains
    state, _ = trainer.fit(start, train, epochs=2, hooks=_saving(tmp_path))
    assert int(state.epoch) == 2
    assert (tmp_path / "lock").stat().st_size == 0


def test_only_one_hook_saves_to_a_directory(start, train, tmp_path):
    def train_within(state, metrics):
        with pytest.raises(
            DirectoryInUse, match="a run that it is within, saves there.* of its own"
        ):
            trainer.fit(start, train, epochs=1, hooks=_saving(tmp_path))
        assert (tmp_path / "lock").stat().st_size  # the outer run continues
        return state

    trainer.fit(start, train, epochs=1, hooks=[train_within, _saving(tmp_path)])
    assert (tmp_path / "lock").stat().st_size == 0
    with pytest.raises(DirectoryInUse, match="a hook of this very run"):
        trainer.fit(start, train, epochs=2, hooks=[_saving(tmp_path), _saving(tmp_path)])
    assert (tmp_path / "lock").stat().st_size == 0
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [1]


def test_after_its_lock_was_removed_nothing_is_saved(state, phase, tmp_path):
    def tidy_up(state, metrics):
        if int(state.epoch) == 3:
            (tmp_path / "lock").unlink()
        return state

    with pytest.raises(
        DirectoryInUse, match="'.*lock', was removed .* another process may train there"
    ):
        trainer.fit(state, phase, epochs=5, hooks=[tidy_up, _saving(tmp_path)])
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [1, 2]
    end, history = trainer.fit(state, phase, epochs=5, hooks=_saving(tmp_path))
    assert [int(end.epoch), len(history)] == [5, 3]


@pytest.mark.parametrize("shared", [False, True], ids=["of its own", "shared"])
def test_a_second_fit_in_another_thread_is_refused(state, phase, tmp_path, shared):
    refused, saving = [], _saving(tmp_path)

    def train_beside():
        try:
            beside = saving if shared else _saving(tmp_path)
            trainer.fit(state, phase, epochs=5, hooks=beside)
        except DirectoryInUse as error:
            refused.append(str(error))

    def start_another(state, metrics):
        if int(state.epoch) == 2:
            thread = threading.Thread(target=train_beside)
            thread.start()
            thread.join()
        return state

    end, _ = trainer.fit(state, phase, epochs=4, hooks=[start_another, saving])
    assert int(end.epoch) == 4
    (said,) = refused
    assert f"{tmp_path} is in use: another thread of this process trains there" in said
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.epochs() == [2, 3, 4]
    assert (tmp_path / "lock").stat().st_size == 0


@pytest.mark.soak  # tests/reliability/test_crashes.py kills at each place of an event
def test_law_5_kill_9_at_many_instants(tmp_path):
    random = np.random.default_rng(seed := int(time.time()))
    print("seed", seed)
    wanted = _run(tmp_path / "straight", 60)[-1]
    for _ in range(20):
        lines = _run(
            tmp_path / "killed",
            60,
            kill_after=int(random.integers(1, 4)),
            delay=random.uniform(0, 0.05),
        )
        if lines and lines[-1][0] == "fingerprint":
            break
    assert _run(tmp_path / "killed", 60)[-1] == wanted
