"""The settings in which families of transformers differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from models.argument_checks import require_size
from models.language.rotary import BASE, LinearScaling, Llama3Scaling

Activation = Literal["gelu", "gelu_tanh", "silu"]
Norm = Literal["rms", "layer"]
Positions = Literal["rotary", "learned"]

CHOICES = {"activation": Activation, "norm": Norm, "positions": Positions}
SIZES = ("kv_heads", "head_size", "window", "global_every")
SCALES = ("attention_softcap", "logit_softcap", "query_scale", "embedding_scale")
BASES = ("norm_epsilon", "rotary_base", "local_rotary_base")


@dataclass(frozen=True)
class Architecture:
    """What the families of decoder-only transformers differ in, beside their sizes.

    The defaults are those of `models.transformer`. All fields of one family together are written by
    `models.from_huggingface`.

    Raises:
        TypeError: a size is no whole number.
        ValueError: a setting is out of range, unknown, or without an effect.

    >>> llama = Architecture(kv_heads=2, gated=True, activation="silu", embedding_scale=1.0)
    >>> Architecture(activation="relu")
    Traceback (most recent call last):
        ...
    ValueError: Architecture: activation must be one of gelu, gelu_tanh, silu; got 'relu'
    """

    kv_heads: int | None = None
    """Heads of keys and values, which divide the heads: each serves a group of queries; None for
    one of each for every head."""
    head_size: int | None = None
    """Features of a head; None for `width / heads`."""
    gated: bool = False
    """Whether the dense branch is `down(activation(gate(x)) * up(x))`."""
    activation: Activation = "gelu_tanh"
    """`gelu`, its approximation by tanh, or `silu`."""
    norm: Norm = "rms"
    """`rms` divides by the root mean square, `layer` also subtracts the mean, and has a bias."""
    norm_epsilon: float = 1e-6
    """Added to the mean square."""
    norm_offset: bool = False
    """Whether a norm multiplies by 1 + its weights, which start at 0."""
    post_norms: bool = False
    """Whether the result of each branch is normalised too."""
    qk_norm: bool = False
    """Whether each query and key is normalised, before it is rotated."""
    attention_bias: bool = False
    """Whether `query`, `key` and `value` have a bias."""
    out_bias: bool = False
    """Whether `out` of the attention has a bias."""
    dense_bias: bool = False
    """Whether the layers of the dense branch have a bias."""
    positions: Positions = "rotary"
    """`rotary`, or `learned`, embeddings that are added to those of the tokens."""
    rotary_base: float = BASE
    """Ratio of the longest wavelength of the rotary positions to the shortest."""
    rotary_scaling: LinearScaling | Llama3Scaling | None = None
    """How rotary positions are stretched, for a longer context than that of pretraining."""
    local_rotary_base: float | None = None
    """`rotary_base` of layers with a window, which are not stretched; None for the same in all."""
    window: int | None = None
    """Number of tokens that a token sees, with itself; None for all earlier ones."""
    global_every: int | None = None
    """Each how many layers one has no window, the first being the last of so many; None for
    windows in all."""
    attention_softcap: float | None = None
    """Scores `s` become `softcap * tanh(s / softcap)`."""
    logit_softcap: float | None = None
    """The same for logits."""
    query_scale: float | None = None
    """Multiplies scores; None for `head_size**-0.5`."""
    embedding_scale: float | None = None
    """Multiplies embeddings of tokens; None for `width**0.5`."""

    def __post_init__(self) -> None:
        for name, choice in CHOICES.items():
            if (value := getattr(self, name)) not in get_args(choice):
                known = ", ".join(get_args(choice))
                raise ValueError(f"Architecture: {name} must be one of {known}; got {value!r}")
        for name in SIZES:
            if (value := getattr(self, name)) is not None:
                require_size("Architecture", name, value)
        for name in (*SCALES, *BASES):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"Architecture: {name} must be above 0, and finite; got {value!r}")
        if self.window is None:
            for name in ("global_every", "local_rotary_base"):
                if getattr(self, name) is not None:
                    raise ValueError(f"Architecture: {name} has no effect without a window")

    def has_window(self, layer: int) -> bool:
        """Return whether a layer, counted from 0, has a window.

        >>> [Architecture(window=8, global_every=2).has_window(layer) for layer in range(4)]
        [True, False, True, False]
        """
        globally = self.global_every is not None and (layer + 1) % self.global_every == 0
        return self.window is not None and not globally
