"""PPO after the design of PureJaxRL, written anew: all of a training in one compiled function.

Network and train state are Flax Linen's; environments are single, under `vmap`, with keys of their
own that are split at each step; the value is computed in the rollout and clipped in the update; the
rate falls to 0. It returns what each environment step reported, and nobody can look in between.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from _bare_ppo import LEAN, LIMIT, TRACK, fresh, moved
from _ppo_settings import EPSILON, RATE
from flax import linen
from flax.training.train_state import TrainState
from jax import lax


class Transition(NamedTuple):
    observation: Any
    action: Any
    log_prob: Any
    value: Any
    reward: Any
    done: Any
    info: Any


class ActorCritic(linen.Module):
    """Two networks of two layers: logits and the value."""

    hidden: int

    @linen.compact
    def __call__(self, observation):
        def mlp(outputs, scale):
            x = observation
            for size, gain in ((self.hidden, 2**0.5), (self.hidden, 2**0.5), (outputs, scale)):
                start = linen.initializers.orthogonal(gain)
                layer = linen.Dense(size, kernel_init=start)
                x = layer(x) if size is outputs else linen.tanh(layer(x))
            return x

        return mlp(2, 0.01), mlp(1, 1.0)[..., 0]


class Environment(NamedTuple):
    """One CartPole."""

    physics: jax.Array
    length: jax.Array
    total: jax.Array


def reset(key):
    return Environment(fresh(key), jnp.int32(0), jnp.float32(0))


def step(key, environment, action):
    """Return (environment, reward, done, info); one that ends begins anew."""
    physics = moved(environment.physics, action)
    after = Environment(physics, environment.length + 1, environment.total + 1.0)
    done = (abs(physics[0]) > TRACK) | (abs(physics[2]) > LEAN) | (after.length >= LIMIT)
    begun = reset(key)
    kept = jax.tree.map(lambda new, old: jnp.where(done, new, old), begun, after)
    return kept, 1.0, done, {"done": done, "return": after.total, "length": after.length}


def log_prob_of(logits, action):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]


def compute_advantages(path, last_value, settings):
    """Return generalised advantages `[time, env]`; an end by time is an end."""

    def back(carry, one):
        advantage, next_value = carry
        going_on = 1.0 - one.done
        delta = one.reward + settings.discount * next_value * going_on - one.value
        advantage = delta + settings.discount * settings.gae_lambda * going_on * advantage
        return (advantage, one.value), advantage

    first = jnp.zeros_like(last_value), last_value
    return lax.scan(back, first, path, reverse=True, unroll=16)[1]


def compute_loss(params, apply, minibatch, settings):
    path, advantage, target = minibatch
    logits, value = apply(params, path.observation)
    clip = settings.clip
    near = path.value + jnp.clip(value - path.value, -clip, clip)
    value_loss = 0.5 * jnp.maximum((value - target) ** 2, (near - target) ** 2).mean()
    ratio = jnp.exp(log_prob_of(logits, path.action) - path.log_prob)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
    policy_loss = -jnp.minimum(ratio * advantage, bounded * advantage).mean()
    log_probs = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    bonus = settings.entropy_coefficient * entropy
    return policy_loss + settings.value_coefficient * value_loss - bonus


def make_train(settings, iterations):
    """Build `train(key)`, which gives (train state, `done`, `return`, `length` of each step)."""
    envs, size = settings.envs, settings.envs * settings.steps
    network = ActorCritic(settings.hidden)

    def fall(count):
        passed = count // (settings.minibatches * settings.epochs)
        return RATE * (1.0 - passed / iterations)

    def init(key):
        params = network.init(key, jnp.zeros(4))
        clip = optax.clip_by_global_norm(settings.clip_norm)
        rule = optax.chain(clip, optax.adam(fall, eps=EPSILON))
        return TrainState.create(apply_fn=network.apply, params=params, tx=rule)

    def act(carry, _):
        state, environments, key = carry
        key, acting, stepping = jax.random.split(key, 3)
        logits, value = network.apply(state.params, environments.physics)
        action = jax.random.categorical(acting, logits)
        keys = jax.random.split(stepping, envs)
        after, reward, done, info = jax.vmap(step)(keys, environments, action)
        taken = Transition(
            environments.physics, action, log_prob_of(logits, action), value, reward, done, info
        )
        return (state, after, key), taken

    def learn(state, minibatch):
        grads = jax.grad(compute_loss)(state.params, network.apply, minibatch, settings)
        return state.apply_gradients(grads=grads), None

    def pass_through(carry, _):
        state, batch, key = carry
        key, shuffling = jax.random.split(key)
        order = jax.random.permutation(shuffling, size)
        flat = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), batch)
        minibatches = jax.tree.map(
            lambda x: x[order].reshape(settings.minibatches, -1, *x.shape[1:]), flat
        )
        return (lax.scan(learn, state, minibatches)[0], batch, key), None

    def iterate(carry, _):
        (state, environments, key), path = lax.scan(act, carry, length=settings.steps)
        last_value = network.apply(state.params, environments.physics)[1]
        advantage = compute_advantages(path, last_value, settings)
        batch = path, advantage, advantage + path.value
        (state, _, key), _ = lax.scan(pass_through, (state, batch, key), length=settings.epochs)
        return (state, environments, key), path.info

    def train(key):
        initial, begin, run = jax.random.split(key, 3)
        environments = jax.vmap(reset)(jax.random.split(begin, envs))
        (state, _, _), info = lax.scan(
            iterate, (init(initial), environments, run), length=iterations
        )
        return state, info

    return jax.jit(train)


def whole_training(settings):
    """Build `run`; a function is compiled for each number of iterations."""
    trained = {}

    def run(iterations):
        if iterations not in trained:
            trained[iterations] = make_train(settings, iterations)
        jax.block_until_ready(trained[iterations](jax.random.key(0)))

    return run
