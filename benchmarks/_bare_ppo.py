"""PPO on CartPole written out in bare JAX, as one would without a library: what ours is held to.

It imports nothing of the library: its own physics, its own network of plain dicts, optax's Adam.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from _ppo_settings import EPISODES, EPSILON, RETURN
from jax import lax

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
TRACK, LEAN, LIMIT = 2.4, 12 * math.pi / 180, 500
"""Where an episode ends: metres from the middle, radians, steps."""


class Episodes(NamedTuple):
    """Where each environment is; `[envs, 4]` and `[envs]`."""

    physics: jax.Array
    length: jax.Array
    total: jax.Array


class State(NamedTuple):
    params: Any
    opt_state: Any
    episodes: Episodes
    key: jax.Array


def moved(physics, action):
    """Push the cart left (0) or right (1) for one step; the last axis is the four numbers."""
    x, speed, angle, turning = (physics[..., n] for n in range(4))
    sine, cosine, mass = jnp.sin(angle), jnp.cos(angle), CART + POLE
    push = jnp.where(action == 1, FORCE, -FORCE)
    common = (push + POLE * HALF_LENGTH * turning**2 * sine) / mass
    lever = HALF_LENGTH * (4 / 3 - POLE * cosine**2 / mass)
    twist = (GRAVITY * sine - cosine * common) / lever
    pull = common - POLE * HALF_LENGTH * twist * cosine / mass
    rates = (speed, pull, turning, twist)
    new = (x, speed, angle, turning)
    return jnp.stack([a + SECONDS * b for a, b in zip(new, rates, strict=True)], axis=-1)


def fresh(key, *shape):
    return jax.random.uniform(key, (*shape, 4), minval=-0.05, maxval=0.05)


def layer(key, inputs, outputs, scale):
    return {
        "w": jax.nn.initializers.orthogonal(scale)(key, (inputs, outputs)),
        "b": jnp.zeros(outputs),
    }


def torso(key, outputs, scale, hidden):
    keys = jax.random.split(key, 3)
    sizes = (4, hidden, math.sqrt(2)), (hidden, hidden, math.sqrt(2)), (hidden, outputs, scale)
    return [layer(key, *size) for key, size in zip(keys, sizes, strict=True)]


def forward(layers, inputs):
    for one in layers[:-1]:
        inputs = jnp.tanh(inputs @ one["w"] + one["b"])
    return inputs @ layers[-1]["w"] + layers[-1]["b"]


def init(key, settings, optimizer):
    policy, value, begin, run = jax.random.split(key, 4)
    params = {
        "policy": torso(policy, 2, 0.01, settings.hidden),
        "value": torso(value, 1, 1.0, settings.hidden),
    }
    nothing = jnp.zeros(settings.envs)
    episodes = Episodes(fresh(begin, settings.envs), nothing.astype(jnp.int32), nothing)
    return State(params, optimizer.init(params), episodes, run)


def rollout(params, episodes, key, settings):
    """Act, all chance drawn before; return (episodes, what happened `[time, env]`)."""
    sampling, beginning = jax.random.split(key)
    shape = settings.steps, settings.envs
    chance = jax.random.gumbel(sampling, (*shape, 2)), fresh(beginning, *shape)

    def act(episodes, chance):
        noise, beginning = chance
        logits = forward(params["policy"], episodes.physics)
        action = jnp.argmax(logits + noise, axis=-1)
        physics = moved(episodes.physics, action)
        length, total = episodes.length + 1, episodes.total + 1.0
        terminated = (abs(physics[:, 0]) > TRACK) | (abs(physics[:, 2]) > LEAN)
        done = terminated | (length >= LIMIT)
        taken = {
            "observation": episodes.physics,
            "after": physics,
            "action": action,
            "log_prob": chosen(jax.nn.log_softmax(logits), action),
            "reward": jnp.ones(settings.envs),
            "terminated": terminated,
            "done": done,
            "length": length,
            "total": total,
        }
        kept = jnp.where(done, 0, length), jnp.where(done, 0.0, total)
        return Episodes(jnp.where(done[:, None], beginning, physics), *kept), taken

    return lax.scan(act, episodes, chance)


def chosen(log_probs, action):
    return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]


def advantages(taken, value, next_value, settings):
    """Generalised advantage estimation; where time ran out, what would have come is the value."""

    def back(later, step):
        delta, going_on = step
        advantage = delta + settings.discount * settings.gae_lambda * going_on * later
        return advantage, advantage

    future = jnp.where(taken["terminated"], 0.0, next_value)
    delta = taken["reward"] + settings.discount * future - value
    first = jnp.zeros(settings.envs)
    return lax.scan(back, first, (delta, 1.0 - taken["done"]), reverse=True)[1]


def objective(params, batch, settings):
    logits = forward(params["policy"], batch["observation"])
    value = forward(params["value"], batch["observation"])[:, 0]
    log_probs = jax.nn.log_softmax(logits)
    difference = chosen(log_probs, batch["action"]) - batch["log_prob"]
    ratio = jnp.exp(difference)
    advantage = batch["advantage"]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
    policy_loss = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
    value_loss = jnp.square(value - batch["target"]).mean()
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    loss = (
        policy_loss
        + settings.value_coefficient * value_loss
        - settings.entropy_coefficient * entropy
    )
    return loss, {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": (ratio - 1 - difference).mean(),
        "clip_fraction": (abs(ratio - 1) > settings.clip).mean(),
    }


def iteration(state, settings, optimizer):
    """Act, then learn from it; return (state, metrics)."""
    key, acting, learning = jax.random.split(state.key, 3)
    episodes, taken = rollout(state.params, state.episodes, acting, settings)
    value = forward(state.params["value"], taken["observation"])[..., 0]
    next_value = forward(state.params["value"], taken["after"])[..., 0]
    advantage = advantages(taken, value, next_value, settings)
    size = settings.steps * settings.envs
    batch = {name: taken[name] for name in ("observation", "action", "log_prob")}
    batch |= {"advantage": advantage, "target": advantage + value}
    batch = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), batch)

    def learn(carry, places):
        params, opt_state = carry
        part = jax.tree.map(lambda x: x[places], batch)
        grads, metrics = jax.grad(objective, has_aux=True)(params, part, settings)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        metrics["grad_norm"] = optax.global_norm(grads)
        return (optax.apply_updates(params, updates), opt_state), metrics

    shuffles = jax.random.split(learning, settings.epochs)
    places = jax.vmap(lambda key: jax.random.permutation(key, size))(shuffles)
    places = places.reshape(settings.epochs * settings.minibatches, -1)
    (params, opt_state), metrics = lax.scan(learn, (state.params, state.opt_state), places)
    metrics = {name: trace.mean() for name, trace in metrics.items()}
    left = jnp.var(batch["target"] - value.reshape(-1))
    metrics["explained_variance"] = 1 - left / jnp.var(batch["target"])
    done = taken["done"]
    metrics["episodes"] = done.sum()
    metrics["return_sum"] = jnp.where(done, taken["total"], 0.0).sum()
    metrics["length_sum"] = jnp.where(done, taken["length"], 0).sum()
    return State(params, opt_state, episodes, key), metrics


def adam(rate, settings):
    """Build the optimizer; `rate` a float or a schedule over updates."""
    clip = optax.clip_by_global_norm(settings.clip_norm)
    return optax.chain(clip, optax.adam(rate, eps=EPSILON))


def one_dispatch_an_iteration(settings, optimizer):
    """Build `run(state, iterations)`: a compiled function that is called again and again."""
    one = compiled(settings, optimizer)

    def run(state, iterations):
        for _ in range(iterations):
            state, metrics = one(state)
            jax.device_get(metrics)
        return jax.block_until_ready(state)

    return run


def one_scan(settings, optimizer):
    """Build `run(state, iterations)`: one compiled function for all of them."""

    @functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
    def scanned(state, iterations):
        def one(state, _):
            return iteration(state, settings, optimizer)

        return lax.scan(one, state, length=iterations)

    def run(state, iterations):
        state, metrics = scanned(state, iterations)
        jax.device_get(metrics)
        return jax.block_until_ready(state)

    return run


def compiled(settings, optimizer):
    return jax.jit(
        functools.partial(iteration, settings=settings, optimizer=optimizer), donate_argnums=0
    )


def solve(one, state, iterations, settings):
    """Train until the last episodes reach the return; return the environment steps, or None.

    Args:
        one: iteration, `compiled`.
        state: to begin with; it is used up.
        iterations: at most.
        settings: of the iteration.
    """
    ended = []
    for number in range(1, iterations + 1):
        state, metrics = one(state)
        metrics = jax.device_get(metrics)
        ended.append((int(metrics["episodes"]), float(metrics["return_sum"])))
        if (mean := recent(ended)) is not None and mean >= RETURN:
            return number * settings.envs * settings.steps
    return None


def recent(ended):
    """Return the mean return of the last episodes; None where there are too few.

    Args:
        ended: (episodes, sum of their returns) of each iteration. Those of the first iteration
            that is looked at count whole, so that there may be some more than `EPISODES`.
    """
    count, total = 0, 0.0
    for episodes, returns in reversed(ended):
        count, total = count + episodes, total + returns
        if count >= EPISODES:
            return total / count
    return None
