"""A batch: arrays by name, which all have the examples as their first axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import describe_value

Batch = dict[str, Any]
"""Named arrays `[batch, ...]`; `inputs` feeds the network. A value may be a dict of arrays again,
such as an image and its tokens, to any depth."""


def map_arrays(function: Callable[[Any], Any], batch: Mapping[str, Any]) -> Batch:
    """Apply a function to every array of a batch.

    >>> map_arrays(len, {"inputs": {"image": [0, 1], "tokens": [2, 3]}, "labels": [4, 5]})
    {'inputs': {'image': 2, 'tokens': 2}, 'labels': 2}
    """
    return {
        name: map_arrays(function, part) if isinstance(part, Mapping) else function(part)
        for name, part in batch.items()
    }


def iter_arrays(batch: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the arrays of a batch with their names in messages.

    >>> list(iter_arrays({"inputs": {"image": [0, 1], "tokens": [2, 3]}, "labels": [4, 5]}))
    [('inputs/image', [0, 1]), ('inputs/tokens', [2, 3]), ('labels', [4, 5])]
    """
    for name, part in batch.items():
        if isinstance(part, Mapping):
            yield from iter_arrays(part, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", part


def describe_arrays(batch: Mapping[str, Any]) -> dict[str, str]:
    """Return dtype and shape of one example of each array.

    >>> describe_arrays({"inputs": np.zeros((8, 28, 28), np.uint8)})
    {'inputs': 'uint8[28, 28]'}
    """
    return {
        name: f"{np.asarray(array).dtype}{list(np.shape(array)[1:])}"
        for name, array in sorted(iter_arrays(batch))
    }


def count_examples(batch: Mapping[str, Any], what: str) -> int:
    """Count the examples of named arrays of equal length.

    Raises:
        TypeError: an array holds no numbers, but strings, dates or objects.
        ValueError: there is no array, one has no axis, the lengths differ, or there is no example.
    """
    if not _holds_arrays(batch):
        raise ValueError(
            f"{what} must be a dict of named arrays, such as inputs and labels, or of dicts of "
            f"them; got {describe_value(batch)}"
        )
    arrays = dict(iter_arrays(batch))
    for name, array in arrays.items():
        _require_numbers(what, name, array)
        if np.ndim(array) == 0:
            raise ValueError(f"{what}[{name!r}] must have a leading axis of examples; got a scalar")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{what}: all arrays must be of equal length; got {lengths}")
    count = next(iter(lengths.values()))
    if count == 0:
        raise ValueError(f"{what} must hold at least one example; got none in {sorted(lengths)}")
    return count


def _holds_arrays(batch: Any) -> bool:
    """Return whether this is a dict, and neither it nor a dict within is empty."""
    if not isinstance(batch, Mapping) or not batch:
        return False
    return all(_holds_arrays(part) for part in batch.values() if isinstance(part, Mapping))


def count_whole_batches(examples: int, batch_size: int) -> int:
    """Return the number of whole batches of a pass.

    Raises:
        ValueError: there is none.
    """
    if batch_size > examples:
        raise ValueError(
            f"training needs at least one whole batch: there are {examples} examples and "
            f"batch_size is {batch_size}; choose a batch_size of at most {examples}"
        )
    return examples // batch_size


def require_whole_pass(steps_per_epoch: int | None) -> None:
    """Check that an epoch of a source is a pass, so that the source can be evaluated.

    Raises:
        ValueError: it has a number of steps.
    """
    if steps_per_epoch is not None:
        raise ValueError(
            "an evaluation must visit every example exactly once, so its source cannot end after a "
            f"number of steps; got steps_per_epoch={steps_per_epoch}: use another source for it, "
            "without steps_per_epoch"
        )


def require_representable(what: str, batch: Mapping[str, Any]) -> None:
    """Check that integers of 64 bits fit the 32 bits to which JAX casts them.

    Without `jax_enable_x64` JAX would silently keep their lower half.

    Raises:
        ValueError: one does not.
    """
    for name, array in iter_arrays(batch):
        if isinstance(array, jax.Array):
            continue
        array = np.asarray(array)
        if array.dtype.kind not in "iu" or not array.size:
            continue
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
        if limits.bits == 8 * array.itemsize:
            continue
        if (low := array.min()) < limits.min or (high := array.max()) > limits.max:
            raise ValueError(
                f"{what}[{name!r}] must fit {limits.dtype}, to which JAX casts {array.dtype}; got "
                f"{low if low < limits.min else high}: renumber the values, or set "
                'jax.config.update("jax_enable_x64", True)'
            )


REMEDIES = {
    "U": "number the classes: np.unique(labels, return_inverse=True)[1]",
    "S": "number the classes: np.unique(labels, return_inverse=True)[1]",
    "M": "subtract a date and divide by a duration: (dates - dates[0]) / np.timedelta64(1, 'D')",
    "m": "divide by a duration: durations / np.timedelta64(1, 's')",
}
"""How to make numbers of other values, by numpy's kind."""


def _require_numbers(what: str, name: str, array: Any) -> None:
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        try:
            array = np.asarray(array)
        except ValueError as error:
            raise ValueError(
                f"{what}[{name!r}] must be an array, all of its examples of one shape; got "
                f"{array!r:.100} ({error}): pad them to one length"
            ) from error
        dtype = array.dtype
    kinds = jnp.number, jnp.bool_, jax.dtypes.prng_key
    if any(jnp.issubdtype(dtype, kind) for kind in kinds) and getattr(dtype, "kind", "") != "m":
        return  # numpy treats durations as integers
    first = np.ravel(array)[:1].tolist()
    shown = f", such as {first[0]!r:.60}" if first else ""
    remedy = REMEDIES.get(dtype.kind, "make one array of numbers, such as np.stack(rows)")
    raise TypeError(f"{what}[{name!r}] must hold numbers; got {dtype}{shown}: {remedy}")
