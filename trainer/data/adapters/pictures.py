"""Pictures decoded by Pillow to arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from trainer.host.extras import require_extra

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of files that are pictures, in lower case."""


def decode_picture(
    content: bytes | Path, size: tuple[int, int] | None, who: str, name: str
) -> np.ndarray:
    """Decode a picture, upright and in colours, resized if asked.

    Args:
        content: the file, or what it holds.
        size: height and width in pixels; None: as it is.
        who: what reads it, for messages.
        name: of the picture, for messages.

    Returns:
        float32 `[height, width, 3]` between 0 and 1.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: it is broken, or no picture.
    """
    with require_extra("images", who, "Pillow"):
        from PIL import Image, ImageOps
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
            if size is not None:
                picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(picture, np.float32) / np.float32(255)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{who} must be able to decode {name}; Pillow says: {error}: repair or remove it"
        ) from error
