"""CartPole: a pole on a cart that is pushed to the left or to the right, and must not fall."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from trainer.rl.environments.environment import Box, Discrete, Environment, TimeStep
from trainer.rl.environments.ranges import Range, check_ranges

SECONDS_PER_STEP = 0.02
START = 0.05
"""Largest absolute value of each of the four numbers of an initial state."""

RANGES = {
    "gravity": Range(0, 100),
    "cart_mass": Range(0.01, 100),
    "pole_mass": Range(0.001, 100),
    "pole_length": Range(0.05, 10),
    "force": Range(0.01, 1000),
    "position_limit": Range(0.1, 1000),
    "angle_limit": Range(0.1, math.pi / 2),
    "max_steps": Range(1, 2**31 - 1, "whole number"),
}
HEIGHT, WIDTH = 80, 120


@struct.dataclass
class CartPoleParams:
    """Params of CartPole; each field is an array `()`, float32 except `max_steps`."""

    gravity: jax.Array
    """In m/s^2; default 9.8."""
    cart_mass: jax.Array
    """In kg; default 1."""
    pole_mass: jax.Array
    """In kg; default 0.1."""
    pole_length: jax.Array
    """From the cart to the middle of the pole, in m; default 0.5."""
    force: jax.Array
    """Force of a push, in N; default 10."""
    position_limit: jax.Array
    """The cart's distance from the middle that ends the episode, in m; default 2.4."""
    angle_limit: jax.Array
    """The pole's angle from the vertical that ends the episode, in rad; default 12 degrees."""
    max_steps: jax.Array
    """int32: steps after which the episode is cut off; default 500."""


class CartPoleState(NamedTuple):
    """Positions and speeds of the cart and the pole: float32 `()` each."""

    position: jax.Array
    """Position of the cart, in m, to the right."""
    velocity: jax.Array
    """Velocity of the cart, in m/s."""
    angle: jax.Array
    """Angle of the pole, in rad from the vertical, to the right."""
    angular_velocity: jax.Array
    """Angular velocity of the pole, in rad/s."""
    time: jax.Array
    """() int32: steps since the episode began."""


def cartpole() -> Environment:
    """Build CartPole-v1: the same dynamics, limits and rewards, as pure functions.

    An action is 0, a push to the left, or 1, a push to the right. Each step has a reward of 1, also
    the step in which the pole falls or the cart leaves its track, which ends the episode
    (`terminated`). Step 500 cuts it off (`truncated`), unless the pole falls in it.

    Returns:
        An environment with observations float32 `[4]` (position, velocity, angle, angular
        velocity; see `CartPoleState`) and two actions. Its `params` are `CartPoleParams`: a longer
        pole is `env.params.replace(pole_length=1.0)`. Images are `[80, 120, 3]`.

    Source: Barto, Sutton and Anderson, "Neuronlike Adaptive Elements That Can Solve Difficult
    Learning Control Problems" (1983); the limits and the integration (Euler) of CartPole-v1.

    >>> env = cartpole()
    >>> state, observation = env.reset(jax.random.key(0), env.params)
    >>> step = env.step(jax.random.key(1), state, jnp.int32(1), env.params)
    >>> step.observation.shape, float(step.reward), bool(step.terminated)
    ((4,), 1.0, False)
    """
    return Environment(
        name="cartpole",
        reset=_reset,
        step=_step,
        observation_space=Box((4,)),
        action_space=Discrete(2),
        params=CartPoleParams(
            gravity=jnp.float32(9.8),
            cart_mass=jnp.float32(1.0),
            pole_mass=jnp.float32(0.1),
            pole_length=jnp.float32(0.5),
            force=jnp.float32(10.0),
            position_limit=jnp.float32(2.4),
            angle_limit=jnp.float32(math.radians(12)),
            max_steps=jnp.int32(500),
        ),
        check=functools.partial(
            check_ranges, "cartpole", CartPoleParams, "cartpole().params.replace(...)", RANGES
        ),
        render=_render,
    )


def _reset(key: jax.Array, params: CartPoleParams) -> tuple[CartPoleState, jax.Array]:
    numbers = jax.random.uniform(key, (4,), minval=-START, maxval=START)
    state = CartPoleState(numbers[0], numbers[1], numbers[2], numbers[3], jnp.int32(0))
    return state, numbers


def _step(
    key: jax.Array, state: CartPoleState, action: jax.Array, params: CartPoleParams
) -> TimeStep:
    force = jnp.where(action == 1, params.force, -params.force)
    sine, cosine = jnp.sin(state.angle), jnp.cos(state.angle)
    mass = params.cart_mass + params.pole_mass
    moment = params.pole_mass * params.pole_length
    push = (force + moment * jnp.square(state.angular_velocity) * sine) / mass
    angular_acceleration = (params.gravity * sine - cosine * push) / (
        params.pole_length * (4 / 3 - params.pole_mass * jnp.square(cosine) / mass)
    )
    acceleration = push - moment * angular_acceleration * cosine / mass
    after = CartPoleState(
        position=state.position + SECONDS_PER_STEP * state.velocity,
        velocity=state.velocity + SECONDS_PER_STEP * acceleration,
        angle=state.angle + SECONDS_PER_STEP * state.angular_velocity,
        angular_velocity=state.angular_velocity + SECONDS_PER_STEP * angular_acceleration,
        time=state.time + 1,
    )
    terminated = (jnp.abs(after.position) > params.position_limit) | (
        jnp.abs(after.angle) > params.angle_limit
    )
    return TimeStep(
        state=after,
        observation=jnp.stack(after[:4]),
        reward=jnp.float32(1),
        terminated=terminated,
        truncated=(after.time >= params.max_steps) & ~terminated,
    )


def _render(state: CartPoleState, params: CartPoleParams) -> jax.Array:
    """Draw the track, the cart and the pole; the picture is as wide as the track."""
    scale = WIDTH / (2 * params.position_limit)  # pixels per metre
    ground = 0.75 * HEIGHT
    across, down = jnp.arange(WIDTH)[None] + 0.5, jnp.arange(HEIGHT)[:, None] + 0.5
    right, up = across - (WIDTH / 2 + state.position * scale), ground - down  # from the axle
    sine, cosine = jnp.sin(state.angle), jnp.cos(state.angle)
    along, beside = right * sine + up * cosine, right * cosine - up * sine
    layers = (
        (jnp.abs(up) <= 0.5, (0, 0, 0)),
        ((jnp.abs(right) <= 9) & (jnp.abs(up) <= 5), (70, 70, 90)),
        (
            (along >= 0) & (along <= 2 * params.pole_length * scale) & (jnp.abs(beside) <= 1.5),
            (200, 120, 50),
        ),
    )
    picture = jnp.full((HEIGHT, WIDTH, 3), 255, jnp.uint8)
    for covered, colour in layers:
        covered = jnp.broadcast_to(covered, (HEIGHT, WIDTH))[:, :, None]
        picture = jnp.where(covered, jnp.array(colour, jnp.uint8)[None, None], picture)
    return picture
