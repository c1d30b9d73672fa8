"""Law 14: a resume reports every setting that differs between checkpoint and script."""

from __future__ import annotations

import functools
import logging
import re
import shutil
import time

import jax
import numpy as np
import optax
import pytest

import hooks
import models
import trainer
from trainer import data, losses
from trainer.checkpoints import manifest
from trainer.checkpoints.resume_warnings import (
    Difference,
    compare_settings,
    format_warning,
    merge_saved_settings,
)
from trainer.loop import closure_settings
from trainer.loop.closure_settings import hash_array
from trainer.loop.run_description import describe_run

X = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
SAID = "was saved by a script with other settings"


def hinge(outputs, batch):
    """Another loss."""
    return {"loss": (outputs**2).sum(-1)}


@functools.cache
def made(rate, schedule, column, shift, loss, dropout, batch_size, **settings):
    """The task and phases of a script, compiled once. Without a rate it is set in the state."""
    labels = (X[:, column] > 0).astype("int32")
    source = data.Arrays({"inputs": X + np.float32(shift), "labels": labels}, batch_size)
    if rate is None:
        optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.01)
    else:
        optimizer = optax.sgd(optax.cosine_decay_schedule(rate, schedule) if schedule else rate)
    network = models.mlp(classes=2, hidden=(4,), dropout=dropout)
    task = trainer.supervised(network, loss, optimizer, **settings)
    return (
        task.init(jax.random.key(0), source.example),
        trainer.training(task.step, source),
        trainer.evaluation(task.measure, source),
    )


def script(
    *,
    seed=None,
    rate=0.01,
    plain=None,
    schedule=None,
    column=0,
    shift=0.0,
    loss=losses.classification,
    dropout=0.0,
    batch_size=16,
    patience=3,
    mode="min",
    decay=0.9,
    extra=(),
    **settings,
):
    """Return the state, phase and hooks of a script, without checkpoints."""
    task = (plain, schedule, column, shift, loss, dropout, batch_size)
    state, train, val = made(*task, **settings)
    if plain is None:
        state = state.replace(opt_state=optax.tree.set(state.opt_state, learning_rate=rate))
    if seed is not None:
        state = state.replace(rng=jax.random.key(seed))
    chain = [
        hooks.evaluate(val),
        hooks.stop_early("val/loss", patience=patience, mode=mode),
        hooks.every(2, hooks.average_params(decay)),
        *extra,
    ]
    return state, train, chain


def fit(directory, epochs, **changes):
    state, phase, chain = script(**changes)
    mode = changes.get("mode", "min")
    saving = hooks.save_checkpoints(directory, best="val/loss", mode=mode, max_cost=None, keep=9)
    return trainer.fit(state, phase, epochs=epochs, hooks=[*chain, saving])


def reported(caplog):
    """Return the logged messages, and clear them."""
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    caplog.clear()
    return lines


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one epoch; the key is whether the optimizer's hyperparameters are in its state."""
    directories = {}
    for kind, changes in {"injected": {}, "plain": {"plain": 0.01}}.items():
        directories[kind] = tmp_path_factory.mktemp(kind)
        fit(directories[kind], 1, **changes)
    return directories


KEPT = {
    "rate": ({"rate": 0.02}, r"learning_rate: saved 0\.01, now 0\.02; the saved one is in force: "
             r"hooks\.set_hyperparams\(learning_rate=0\.02\)"),
    "seed": ({"seed": 1}, "the root key: saved threefry2x32 [0-9a-f]{16}, now threefry2x32 "
             "[0-9a-f]{16}; the saved one is in force: another directory"),
}  # fmt: skip
TAKEN = {
    "labels": ({"column": 1}, r"phase train, data labels: saved int32\[40\] \w+, now int32"),
    "inputs": ({"shift": 1e-3}, r"phase train, data inputs: saved float32\[40, 5\] \w+, now"),
    "evaluated data": ({"column": 1}, "hook evaluate/val, data labels: saved int32"),
    "batches": ({"batch_size": 8}, "phase train, data batch_size: saved 16, now 8"),
    "steps": ({"batch_size": 8}, "phase train, steps an epoch: saved 2, now 5"),
    "loss": ({"loss": hinge}, r"phase train, supervised\.loss: saved classification, now hinge"),
    "accumulate": ({"accumulate": 2}, r"phase train, supervised\.accumulate: saved 1, now 2"),
    "clip_norm": ({"clip_norm": 0.5}, r"phase train, supervised\.clip_norm: saved None, now 0\.5"),
    "precision": (
        {"precision": "bfloat16"},
        "phase train, supervised.precision: saved 'float32', now 'bfloat16'",
    ),
    "dropout": ({"dropout": 0.5}, r"phase train, mlp\.dropout: saved 0, now 0\.5"),
    "patience": (
        {"patience": 5},
        r"hook stop_early/val/loss, stop_early\.patience: saved 3, now 5",
    ),
    "mode": (
        {"mode": "max"},
        r"hook stop_early/val/loss, stop_early\.mode: saved 'min', now 'max'",
    ),
    "best": ({"mode": "max"}, "hook save_checkpoints, mode: saved 'min', now 'max'"),
    "decay": ({"decay": 0.5}, r"hook average_params, average_params\.decay: saved 0\.9, now 0\.5"),
}


@pytest.mark.parametrize("kind", [*KEPT, *TAKEN])
def test_law_14_differences_are_reported_with_both_values(runs, tmp_path, caplog, kind):
    changes, said = (KEPT | TAKEN)[kind]
    run = shutil.copytree(runs["injected"], tmp_path / "run")
    fit(run, 1, **changes)
    (line,) = reported(caplog)
    assert f"checkpoint 1 in {run / 'checkpoints'} {SAID}" in line
    end = "" if kind in KEPT else ".*; the new one is in force"
    assert len(re.findall(f"^  {said}{end}.*$", line, re.MULTILINE)) == 1


def test_the_rate_of_a_plain_optimizer_is_reported_too(runs, tmp_path, caplog):
    run = shutil.copytree(runs["plain"], tmp_path / "run")
    fit(run, 1, plain=0.02)
    (line,) = reported(caplog)
    assert "step_size: saved -0.01, now -0.02; the new one is in force" in line
    assert line.count("\n") == 1


def test_without_differences_nothing_is_reported(runs, tmp_path, caplog):
    run = shutil.copytree(runs["injected"], tmp_path / "elsewhere")
    fit(run, 2)
    fit(run, 2)
    assert reported(caplog) == []


def test_a_change_is_reported_once_and_an_ignored_one_again(runs, tmp_path, caplog):
    run = shutil.copytree(runs["injected"], tmp_path / "run")
    changes = {"rate": 0.02, "patience": 5}
    fit(run, 2, **changes)
    assert "patience" in reported(caplog)[0]
    fit(run, 3, **changes)
    (line,) = reported(caplog)
    assert "patience" not in line
    assert "learning_rate: saved 0.01, now 0.02" in line
    fit(run, 4, **changes, extra=[hooks.set_hyperparams(learning_rate=0.02)])
    fit(run, 5, **changes)
    assert reported(caplog) == []


def test_hooks_and_phases_that_come_and_go_are_no_differences(runs, tmp_path, caplog):
    run = shutil.copytree(runs["injected"], tmp_path / "run")
    state, phase, chain = script()
    state = trainer.fit(state, phase, epochs=1, hooks=[*chain[:1], hooks.save_checkpoints(run)])[0]
    assert int(state.epoch) == 1
    assert reported(caplog) == []


def test_other_software_may_keep_settings_elsewhere(runs, tmp_path, caplog):
    run = shutil.copytree(runs["plain"], tmp_path / "run")
    file = run / "checkpoints/1/manifest.json"
    content = manifest.decode_manifest(file.read_bytes())
    content["versions"]["optax"] = "0.0.1"
    file.write_bytes(manifest.encode_manifest(content))
    fit(run, 1, plain=0.02, column=1)
    (line,) = reported(caplog)
    assert "data labels" in line
    assert "step_size" not in line


# Settings that are found


def rows(**changes):
    state, phase, chain = script(**changes)
    return describe_run(state, [phase], trainer.hook.flatten_hooks(chain))


def test_a_run_changes_none_of_its_parts(tmp_path):
    counted = []
    started = time.time()

    def clock(state, metrics):
        counted.append(time.time() - started)
        return state

    def limited():
        calls = 0

        def limited(state, metrics):
            nonlocal calls
            calls += 1
            return state

        return limited

    extra = [
        clock,
        limited(),
        hooks.roll_back_on_nan(),
        hooks.keep_best("val/loss"),
        hooks.reduce_on_plateau("val/loss", factor=0.5, patience=1),
        hooks.time_limit(3600.0),
        hooks.stop_on_nan(),
        hooks.once(hooks.when(lambda state, metrics: len(counted) == 1, limited())),
        hooks.set_hyperparams(learning_rate=lambda epoch: 0.1 / (epoch + 1)),
        hooks.log_metrics(hooks.JsonLines(tmp_path / "metrics.jsonl")),
    ]
    state, phase, chain = script(extra=extra)
    chain = trainer.hook.flatten_hooks([*chain, hooks.save_checkpoints(tmp_path)])
    before = describe_run(state, [phase], chain)
    assert "1.7" not in str(before.get("hook clock"))
    trainer.fit(state, phase, epochs=2, hooks=chain)
    assert describe_run(state, [phase], chain) == before
    assert rows(extra=extra) == {k: v for k, v in before.items() if "save_checkpoints" not in k}


def test_a_schedule_is_found_within_an_optimizer():
    schedule = optax.cosine_decay_schedule(0.1, 9)
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=schedule)
    for optimizer in (optax.sgd(schedule), injected):

        def run(state, data, optimizer=optimizer):
            return state, None, {}

        phase = trainer.Phase("train", run)
        state = trainer.TrainState.create(
            params={}, opt_state=optimizer.init({}), rng=jax.random.key(0)
        )
        found = describe_run(state, [phase], [])
        assert found["phase train"]["cosine_decay_schedule.decay_steps"] == "9"
        schedule(3)  # which turns it into a float
        assert describe_run(state, [phase], []) == found
        assert "learning_rate" not in found.get("hyperparams", {})


def test_large_arrays_are_sampled_and_small_ones_hashed_whole(monkeypatch):
    monkeypatch.setattr(closure_settings, "WHOLE", 2**10)
    monkeypatch.setattr(closure_settings, "_SAMPLE_BYTES", 2**4)
    large = np.zeros((2**12, 2), np.float32)
    assert hash_array(large) == hash_array(jax.numpy.asarray(large))
    for place in (0, -1):
        changed = large.copy()
        changed[place] = 1
        assert hash_array(changed) != hash_array(large)
    small = np.zeros(2**7, np.float32)
    changed = small.copy()
    changed[77] = 1
    assert hash_array(changed) != hash_array(small)
    assert hash_array(small.reshape(2, -1)) != hash_array(small)


def test_the_list_of_differences_is_bounded():
    many = {f"data {n}": "1" for n in range(99)}
    found = compare_settings(
        {"phase train": many},
        {"phase train": dict.fromkeys(many, "2")},
        {},
        same_software=True,
    )
    assert len(found) == 99
    assert format_warning("checkpoint 1", found).endswith("\n  and 69 more")


def test_the_recorded_settings_are_those_in_force():
    kept = Difference("hyperparams", "learning_rate", "0.1", "0.2")
    taken = Difference("phase train", "data size", "1", "2")
    now = {"hyperparams": {"learning_rate": "0.2"}, "phase train": {"data size": "2"}}
    assert merge_saved_settings(now, [kept, taken]) == {
        "hyperparams": {"learning_rate": "0.1"},
        "phase train": {"data size": "2"},
    }
    assert now["hyperparams"] == {"learning_rate": "0.2"}
