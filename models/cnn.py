"""A convolutional network for small images."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import jax
from flax import nnx

from models.argument_checks import require_array, require_rate, require_size, require_sizes
from models.initializers import lecun_normal
from models.network import Network, PyTree
from models.nnx import from_nnx


def cnn(
    *,
    classes: int = 10,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> Network:
    """Build a convolutional network that classifies images, such as 8x8 or 28x28 digits.

    Each block is a 3x3 convolution that keeps the size, optional batch normalisation, a 2x2 maximum
    that halves the size (an odd last row or column is dropped) and a ReLU. A dense layer and a
    linear one follow.

    Args:
        classes: number of outputs per example.
        channels: of each block, in order; n blocks need images of at least 2**n by 2**n.
        hidden: size of the dense layer.
        batch_norm: whether to normalise over the batch; the running averages are then the model
            state.
        dropout: probability, at least 0 and less than 1, of dropping a unit of the dense layer in
            training.

    Returns:
        A network from `[batch, height, width, channels]` to logits `[batch, classes]`. The sizes
        come from the example passed to `init`.

    Raises:
        TypeError: a size is no whole number; on a call, the inputs are not one array.
        ValueError: a size is less than 1, `dropout` is out of range; on a call, the inputs are of
            another rank, or too small.

    >>> import jax.numpy as jnp
    >>> network = cnn(channels=(4,), hidden=8, batch_norm=True)
    >>> images = jnp.ones((2, 8, 8, 1))
    >>> params, model_state = network.init(jax.random.key(0), images)
    >>> sorted(params), jax.tree.map(jnp.shape, model_state)
    (['convolutions', 'dense', 'head', 'norms'], {'norms': {'0': {'mean': (4,), 'var': (4,)}}})
    >>> network.apply(params, model_state, images, key=None, train=False)[0].shape
    (2, 10)
    """
    require_size("cnn", "classes", classes)
    require_sizes("cnn", "channels", channels)
    require_size("cnn", "hidden", hidden)
    require_rate("cnn", "dropout", dropout)

    def build(rngs: nnx.Rngs, example: PyTree) -> nnx.Module:
        require_array("cnn", "[batch, height, width, channels]", example, ranks=(4,))
        least = 2 ** len(channels)
        if min(example.shape[1:3]) < least:
            raise ValueError(
                f"cnn: {len(channels)} blocks need images of at least {least}x{least}; "
                f"got shape {example.shape}; pass fewer channels, or, where the channels come "
                "first, np.moveaxis(images, 1, -1)"
            )
        return CNN(
            example.shape[1:],
            classes=classes,
            channels=channels,
            hidden=hidden,
            batch_norm=batch_norm,
            dropout=dropout,
            rngs=rngs,
        )

    return from_nnx(build)


class CNN(nnx.Module):
    """Convolutional blocks and a dense head; `shape` is `(height, width, channels)`."""

    def __init__(
        self,
        shape: Sequence[int],
        *,
        classes: int,
        channels: Sequence[int],
        hidden: int,
        batch_norm: bool,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        height, width, depth = shape
        sizes = (depth, *channels)
        convolution = functools.partial(
            nnx.Conv,
            kernel_size=(3, 3),
            use_bias=not batch_norm,
            kernel_init=lecun_normal,
            rngs=rngs,
        )
        dense = functools.partial(nnx.Linear, kernel_init=lecun_normal, rngs=rngs)
        self.convolutions = nnx.List([convolution(*pair) for pair in itertools.pairwise(sizes)])
        norms = channels if batch_norm else ()
        self.norms = nnx.List([nnx.BatchNorm(size, momentum=0.9, rngs=rngs) for size in norms])
        scale = 2 ** len(channels)
        self.dense = dense((height // scale) * (width // scale) * sizes[-1], hidden)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        self.head = dense(hidden, classes)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Compute logits `[batch, classes]` for images `[batch, height, width, channels]`."""
        x = inputs
        for convolution, norm in itertools.zip_longest(self.convolutions, self.norms):
            x = convolution(x)
            x = x if norm is None else norm(x).astype(x.dtype)  # the averages are float32
            x = jax.nn.relu(_halve(x))
        x = jax.nn.relu(self.dense(x.reshape(x.shape[0], -1)))
        x = x if self.dropout is None else self.dropout(x)
        return self.head(x)


def _halve(images: jax.Array) -> jax.Array:
    """Compute the maximum over each 2x2 of `[batch, height, width, channels]`.

    A reshape makes a training step 1.2 to 1.4 times as fast on CPU as `nnx.max_pool`.

    >>> import jax.numpy as jnp
    >>> _halve(jnp.arange(12.0).reshape(1, 3, 4, 1)).ravel().tolist()
    [5.0, 7.0]
    """
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
