"""Environments: pure functions over a state, built in or adapted, and wrappers."""

from trainer.rl.environments.cartpole import CartPoleParams, cartpole
from trainer.rl.environments.environment import Box, Discrete, Environment, Space, TimeStep, example
from trainer.rl.environments.from_gymnasium import HostEnvironments, from_gymnasium
from trainer.rl.environments.from_gymnax import from_gymnax
from trainer.rl.environments.from_jumanji import from_jumanji
from trainer.rl.environments.grid_params import GridworldParams, gridworld_levels
from trainer.rl.environments.gridworld import gridworld
from trainer.rl.environments.wrappers import auto_reset, record_episodes, time_limit

__all__ = [
    "Box",
    "CartPoleParams",
    "Discrete",
    "Environment",
    "GridworldParams",
    "HostEnvironments",
    "Space",
    "TimeStep",
    "auto_reset",
    "cartpole",
    "example",
    "from_gymnasium",
    "from_gymnax",
    "from_jumanji",
    "gridworld",
    "gridworld_levels",
    "record_episodes",
    "time_limit",
]
