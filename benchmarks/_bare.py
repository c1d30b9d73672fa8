"""Training written out in bare JAX, as one would without a trainer: what the library is held to."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax


class State(NamedTuple):
    params: Any
    opt_state: Any
    model_state: Any


def init(network, optimizer, key, inputs):
    """Initialise as `task.init` does: two jitted calls."""
    params, model_state = jax.jit(network.init)(key, inputs)
    return State(params, jax.jit(optimizer.init)(params), model_state)


def update(network, optimizer, state, batch):
    """Take one optimizer step; the loss, under the batch's mask, is all that it reports."""

    def objective(params):
        logits, model_state = network.apply(
            params, state.model_state, batch["inputs"], key=None, train=True
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return jnp.mean(losses, where=batch.get("mask")), model_state

    (loss, model_state), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), opt_state, model_state), loss


def shuffled(key, number, size, batch_size):
    """Return the places of an epoch's examples, `[steps, batch]`; the ragged tail is dropped."""
    order = jax.random.permutation(jax.random.fold_in(key, number), size)
    return order[: size // batch_size * batch_size].reshape(-1, batch_size)


def taken(arrays, places):
    return jax.tree.map(lambda array: array[places], arrays)


def one_scan(network, optimizer, size, batch_size):
    """Build an epoch that is one compiled function, `(state, arrays, key, number)`."""

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state, arrays, key, number):
        def step(state, places):
            return update(network, optimizer, state, taken(arrays, places))

        state, losses = lax.scan(step, state, shuffled(key, number, size, batch_size))
        return state, losses.mean()

    return epoch


def one_dispatch_a_step(network, optimizer, size, batch_size):
    """Build an epoch that calls a compiled step again and again; arguments as `one_scan`'s."""
    shuffle = jax.jit(functools.partial(shuffled, size=size, batch_size=batch_size))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(state, total, arrays, order, place):
        state, loss = update(network, optimizer, state, taken(arrays, order[place]))
        return state, total + loss

    def epoch(state, arrays, key, number):
        order, total = shuffle(key, number), jnp.zeros(())
        for place in range(len(order)):
            state, total = step(state, total, arrays, order, place)
        return state, total / len(order)

    return epoch
