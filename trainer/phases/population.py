"""Populations: many members trained together under `vmap`, each as if it trained alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from trainer.checks.arguments import describe_value, require_integer
from trainer.checks.modes import resolve_mode
from trainer.checks.pytrees import is_key, list_differences, map_key_data
from trainer.data import Arrays
from trainer.data.source import Check
from trainer.phases.compiled_phase import PhaseFunction, run_checked
from trainer.phases.metrics import Members
from trainer.phases.phase import Phase
from trainer.phases.reductions import check_metrics
from trainer.state import LIVE, PyTree, TrainState, strip_host_fields

MAPPED = ("step", "params", "opt_state", "model_state", "rng", "carry")
"""Fields of a state that each member has for itself; all members share the epoch."""


@overload
def population(program: Phase, members: int) -> Phase: ...


@overload
def population(program: Sequence[Phase], members: int) -> tuple[Phase, ...]: ...


def population(program: Phase | Sequence[Phase], members: int) -> Phase | tuple[Phase, ...]:
    """Make phases that train, or measure, many members at once.

    The state is one from `population_of`: each member has its own parameters, optimizer state, key,
    carry and step, `[members, ...]`. All share the epoch, and the data of `data.Arrays`, which each
    reads in its own order. The output that a phase passes to the next is stacked. A member whose
    `state.carry["live"]` is False does not change.

    A metric becomes a `Members`: the mean over the live members, with each member's value. Hooks
    see the whole population; `hooks.each` runs a hook for every member.

    Args:
        program: a phase, or several.
        members: number of members.

    Returns:
        A phase for a phase, a tuple for several. On CPU, convolutions are slow in such a phase.

    Raises:
        ValueError: no members, a phase that is one of a population, or data that cannot be shared.

    >>> def halve(state, data):
    ...     return state.replace(params=state.params / 2), None, {"size": state.params}
    >>> def init(key):
    ...     return TrainState.create(params=jax.random.uniform(key), rng=key)
    >>> phase = population(Phase("shrink", halve), 3)
    >>> state = population_of(init, jax.random.split(jax.random.key(0), 3))
    >>> after, _, measured = phase.execute(state, None, donate=False)
    >>> after.params.shape, measured.read()[0]["shrink/size"].values == state.params
    ((3,), Array([ True,  True,  True], dtype=bool))
    """
    require_integer("members", members, 1)
    if isinstance(program, Phase):
        return _vectorize_phase(program, members)
    return tuple(_vectorize_phase(phase, members) for phase in program)


def population_of(init: Callable[[jax.Array], TrainState], keys: PyTree) -> TrainState:
    """Make the state of a population; each member's is `init` of its key.

    `jax.eval_shape(lambda: population_of(init, keys))` gives its shapes, for `trainer.cost`.

    Args:
        init: `(key) -> state`, jittable: `agent.init`, or `lambda key: task.init(key, example)`.
        keys: typed keys `[members]`, `jax.random.split(jax.random.key(seed), members)`, or a
            sequence of single ones.

    Raises:
        TypeError: the keys are not typed, or a member's carry is no dict.

    >>> def init(key):
    ...     return TrainState.create(params=jax.random.normal(key), rng=key)
    >>> state = population_of(init, [jax.random.key(seed) for seed in (0, 1, 2)])
    >>> state.params.shape, state.step.shape, state.epoch.shape, state.carry["live"].tolist()
    ((3,), (3,), (), [True, True, True])
    """
    keys = keys if isinstance(keys, jax.Array) else jnp.stack(list(keys))
    if not is_key(keys) or keys.ndim != 1:
        raise TypeError(
            "population_of needs a typed key for each member, jax.random.split("
            f"jax.random.key(seed), members); got {keys.dtype}{list(keys.shape)}"
        )
    # One compiled function, called for each: an init that compiles would be slow at each call, and
    # under vmap XLA on CPU does not finish compiling the decompositions of 256 members.
    one = jax.jit(lambda key: strip_host_fields(init(key)))
    if isinstance(keys[:1], jax.core.Tracer):
        stacked, first = jax.lax.map(one, keys), one(keys[0])
        return _join_members(first, {field: getattr(stacked, field) for field in MAPPED})
    return stack_states([one(key).replace(stop=False) for key in keys])


def stack_states(states: Sequence[TrainState]) -> TrainState:
    """Stack the states of separate runs to one of a population in which all members are live.

    Args:
        states: of one epoch and structure; hook states are left out.

    Raises:
        ValueError: there is none, or they differ in structure, shapes, dtypes or epoch.
        TypeError: a member's carry is not a dict.
    """
    if isinstance(states, TrainState):
        raise TypeError("stack_states takes a list of states, one each; got a single TrainState")
    if not states:
        raise ValueError("a population needs at least 1 state")
    first = strip_host_fields(states[0])
    for number, state in enumerate(states):
        if lines := list_differences(first, strip_host_fields(state)):
            raise ValueError(
                f"members need states of one structure; number {number} differs from the first:\n  "
                + "\n  ".join(lines)
            )
        if int(state.epoch) != int(first.epoch):
            raise ValueError(
                f"members share the epoch: the first is at {first.epoch}, {number} at {state.epoch}"
            )
    rows = [{field: getattr(state, field) for field in MAPPED} for state in states]
    return _join_members(
        first, jax.tree.map(lambda *leaves: map_key_data(jnp.stack, leaves), *rows)
    )


def _join_members(first: TrainState, stacked: dict[str, PyTree]) -> TrainState:
    """Make the state of a population from the fields of all members, `[members, ...]`."""
    if not isinstance(first.carry, dict):
        raise TypeError(
            f"a member's carry must be a dict, for who is live; got {describe_value(first.carry)}"
        )
    live = jnp.ones(stacked["step"].shape, bool)
    return first.replace(**stacked | {"carry": {**stacked["carry"], LIVE: live}}, stop=False)


def member(state: TrainState, number: int) -> TrainState:
    """Return one member of a population, as a state that can train alone.

    Args:
        state: of a population.
        number: of the member, from 0.

    Raises:
        IndexError: there is no such member.
        ValueError: the state is not one of a population.
    """
    count = len(get_live_members(state, "member"))
    if not 0 <= number < count:
        raise IndexError(f"members are numbered from 0 to {count - 1}; got {number}")
    one = _index_members(get_member_fields(state), number)
    return state.replace(**one, stop=False, scores={}, hook_state={})


@jax.jit
def _index_members(tree: PyTree, number: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[number], tree)


def best_member(
    state: TrainState, metrics: Mapping[str, float], metric: str, *, mode: str | None = None
) -> TrainState:
    """Return the member of a population with the best value of a metric.

    Args:
        state: of a population.
        metrics: with the metric, such as `history[-1]`.
        metric: such as `val/loss`.
        mode: `min` if smaller is better, `max` if larger is; None goes by the metric's name.

    Raises:
        KeyError: the metric is missing.
        TypeError: it is not a `Members`.
        ValueError: the mode is unknown or cannot be inferred, or every value is nan.

    >>> states = [TrainState.create(params=jnp.float32(p), rng=jax.random.key(p)) for p in (3, 4)]
    >>> scores = {"val/loss": Members([0.5, 0.2], live=[True, True])}
    >>> float(best_member(stack_states(states), scores, "val/loss").params)
    4.0
    """
    way = resolve_mode("best_member", metric, mode)
    found = metrics[metric]
    if not isinstance(found, Members):
        raise TypeError(
            f"best_member needs the values of all members, as a population's phase measures them; "
            f"got {metric!r} {found!r}"
        )
    if np.isnan(found.values).all():
        raise ValueError(f"best_member: no member has a {metric!r} that is a number")
    best = np.nanargmin if way == "min" else np.nanargmax
    return member(state, int(best(found.values)))


def get_live_members(state: TrainState, who: str) -> jax.Array:
    """Return which members are live, bool `[members]`.

    Raises:
        ValueError: the state is not one of a population.
    """
    if not isinstance(state.carry, Mapping) or LIVE not in state.carry:
        raise ValueError(
            f"{who} needs the state of a population, which trainer.population_of(init, keys) "
            f"makes; state.carry has no {LIVE!r}"
        )
    return state.carry[LIVE]


def get_member_fields(state: TrainState) -> dict[str, PyTree]:
    """Return the fields that each member has for itself, `[members, ...]`, without `live`."""
    fields = {field: getattr(state, field) for field in MAPPED}
    fields["carry"] = {name: value for name, value in state.carry.items() if name != LIVE}
    return fields


def _vectorize_phase(phase: Phase, members: int) -> Phase:
    if not isinstance(phase, Phase):
        raise TypeError(f"a population is made of phases; got {describe_value(phase)}")
    if phase.members is not None:
        raise ValueError(f"phase {phase.name!r} is already one of a population")
    if phase.passes:
        raise ValueError(
            f"phase {phase.name!r} is several passes; repeat the population instead: "
            "trainer.repeated(trainer.population(program, members), count)"
        )
    if phase.source is not None and not isinstance(phase.source, Arrays):
        raise ValueError(
            f"phase {phase.name!r} reads a {type(phase.source).__name__}, and each member would "
            "need one of its own, in the order of its own key; members share data.Arrays"
        )
    if phase.feed is not None and phase.feed.start is not None:
        raise ValueError(
            f"phase {phase.name!r} keeps its position in the data in the state, and each member "
            "would need one of its own; leave steps_per_epoch out: an epoch is then one pass"
        )
    check = phase.check_independence  # of the first member: all compute the same function
    return dataclasses.replace(
        phase,
        run=_vectorize_run(phase, members),
        members=members,
        repeated_step=phase.repeated_step and phase.repeated_step._replace(executor="scan"),
        check_data=phase.check_data and _check_one_member(phase.check_data),
        check_independence=check and (lambda state: check(member(state, 0))),
    )


def _check_one_member(check: Check) -> Check:
    """Check shared data against the shapes of one member."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)

    return lambda state, batch: check(
        state.replace(**jax.tree.map(shape, get_member_fields(state))), batch
    )


def _vectorize_run(phase: Phase, members: int) -> PhaseFunction:
    def run_member(
        own: dict[str, PyTree], epoch: jax.Array, data: Any
    ) -> tuple[dict[str, PyTree], PyTree, dict[str, Any]]:
        alone = TrainState(**own, epoch=epoch, stop=None)  # type: ignore[arg-type]
        after, output, metrics = run_checked(phase.run, phase.name, alone, data)
        check_metrics(metrics, phase.reduce, phase.name)
        return {field: getattr(after, field) for field in MAPPED}, output, metrics

    axes = 0, None, None if phase.source is not None else 0

    def run(state: TrainState, data: Any) -> tuple[TrainState, PyTree, dict[str, Any]]:
        live = get_live_members(state, f"phase {phase.name!r}")
        if live.shape != (members,):
            raise ValueError(
                f"phase {phase.name!r} is made for {members} members; the state has {len(live)}"
            )
        before = get_member_fields(state)
        after, output, metrics = jax.vmap(run_member, axes)(before, state.epoch, data)

        def select(leaves: Sequence[jax.Array]) -> jax.Array:
            new, old = leaves
            if new is old:  # passed through
                return old
            return jnp.where(live.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        after = jax.tree.map(lambda *leaves: map_key_data(select, leaves), after, before)
        after["carry"][LIVE] = live
        return state.replace(**after), output, metrics

    return run
