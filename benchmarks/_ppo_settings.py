"""What PPO on CartPole is compiled for, in the benchmarks that train it; it imports no JAX."""

from typing import NamedTuple

RETURN, EPISODES = 475.0, 100
"""CartPole-v1 is solved where so many episodes, one after the other, have such a mean return."""
EPSILON = 1e-5
"""Of Adam."""
RATE = 2e-3
"""Of Adam, at first."""


class Settings(NamedTuple):
    """What to compile for; names and meanings as the library's `ppo` has them."""

    envs: int = 8
    steps: int = 128
    epochs: int = 4
    minibatches: int = 4
    discount: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    value_coefficient: float = 0.5
    entropy_coefficient: float = 0.01
    clip_norm: float = 0.5
    hidden: int = 64


DEFAULTS = Settings()
SOLVING = Settings(
    envs=16, steps=64, epochs=10, discount=0.98, gae_lambda=0.9, entropy_coefficient=0.0
)
MANY = Settings(envs=128, steps=32)
QUICK = Settings(envs=2, steps=8, epochs=1, minibatches=2)
