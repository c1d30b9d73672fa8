"""What a run is made of, as rows: its key, data, phases and hooks.

A resume compares these with the checkpoint's. Functions keep their settings in closures, and those
of optimizers, losses, networks and hooks are found there.
"""

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

from trainer.hook import Hook, Rows
from trainer.phases import Phase
from trainer.state import TrainState, path_name

KEY, HYPERPARAMS = "root key", "hyperparams"
"""Subjects of which a resume takes what the checkpoint has; of others, what the script says."""

WHOLE = 2**26
"""Bytes up to which an array is hashed as a whole, in about 10 ms; of a larger one, samples."""

_SAMPLES, _SAMPLE = 64, 2**20
_LONG = 32
"""Entries from which a sequence is one row; of its entries so many are looked at."""
_DEEP, _MANY, _MOST = 40, 20_000, 500
"""Bounds of the search: how deep, how many values, how many settings of one subject."""
_LIBRARIES = ("trainer", "hooks", "models", "optax", "jax", "flax", "numpy")
_OWN = ("trainer", "hooks", "models")
_SETS_CELLS = ("STORE_DEREF", "DELETE_DEREF")


def described(state: TrainState, phases: Iterable[Phase], hooks: Iterable[Hook]) -> Rows:
    """Lay out what a run is made of.

    Of hooks those that decide are looked at, not those that observe: what is logged, and where, may
    change freely. A user's own function is known by its name; what it does is not compared.

    Args:
        state: that `fit` was called with.
        phases: of the program.
        hooks: all of them.

    >>> phase = Phase("train", lambda state, data: (state, None, {}))
    >>> state = TrainState.create(params={}, rng=jax.random.key(3))
    >>> described(state, [phase], [])["root key"]
    {'': 'threefry2x32 0000000000000003'}
    """
    key = np.asarray(_local(jax.random.key_data(state.rng)))
    words = "".join(f"{word:08x}" for word in key.ravel())
    if len(words) > 64:  # of a population
        words = _hashed([words.encode()])
    rows: Rows = {KEY: {"": f"{jax.random.key_impl(state.rng)} {words}"}}
    rows[HYPERPARAMS] = hyperparams(state)
    found: dict[str, list[_Found]] = {}
    for phase in phases:
        found[f"phase {phase.name}"] = [*_of_phase(phase)]
    for hook in hooks:
        found.setdefault(f"hook {hook.name}", []).extend(_of_hook(hook))
    changing = frozenset().union(*(one.changing for group in found.values() for one in group))
    rows |= {subject: _rows(group, changing) for subject, group in found.items()}
    return {subject: settings for subject, settings in rows.items() if settings and _short(subject)}


def hyperparams(state: TrainState) -> dict[str, str]:
    """Give the numbers that `optax.inject_hyperparams` keeps in a state and no schedule sets.

    >>> import optax
    >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    >>> opt_state = optimizer.init({})
    >>> hyperparams(TrainState.create(params={}, rng=jax.random.key(0), opt_state=opt_state))
    {'learning_rate': '0.5'}
    """
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    kept: dict[tuple[str, ...], Any] = {}
    scheduled: set[tuple[str, ...]] = set()
    for path, leaf in leaves:
        names = [str(getattr(part, "name", getattr(part, "key", ""))) for part in path]
        if "hyperparams_states" in names[:-1]:
            place = names.index("hyperparams_states")
            scheduled.add((path_name(path[:place]), names[place + 1]))
        elif "hyperparams" in names[:-1]:
            place = names.index("hyperparams")
            kept[path_name(path[:place]), names[place + 1]] = leaf
    found = {at: leaf for at, leaf in kept.items() if at not in scheduled}
    once = len({name for _, name in found}) == len(found)
    return {
        name if once or not group else f"{group}/{name}": _number(leaf)
        for (group, name), leaf in found.items()
    }


def _number(leaf: Any) -> str:
    return of_array(leaf) if np.shape(leaf) else str(np.asarray(_local(leaf)))


class _Found(NamedTuple):
    """A setting, where it was found, and by which of a function's variables it was reached."""

    name: str
    value: str
    cells: tuple[int, ...]
    changing: frozenset[int]


def _rows(found: Iterable[_Found], changing: frozenset[int]) -> dict[str, str]:
    """Number names that come twice, and leave out what some function changes while it runs."""
    rows: dict[str, str] = {}
    for name, value, cells, _ in found:
        if not _short(name) or changing.intersection(cells):
            continue
        if len(rows) >= _MOST:
            break
        number, numbered = 1, name
        while numbered in rows:
            number += 1
            numbered = f"{name} ({number})"
        rows[numbered] = value if _short(value) else f"a text {_hashed([value.encode()])}"
    return rows


def _short(text: str) -> bool:
    """Say whether a text can be kept and shown as it is."""
    return 0 < len(text) < 300 and text.isprintable()


def _of_phase(phase: Phase) -> Iterator[_Found]:
    walk = _Walk(strict=False)
    yield from walk.source(phase.source)
    yield from walk.value("steps an epoch", phase.steps_per_epoch)
    yield from walk.value("members", phase.members)
    yield from walk.value("reduce", dict(phase.reduce))
    if phase.repetition is None:
        yield from walk.value("run", phase.run)
    else:
        yield from walk.value("executor", phase.repetition.executor)
        yield from walk.value("step", phase.repetition.step)


def _of_hook(hook: Hook) -> Iterator[_Found]:
    walk = _Walk(strict=True)
    for name, value in hook.options.items():
        yield from walk.value(name, value)
    others = [hook.check, hook.flush, hook.close, hook.rehearse, hook.restore]
    if hook.stage == "control":
        yield from walk.value("reads", hook.reads)
        yield from walk.value("runs", hook.function)
        for gate in hook.gates:
            yield from walk.value("gate", gate.ask)
    else:
        others.append(hook.function)
    for function in filter(None, others):  # for what they change, alone
        changing = frozenset().union(*(found.changing for found in walk.value("", function)))
        yield _Found("", "", (), changing)


class _Walk:
    """Walks over values and the closures of functions, each once.

    Args:
        strict: leave out what may change while a run goes on, as hooks' lists and arrays do, and
            what users' own functions close over, such as the time at which they were made.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # so that no id is given twice
        self._count = 0

    def source(self, source: Any, cells: tuple[int, ...] = (), deep: int = 0) -> Iterator[_Found]:
        """Describe where data comes from: arrays by their contents, factories by their settings."""
        if dataclasses.is_dataclass(source):
            lenient = self if not self._strict else _Walk(strict=False)
            for field in dataclasses.fields(source):
                value = getattr(source, field.name, None)
                if field.name == "arrays" and isinstance(value, Mapping):
                    for name, array in value.items():
                        yield from lenient.value(f"data {name}", array, cells, deep + 1)
                elif field.init:
                    yield from lenient.value(f"data {field.name}", value, cells, deep + 1)

    def value(
        self, name: str, value: Any, cells: tuple[int, ...] = (), deep: int = 0
    ) -> Iterator[_Found]:
        """Describe a value; nothing where it is none that can be compared."""
        self._count += 1
        if deep > _DEEP or self._count > _MANY:
            return
        if (text := _text(value)) is not None:
            yield _Found(name, text, cells, frozenset())
        elif isinstance(value, ModuleType | type):
            yield _Found(name, value.__name__, cells, frozenset())
        elif isinstance(value, jax.Array | np.ndarray):
            if not self._strict:
                yield _Found(name, of_array(value), cells, frozenset())
        elif isinstance(value, Phase):
            for found in _of_phase(value):
                yield found._replace(cells=(*cells, *found.cells))
        elif _is_source(value):
            yield from self.source(value, cells, deep)
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            self._kept.append(value)
            yield from self._inside(name, value, cells, deep + 1)

    def _inside(self, name: str, value: Any, cells: tuple[int, ...], deep: int) -> Iterator[_Found]:
        pairs: Iterable[tuple[Any, Any]]
        if isinstance(value, functools.partial):
            yield from self.value(name, value.func, cells, deep)
            pairs = [*enumerate(value.args), *value.keywords.items()]
            yield from self._parts(name, dict(pairs), cells, deep)
        elif inspect.isfunction(value):
            yield from self._function(name, value, cells, deep)
        elif inspect.ismethod(value):
            yield from self.value(name, value.__func__, cells, deep)
            yield from self.value(name, value.__self__, cells, deep)
        elif callable(value) and inspect.isfunction(wrapped := getattr(value, "__wrapped__", None)):
            yield from self._function(name, wrapped, cells, deep)
        elif isinstance(value, tuple):
            pairs = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
            yield from self._parts(name, dict(pairs), cells, deep)
        elif dataclasses.is_dataclass(value):
            if self._strict and not value.__dataclass_params__.frozen:  # type: ignore[union-attr]
                return
            parts = {
                field.name: getattr(value, field.name, None)
                for field in dataclasses.fields(value)
                if field.init and not field.name.startswith("_")
            }
            yield _Found(name, type(value).__name__, cells, frozenset())
            yield from self._parts(name, parts, cells, deep)
        elif isinstance(value, list | dict | set | frozenset) and not self._strict:
            if isinstance(value, set | frozenset):
                value = sorted(value, key=repr)
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            yield from self._parts(name, dict(pairs), cells, deep)
        elif _root(type(value)) == "optax" and hasattr(value, "__dict__"):
            yield from self._parts(name, vars(value), cells, deep)
        elif isinstance(value, re.Pattern):
            yield _Found(name, repr(value.pattern), cells, frozenset())

    def _parts(
        self, name: str, parts: Mapping[Any, Any], cells: tuple[int, ...], deep: int
    ) -> Iterator[_Found]:
        if len(parts) <= _LONG:
            for part, value in parts.items():
                where = f"{name}[{part}]" if isinstance(part, int) else f"{name}.{part}"
                yield from self.value(where, value, cells, deep)
            return
        keys = list(parts)
        chosen = [keys[place * len(keys) // _LONG] for place in range(_LONG)]
        inner = [found for key in chosen for found in self.value(str(key), parts[key], cells, deep)]
        if inner:
            digest = _hashed(f"{found.name}={found.value}".encode() for found in inner)
            yield _Found(name, f"{len(keys)} entries {digest}", cells, frozenset())

    def _function(
        self, name: str, function: Any, cells: tuple[int, ...], deep: int
    ) -> Iterator[_Found]:
        code = function.__code__
        names, closure = code.co_freevars, function.__closure__ or ()
        root = _root(function)
        sets = _set_by(code) if root != "optax" else ()  # whose schedules make an int a float
        changing = frozenset(
            id(cell) for free, cell in zip(names, closure, strict=True) if free in sets
        )
        qualified = function.__qualname__.split(".<locals>.")
        own = ".".join(qualified[-2:]) if root in _LIBRARIES else qualified[-1]
        inner = root in _LIBRARIES and own == name  # one that its maker made, and no setting
        yield _Found("" if inner else name, own, cells, changing)
        if self._strict and root not in _OWN:
            return
        maker = qualified[-2] if len(qualified) > 1 else ""
        for free, cell in zip(names, closure, strict=True):
            if id(cell) in self._seen or free == "numeric_hps":  # optax's, which are hyperparams
                continue
            self._seen.add(id(cell))
            try:
                content = cell.cell_contents
            except ValueError:  # empty: assigned later
                continue
            if free == "sign" and root == "hooks":  # what they make of their mode
                free, content = "mode", {1.0: "min", -1.0: "max"}.get(content)
            where = f"{maker}.{free}" if maker else free
            yield from self.value(where, content, (*cells, id(cell)), deep)
        if root not in _LIBRARIES:
            given = function.__defaults__ or ()
            last = code.co_varnames[code.co_argcount - len(given) : code.co_argcount]
            defaults = {**dict(zip(last, given, strict=True)), **(function.__kwdefaults__ or {})}
            for argument, value in defaults.items():
                yield from self.value(f"{own}.{argument}", value, cells, deep)


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
def _set_by(code: CodeType) -> frozenset[str]:
    """Name the variables of its surroundings that a function sets, as `nonlocal` lets it."""
    free = set(code.co_freevars)
    if not free:
        return frozenset()
    own = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in _SETS_CELLS and step.argval in free
    }
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return frozenset(own.union(*(_set_by(one) & free for one in inner)))


def _text(value: Any) -> str | None:
    """Write a plain value; None where it is none, or differs from place to place as paths do."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.generic) and not isinstance(value, np.void):
        value = value.item()
    if isinstance(value, str):
        if value.startswith(("/", "~")) or not value.isprintable():
            return None
        return repr(value) if len(value) < 100 else f"a text {_hashed([value.encode()])}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, np.dtype | jnp.dtype):
        return str(value)
    return None


def of_array(array: Any) -> str:
    """Describe an array by shape, dtype and a hash of its contents, or of samples of them.

    >>> of_array(np.zeros(3)), of_array(jnp.zeros(3, jnp.int32))
    ('float64[3] 743df94ee4c78a2a', 'int32[3] c4998f9169c2a4f0')
    """
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    described = f"{array.dtype}{list(array.shape)}"
    local = _local(array)
    if local is None or array.dtype.hasobject:
        return described
    if local.nbytes <= WHOLE or not local.shape:
        return f"{described} {_hashed([_bytes(local)])}"
    rows = len(local)
    many = min(max(1, _SAMPLE * rows // local.nbytes), rows)
    starts = [place * (rows - many) // (_SAMPLES - 1) for place in range(_SAMPLES)]
    return f"{described} {_hashed(_bytes(_sample(local, start, many)) for start in starts)}"


def _sample(array: Any, start: int, many: int) -> Any:
    if isinstance(array, np.ndarray):
        return array[start : start + many]
    return jax.lax.dynamic_slice_in_dim(array, jnp.int32(start), many)


def _local(array: Any) -> Any:
    """Give the part of an array that this process has, where that is all of it; None else."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return array
    return array.addressable_data(0) if array.is_fully_replicated else None


def _bytes(array: Any) -> memoryview:
    return np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8).data


def _hashed(pieces: Iterable[Any]) -> str:
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
