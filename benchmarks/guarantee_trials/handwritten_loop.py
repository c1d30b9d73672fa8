"""A loop by hand: optax, `orbax.checkpoint.CheckpointManager`, and Flax's `EarlyStopping`.

As their documentation shows them: the manager saves parameters, optimizer state and step; keys of
dropout and shuffling are folded from step and epoch, which makes resuming within an epoch possible;
early stopping is a variable of the loop.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.training.early_stopping import EarlyStopping

from guarantee_trials.trial import (
    BATCH,
    BATCHES,
    DECIDED,
    DROPOUT,
    HALF_EPOCH,
    HIDDEN,
    PATIENCE,
    RATE,
    SCRIPTED,
    load_digits,
)

OPTIMIZER = optax.adamw(RATE)


def init_state():
    sizes = ((64, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 10))
    keys = jax.random.split(jax.random.key(0), len(sizes))
    initialize = jax.nn.initializers.lecun_normal()
    params = [
        {"kernel": initialize(key, size), "bias": jnp.zeros(size[1])}
        for key, size in zip(keys, sizes, strict=True)
    ]
    return {"params": params, "opt_state": OPTIMIZER.init(params), "step": jnp.int32(0)}


def compute_loss(params, inputs, labels, key):
    hidden = inputs
    for number, layer in enumerate(params[:-1]):
        hidden = jax.nn.relu(hidden @ layer["kernel"] + layer["bias"])
        kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - DROPOUT, hidden.shape)
        hidden = jnp.where(kept, hidden / (1 - DROPOUT), 0.0)
    logits = hidden @ params[-1]["kernel"] + params[-1]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.partial(jax.jit, donate_argnums=0)
def take_step(state, inputs, labels):
    key = jax.random.fold_in(jax.random.key(1), state["step"])
    loss, grads = jax.value_and_grad(compute_loss)(state["params"], inputs, labels, key)
    updates, opt_state = OPTIMIZER.update(grads, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, loss


def draw_batches(epoch):
    """Return the places of an epoch's examples, int `[batches, batch]`."""
    order = np.random.default_rng((0, epoch)).permutation(BATCH * BATCHES)
    return order.reshape(BATCHES, BATCH)


def train(trial):
    inputs, labels = load_digits()
    every = HALF_EPOCH if trial.every == "half" else BATCHES
    options = ocp.CheckpointManagerOptions(max_to_keep=3, save_interval_steps=every)
    with ocp.CheckpointManager(trial.folder.absolute(), options=options) as manager:
        state, began = init_state(), 0
        if (latest := manager.latest_step()) is not None:
            state = manager.restore(latest, args=ocp.args.StandardRestore(state))
            began = int(state["step"])
        stopping = EarlyStopping(patience=PATIENCE)
        for epoch in range(began // BATCHES, trial.epochs):
            for places in draw_batches(epoch)[int(state["step"]) % BATCHES :]:
                state, _ = take_step(state, inputs[places], labels[places])
                trial.steps()
                manager.save(int(state["step"]), args=ocp.args.StandardSave(state))
            if trial.watched:
                metrics = {"loss": SCRIPTED[epoch]}
                stopping = stopping.update(metrics[trial.watched])
                if stopping.should_stop:
                    break
        manager.wait_until_finished()
    return began, jax.tree.leaves(jax.device_get(state["params"]))


def find_newest(folder):
    found = [path for path in folder.iterdir() if path.name.isdigit()]
    return max(found, key=lambda path: int(path.name))


def show_order(folder):
    inputs, labels = load_digits()
    state, logged = init_state(), []
    with ocp.CheckpointManager(folder.absolute()) as manager:
        for places in draw_batches(0):
            state, _ = take_step(state, inputs[places], labels[places])
        manager.save(BATCHES, args=ocp.args.StandardSave(state))
        logged.append(float(state["params"][-1]["bias"][0]))
        state["params"][-1]["bias"] = jnp.full(10, DECIDED)
        manager.wait_until_finished()
        saved = manager.restore(BATCHES, args=ocp.args.StandardRestore(state))
    holds = float(saved["params"][-1]["bias"][0]) == DECIDED
    return {"logger": logged == [DECIDED], "checkpoint": holds}


def should_stop(metrics):
    return metrics["accuracy"] > 0.9


def test_callback():
    assert should_stop({"accuracy": 0.95})


def prepare_epochs(epochs):
    inputs, labels = load_digits()

    def run(callbacks):
        nothing = [lambda state, loss: state for _ in range(callbacks)]
        state = init_state()
        for epoch in range(epochs):
            taken = []
            for places in draw_batches(epoch):
                state, loss = take_step(state, inputs[places], labels[places])
                taken.append(loss)
            mean = float(np.mean(jax.device_get(taken)))
            for callback in nothing:
                state = callback(state, mean)
        jax.block_until_ready(state)

    return run
