"""Environments and networks that are small enough to work out by hand."""

from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from trainer.rl.environments import Box, Discrete, Environment, TimeStep


def counting(limit=3, *, name="counting", reward=None):
    """Count steps: action 1 terminates the episode, the limit truncates it; reward: the count."""

    def reset(key, params):
        return jnp.int32(0), jnp.zeros(1)

    def step(key, state, action, params):
        state = state + 1
        earned = state.astype(jnp.float32) if reward is None else reward(state)
        over = action == 1
        return TimeStep(
            state, state.astype(jnp.float32)[None], earned, over, (state >= params) & ~over
        )

    return Environment(name, reset, step, Box((1,)), Discrete(2), jnp.int32(limit))


def constant(action=0, *, actions=2, value=lambda observation: 10 * observation[:, 0]):
    """A policy that always does the same, with a function of the observation as its value."""
    logits = jnp.where(jnp.arange(actions) == action, 50.0, -50.0)

    def apply(params, model_state, inputs, *, key, train):
        outputs = {
            "logits": jnp.broadcast_to(logits + 0 * params["w"], (len(inputs), actions)),
            "value": value(inputs) + params["w"],
        }
        return outputs, model_state

    return SimpleNamespace(init=lambda key, x: ({"w": jnp.zeros(())}, {}), apply=apply)


@pytest.fixture(scope="session")
def counts():
    """The function that makes environments that count."""
    return counting


@pytest.fixture(scope="session")
def always():
    """The function that makes policies that always do the same."""
    return constant
