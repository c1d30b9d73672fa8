"""Groups of parameters, and frozen groups."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from trainer.supervised import optimizers

PARAMS = {
    "head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "dense": {"kernel": jnp.ones((2, 2))},
}
GRADS = jax.tree.map(lambda leaf: 0.5 * leaf, PARAMS)


def test_the_first_rule_that_matches_applies():
    found = optimizers.labels({"none": "bias$", "fast": "^head/"}, default="slow")(PARAMS)
    assert found == {"head": {"kernel": "fast", "bias": "none"}, "dense": {"kernel": "slow"}}


def test_a_rule_that_matches_nothing_lists_the_paths():
    with pytest.raises(
        ValueError, match=r"'tail' of label 'fast' matches no parameter \(there is: d"
    ):
        optimizers.labels({"fast": "tail"}, default="slow")(PARAMS)
    with pytest.raises(ValueError, match=r"'\(' of label 'fast' is no regular expression"):
        optimizers.labels({"fast": "("}, default="slow")


def test_groups_have_their_own_settings():
    optimizer = optax.multi_transform(
        {"fast": optax.sgd(1.0), "slow": optax.sgd(0.1)},
        optimizers.labels({"fast": "^head/"}, default="slow"),
    )
    updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates["head"], jax.tree.map(jnp.negative, GRADS["head"]))
    chex.assert_trees_all_close(updates["dense"]["kernel"], -0.05 * jnp.ones((2, 2)))


def test_only_parameters_with_two_axes_decay():
    optimizer = optax.adamw(1.0, weight_decay=0.1, mask=optimizers.decay_mask)
    still = jax.tree.map(jnp.zeros_like, GRADS)
    updates, _ = optimizer.update(still, optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates["head"]["kernel"], -0.1 * jnp.ones((2, 3)))
    chex.assert_trees_all_equal(updates["head"]["bias"], jnp.zeros(3))


def test_a_frozen_group_does_not_change_and_starts_at_its_first_step():
    frozen, plain = optimizers.frozen(optax.adamw(0.1)), optax.adamw(0.1)
    state = begin = frozen.init(PARAMS)
    for _ in range(3):
        updates, state = jax.jit(frozen.update)(GRADS, state, PARAMS)
        assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
    chex.assert_trees_all_equal(state, begin)
    live = state._replace(live=jnp.array(True))
    updates, after = frozen.update(GRADS, live, PARAMS)
    wanted, first = plain.update(GRADS, plain.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates, wanted)
    chex.assert_trees_all_equal(after.inner_state, first)
    chex.assert_trees_all_equal_structs(state, after)


def test_stacked_layers_decay_like_single_ones():
    stacked = {"norm": {"scale": jnp.ones((4, 8))}, "up": {"kernel": jnp.ones((4, 8, 8))}}
    assert optimizers.decay_mask(stacked) == {"norm": {"scale": False}, "up": {"kernel": True}}
