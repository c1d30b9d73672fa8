"""Which layers of a network get an adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import jax

from models.network import PyTree

GROUPS = {"mlp": "up|down|gate"}
"""Targets that stand for several layers."""

KERNEL, HEAD = "/kernel", "/head/kernel"


def find_kernels(params: PyTree) -> dict[str, tuple[int, ...]]:
    """Return the shape of each dense layer's kernel, by the path of the layer, except the head's.

    >>> find_kernels({"up": {"kernel": jax.numpy.ones((4, 2)), "bias": jax.numpy.ones(2)}})
    {'up': (4, 2)}
    """
    paths = (
        (f"/{jax.tree_util.keystr(path, simple=True, separator='/')}", leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    )
    return {
        path.removeprefix("/").removesuffix(KERNEL): shape
        for path, shape in paths
        if path.endswith(KERNEL) and len(shape) in (2, 3) and path != HEAD
    }


def select_layers(
    targets: Sequence[str], kernels: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Return the paths of the layers that targets name, in order of the paths.

    Raises:
        TypeError: the targets are no sequence of texts.
        ValueError: there is none, one is no regular expression, or one matches nothing.

    >>> select_layers(["mlp"], {"blocks/0/up": (2, 8), "blocks/0/attention/out": (2, 2)})
    ('blocks/0/up',)
    """
    if (
        isinstance(targets, str)
        or not isinstance(targets, Sequence)
        or not all(isinstance(target, str) for target in targets)
    ):
        raise TypeError(f'lora takes targets as texts, ("attention", "mlp"); got {targets!r}')
    if not targets:
        raise ValueError('lora needs at least one target, such as "attention"; got none')
    found: set[str] = set()
    for target in targets:
        try:
            pattern = re.compile(rf"(^|/)({GROUPS.get(target, target)})(/|$)")
        except re.error as error:
            raise ValueError(
                f"lora: the target {target!r} is no regular expression: {error}"
            ) from None
        matching = {name for name in kernels if pattern.search(name)}
        if not matching:
            raise ValueError(
                f"lora: the target {target!r} matches no layer; there are "
                f"{', '.join(_list_names(kernels))}: name one of these, a part of their paths, or "
                '"mlp"'
            )
        found |= matching
    return tuple(name for name in kernels if name in found)


def _list_names(paths: Iterable[str]) -> list[str]:
    """List the layers of different blocks once.

    >>> _list_names(["blocks/0/up", "blocks/1/up", "embed"])
    ['blocks/*/up', 'embed']
    """
    return list(dict.fromkeys(re.sub(r"(^|/)\d+(?=/|$)", r"\1*", path) for path in paths))
