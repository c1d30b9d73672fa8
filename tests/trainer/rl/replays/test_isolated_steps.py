"""Isolated steps: the same bits in every compiled function."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from trainer.rl.environments import Box, Discrete, Environment, TimeStep, cartpole
from trainer.rl.replays.isolated_steps import STEP, isolate_step


def test_it_is_the_environments_step():
    env = cartpole()
    root, action = jax.random.key(3), jnp.int32(1)
    state, _ = env.reset(jax.random.key(0), env.params)
    key = jax.random.fold_in(jax.random.fold_in(root, STEP), 7)
    wanted = jax.jit(env.step)(key, state, action, env.params)
    got = jax.jit(isolate_step(env))(root, 7, state, action, env.params)
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_code_around_a_step_changes_none_of_its_bits():
    """Without isolation, XLA fuses two factors and rounds once instead of twice."""

    def step(key, state, action, params):
        state = 3.3 * action + 2 * state
        state = state - jnp.floor(state)
        return TimeStep(state, state[None], state, jnp.bool_(False), jnp.bool_(False))

    env = Environment("fold", lambda key, params: None, step, Box((1,)), Box(()), ())
    take, root, start = isolate_step(env), jax.random.key(0), jnp.float32(0.3)

    @jax.jit
    def run(t):
        def body(carried):
            t, state, actions, states = carried
            action = 1.7 * state
            kept = actions.at[t].set(action), states.at[t].set(state)
            return t + 1, take(root, t, state, action, ()).state, *kept

        kept = jnp.zeros(60), jnp.zeros(60)
        return lax.while_loop(lambda carried: carried[0] < 60, body, (t, start, *kept))[2:]

    @jax.jit
    def run_again(t, actions):
        def body(state, row):
            return take(root, t + row[1], state, row[0], ()).state, state

        return lax.scan(body, start, (actions, jnp.arange(60)))[1]

    actions, states = run(0)
    np.testing.assert_array_equal(run_again(0, actions), states)
    assert np.unique(states).size > 50


def test_python_numbers_become_arrays():
    def step(key, state, action, params):
        return TimeStep(state, state[None], 1, False, True, {"bonus": 2.0})

    env = Environment("plain", lambda key, params: None, step, Box((1,)), Discrete(2), ())
    after = jax.jit(isolate_step(env))(jax.random.key(0), 0, jnp.float32(0), jnp.int32(0), ())
    assert (after.reward.dtype, after.reward.item()) == (jnp.float32, 1.0)
    assert (after.terminated.item(), after.truncated.item()) == (False, True)
    assert after.info["bonus"].item() == 2.0
