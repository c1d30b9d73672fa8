"""Settings in the closures of functions, found without running the functions, as lines of text."""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from trainer.checks.pytrees import is_key
from trainer.phases.phase import Phase

_LONG = 32
"""Longest sequence with a row for each entry; of a longer one this number of entries is hashed."""
_MAX_DEPTH, _MAX_VALUES = 40, 20_000
"""Limits of the search."""
_OWN = ("trainer", "hooks", "models", "entracte")
_LIBRARIES = (*_OWN, "optax", "jax", "flax", "numpy")
_SETS_CELLS = ("STORE_DEREF", "DELETE_DEREF")


class ClosureSetting(NamedTuple):
    """A setting, and the closure variables (ids of cells) through which it was found."""

    name: str
    value: str
    cells: tuple[int, ...]
    changing: frozenset[int] = frozenset()
    """Variables that the function assigns to, if it is one."""


class ClosureWalker:
    """Walks through values and the closures of functions, visiting each once.

    Args:
        strict: leave out what may change during a run, such as lists and arrays of hooks, and the
            closures of users' own functions, which may hold the time at which they were made.
        cells: closure variables through which its values were found.
    """

    def __init__(self, *, strict: bool, cells: tuple[int, ...] = ()) -> None:
        self._strict, self._cells = strict, cells
        self._seen: dict[int, Any] = {}  # with the values, so that no id is used twice
        self._count = self._depth = 0

    def describe_phase(self, phase: Phase) -> Iterator[ClosureSetting]:
        """Describe a phase: its data, its executor, and the closure of its step."""
        for inner in phase.passes:
            for found in self.describe_phase(inner):
                yield found._replace(name=f"{inner.name}: {found.name}")
        yield from self._describe_source(phase.source)
        yield from self.describe_value("steps an epoch", phase.steps_per_epoch)
        if phase.passes and phase.repeated_step:
            yield from self.describe_value("passes", phase.repeated_step.feed.steps)
        yield from self.describe_value("members", phase.members)
        yield from self.describe_value("reduce", dict(phase.reduce))
        if phase.repeated_step is None:
            yield from self.describe_value("run", phase.run)
        else:
            yield from self.describe_value("executor", phase.repeated_step.executor)
            if not phase.passes:
                yield from self.describe_value("step", phase.repeated_step.scan.step)

    def _describe_source(self, source: Any) -> Iterator[ClosureSetting]:
        """Describe a data source: arrays by their contents, factories by their settings."""
        if dataclasses.is_dataclass(source):
            lenient = ClosureWalker(strict=False, cells=self._cells) if self._strict else self
            for field in dataclasses.fields(source):
                value = getattr(source, field.name, None)
                if field.name == "arrays" and isinstance(value, Mapping):
                    for name, array in value.items():
                        yield from lenient.describe_value(f"data {name}", array)
                elif field.init:
                    yield from lenient.describe_value(f"data {field.name}", value)

    def describe_value(self, name: str, value: Any) -> Iterator[ClosureSetting]:
        """Describe a value; yield nothing if it cannot be compared."""
        self._count += 1
        if self._depth > _MAX_DEPTH or self._count > _MAX_VALUES:
            return
        self._depth += 1
        if (text := _format_plain(value)) is not None:
            yield ClosureSetting(name, text, self._cells)
        elif isinstance(value, ModuleType | type):
            yield ClosureSetting(name, value.__name__, self._cells)
        elif isinstance(value, jax.Array | np.ndarray):
            if not self._strict:
                yield ClosureSetting(name, hash_array(value), self._cells)
        elif isinstance(value, Phase):
            yield from ClosureWalker(strict=False, cells=self._cells).describe_phase(value)
        elif _is_source(value):
            yield from self._describe_source(value)
        elif id(value) not in self._seen:
            self._seen[id(value)] = value
            yield from self._describe_inside(name, value)
        self._depth -= 1

    def _describe_inside(self, name: str, value: Any) -> Iterator[ClosureSetting]:
        if isinstance(value, functools.partial):
            yield from self.describe_value(name, value.func)
            arguments = dict[Any, Any](enumerate(value.args)) | value.keywords
            yield from self._describe_parts(name, arguments)
        elif inspect.isfunction(value):
            yield from self._describe_function(name, value)
        elif inspect.ismethod(value):
            yield from self.describe_value(name, value.__func__)
            yield from self.describe_value(name, value.__self__)
        elif callable(value) and inspect.isfunction(wrapped := getattr(value, "__wrapped__", None)):
            yield from self._describe_function(name, wrapped)
        elif isinstance(value, tuple):
            fields = getattr(value, "_fields", range(len(value)))
            yield from self._describe_parts(name, dict(zip(fields, value, strict=True)))
        elif dataclasses.is_dataclass(value):
            if self._strict and not value.__dataclass_params__.frozen:  # type: ignore[union-attr]
                return
            names = [f.name for f in dataclasses.fields(value) if f.init and f.name[0] != "_"]
            yield ClosureSetting(name, type(value).__name__, self._cells)
            yield from self._describe_parts(name, {n: getattr(value, n, None) for n in names})
        elif isinstance(value, dict) and not self._strict:
            yield from self._describe_parts(name, value)
        elif isinstance(value, list | set | frozenset) and not self._strict:
            entries = value if isinstance(value, list) else sorted(value, key=repr)
            yield from self._describe_parts(name, dict(enumerate(entries)))
        elif _root(type(value)) == "optax" and hasattr(value, "__dict__"):
            yield from self._describe_parts(name, vars(value))
        elif isinstance(value, re.Pattern):
            yield ClosureSetting(name, repr(value.pattern), self._cells)

    def _describe_parts(self, name: str, parts: Mapping[Any, Any]) -> Iterator[ClosureSetting]:
        if len(parts) <= _LONG:
            for part, value in parts.items():
                where = f"{name}[{part}]" if isinstance(part, int) else f"{name}.{part}"
                yield from self.describe_value(where, value)
            return
        keys = list(parts)
        chosen = [keys[place * len(keys) // _LONG] for place in range(_LONG)]
        inner = [one for key in chosen for one in self.describe_value(str(key), parts[key])]
        if inner:
            digest = hash_bytes(f"{found.name}={found.value}".encode() for found in inner)
            yield ClosureSetting(name, f"{len(keys)} entries {digest}", self._cells)

    def _describe_function(self, name: str, function: Any) -> Iterator[ClosureSetting]:
        code, root = function.__code__, _root(function)
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        # schedules of optax set variables, but only to make a float of an int
        sets = _list_assigned_cells(code) if root != "optax" else ()
        changing = frozenset(id(cell) for free, cell in cells.items() if free in sets)
        qualified = function.__qualname__.split(".<locals>.")
        own = ".".join(qualified[-2:]) if root in _LIBRARIES else qualified[-1]
        inner = root in _LIBRARIES and own == name  # a part of its maker, not a setting
        yield ClosureSetting("" if inner else name, own, self._cells, changing)
        if self._strict and root not in _OWN:
            return
        maker, outer = qualified[-2] if len(qualified) > 1 else "", self._cells
        for free, cell in cells.items():
            if id(cell) in self._seen or free == "numeric_hps":  # hyperparams of optax
                continue
            self._seen[id(cell)] = cell
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            self._cells = (*outer, id(cell))
            yield from self.describe_value(f"{maker}.{free}" if maker else free, content)
            self._cells = outer
        if root not in _LIBRARIES:
            signature = inspect.signature(function, follow_wrapped=False)
            for argument in signature.parameters.values():
                if argument.default is not argument.empty:
                    yield from self.describe_value(f"{own}.{argument.name}", argument.default)


def _root(thing: Any) -> str:
    return (thing.__module__ or "").partition(".")[0]


def _is_source(value: Any) -> bool:
    return (
        dataclasses.is_dataclass(value)
        and not isinstance(value, type)
        and callable(getattr(value, "training", None))
        and callable(getattr(value, "evaluation", None))
    )


@functools.lru_cache(4096)
def _list_assigned_cells(code: CodeType) -> frozenset[str]:
    """Return the names of the closure variables that a function assigns to (`nonlocal`)."""
    free = set(code.co_freevars)
    if not free:
        return frozenset()
    own = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in _SETS_CELLS and step.argval in free
    }
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset(own.union(*(_list_assigned_cells(one) & free for one in inner)))


def _format_plain(value: Any) -> str | None:
    """Format a plain value; None if it is not one, or is a path, which differs between machines."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.generic) and not isinstance(value, np.void):
        value = value.item()
    if isinstance(value, str):
        if value.startswith(("/", "~")) or not value.isprintable():
            return None
        return repr(value) if len(value) < 100 else f"a text {hash_bytes([value.encode()])}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, np.dtype | jnp.dtype):
        return str(value)
    return None


WHOLE = 2**26
"""Bytes up to which a whole array is hashed, in about 10 ms; larger ones are sampled."""

_SAMPLES, _SAMPLE_BYTES = 64, 2**20


def hash_array(array: Any) -> str:
    """Describe an array by shape, dtype and a hash of its contents, or of samples.

    >>> hash_array(np.zeros(3)), hash_array(jnp.zeros(3, jnp.int32))
    ('float64[3] 743df94ee4c78a2a', 'int32[3] c4998f9169c2a4f0')
    """
    if is_key(array):
        array = jax.random.key_data(array)
    described = f"{array.dtype}{list(array.shape)}"
    whole = get_local_data(array)
    if whole is None or array.dtype.hasobject:
        return described
    if whole.nbytes <= WHOLE or not whole.shape:
        return f"{described} {hash_bytes([_bytes(whole)])}"
    rows = len(whole)
    count = min(max(1, _SAMPLE_BYTES * rows // whole.nbytes), rows)
    starts = [number * (rows - count) // (_SAMPLES - 1) for number in range(_SAMPLES)]
    return f"{described} {hash_bytes(_bytes(_slice(whole, start, count)) for start in starts)}"


def _slice(array: Any, start: int, count: int) -> Any:
    if isinstance(array, np.ndarray):
        return array[start : start + count]
    return jax.lax.dynamic_slice_in_dim(array, jnp.int32(start), count)


def get_local_data(array: Any) -> Any:
    """Return the data of an array if this process has all of it, else None."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return array
    return array.addressable_data(0) if array.is_fully_replicated else None


def _bytes(array: Any) -> memoryview:
    return np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8).data


def hash_bytes(pieces: Iterable[Any]) -> str:
    """Return a hash of pieces of bytes: 16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
