"""The contract of networks: two pure functions, independent of any library."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

Init = Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]]
"""Initialise a network's variables: `(key, example) -> (params, model_state)`."""


class Apply(Protocol):
    """Run a network: `(params, model_state, inputs, *, key, train) -> (outputs, model_state)`."""

    def __call__(
        self,
        params: PyTree,
        model_state: PyTree,
        inputs: PyTree,
        /,
        *,
        key: jax.Array | None,
        train: bool,
    ) -> tuple[PyTree, PyTree]:
        """Run on one batch; see `Network.apply`."""


class Network(NamedTuple):
    """A network as two pure functions, all that training needs of it.

    Both may be jitted, differentiated, mapped and scanned; `train` is a Python bool. The network
    itself holds no variables, so it can be used with any number of states.

    Any two functions that satisfy the contract are a network:

    >>> def init(key, example):
    ...     return {"kernel": jax.random.normal(key, (example.shape[-1], 2))}, {}
    >>> def apply(params, model_state, inputs, *, key, train):
    ...     return inputs @ params["kernel"], model_state
    >>> linear = Network(init, apply)
    >>> params, model_state = linear.init(jax.random.key(0), jnp.ones((4, 3)))
    >>> linear.apply(params, model_state, jnp.ones((4, 3)), key=None, train=False)[0].shape
    (4, 2)
    """

    init: Init
    """`(key, example) -> (params, model_state)`, called once, before training.

    `key` is a single typed key. `example` is the network's inputs as one batch, an array
    `[batch, ...]` or a pytree of them; only shapes and dtypes are read, so `jax.ShapeDtypeStruct`
    is enough, and only the batch size may differ in later calls. `params` is what the optimizer
    updates; `model_state` is everything else, batch statistics for instance, or {}. Both are plain
    nested dicts of arrays with string keys, which name the arrays in checkpoints; neither holds
    random state.
    """

    apply: Apply
    """`(params, model_state, inputs, *, key, train) -> (outputs, model_state)`.

    `inputs` is `[batch, ...]` as in `example`, `outputs` the network's outputs, for a classifier
    logits `[batch, classes]`. With `train=True` the returned model state is updated, in the same
    structure, shapes and dtypes, for the caller to keep; with `train=False` it is unchanged. `key`
    is the only source of randomness: the same arguments return the same results. It may be None
    where nothing is random. No argument is changed in place.
    """


def named_key(key: jax.Array, name: str) -> jax.Array:
    """Derive the key of a name, the same in every process.

    The keys of names are independent, so a new name does not change the others' random numbers.

    Raises:
        TypeError: `key` is not a single typed key.

    >>> key = jax.random.key(0)
    >>> bool(named_key(key, "dropout") == named_key(key, "dropout"))
    True
    >>> bool(named_key(key, "dropout") == named_key(key, "params"))
    False
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must be a typed key, jax.random.key(seed); got {key!r}")
    if key.shape:
        raise TypeError(f"key must be a single key of shape (); got shape {key.shape}")
    digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
    return jax.random.fold_in(key, np.uint32(int.from_bytes(digest, "big")))


def shapes_of(tree: PyTree) -> PyTree:
    """Return the shapes and dtypes of a pytree's arrays, as `jax.ShapeDtypeStruct`s.

    >>> shapes_of({"image": jnp.ones((2, 3))})
    {'image': ShapeDtypeStruct(shape=(2, 3), dtype=float32)}
    """
    abstract = jax.eval_shape(lambda x: x, tree)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), abstract)
