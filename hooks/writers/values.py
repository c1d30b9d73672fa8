"""Kinds of values that a writer may be given."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Progress:
    """How much of a run is done: `log_metrics` writes it as `values["epoch"]`."""

    done: int
    total: int | None = None
    """None if unknown."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """One value per optimizer step; the last one belongs to the step that is written."""

    values: np.ndarray
    """Floats `[steps]`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """Numbers whose distribution is shown; non-finite numbers are left out."""

    values: np.ndarray
    """Numbers of any shape."""


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """A picture; raises ValueError if the pixels have other axes or channels."""

    pixels: np.ndarray
    """`[height, width, channels]` with 1, 3 or 4 channels, uint8, or floats from 0 to 1."""

    def __post_init__(self) -> None:
        shape = np.shape(self.pixels)
        if len(shape) != 3 or shape[2] not in (1, 3, 4):
            raise ValueError(
                "pixels must be [height, width, channels] with 1, 3 or 4 channels; "
                f"got shape {list(shape)}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """A sequence of pictures, such as an episode; raises ValueError if a field does not fit."""

    frames: np.ndarray
    """`[frames, height, width, channels]` of at least one frame, else as `Image.pixels`."""
    fps: float
    """Frames per second, above 0 and at most 50: viewers slow down what is faster."""

    def __post_init__(self) -> None:
        shape = np.shape(self.frames)
        if len(shape) != 4 or not shape[0] or shape[3] not in (1, 3, 4):
            raise ValueError(
                "frames must be [frames, height, width, channels] with at least 1 frame and 1, 3 "
                f"or 4 channels; got shape {list(shape)}"
            )
        if not 0 < self.fps <= 50:
            raise ValueError(f"fps must be above 0 and at most 50 frames a second; got {self.fps}")


@dataclasses.dataclass(frozen=True)
class Text:
    """A text, such as a sample from a language model."""

    text: str


Value = float | Progress | Trace | Histogram | Image | Video | Text
"""What a writer may be given. A writer skips the kinds that it cannot show."""
