"""The settings of a run: its key, data, phases and hooks.

A resumed run compares them with those in the checkpoint. Functions keep their settings in closures;
those of optimizers, losses, networks and hooks are found there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import xxhash

from trainer.checks.pytrees import format_path
from trainer.hook import Hook, RunSettings
from trainer.host.exchange import exchange_words
from trainer.loop.closure_settings import (
    ClosureSetting,
    ClosureWalker,
    get_local_data,
    hash_array,
    hash_bytes,
)
from trainer.phases.phase import Phase
from trainer.state import TrainState

_MAX_SETTINGS = 500
"""Number of settings of one subject at most."""

KEY, HYPERPARAMS = "root key", "hyperparams"
"""Subjects whose values a resumed run takes from the checkpoint, not from the script."""


def send_description(state: TrainState, phases: Iterable[Phase], hooks: Sequence[Hook]) -> None:
    """Pass the settings of the run to hooks with a `describe`; without one, do not collect them."""
    if receivers := [hook.describe for hook in hooks if hook.describe]:
        settings = describe_run(state, phases, hooks)
        for receive in receivers:
            receive(settings)


def check_same_settings(state: TrainState, phases: Sequence[Phase], hooks: Sequence[Hook]) -> None:
    """Check that all processes have the same key, data, phases and control hooks; all call it.

    Raises:
        RuntimeError: another process has others, which would end in a deadlock, or in states that
            differ; the first of them is named.
    """
    if jax.process_count() == 1:
        return
    hooks = [hook for hook in hooks if hook.stage == "control"]
    rows = describe_run(state, phases, hooks)
    subjects = [KEY, *(f"phase {phase.name}" for phase in phases)]
    subjects += dict.fromkeys(f"hook {hook.name}" for hook in hooks)
    texts = ["; ".join(f"{k} = {v}" for k, v in rows.get(name, {}).items()) for name in subjects]
    digests = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], np.uint64)
    words = exchange_words("the settings of a run", digests.view(np.uint32))
    seen = np.ascontiguousarray(words).view(np.uint64)
    mine = jax.process_index()
    if differing := np.argwhere(seen != seen[mine]).tolist():
        other, place = differing[0]
        raise RuntimeError(
            f"process {other} has other settings than process {mine} in {subjects[place]!r}: data, "
            f"phases and control hooks must be the same everywhere; here: {texts[place]:.600}"
        )


def describe_run(state: TrainState, phases: Iterable[Phase], hooks: Iterable[Hook]) -> RunSettings:
    """Collect the settings of a run.

    Of hooks only control hooks count: what is logged, and where, may change freely. A user's own
    function is identified by its name; its code is not compared.

    >>> phase = Phase("train", lambda state, data: (state, None, {}))
    >>> state = TrainState.create(params={}, rng=jax.random.key(3))
    >>> describe_run(state, [phase], [])["root key"]
    {'': 'threefry2x32 0000000000000003'}
    """
    key = jax.random.key_data(state.rng)
    if key.size <= 8 and (here := get_local_data(key)) is not None:
        words = "".join(f"{word:08x}" for word in np.asarray(here).ravel())
    else:  # of a population
        words = hash_array(key)
    rows: RunSettings = {KEY: {"": f"{jax.random.key_impl(state.rng)} {words}"}}
    rows[HYPERPARAMS] = read_hyperparams(state)
    found: dict[str, list[ClosureSetting]] = {}
    for phase in phases:
        found[f"phase {phase.name}"] = [*ClosureWalker(strict=False).describe_phase(phase)]
    for hook in hooks:
        found.setdefault(f"hook {hook.name}", []).extend(_describe_hook(hook))
    changing = frozenset().union(*(one.changing for group in found.values() for one in group))
    rows |= {subject: _number_rows(group, changing) for subject, group in found.items()}
    return {name: settings for name, settings in rows.items() if settings and _is_short(name)}


def read_hyperparams(state: TrainState) -> dict[str, str]:
    """Read the hyperparameters of `optax.inject_hyperparams` in a state that no schedule sets.

    >>> import optax
    >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    >>> opt_state = optimizer.init({})
    >>> read_hyperparams(TrainState.create(params={}, rng=jax.random.key(0), opt_state=opt_state))
    {'learning_rate': '0.5'}
    """
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    kept: dict[tuple[str, ...], Any] = {}
    scheduled: set[tuple[str, ...]] = set()
    for path, leaf in leaves:
        names = [str(getattr(part, "name", getattr(part, "key", ""))) for part in path]
        if "hyperparams_states" in names[:-1]:
            place = names.index("hyperparams_states")
            scheduled.add((format_path(path[:place]), names[place + 1]))
        elif "hyperparams" in names[:-1]:
            place = names.index("hyperparams")
            kept[format_path(path[:place]), names[place + 1]] = leaf
    found = {at: leaf for at, leaf in kept.items() if at not in scheduled}
    once = len({name for _, name in found}) == len(found)
    rows: dict[str, str] = {}
    for (group, name), leaf in found.items():
        value = hash_array(leaf) if np.shape(leaf) else str(np.asarray(get_local_data(leaf)))
        rows[name if once or not group else f"{group}/{name}"] = value
    return rows


def _number_rows(found: Iterable[ClosureSetting], changing: frozenset[int]) -> dict[str, str]:
    """Number names that occur twice, and leave out settings that a function changes as it runs."""
    rows: dict[str, str] = {}
    for name, value, cells, _ in found:
        if not _is_short(name) or changing.intersection(cells):
            continue
        if len(rows) >= _MAX_SETTINGS:
            break
        number, numbered = 1, name
        while numbered in rows:
            number += 1
            numbered = f"{name} ({number})"
        rows[numbered] = value if _is_short(value) else f"a text {hash_bytes([value.encode()])}"
    return rows


def _is_short(text: str) -> bool:
    """Return whether a text can be saved and shown unchanged."""
    return 0 < len(text) < 300 and text.isprintable()


def _describe_hook(hook: Hook) -> Iterator[ClosureSetting]:
    walker = ClosureWalker(strict=True)
    for name, value in hook.options.items():
        yield from walker.describe_value(name, value)
    others = [hook.check_background, hook.flush, hook.close, hook.dry_run, hook.restore]
    if hook.stage == "control":
        yield from walker.describe_value("reads", hook.reads)
        yield from walker.describe_value("runs", hook.function)
        for gate in hook.gates:
            yield from walker.describe_value("gate", gate.is_open)
    else:
        others.append(hook.function)
    for function in filter(None, others):  # only for the variables that they change
        for found in walker.describe_value("", function):
            yield ClosureSetting("", "", (), found.changing)
