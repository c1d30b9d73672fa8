"""A residual network for small and medium images."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from models.argument_checks import require_array, require_rate, require_size, require_sizes
from models.initializers import lecun_normal
from models.network import Network, PyTree
from models.nnx import from_nnx


def resnet(
    *,
    classes: int = 10,
    channels: Sequence[int] = (16, 32, 64),
    blocks: Sequence[int] = (1, 1, 1),
    dropout: float = 0.0,
    remat: bool = False,
) -> Network:
    """Build a residual network that classifies images, from 8x8 digits to about 100 pixels a side.

    The network is a 3x3 convolution, stages of residual blocks, the mean over all positions and a
    linear layer. A block adds the result of two 3x3 convolutions to its inputs; batch normalisation
    follows each convolution. Each stage but the first halves the size (rounded up). The settings
    `channels=(16, 32, 64), blocks=(3, 3, 3)` are the paper's network of 20 layers, except that
    shortcuts have parameters where the size changes.

    With parameters and inputs of a lower precision the convolutions run in that precision;
    normalisation runs in float32, and the running averages stay float32.

    Args:
        classes: number of outputs per example.
        channels: of each stage, in order.
        blocks: number of blocks of each stage, in order; as long as `channels`.
        dropout: probability, at least 0 and less than 1, of dropping an input of the linear layer,
            in training.
        remat: whether to recompute each block in the backward pass instead of storing its
            activations: less memory for more time on GPUs and TPUs; XLA on CPU undoes most of it
            (jax 0.10.2).

    Returns:
        A network from `[batch, height, width, channels]` to logits `[batch, classes]`, whose model
        state is the running averages of the normalisation.

    Raises:
        TypeError: a size is no whole number; on a call, the inputs are not one array.
        ValueError: a size is less than 1, `dropout` is out of range, there are no stages, or
            `channels` and `blocks` differ in length; on a call, the inputs are of another rank.

    Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2016), section
    4.2.

    >>> import jax.numpy as jnp
    >>> network = resnet(channels=(4, 8), blocks=(1, 2))
    >>> images = jnp.ones((2, 8, 8, 1))
    >>> params, model_state = jax.jit(network.init)(jax.random.key(0), images)
    >>> sorted(params), sorted(params["stages"]["1"])
    (['head', 'stages', 'stem'], ['0', '1'])
    >>> jax.tree.map(jnp.shape, model_state["stem"])
    {'norm': {'mean': (4,), 'var': (4,)}}
    >>> network.apply(params, model_state, images, key=None, train=False)[0].shape
    (2, 10)
    """
    require_size("resnet", "classes", classes)
    require_sizes("resnet", "channels", channels)
    require_sizes("resnet", "blocks", blocks)
    require_rate("resnet", "dropout", dropout)
    if not channels or len(channels) != len(blocks):
        raise ValueError(
            "resnet: channels and blocks must name the same stages, at least one; "
            f"got channels={channels!r} and blocks={blocks!r}"
        )

    def build(rngs: nnx.Rngs, example: PyTree) -> nnx.Module:
        require_array("resnet", "[batch, height, width, channels]", example, ranks=(4,))
        return ResNet(
            example.shape[-1],
            classes=classes,
            channels=channels,
            blocks=blocks,
            dropout=dropout,
            remat=remat,
            rngs=rngs,
        )

    return from_nnx(build)


class ResNet(nnx.Module):
    """A convolution, stages of blocks and a linear head; `depth` is the images' channels."""

    def __init__(
        self,
        depth: int,
        *,
        classes: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        dropout: float,
        remat: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.remat = remat
        self.stem = NormedConv(depth, channels[0], rngs=rngs)
        self.stages: nnx.List[Any] = nnx.List([])
        for stage, (count, sizes) in enumerate(
            zip(blocks, itertools.pairwise((channels[0], *channels)), strict=True)
        ):
            first = ResidualBlock(*sizes, stride=2 if stage else 1, rngs=rngs)
            rest = [
                ResidualBlock(sizes[1], sizes[1], stride=1, rngs=rngs) for _ in range(count - 1)
            ]
            self.stages.append(nnx.List([first, *rest]))
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        self.head = nnx.Linear(channels[-1], classes, kernel_init=lecun_normal, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Compute logits `[batch, classes]` for images `[batch, height, width, channels]`."""
        run = nnx.remat(ResidualBlock.__call__) if self.remat else ResidualBlock.__call__
        x = jax.nn.relu(self.stem(inputs))
        for block in itertools.chain.from_iterable(self.stages):
            x = run(block, x)
        x = x.mean(axis=(1, 2))
        x = x if self.dropout is None else self.dropout(x)
        return self.head(x)


class ResidualBlock(nnx.Module):
    """Two convolutions and a shortcut, which has parameters only where the shape changes."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, rngs: nnx.Rngs) -> None:
        convolution = functools.partial(NormedConv, rngs=rngs)
        self.first = convolution(inputs, outputs, stride=stride)
        self.second = convolution(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else convolution(inputs, outputs, size=1, stride=stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute `[batch, height / stride, width / stride, outputs]`, sizes rounded up."""
        change = self.second(jax.nn.relu(self.first(x)))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return jax.nn.relu(shortcut + change)


class NormedConv(nnx.Module):
    """A convolution of `size` by `size` and batch normalisation."""

    def __init__(
        self, inputs: int, outputs: int, *, size: int = 3, stride: int = 1, rngs: nnx.Rngs
    ) -> None:
        self.conv = nnx.Conv(
            inputs,
            outputs,
            kernel_size=(size, size),
            strides=stride,
            # Not "SAME", which at stride 2 reads other positions than the shortcut.
            padding=size // 2,
            use_bias=False,
            kernel_init=_he_normal,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute `[batch, height / stride, width / stride, outputs]`, sizes rounded up."""
        x = self.conv(x)
        # The float32 averages promote; the next layers run in the precision of the inputs.
        return self.norm(x).astype(x.dtype)


def _he_normal(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Draw a kernel of variance 2 / fan_in, which keeps the scale of signals through ReLUs.

    Source: He, Zhang, Ren and Sun, "Delving Deep into Rectifiers" (2015), equation 10.
    """
    return lecun_normal(key, shape, dtype) * math.sqrt(2)
