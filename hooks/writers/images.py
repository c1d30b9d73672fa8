"""Encode images as PNG files and videos as GIF files, which every browser plays. Needs Pillow."""

from __future__ import annotations

import io
from types import ModuleType

import numpy as np

from hooks.writers.values import Image, Video
from trainer.host.extras import require_extra

LAST = 100
"""Hundredths of a second that the last frame stays longer, so that the end is seen before the
animation repeats."""


def import_pillow(who: str) -> ModuleType:
    """Return the module of Pillow that encodes pictures; raise ImportError if there is none."""
    with require_extra("images", who, "Pillow"):
        import PIL.Image
    return PIL.Image


def encode_png(image: Image) -> bytes:
    """Encode an image as PNG.

    >>> encode_png(Image(np.zeros((3, 4, 1), np.uint8)))[1:4]
    b'PNG'
    """
    pillow = import_pillow("encode_png")
    pixels, file = to_uint8(image.pixels), io.BytesIO()
    pillow.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def encode_gif(video: Video) -> bytes:
    """Encode a video as a GIF that repeats forever; up to 256 colors per frame are exact.

    Equal neighbouring frames become one that stays longer.

    >>> encode_gif(Video(np.zeros((3, 4, 4, 1), np.uint8), fps=10))[:6]
    b'GIF89a'
    """
    pillow = import_pillow("encode_gif")
    pixels = to_uint8(video.frames)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]
    frames = [pillow.fromarray(picture) for picture in pixels]
    hundredths = np.diff(np.round(np.arange(len(frames) + 1) * 100 / video.fps).astype(int))
    hundredths[-1] += LAST
    file = io.BytesIO()
    frames[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=(hundredths * 10).tolist(),  # in milliseconds
        loop=0,
    )
    return file.getvalue()


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Convert floats from 0 to 1 to uint8; uint8 stays as it is.

    >>> to_uint8(np.array([0.0, 0.5, 2.0]))
    array([  0, 128, 255], dtype=uint8)
    """
    pixels = np.asarray(pixels)
    if pixels.dtype == np.uint8:
        return pixels
    return (np.clip(np.nan_to_num(pixels), 0, 1) * 255).round().astype(np.uint8)
