"""What minibatches are made of."""

import jax.numpy as jnp

from trainer.rl.minibatch_steps import group_units


def test_units_are_transitions_or_for_recurrent_policies_environments():
    batch = {"value": jnp.zeros((3, 2)), "observation": jnp.zeros((3, 2, 5))}
    assert group_units(batch, ()).batch["observation"].shape == (1, 6, 5)
    kept = group_units(batch, jnp.zeros((2, 4)))
    assert kept.batch["observation"].shape == (3, 2, 5)
