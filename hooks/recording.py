"""Record samples, pictures and distributions of a state with writers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from hooks.combining import Chain, chain
from hooks.metric_logging import check_writers, resume_writers, write_values
from hooks.writers.values import Histogram, Image, Text, Trace, Value, Video
from hooks.writers.writer import Writer
from trainer import TrainState

KINDS = (Text, Image, Video, Histogram, Trace)
"""Types of values other than numbers."""


def record(
    name: str, make: Callable[[TrainState, Mapping[str, float]], Any], *writers: Writer
) -> Chain:
    """Write what a function computes from the state, such as a model's text, pictures or weights.

    At each `epoch` the writers get the result of `make`, at the state's step. They may be those of
    `log_metrics`, but in `background` no other hook may use them. Use it with a period,
    `every(5, record(...))`, since `make` may take long. A writer skips what it cannot show:
    `Console` shows `Text`, `TensorBoard` all kinds.

    Args:
        name: of the record, a path such as `samples/val`.
        make: `(state, metrics) -> value`, a `Text`, an `Image`, a `Video`, a `Histogram` or a
            number; or a dict of them, each written under `name/key`: a picture and its caption.
            `image_grid` combines several pictures. For random numbers use the key
            `state.key("hook/" + name)`. The writers copy arrays of the state.
        writers: `Console()`, `TensorBoard(directory)`, or your own: see `Writer`.

    Raises:
        ValueError: the name is empty or there is no writer.
        TypeError: an argument is no writer; at a record, `make` returned another type.

    >>> import jax
    >>> class Printer:
    ...     def write(self, step, values): print(step, values)
    ...     def flush(self): ...
    ...     def close(self): ...
    >>> def sample(state, metrics):
    ...     return {"said": Text("Once upon a time"), "length": 16}
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> _ = record("sample", sample, Printer())(state, {})
    0 {'epoch': Progress(...), 'sample/said': Text(text='Once upon a time'), 'sample/length': 16.0}
    """
    who = f"record({name!r})"
    if not name or not isinstance(name, str):
        raise ValueError(f"record needs a name for what it writes; got {name!r}")
    if not callable(make):
        raise TypeError(f"{who} needs a function (state, metrics) -> value; got {make!r:.100}")
    if not writers:
        raise ValueError(f"{who} needs a writer: record({name!r}, make, hooks.Console())")
    check_writers(who, writers)

    def values(state: TrainState, metrics: Mapping[str, float]) -> Mapping[str, Value]:
        result = make(state, metrics)
        if not isinstance(result, Mapping):
            return {name: _to_value(who, result)}
        return {
            f"{name}/{key}": _to_value(f"{who}, {key!r},", part) for key, part in result.items()
        }

    return chain(
        resume_writers(f"record/{name}", writers), write_values(f"record/{name}", writers, values)
    )


def image_grid(pixels: Any, *, columns: int | None = None) -> Image:
    """Arrange pictures in a grid, separated by dark lines.

    Args:
        pixels: `[pictures, height, width, channels]`, uint8, or floats from 0 to 1.
        columns: pictures in a row; if None, about as many as rows.

    Raises:
        ValueError: the pixels have other axes, or there is no picture or column.

    >>> image_grid(np.ones((3, 8, 8, 1))).pixels.shape
    (17, 17, 1)
    """
    pixels = np.asarray(pixels)
    if pixels.ndim != 4 or not len(pixels) or (columns is not None and columns < 1):
        raise ValueError(
            "image_grid needs pixels [pictures, height, width, channels] and at least 1 column; "
            f"got shape {list(pixels.shape)} and {columns}"
        )
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    padded = np.pad(pixels, ((0, rows * columns - count), (0, 1), (0, 1), (0, 0)))
    laid = padded.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return Image(laid.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1])


def _to_value(who: str, value: Any) -> Value:
    """Convert to a value for writers; a number of any type becomes a float."""
    if isinstance(value, KINDS):
        return value
    if isinstance(value, Real) or (hasattr(value, "dtype") and np.ndim(value) == 0):
        return float(value)
    got = "a string: wrap it, Text(...)" if isinstance(value, str) else f"{value!r:.100}"
    raise TypeError(
        f"{who} writes a Text, an Image, a Video, a Histogram or a number; make returned {got}"
    )
