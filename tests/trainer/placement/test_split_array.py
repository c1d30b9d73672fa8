"""An array split over processes is not used where one process would wait for the others."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer.placement.split_array import SplitArray


@pytest.fixture
def split():
    """What the observer `mine` sees of a leaf."""
    return SplitArray(jnp.ones((3, 4)), "params/head/kernel", "mine")


USES = {
    "numpy": np.asarray,
    "numpy's sum": np.sum,
    "numpy's like": np.zeros_like,
    "jnp": jnp.asarray,
    "jnp's sum": jnp.sum,
    "jit": jax.jit(lambda x: x["w"]),
    "vmap": jax.vmap(lambda x: x),
    "shapes": lambda x: jax.eval_shape(jnp.sum, x),
    "device_get": jax.device_get,
    "device_put": jax.device_put,
    "index": lambda x: x[0],
    "arithmetic": lambda x: x + 1,
    "reflected": lambda x: 1 - x,
    "beside numpy": lambda x: np.ones((3, 4)) * x,
    "beside jax": lambda x: jnp.ones((3, 4)) @ x,
    "float": float,
    "bool": bool,
    "iteration": list,
    "comparison": lambda x: x == x,
    "method": lambda x: x.mean(),
    "shards": lambda x: x.addressable_shards,
    "copy": copy.deepcopy,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_every_use_of_its_values_raises_with_the_leaf_the_hook_and_the_remedy(split, use):
    given = {"w": split} if use is USES["jit"] else split
    with pytest.raises(
        RuntimeError,
        match=r"observer 'mine' reads params/head/kernel, float32\[3, 4\].*gather=\"params\"",
    ):
        use(given)


def test_what_it_is_can_be_read(split):
    assert (split.shape, split.dtype, split.ndim, split.size) == ((3, 4), jnp.float32, 2, 12)
    assert repr(split) == "SplitArray(params/head/kernel: float32[3, 4])"
    assert jax.tree.leaves({"w": split}) == [split]  # the same object, without a comparison
    assert not isinstance(split, jax.Array)


def test_on_one_process_gathering_leaves_all_as_it_is():
    tree = {"w": jnp.ones(2), "key": jax.random.key(0), "n": 3, "text": "a"}
    gathered = trainer.gather(tree)
    assert all(gathered[name] is leaf for name, leaf in tree.items())
