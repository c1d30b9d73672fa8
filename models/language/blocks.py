"""Blocks of a transformer, and running a stack of them by a loop or as one scan."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.argument_checks import require_rate, require_size
from models.language.attention import CrossAttention, SelfAttention
from models.language.layers import dense, residual_scale
from models.language.rotary import Pair
from models.language.visibility import Visibility

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

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "width", "hidden"):
            require_size(self.owner, name, getattr(self, name))
        require_rate(self.owner, "dropout", self.dropout)
        if self.width % (2 * self.heads):
            raise ValueError(
                f"{self.owner}: heads must divide width into even sizes; "
                f"got width {self.width} / heads {self.heads}"
            )

    @property
    def head_size(self) -> int:
        """Features of a head."""
        return self.width // self.heads


class TransformerBlock(nnx.Module):
    """Self-attention, optional cross-attention, and a dense branch, each added to its input.

    Each branch normalises its input (to a root mean square of 1, in float32).

    Source: Xiong et al., "On Layer Normalization in the Transformer Architecture", section 3
    (2020); Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
    """

    def __init__(self, shape: TransformerConfig, *, cross: bool, rngs: nnx.Rngs) -> None:
        width, heads, hidden, dropout = shape.width, shape.heads, shape.hidden, shape.dropout
        scale = residual_scale(shape.layers, 3 if cross else 2)
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.attention = SelfAttention(width, heads, scale=scale, rngs=rngs)
        self.cross_norm = nnx.RMSNorm(width, rngs=rngs) if cross else None
        self.cross = CrossAttention(width, heads, scale=scale, rngs=rngs) if cross else None
        self.dense_norm = nnx.RMSNorm(width, rngs=rngs)
        self.up = dense(width, hidden, rngs=rngs)
        self.down = dense(hidden, width, scale=scale, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None

    def __call__(
        self,
        x: jax.Array,
        cache: Pair | None,
        projected: Pair | None,
        rotary: Pair | None,
        visibility: Visibility | None,
    ) -> tuple[jax.Array, Pair | None]:
        """Run on `x` `[batch, time, width]`; other arguments are those of `SelfAttention`.

        `projected` is the result of `CrossAttention.project`.
        """
        mixed, cache = self.attention(self.attention_norm(x), rotary, cache, visibility)
        x = x + self._drop(mixed)
        if self.cross is not None and self.cross_norm is not None and projected is not None:
            x = x + self._drop(self.cross(self.cross_norm(x), projected))
        # Flat, since XLA on CPU takes three times as long for the gradient of a dense branch along
        # three axes: 19.7 ms instead of 6.4 (width 128, 2,048 tokens, two cores).
        flat = self.dense_norm(x).reshape(-1, x.shape[-1])
        return x + self._drop(self.down(jax.nn.gelu(self.up(flat))).reshape(x.shape)), cache

    def _drop(self, x: jax.Array) -> jax.Array:
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
    x: jax.Array,
    *,
    caches: Any = None,
    projected: Any = None,
    rotary: Pair | None = None,
    visibility: Visibility | None = None,
    remat: bool = False,
) -> tuple[jax.Array, Any]:
    """Run blocks one after another.

    Args:
        blocks: from `make_blocks`.
        x: `[batch, time, width]`.
        caches: one per block: `{"0": ..., "1": ...}` for a list, arrays with a first axis of layers
            for a stack; None for none.
        projected: keys and values of `project`, in the same form.
        rotary: rotary positions, for all blocks.
        visibility: what each token sees, for all blocks; None for all tokens.
        remat: whether to store only the inputs of blocks for the backward pass.

    Returns:
        `[batch, time, width]`, and the caches in the same form.
    """

    step = nnx.remat(TransformerBlock.__call__) if remat else TransformerBlock.__call__
    if isinstance(blocks, nnx.List):
        after = {}
        for index, block in enumerate(blocks):
            name = str(index)
            cache, other = (None if of is None else of[name] for of in (caches, projected))
            x, after[name] = step(block, x, cache, other, rotary, visibility)
        return x, None if caches is None else after
    axes = (0, nnx.Carry, 0, 0, None, None)
    return nnx.scan(step, in_axes=axes, out_axes=(nnx.Carry, 0))(
        blocks, x, caches, projected, rotary, visibility
    )


def project(blocks: Blocks, other: jax.Array) -> Any:
    """Compute each block's keys and values of `[batch, length, width]`, for `run_blocks`."""

    if isinstance(blocks, nnx.List):
        return {str(index): block.cross.project(other) for index, block in enumerate(blocks)}
    return nnx.vmap(lambda block: block.cross.project(other))(blocks)


def init_caches(blocks: Blocks, shape: TransformerConfig, batch: int, length: int) -> Any:
    """Build the `caches` of `run_blocks` for `length` tokens, in the dtype of the blocks."""
    block = blocks if shape.scan else blocks[0]
    dtype = block.attention.out.kernel[...].dtype
    size = batch, length, shape.heads, shape.head_size

    def pair(*layers: int) -> Pair:
        return jnp.zeros((*layers, *size), dtype), jnp.zeros((*layers, *size), dtype)

    return pair(shape.layers) if shape.scan else {str(i): pair() for i in range(shape.layers)}
