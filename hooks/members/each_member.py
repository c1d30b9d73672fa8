"""Hooks in a population: one that runs for every member, as if each trained alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hooks.combining import HookLike, join_parts
from hooks.members.population_views import copy_to_host, merge_members, split_members
from trainer import Hook, Members, Metrics, TrainState
from trainer.hook import Gate, Hooks, HookState, flatten_hooks
from trainer.phases.in_place_changes import MutationGuard
from trainer.phases.metrics import LIVE, Traces
from trainer.population import get_live_members
from trainer.state import PyTree

log = logging.getLogger("entracte")

PREFIX = "each/"
"""Of the names of lifted hooks, and of what they remember."""


def each(hook: Hooks) -> HookLike:
    """Run a hook for every live member of a population, which sees a state as if it trained alone.

    A member's state has its own parameters, carry and step, as numpy views on the host; its metrics
    are its own values, and where it has none, they are missing. What it changes is put back. Its
    `stop` clears its `state.carry["live"]`, so that it does not move any more; when none is live,
    the run stops. What it remembers is kept by member, a list, and what it scores is a `Members`.
    At `end` the hook runs for all members, those that were stopped included.

    Hooks that are not wrapped see the whole population.

    Args:
        hook: one, a plain function, a chain, or several; each part keeps its event and stage, and
            triggers are asked for each member.

    Raises:
        ValueError: a part commits or restores, or names its scores itself: what saves or measures
            does so for the whole population. In training: the state is not one of members, or a
            member's changed its structure.

    >>> import trainer
    >>> def stop_low(state, metrics):
    ...     return state.replace(stop=metrics["train/loss"] < 1)
    >>> states = [TrainState.create(params={}, rng=jax.random.key(seed)) for seed in (0, 1)]
    >>> loss = Members([0.5, 2.0], live=[True, True])
    >>> state = each(stop_low)(trainer.stack_states(states), {"train/loss": loss})
    >>> state.carry["live"].tolist(), state.stop
    ([False, True], False)
    """
    groups: dict[tuple[str, str], list[Hook]] = {}
    for part in flatten_hooks(hook):
        if part.stage == "save" or part.restore:
            raise ValueError(
                f"hook {part.name!r} saves or restores the whole population: leave each(...) away"
            )
        if callable(part.writes):
            raise ValueError(
                f"hook {part.name!r} measures something itself: let it measure the population, "
                "hooks.evaluate(trainer.population(phase, members)), without each(...)"
            )
        groups.setdefault((part.at, part.stage), []).append(part)
    return join_parts([_lift_parts(group) for group in groups.values()])


def _lift_parts(parts: Sequence[Hook]) -> Hook:
    """Lift parts of one event and stage, so that they share views, and the answers of gates."""
    first = parts[0]
    who = PREFIX + "+".join(part.name for part in parts)
    memories = [memory for part in parts for memory in part.hook_states]
    names = [memory.name for memory in memories]
    written: list[str] = []
    expects: list[str] = []
    for part in parts:
        expects += [key for key in (*part.reads, *part.expects) if key not in written]
        written += () if callable(part.writes) else part.writes
    needs = [
        PREFIX + name for part in parts for name in part.required_hook_states if name not in names
    ]

    def lift(chosen: Sequence[Hook]) -> Callable[[TrainState, Mapping[str, float]], TrainState]:
        return lambda state, metrics: _run(who, chosen, memories, state, metrics)

    rehearsing = [dataclasses.replace(p, function=p.dry_run or p.function) for p in parts]
    return Hook(
        lift(parts),
        who,
        event=first.at if any(part.event for part in parts) else None,
        stage=first.stage,
        reads=tuple(key for key in first.reads if all(key in part.reads for part in parts)),
        expects=tuple(dict.fromkeys(expects)),
        writes=tuple(dict.fromkeys(written)),
        required_hook_states=tuple(dict.fromkeys(needs)),
        hook_states=tuple(HookState(PREFIX + name, _first(init)) for name, init in memories),
        dry_run=lift(rehearsing) if any(part.dry_run for part in parts) else None,
        rekeys=any(part.rekeys for part in parts),
        check_background=_all([part.check_background for part in parts if part.check_background]),
        flush=_all([part.flush for part in parts if part.flush]),
        close=_all([part.close for part in reversed(parts) if part.close]),
    )


def _all(calls: Sequence[Callable[[], None]]) -> Callable[[], None] | None:
    def run() -> None:
        for call in calls:
            call()

    return run if calls else None


def _first(init: Callable[[TrainState], PyTree]) -> Callable[[TrainState], list[PyTree]]:
    def first(state: TrainState) -> list[PyTree]:
        get_live_members(state, "each")
        return [copy_to_host(init(one)) for one in split_members(state)]

    return first


def _run(
    who: str,
    parts: Sequence[Hook],
    memories: Sequence[HookState],
    state: TrainState,
    metrics: Mapping[str, float],
) -> TrainState:
    live = np.array(get_live_members(state, f"hook {who!r}"))
    seeing = _select_members(parts[0].at, live, metrics)
    remembered = {
        name.removeprefix(PREFIX): rows
        for name, rows in state.hook_state.items()
        if name.startswith(PREFIX)
    }
    for name, init in memories:
        if name not in remembered:
            remembered[name] = _first(init)(state)
    before = split_members(state)
    for number, one in enumerate(before):
        memory = {name: rows[number] for name, rows in remembered.items()}
        before[number] = one.replace(stop=state.stop, hook_state=memory)
    seen, after = _MemberMetrics(metrics), list(before)
    for number in np.flatnonzero(seeing).tolist():
        try:
            after[number] = _run_member(parts, before[number], seen.by(number))
        except Exception as error:
            error.add_note(f"for member {number} of the population")
            raise
    joined = merge_members(who, state, before, after)
    joined = _with_memories(who, joined, before, after)
    joined = _with_scores(joined, after, seeing)
    stopped = live & np.array([bool(one.stop) and not state.stop for one in after])
    if not stopped.any():
        return joined
    live = live & ~stopped
    log.info("%s: stopping members %s; %d live", who, np.flatnonzero(stopped).tolist(), live.sum())
    carry = {**joined.carry, LIVE: jnp.asarray(live)}
    return joined.replace(carry=carry, stop=joined.stop or not live.any())


def _select_members(event: str, live: np.ndarray, metrics: Mapping[str, float]) -> np.ndarray:
    """Say for which members hooks run: those that lived in this epoch, bool `[members]`.

    Hooks after one that stopped a member see it at this event all the same, as in a run of its own,
    so that their order decides nothing.
    """
    if event == "end":
        return np.ones_like(live)
    measured = [value.live for value in metrics.values() if isinstance(value, Members)]
    return np.logical_or.reduce([live, *measured])


def _run_member(parts: Sequence[Hook], state: TrainState, metrics: Metrics) -> TrainState:
    """Run the parts for one member, as a chain does."""
    answers: dict[Gate, bool] = {}
    shadow = MutationGuard(state, metrics.output)
    for part in parts:
        if part.is_due(state, metrics, answers):
            after = part.apply(state, metrics)
            shadow.check_unchanged(f"hook {part.name!r}")
            shadow.follow(after)
            if after.scores is not state.scores:
                metrics = metrics.with_scores(after.scores)
            state = after
    return state


class _MemberMetrics:
    """The metrics of an event, taken apart by member."""

    def __init__(self, metrics: Mapping[str, float]) -> None:
        each = {name: value for name, value in metrics.items() if isinstance(value, Members)}
        self.shared = {name: value for name, value in metrics.items() if name not in each}
        self.names = list(each)
        self.rows = list(zip(*[value.values.tolist() for value in each.values()], strict=True))
        self.present = list(zip(*[value.present.tolist() for value in each.values()], strict=True))
        self.steps: Mapping[str, np.ndarray] = getattr(metrics, "steps", {})
        self.epochs = getattr(metrics, "epochs", None)
        output = getattr(metrics, "output", None)
        self.output = None if output is None else jax.device_get(output)

    def by(self, number: int) -> Metrics:
        """Give those of one member."""
        values = dict(self.shared)
        if self.names:
            row, present = self.rows[number], self.present[number]
            found = zip(self.names, row, present, strict=True)
            values |= {name: value for name, value, has in found if has}
        steps = {k: v.values[number] for k, v in self.steps.items() if isinstance(v, Traces)}
        output = jax.tree.map(lambda leaf: leaf[number, ...], self.output)
        return Metrics(values, steps=steps, output=output, epochs=self.epochs)


def _with_memories(
    who: str, state: TrainState, before: Sequence[TrainState], after: Sequence[TrainState]
) -> TrainState:
    changed: dict[str, list[PyTree]] = {}
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        if new.hook_state is old.hook_state:
            continue
        if new.hook_state.keys() != old.hook_state.keys():
            raise ValueError(
                f"hook {who!r} must keep the names of state.hook_state; they were "
                f"{sorted(old.hook_state)} of member {number} and became {sorted(new.hook_state)}: "
                "make it "
                "with hooks.stateful"
            )
        for name, memory in new.hook_state.items():
            if memory is not old.hook_state[name]:
                rows = changed.setdefault(name, [one.hook_state[name] for one in before])
                rows[number] = copy_to_host(memory)
    if not changed:
        return state
    named = {PREFIX + name: rows for name, rows in changed.items()}
    return state.replace(hook_state={**state.hook_state, **named})


def _with_scores(state: TrainState, after: Sequence[TrainState], seeing: np.ndarray) -> TrainState:
    names = dict.fromkeys(name for one in after for name in one.scores)
    if not names:
        return state
    scores = dict(state.scores)
    for name in names:
        present = [name in one.scores for one in after]
        values = [float(one.scores.get(name, np.nan)) for one in after]
        scores[name] = Members(values, seeing, present)
    return state.replace(scores=scores)
