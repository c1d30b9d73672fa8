"""Dense layers with an adapter beside the kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from models.language.decoding import LoRAConfig


class AdaptedLinear(nnx.Module):
    """A dense layer whose kernel is frozen, with a low-rank adapter.

    The adapter computes in its own dtype; the result is in that of the layer.
    """

    def __init__(self, linear: nnx.Linear, rank: int, scale: float) -> None:
        self.scale = scale
        self.kernel, self.bias = linear.kernel, linear.bias
        *lead, inputs, outputs = linear.kernel[...].shape
        self.lora_a = nnx.Param(jnp.zeros((*lead, inputs, rank)))
        self.lora_b = nnx.Param(jnp.zeros((*lead, rank, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Compute `[..., out]` of `[..., in]`."""
        y = x @ self.kernel[...]
        if self.bias is not None:
            y = y + self.bias[...]
        a, b = self.lora_a[...], self.lora_b[...]
        change = ((x.astype(a.dtype) @ a) @ b) * jnp.asarray(self.scale, a.dtype)
        return y + change.astype(y.dtype)


def adapt_layers(module: nnx.Module, *, config: LoRAConfig) -> None:
    """Put adapters into a module, in place.

    Raises:
        ValueError: a layer is not dense.
    """
    left = set(config.layers)
    for path, parent in list(nnx.iter_modules(module)):
        for name, layer in list(vars(parent).items()):
            whole = "/".join(map(str, (*path, name)))
            if whole in left and isinstance(layer, nnx.Linear):
                setattr(parent, name, AdaptedLinear(layer, config.rank, config.scale))
                left.remove(whole)
    if left:
        raise ValueError(f"lora adapts dense layers; {sorted(left)} are none: leave them out")
