"""A multilayer perceptron."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import jax
from flax import nnx

from models.argument_checks import require_array, require_rate, require_size, require_sizes
from models.initializers import lecun_normal
from models.network import Network, PyTree
from models.nnx import from_nnx


def mlp(*, classes: int = 10, hidden: Sequence[int] = (128, 128), dropout: float = 0.0) -> Network:
    """Build a multilayer perceptron that classifies inputs of any shape, flattened.

    Args:
        classes: number of outputs per example.
        hidden: sizes of the hidden layers, each followed by a ReLU; () for a linear model.
        dropout: probability, at least 0 and less than 1, of dropping a hidden unit in training.

    Returns:
        A network from `[batch, ...]` to logits `[batch, classes]`, without model state. The sizes
        come from the example passed to `init`.

    Raises:
        TypeError: a size is no whole number; on a call, the inputs are not one array.
        ValueError: a size is less than 1, `dropout` is out of range; on a call, the inputs have
            no batch axis.

    >>> import jax.numpy as jnp
    >>> network = mlp(hidden=(), classes=3)
    >>> images = jnp.ones((4, 8, 8, 1))
    >>> params, model_state = network.init(jax.random.key(0), images)
    >>> jax.tree.map(jnp.shape, params)
    {'head': {'bias': (3,), 'kernel': (64, 3)}}
    >>> network.apply(params, model_state, images, key=None, train=False)[0].shape
    (4, 3)
    """
    require_size("mlp", "classes", classes)
    require_sizes("mlp", "hidden", hidden)
    require_rate("mlp", "dropout", dropout)

    def build(rngs: nnx.Rngs, example: PyTree) -> nnx.Module:
        require_array("mlp", "[batch, ...]", example)
        sizes = (math.prod(example.shape[1:]), *hidden, classes)
        return MLP(sizes, dropout=dropout, rngs=rngs)

    return from_nnx(build)


class MLP(nnx.Module):
    """Dense layers from `sizes[0]` features to `sizes[-1]` outputs, with ReLUs between them."""

    def __init__(self, sizes: Sequence[int], *, dropout: float, rngs: nnx.Rngs) -> None:
        *hidden, head = itertools.pairwise(sizes)
        dense = functools.partial(nnx.Linear, kernel_init=lecun_normal, rngs=rngs)
        self.hidden = nnx.List([dense(*pair) for pair in hidden])
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        self.head = dense(*head)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Compute logits `[batch, sizes[-1]]` for inputs `[batch, ...]`."""
        x = inputs.reshape(inputs.shape[0], -1)
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
            x = x if self.dropout is None else self.dropout(x)
        return self.head(x)
