"""A hook is a function, so its tests call it, without training."""

import jax
import jax.numpy as jnp
import pytest
from hooks.testing import check_hook
from trainer import TrainState

from my_hooks import measure_gap

METRICS = {"train/accuracy": 0.75, "val/accuracy": 0.5}


@pytest.fixture
def state() -> TrainState:
    """Return a state with one parameter."""
    return TrainState.create(params={"w": jnp.ones(3)}, rng=jax.random.key(0))


def test_the_gap_is_that_between_training_and_held_out_data(state: TrainState) -> None:
    """Call the hook, and look at what it wrote."""
    assert measure_gap(state, METRICS).scores == {"gap/accuracy": 0.25}


def test_without_an_evaluation_nothing_is_written(state: TrainState) -> None:
    """A hook that declares what it reads does not run without it."""
    assert measure_gap(state, {"train/accuracy": 0.75}) is state


def test_it_keeps_the_laws_of_hooks(state: TrainState) -> None:
    """It is pure, keeps the structure of the state, and survives a checkpoint."""
    check_hook(measure_gap, state, METRICS)
