"""Pictures as files: images as PNGs, videos as GIFs, which every browser plays. Needs Pillow."""

from __future__ import annotations

import io

import numpy as np

from hooks.writers.writer import Image, Video

LAST = 100
"""Hundredths of a second that the last frame stays longer, so that an end is seen before it begins
anew."""


def check_pillow(who: str) -> None:
    """See that animations can be made.

    Raises:
        ImportError: Pillow is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        error.add_note(f'{who} needs Pillow: pip install "entracte[images]"')
        raise


def encode_png(image: Image) -> bytes:
    """Make a PNG.

    Raises:
        ImportError: Pillow is not installed.

    >>> encode_png(Image(np.zeros((3, 4, 1), np.uint8)))[1:4]
    b'PNG'
    """
    check_pillow("as_png")
    import PIL.Image

    pixels = to_uint8(image.pixels)
    written = io.BytesIO()
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(written, "PNG")
    return written.getvalue()


def encode_gif(video: Video) -> bytes:
    """Make a GIF that plays for ever; up to 256 colors a frame are kept as they are.

    Frames that do not differ are joined to one that stays longer.

    Raises:
        ImportError: Pillow is not installed.

    >>> encode_gif(Video(np.zeros((3, 4, 4, 1), np.uint8), fps=10))[:6]
    b'GIF89a'
    """
    check_pillow("as_gif")
    import PIL.Image

    pixels = to_uint8(video.frames)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]
    frames = [PIL.Image.fromarray(picture) for picture in pixels]
    ends = np.round(np.arange(len(frames) + 1) * 100 / video.fps).astype(int)
    shown = np.diff(ends)
    shown[-1] += LAST
    written = io.BytesIO()
    frames[0].save(
        written,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=(shown * 10).tolist(),  # in milliseconds, of which a GIF keeps the hundredths
        loop=0,
    )
    return written.getvalue()


def to_uint8(shades: np.ndarray) -> np.ndarray:
    """Give uint8 of what may be floats from 0 to 1.

    >>> to_uint8(np.array([0.0, 0.5, 2.0]))
    array([  0, 128, 255], dtype=uint8)
    """
    shades = np.asarray(shades)
    if shades.dtype == np.uint8:
        return shades
    return (np.clip(np.nan_to_num(shades), 0, 1) * 255).round().astype(np.uint8)
