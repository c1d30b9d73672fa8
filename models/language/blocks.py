"""Blocks of a transformer, and running a stack of them by a loop or as one scan."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.argument_checks import require_rate, require_size
from models.language.architecture import Architecture
from models.language.attention import CrossAttention, SelfAttention, TokenPlaces
from models.language.layers import ACTIVATIONS, FeatureNorm, dense, residual_scale
from models.language.rotary import Pair

Blocks = Any
"""An `nnx.List` of blocks, or one block whose arrays have a first axis of layers."""


@dataclass(frozen=True)
class TransformerConfig:
    """The settings of a stack of blocks, as `models.transformer` describes them, checked.

    >>> TransformerConfig("transformer", layers=4, heads=3, width=128, hidden=512)
    Traceback (most recent call last):
        ...
    ValueError: transformer: heads must divide width into even sizes; got width 128 / heads 3
    """

    owner: str
    """The network, for messages."""
    layers: int
    heads: int
    width: int
    hidden: int
    dropout: float = 0.0
    remat: bool = False
    scan: bool = False
    architecture: Architecture = field(default_factory=Architecture)

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "hidden"):
            require_size(self.owner, name, getattr(self, name))
        require_rate(self.owner, "dropout", self.dropout)
        size, kv_heads = self.architecture.head_size, self.architecture.kv_heads
        if size is None and self.width % (2 * self.heads):
            raise ValueError(
                f"{self.owner}: heads must divide width into even sizes; "
                f"got width {self.width} / heads {self.heads}"
            )
        if size is not None and size % 2:
            raise ValueError(f"{self.owner}: head_size must be even; got {size}")
        if kv_heads is not None and self.heads % kv_heads:
            raise ValueError(
                f"{self.owner}: kv_heads must divide heads; "
                f"got kv_heads {kv_heads} and heads {self.heads}"
            )

    @property
    def head_size(self) -> int:
        """Features of a head."""
        return self.architecture.head_size or self.width // self.heads

    @property
    def windowed(self) -> bool | list[bool]:
        """Whether the layers have a window: all alike, or for each."""
        each = [self.architecture.has_window(layer) for layer in range(self.layers)]
        return each[0] if len(set(each)) == 1 else each


class TransformerBlock(nnx.Module):
    """Self-attention, optional cross-attention, and a dense branch, each added to its input.

    Each branch normalises its input, and its result too where the architecture says so.

    Source: Xiong et al., "On Layer Normalization in the Transformer Architecture", section 3
    (2020).
    """

    def __init__(self, shape: TransformerConfig, *, cross: bool, rngs: nnx.Rngs) -> None:
        width, heads, hidden, dropout = shape.width, shape.heads, shape.hidden, shape.dropout
        architecture = shape.architecture
        scale = residual_scale(shape.layers, 3 if cross else 2)
        norm = partial(FeatureNorm, width, architecture, rngs=rngs)
        linear = partial(dense, bias=architecture.dense_bias, rngs=rngs)
        self.attention_norm = norm()
        self.attention = SelfAttention(width, heads, architecture, scale=scale, rngs=rngs)
        self.attention_post_norm = norm() if architecture.post_norms else None
        self.cross_norm = norm() if cross else None
        self.cross = CrossAttention(width, heads, scale=scale, rngs=rngs) if cross else None
        self.dense_norm = norm()
        self.gate = linear(width, hidden) if architecture.gated else None
        self.up = linear(width, hidden)
        self.down = linear(hidden, width, scale=scale)
        self.dense_post_norm = norm() if architecture.post_norms else None
        self.activation = architecture.activation
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(
        self,
        x: jax.Array,
        cache: Pair | None,
        projected: Pair | None,
        places: TokenPlaces,
        windowed: jax.Array | bool,
    ) -> tuple[jax.Array, Pair | None]:
        """Run on `x` `[batch, time, width]`; other arguments are those of `SelfAttention`.

        `projected` is the result of `CrossAttention.project`.
        """
        mixed, cache = self.attention(self.attention_norm(x), cache, places, windowed)
        x = x + self._finish(mixed, self.attention_post_norm)
        if self.cross is not None and self.cross_norm is not None and projected is not None:
            x = x + self._finish(self.cross(self.cross_norm(x), projected), None)
        # Flat, since XLA on CPU takes three times as long for the gradient of a dense branch along
        # three axes: 19.7 ms instead of 6.4 (width 128, 2,048 tokens, two cores).
        flat = self.dense_norm(x).reshape(-1, x.shape[-1])
        activate = ACTIVATIONS[self.activation]
        if self.gate is None:
            hidden = activate(self.up(flat))
        else:
            hidden = activate(self.gate(flat)) * self.up(flat)
        return x + self._finish(self.down(hidden).reshape(x.shape), self.dense_post_norm), cache

    def _finish(self, x: jax.Array, norm: FeatureNorm | None) -> jax.Array:
        x = x if norm is None else norm(x)
        return x if self.dropout is None else self.dropout(x)


def make_blocks(shape: TransformerConfig, *, cross: bool = False, rngs: nnx.Rngs) -> Blocks:
    """Build blocks with the same initial values for a loop and for a scan.

    All are drawn at once, so the time to compile the initialisation does not depend on the depth.
    """

    @nnx.split_rngs(splits=shape.layers)
    @nnx.vmap(axis_size=shape.layers)
    def make(rngs: nnx.Rngs) -> TransformerBlock:
        return TransformerBlock(shape, cross=cross, rngs=rngs)

    stacked = make(rngs)
    if shape.scan:
        return stacked
    graphdef, state = nnx.split(stacked)
    layers = (jax.tree.map(operator.itemgetter(index), state) for index in range(shape.layers))
    return nnx.List([nnx.merge(graphdef, layer) for layer in layers])


def run_blocks(
    blocks: Blocks,
    shape: TransformerConfig,
    x: jax.Array,
    places: TokenPlaces,
    *,
    caches: Any = None,
    projected: Any = None,
    remat: bool = False,
) -> tuple[jax.Array, Any]:
    """Run blocks one after another.

    Args:
        blocks: from `make_blocks`.
        shape: that of the blocks.
        x: `[batch, time, width]`.
        places: of the tokens, for all blocks.
        caches: one per block: `{"0": ..., "1": ...}` for a list, arrays with a first axis of layers
            for a stack; None for none.
        projected: keys and values of `project`, in the same form.
        remat: whether to store only the inputs of blocks for the backward pass.

    Returns:
        `[batch, time, width]`, and the caches in the same form.
    """

    def step(*fixed: bool) -> Any:  # not an argument of remat, which would trace it
        def call(block: TransformerBlock, *args: Any) -> Any:
            return block(*args, *fixed)

        return nnx.remat(call) if remat else call

    windowed = shape.windowed
    if isinstance(blocks, nnx.List):
        after = {}
        each = [windowed] * shape.layers if isinstance(windowed, bool) else windowed
        for index, block in enumerate(blocks):
            name = str(index)
            cache, other = (None if of is None else of[name] for of in (caches, projected))
            x, after[name] = step(each[index])(block, x, cache, other, places)
        return x, None if caches is None else after
    axes, more = (0, nnx.Carry, 0, 0, None), (0,)
    if isinstance(windowed, bool):
        scan = nnx.scan(step(windowed), in_axes=axes, out_axes=(nnx.Carry, 0))
        return scan(blocks, x, caches, projected, places)
    scan = nnx.scan(step(), in_axes=axes + more, out_axes=(nnx.Carry, 0))
    return scan(blocks, x, caches, projected, places, jnp.array(windowed))


def project(blocks: Blocks, other: jax.Array) -> Any:
    """Compute each block's keys and values of `[batch, length, width]`, for `run_blocks`."""

    if isinstance(blocks, nnx.List):
        return {str(index): block.cross.project(other) for index, block in enumerate(blocks)}
    return nnx.vmap(lambda block: block.cross.project(other))(blocks)


def init_caches(blocks: Blocks, shape: TransformerConfig, batch: int, length: int) -> Any:
    """Build the `caches` of `run_blocks` for `length` tokens, in the dtype of the blocks."""
    block = blocks if shape.scan else blocks[0]
    dtype = block.attention.out.kernel[...].dtype
    heads = batch, shape.architecture.kv_heads or shape.heads

    def pair(*layers: int) -> Pair:
        keys = jnp.zeros((*layers, *heads, shape.head_size, length), dtype)
        return keys, jnp.zeros((*layers, *heads, length, shape.head_size), dtype)

    return pair(shape.layers) if shape.scan else {str(i): pair() for i in range(shape.layers)}
