"""This library: `save_checkpoints` at every epoch, `stop_early`; the same call resumes."""

import jax
import jax.numpy as jnp
import optax

import hooks
import models
import trainer
from guarantee_trials.trial import (
    BATCH,
    DECIDED,
    DROPOUT,
    HIDDEN,
    PATIENCE,
    RATE,
    SCRIPTED,
    load_digits,
)
from trainer import data, losses


def build(steps=None):
    """Return (state, program); `steps` is called after each update, from the compiled program."""
    inputs, labels = load_digits()
    source = data.Arrays({"inputs": inputs, "labels": labels}, BATCH)
    network = models.mlp(classes=10, hidden=(HIDDEN, HIDDEN), dropout=DROPOUT)
    optimizer = optax.adamw(RATE)
    if steps:
        optimizer = optax.chain(optimizer, call_after_update(steps))
    task = trainer.supervised(network, losses.classification, optimizer)
    state = task.init(jax.random.key(0), source.example)
    return state, trainer.training(task.step, source)


def call_after_update(steps):
    """Build a transformation that changes nothing, and calls a function of the host."""

    def update(updates, state, params=None):
        jax.debug.callback(steps)
        return updates, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def train(trial):
    state, program = build(trial.steps)
    began = []

    def note_start(state, metrics):
        began.append(int(state.step))
        return state

    @hooks.writes("val/loss")
    def validate(state, metrics):
        loss = SCRIPTED[int(state.epoch) - 1]
        return state.replace(scores={**state.scores, "val/loss": loss})

    chain = [hooks.on("start", note_start), validate]
    if trial.watched:
        watched = f"val/{trial.watched}"
        chain.append(hooks.stop_early(watched, patience=PATIENCE, mode="min"))
    chain.append(hooks.save_checkpoints(trial.folder, max_cost=None))
    state, _ = trainer.fit(state, program, epochs=trial.epochs, hooks=chain)
    return began[0], jax.tree.leaves(jax.device_get(state.params))


def find_newest(folder):
    found = [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    return max(found, key=lambda path: int(path.name))


def show_order(folder):
    state, program = build()
    logged = []

    @hooks.observe
    def record(state, metrics):
        logged.append(read_bias(state.params))
        return state

    def decide(state, metrics):
        head = {**state.params["head"], "bias": jnp.full(10, DECIDED)}
        return state.replace(params={**state.params, "head": head})

    chain = hooks.chain(hooks.save_checkpoints(folder), record, decide)
    trainer.fit(state, program, epochs=1, hooks=chain)
    saved = trainer.load_params(folder, state.params)
    return {"logger": logged == [DECIDED], "checkpoint": read_bias(saved) == DECIDED}


def read_bias(params):
    return float(params["head"]["bias"][0])


def stop_when_accurate(state, metrics):
    return state.replace(stop=metrics["train/accuracy"] > 0.9)


def test_callback():
    state = trainer.TrainState.create(params=0.0, rng=jax.random.key(0))
    assert stop_when_accurate(state, {"train/accuracy": 0.95}).stop


def prepare_epochs(epochs):
    start, program = build()

    def run(callbacks):
        nothing = [lambda state, metrics: state for _ in range(callbacks)]
        state, _ = trainer.fit(start, program, epochs=epochs, hooks=nothing)
        jax.block_until_ready(state)

    return run
