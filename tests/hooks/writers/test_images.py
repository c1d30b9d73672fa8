"""Animations, read back with Pillow."""

import io
import sys

import numpy as np
import PIL.Image
import pytest

from hooks.writers.images import LAST, encode_gif
from hooks.writers.values import Video


def played(gif):
    """Return what a viewer shows in each hundredth of a second, up to the last frame."""
    image, shown = PIL.Image.open(io.BytesIO(gif)), []
    for number in range(image.n_frames):
        image.seek(number)
        shown += [np.asarray(image.convert("RGB"))] * (image.info["duration"] // 10)
    return shown[:-LAST]


@pytest.mark.parametrize("fps", [3, 20, 30, 50])
def test_every_frame_is_shown_as_it_is_and_at_its_time(fps):
    frames = np.zeros((12, 6, 8, 3), np.uint8)
    for number in range(12):
        frames[number, number // 2 % 6, number // 2 % 8] = (20 * number // 2, 255 - number // 2, 7)
    shown = played(encode_gif(Video(frames, fps)))
    assert len(shown) == round(12 * 100 / fps)
    for number in range(12):
        at = round(number * 100 / fps)
        np.testing.assert_array_equal(shown[at], frames[number])


def test_shades_and_floats_and_what_is_opaque_are_shown():
    shades = np.linspace(0, 1, 12).reshape(1, 3, 4, 1)
    grey = played(encode_gif(Video(shades, 10)))[0]
    np.testing.assert_array_equal(grey[..., 0], (shades[0, ..., 0] * 255).round())
    opaque = np.full((1, 2, 2, 4), (1, 2, 3, 255), np.uint8)
    assert played(encode_gif(Video(opaque, 10)))[0].tolist() == [[[1, 2, 3]] * 2] * 2


def test_the_same_video_is_the_same_bytes():
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    assert encode_gif(Video(frames, 10)) == encode_gif(Video(frames.copy(), 10))


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError) as raised:
        encode_gif(Video(np.zeros((1, 1, 1, 1)), 10))
    assert 'pip install "entracte[images]"' in raised.value.__notes__[0]
