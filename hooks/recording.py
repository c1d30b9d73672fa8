"""Recording: samples, pictures and distributions of a state, given to writers."""

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
"""Values that are no numbers."""


def record(
    name: str, make: Callable[[TrainState, Mapping[str, float]], Any], *writers: Writer
) -> Chain:
    """Write what a function makes of the state: what a model says, draws or weighs.

    Two parts, as of `log_metrics`: at the `start` the writers learn from where the run goes on, so
    that a resumed run repeats no record; at the `epoch` they are given what `make` made, at the
    state's step. They may be those of `log_metrics`. Give it a period, `every(5, record(...))`,
    since `make` may take long. Behind `background` it needs writers that no other hook writes to.

    A writer passes over what it cannot show: `Console` shows `Text`, `TensorBoard` all kinds.

    Args:
        name: of the record, a path such as `samples/val`.
        make: `(state, metrics) -> value`, a `Text`, an `Image`, a `Video`, a `Histogram` or a
            number; or a dict of them, each written under `name/key`: a picture beside its caption.
            Several pictures make one by `image_grid`. Where it draws at random,
            `state.key("hook/" + name)` is the key. Arrays of the state that it gives are copied by
            the writers.
        writers: `Console()`, `TensorBoard(directory)`, or one's own: see `Writer`.

    Raises:
        ValueError: there is no name or no writer.
        TypeError: something is no writer; at the first record, `make` gave something else.

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
        made = make(state, metrics)
        if not isinstance(made, Mapping):
            return {name: _value(who, made)}
        return {f"{name}/{key}": _value(f"{who}, {key!r},", part) for key, part in made.items()}

    return chain(
        resume_writers(f"record/{name}", writers), write_values(f"record/{name}", writers, values)
    )


def image_grid(pixels: Any, *, columns: int | None = None) -> Image:
    """Lay pictures out side by side, row by row, a dark line between them.

    Args:
        pixels: `[pictures, height, width, channels]`, uint8, or floats from 0 to 1.
        columns: pictures in a row; about as many as rows if None.

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


def _value(who: str, value: Any) -> Value:
    """Give a value as writers know it; a number of any kind is one."""
    if isinstance(value, KINDS):
        return value
    if isinstance(value, Real) or (hasattr(value, "dtype") and np.ndim(value) == 0):
        return float(value)
    given = "a string: wrap it, Text(...)" if isinstance(value, str) else f"{value!r:.100}"
    raise TypeError(
        f"{who} writes a Text, an Image, a Video, a Histogram or a number; make gave {given}"
    )
