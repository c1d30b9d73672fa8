"""Augmentations of training images: each is a pure function `(key, batch) -> batch`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from trainer.checks.arguments import require_integer

Augmentation = Callable[[jax.Array, Mapping[str, Any]], dict[str, Any]]
"""`(key, batch) -> batch`, jittable: a function of its arguments that keeps dtypes."""


def compose(*augmentations: Augmentation) -> Augmentation:
    """Apply several augmentations in order, each with its own key, derived from its position.

    Adding one at the end does not change the random numbers of the others. `compose()` changes
    nothing.

    Returns:
        An augmentation; `trainer.supervised(..., augment=...)` applies it in training only.

    >>> augment = jax.jit(compose(shift(1), cut_out(3)))
    >>> augment(jax.random.key(0), {"inputs": jnp.ones((4, 8, 8, 1))})["inputs"].shape
    (4, 8, 8, 1)
    """

    def composed(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        for position, augmentation in enumerate(augmentations):
            batch = augmentation(jax.random.fold_in(key, position), batch)
        return dict(batch)

    return composed


def shift(pixels: int) -> Augmentation:
    """Shift each image by up to `pixels` along both axes; zeros fill the borders.

    Every shift of at most `pixels` down or up and right or left is equally likely.

    Args:
        pixels: at least 0, and less than the height and the width of the images.

    Returns:
        An augmentation of `inputs` `[batch, height, width, channels]` of any dtype.

    Raises:
        TypeError: `pixels` is no whole number; on a call, the inputs are not one array.
        ValueError: `pixels` is less than 0; on a call, the inputs are of another rank or too small.

    >>> moved = shift(1)(jax.random.key(0), {"inputs": jnp.ones((100, 3, 3, 1))})["inputs"]
    >>> sorted(set(moved.sum(axis=(1, 2, 3)).tolist()))    # moved along two axes, one, or none
    [4.0, 6.0, 9.0]
    """
    require_integer("shift: pixels", pixels, 0)

    def augmentation(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = _images("shift", batch)
        if pixels >= min(images.shape[1:3]):
            raise ValueError(
                f"shift({pixels}) needs images of at least {pixels + 1}x{pixels + 1}; "
                f"got shape {images.shape}; shift by fewer pixels"
            )
        sides = (pixels, pixels)
        padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))
        starts = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)

        def cut(image: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(image, (start[0], start[1], 0), images.shape[1:])

        return {**batch, "inputs": jax.vmap(cut)(padded, starts)}

    return augmentation


def flip(probability: float = 0.5) -> Augmentation:
    """Mirror each image horizontally with a probability.

    Args:
        probability: between 0 and 1, both included.

    Returns:
        An augmentation of `inputs` `[batch, height, width, channels]` of any dtype.

    Raises:
        TypeError: on a call, the inputs are not one array.
        ValueError: `probability` is out of range; on a call, the inputs are of another rank.

    >>> images = jnp.array([[1, 2, 3]]).reshape(1, 1, 3, 1)
    >>> flip(1.0)(jax.random.key(0), {"inputs": images})["inputs"].ravel().tolist()
    [3, 2, 1]
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"flip: probability must be between 0 and 1; got {probability}")

    def augmentation(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = _images("flip", batch)
        chosen = jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))
        return {**batch, "inputs": jnp.where(chosen, images[:, :, ::-1], images)}

    return augmentation


def cut_out(size: int) -> Augmentation:
    """Set a square of each image to zero, at a random position.

    The centre of the square is equally likely at every pixel (for an even `size`, the pixel below
    and right of the centre), so a part of the square may be outside the image.

    Args:
        size: side of the square in pixels, at least 1.

    Returns:
        An augmentation of `inputs` `[batch, height, width, channels]` of any dtype.

    Raises:
        TypeError: `size` is no whole number; on a call, the inputs are not one array.
        ValueError: `size` is less than 1; on a call, the inputs are of another rank.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with
    Cutout" (2017), section 3.2.

    >>> left = cut_out(3)(jax.random.key(0), {"inputs": jnp.ones((100, 3, 3, 1))})["inputs"]
    >>> sorted(set(left.sum(axis=(1, 2, 3)).tolist()))    # the middle inside, on a side, a corner
    [0.0, 3.0, 5.0]
    """
    require_integer("cut_out: size", size, 1)

    def augmentation(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = _images("cut_out", batch)
        count, height, width, _ = images.shape
        middles = jax.random.randint(key, (count, 2), 0, jnp.array([[height, width]]))
        rows = _within(middles[:, :1], size, height)[:, :, None, None]
        columns = _within(middles[:, 1:], size, width)[:, None, :, None]
        return {**batch, "inputs": jnp.where(rows & columns, jnp.zeros_like(images), images)}

    return augmentation


def _within(middles: jax.Array, size: int, length: int) -> jax.Array:
    """Return which of `length` positions are within `size` positions around each centre."""
    offsets = jnp.arange(length)[None] - (middles - size // 2)
    return (offsets >= 0) & (offsets < size)


def mixup(alpha: float, *, classes: int) -> Augmentation:
    """Replace each example by a weighted mean of it and another, in inputs and labels.

    The weight is drawn from Beta(alpha, alpha) for each example; its partner comes from a random
    permutation of the batch. Other entries of the batch stay with the example. Since labels become
    probabilities, no augmentation that needs integer labels may follow.

    Args:
        alpha: more than 0; small values change most examples little.
        classes: number of classes.

    Returns:
        An augmentation of floating `inputs` `[batch, ...]` and integer `labels` `[batch]`; the
        new labels are probabilities, float32 `[batch, classes]`.

    Raises:
        TypeError: `classes` is no whole number; on a call, the inputs are not one array, or the
            inputs are not floating or the labels not integer.
        ValueError: `alpha` is not above 0, or `classes` less than 1; on a call, there are no
            labels, or they are of another shape.

    Source: Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization" (2018),
    section 2.

    >>> batch = {"inputs": jnp.eye(2), "labels": jnp.array([0, 1])}
    >>> mixed = jax.jit(mixup(0.2, classes=2))(jax.random.key(0), batch)
    >>> bool(jnp.allclose(mixed["inputs"], mixed["labels"]))    # one weight for both
    True
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"mixup: alpha must be a finite number above 0; got {alpha}")
    require_integer("mixup: classes", classes, 1)

    def augmentation(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        inputs, labels = _labelled("mixup", batch)
        order_key, weight_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(labels))
        weights = symmetric_beta(weight_key, alpha, (len(labels),))

        def mix(values: jax.Array) -> jax.Array:
            weight = weights.reshape(-1, *[1] * (values.ndim - 1))
            return (weight * values + (1 - weight) * values[order]).astype(values.dtype)

        targets = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
        return {**batch, "inputs": mix(inputs), "labels": mix(targets)}

    return augmentation


@functools.partial(jax.jit, static_argnames="shape")
def symmetric_beta(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> jax.Array:
    """Draw from Beta(alpha, alpha) in closed form.

    Two uniform variables give one of Student's t distribution with 2 alpha degrees of freedom,
    which maps to the interval from 0 to 1. `jax.random.beta` loops with rejection: 64 draws took
    120 us and 0.8 s to compile on CPU; these take 15 us and 0.2 s.

    Returns:
        float32 of this shape, from 0 to 1, to a resolution of 2**-25.

    Source: Bailey, "Polar Generation of Random Variates with the t-Distribution" (1994).

    >>> round(float(symmetric_beta(jax.random.key(0), 0.5, (10_000,)).mean()), 1)
    0.5
    """
    radius_key, angle_key = jax.random.split(key)
    uniform = jax.random.uniform(radius_key, shape, minval=jnp.finfo(jnp.float32).tiny)
    cosine = jnp.cos(2 * math.pi * jax.random.uniform(angle_key, shape))
    squared = jnp.expm1(-jnp.log(uniform) / alpha) * cosine**2  # t squared over 2 alpha, maybe inf
    return (1 + jnp.sign(cosine) / jnp.sqrt(1 + 1 / squared)) / 2


def _inputs(owner: str, batch: Mapping[str, Any]) -> jax.Array:
    if "inputs" not in batch:
        raise ValueError(f"{owner} changes batch['inputs']; there is: {sorted(batch)}")
    if isinstance(batch["inputs"], Mapping):
        raise TypeError(
            f"{owner} changes one array in batch['inputs']; got a dict of "
            f"{sorted(batch['inputs'])}; write a function that applies it to one of them"
        )
    return jnp.asarray(batch["inputs"])


def _images(owner: str, batch: Mapping[str, Any]) -> jax.Array:
    images = _inputs(owner, batch)
    if images.ndim != 4:
        raise ValueError(
            f"{owner} takes inputs [batch, height, width, channels]; got shape {images.shape}"
        )
    return images


def _labelled(owner: str, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    inputs = _inputs(owner, batch)
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(
            f"{owner} takes means of the inputs, which must be floating; got {inputs.dtype}; "
            "convert them, for instance x.astype(float32) / 255"
        )
    if "labels" not in batch:
        raise ValueError(f"{owner} mixes batch['labels']; there is: {sorted(batch)}")
    labels = jnp.asarray(batch["labels"])
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{owner} takes integer labels [batch]; got {labels.dtype}")
    if not inputs.ndim or labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"{owner} takes labels [batch], one for each of the inputs; got shape {labels.shape} "
            f"for inputs {inputs.shape}"
        )
    return inputs, labels
