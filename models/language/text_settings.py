"""The settings that tell what a transformer computes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from models.language.architecture import Architecture


@dataclass(frozen=True)
class TextSettings:
    """What `models.transformer` built a decoder from, but for what only training or XLA need.

    Fields of the architecture that are None for a value that others give have this value.

    >>> TextSettings(5, 8, 1, 2, 8, 32, True, Architecture()).architecture.head_size
    4
    """

    vocabulary: int
    context: int
    layers: int
    heads: int
    width: int
    hidden: int
    tied: bool
    architecture: Architecture

    def __post_init__(self) -> None:
        given = self.architecture
        size = given.head_size or self.width // self.heads
        resolved = dataclasses.replace(
            given,
            kv_heads=given.kv_heads or self.heads,
            head_size=size,
            query_scale=given.query_scale or (size**-0.5 if size else None),  # 0 is refused
            embedding_scale=given.embedding_scale or math.sqrt(self.width),
        )
        object.__setattr__(self, "architecture", resolved)
