"""A transformer that writes captions of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.argument_checks import require_array, require_size
from models.language.attention import TokenPlaces
from models.language.blocks import TransformerConfig, make_blocks, run_blocks
from models.language.decoding import Decoder, make_decoder
from models.language.layers import FeatureNorm, dense
from models.language.rotary import compute_rotary
from models.language.text_decoder import TextDecoder
from models.language.text_inputs import KEYS, parse_text
from models.network import PyTree


def captioner(
    *,
    vocabulary: int,
    context: int,
    channels: int = 3,
    patch: int = 4,
    encoder_layers: int = 2,
    layers: int = 2,
    heads: int = 4,
    width: int = 128,
    hidden: int | None = None,
    dropout: float = 0.0,
    tied: bool = True,
    remat: bool = False,
    scan: bool = False,
) -> Decoder:
    """Build a transformer that predicts the next token of a text about an image, and generates it.

    The encoder cuts the image into patches and applies a dense layer, positions, and blocks in
    which every patch attends to every other. The text decoder is that of `transformer`, with an
    attention to the encoded patches in every block.

    Args:
        vocabulary: number of tokens in the vocabulary.
        context: number of tokens of the longest text.
        channels: of the images.
        patch: height and width of a patch; it must divide those of the images.
        encoder_layers: number of blocks over the patches.
        layers: number of blocks over the tokens.
        width: features of a patch or a token between the blocks; a multiple of 4.
        heads, hidden, dropout, remat, scan: as in `transformer`, for both stacks.
        tied: as in `transformer`.

    Returns:
        A decoder from `{"image": [batch, height, width, channels], "tokens": [batch, time]}` to
        logits `[batch, time, vocabulary]`, float32, without model state; `segments` and `positions`
        of the tokens may come too, as in `transformer`. Its `init_cache` encodes the image once,
        and needs no tokens. Its parameters are under `image` and `text`.

    Raises:
        TypeError: a size is no whole number; on a call, the inputs are no such dict.
        ValueError: a setting is out of range, `width` and `heads` do not fit; on a call, the image
            has other channels or cannot be cut into whole patches, or as in `transformer`.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021), with the fixed positions of
    Beyer, Zhai and Kolesnikov, "Better plain ViT baselines for ImageNet-1k" (2022); the attention
    from text to image is that between decoder and encoder of Vaswani et al., "Attention Is All
    You Need", section 3.2.3 (2017).

    >>> decoder = captioner(vocabulary=5, context=8, channels=1, layers=1, heads=2, width=8)
    >>> inputs = {"image": jnp.ones((2, 8, 8, 1)), "tokens": jnp.zeros((2, 3), jnp.int32)}
    >>> params, model_state = jax.jit(decoder.init)(jax.random.key(0), inputs)
    >>> sorted(params), sorted(params["image"])
    (['image', 'text'], ['blocks', 'embed', 'norm'])
    """
    sizes = {"vocabulary": vocabulary, "context": context, "channels": channels, "patch": patch}
    for name, value in (sizes | {"encoder_layers": encoder_layers}).items():
        require_size("captioner", name, value)
    hidden = 4 * width if hidden is None else hidden
    shape = TransformerConfig("captioner", layers, heads, width, hidden, dropout, remat, scan)
    if width % 4:
        raise ValueError(f"captioner: width must be a multiple of 4; got {width}")

    def check(inputs: PyTree) -> None:
        given = set(inputs) if isinstance(inputs, Mapping) else set()
        if not {"image", "tokens"} <= given <= {"image"} | KEYS:
            got = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise TypeError(f'captioner takes inputs {{"image": ..., "tokens": ...}}; got {got}')
        require_image(inputs["image"], channels, patch)
        parse_text("captioner", _get_text(inputs), context)

    def make(rngs: nnx.Rngs) -> Captioner:
        seeing = dataclasses.replace(shape, layers=encoder_layers)
        return Captioner(
            ImageEncoder(channels, patch, seeing, rngs=rngs),
            TextDecoder(vocabulary, context, shape, tied=tied, cross=True, rngs=rngs),
        )

    return make_decoder(make, check)


class Captioner(nnx.Module):
    """An encoder of images, and a text decoder that attends to its output."""

    def __init__(self, image: ImageEncoder, text: TextDecoder) -> None:
        self.image = image
        self.text = text

    def __call__(self, inputs: Any) -> jax.Array:
        """Compute logits `[batch, time, vocabulary]` for an image and tokens `[batch, time]`."""
        return self.text(_get_text(inputs), self.image(inputs["image"]))

    def init_cache(self, inputs: Any, length: int) -> PyTree:
        """Build a cache for `length` tokens about `inputs["image"]`."""
        image = jnp.asarray(inputs["image"])
        require_image(image, self.image.channels, self.image.patch)
        return self.text.init_cache(image, length, self.image(image))

    def decode_step(self, cache: PyTree, inputs: PyTree) -> tuple[jax.Array, PyTree]:
        """Compute logits `[batch, n, vocabulary]` of the next tokens; return the cache too."""
        return self.text.decode_step(cache, inputs)


class ImageEncoder(nnx.Module):
    """Images `[batch, height, width, channels]` to features `[batch, patches, width]`."""

    def __init__(
        self, channels: int, patch: int, shape: TransformerConfig, *, rngs: nnx.Rngs
    ) -> None:
        self.channels, self.patch, self.shape = channels, patch, shape
        self.embed = dense(patch * patch * channels, shape.width, rngs=rngs)
        self.blocks = make_blocks(shape, rngs=rngs)
        self.norm = FeatureNorm(shape.width, shape.architecture, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encode the patches, row by row."""
        batch, height, width, _ = images.shape
        rows, columns = height // self.patch, width // self.patch
        kernel = self.embed.kernel[...]
        flat = patches(images, self.patch).astype(kernel.dtype)
        x = self.embed(flat.reshape(batch * rows * columns, -1))
        x = x.reshape(batch, rows * columns, -1)
        x = x + positions(rows, columns, x.shape[-1])[None].astype(x.dtype)
        places, remat = TokenPlaces(), self.shape.remat
        return self.norm(run_blocks(self.blocks, self.shape, x, places, remat=remat)[0])


def _get_text(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in inputs.items() if name != "image"}


def patches(images: jax.Array, patch: int) -> jax.Array:
    """Cut images into patches `[batch, patches, patch * patch * channels]`, row by row.

    A reshape does it, on CPU faster than a convolution.

    >>> patches(jnp.arange(16).reshape(1, 4, 4, 1), 2)[0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    cut = images.reshape(batch, rows, patch, columns, patch, channels)
    return cut.swapaxes(2, 3).reshape(batch, rows * columns, patch * patch * channels)


def positions(rows: int, columns: int, width: int) -> jax.Array:
    """Compute position encodings of a grid, float32 `[rows * columns, width]`.

    They are cosines and sines of the row, in the first half of the features, and of the column.

    >>> positions(2, 3, 8).shape
    (6, 8)
    """
    down, along = (
        jnp.concatenate(compute_rotary(jnp.arange(size), width // 2), axis=-1)
        for size in (rows, columns)
    )
    shape = (rows, columns, width // 2)
    both = (jnp.broadcast_to(down[:, None], shape), jnp.broadcast_to(along, shape))
    return jnp.concatenate(both, axis=-1).reshape(rows * columns, width)


def require_image(images: Any, channels: int, patch: int) -> None:
    """Raise TypeError if images are no array, ValueError if patches do not tile them.

    >>> require_image(jnp.ones((2, 6, 8, 1)), 1, 4)
    Traceback (most recent call last):
        ...
    ValueError: captioner: patches of 4x4 must tile the images, of 1 channels; got shape
    (2, 6, 8, 1); pass another patch or channels
    """
    require_array("captioner", "[batch, height, width, channels]", images, ranks=(4,))
    _, height, width, depth = images.shape
    if height % patch or width % patch or depth != channels or not height * width:
        raise ValueError(
            f"captioner: patches of {patch}x{patch} must tile the images, of {channels} channels; "
            f"got shape {images.shape}; pass another patch or channels"
        )
