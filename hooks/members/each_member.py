"""Hooks in a population: run a hook for every member, as if each trained alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hooks.combining import HookLike, join_parts
from hooks.members.population_views import copy_to_host, merge_members, split_members
from trainer import Hook, Members, Metrics, TrainState
from trainer.hook import Gate, Hooks, HookState, flatten_hooks
from trainer.phases.in_place_changes import MutationGuard
from trainer.phases.metrics import Traces
from trainer.phases.population import MAPPED, get_live_members
from trainer.state import LIVE, PyTree

log = logging.getLogger("entracte")

PREFIX = "each/"
"""Prefix of the names of such hooks, and of their hook states."""


def each(hook: Hooks) -> HookLike:
    """Run a hook for every live member of a population, with a state as if it trained alone.

    A member's state has its own parameters, carry and step, as numpy views on the host; its metrics
    are its own values, without those that it does not have. Changes are written back to the
    population. `stop` clears the member's entry of `state.carry["live"]`, so that it trains no
    further; when no member is live, the run stops. Hook states are lists, an entry a member, and
    scores are `Members`. At `end` the hook runs for all members, stopped ones included.

    Args:
        hook: a hook, a plain function, a chain, or several; each part keeps its event and stage,
            and triggers are evaluated for each member.

    Raises:
        ValueError: a part saves or restores, or names its scores itself; in training, the state is
            not one of a population, or the structure of a member's state changed.

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
                f"hook {part.name!r} saves or restores the whole population: use it without "
                "each(...)"
            )
        if callable(part.writes):
            raise ValueError(
                f"hook {part.name!r} measures something itself: let it measure the population, "
                "hooks.evaluate(trainer.population(phase, members)), without each(...)"
            )
        groups.setdefault((part.at, part.stage), []).append(part)
    return join_parts([_lift_parts(group) for group in groups.values()])


def _lift_parts(parts: Sequence[Hook]) -> Hook:
    """Make one hook of parts of one event and stage; they share views and answers of gates."""
    first = parts[0]
    who = PREFIX + "+".join(part.name for part in parts)
    hook_states = [one for part in parts for one in part.hook_states]
    names = [name for name, _ in hook_states]
    written: list[str] = []
    expects: list[str] = []
    for part in parts:
        expects += [key for key in (*part.reads, *part.expects) if key not in written]
        written += () if callable(part.writes) else part.writes
    needs = [
        PREFIX + name for part in parts for name in part.required_hook_states if name not in names
    ]

    def lift(chosen: Sequence[Hook]) -> Callable[[TrainState, Mapping[str, float]], TrainState]:
        return lambda state, metrics: _run(who, chosen, hook_states, state, metrics)

    dry_parts = [dataclasses.replace(p, function=p.dry_run or p.function) for p in parts]
    return Hook(
        lift(parts),
        who,
        event=first.at if any(part.event for part in parts) else None,
        stage=first.stage,
        reads=tuple(key for key in first.reads if all(key in part.reads for part in parts)),
        expects=tuple(dict.fromkeys(expects)),
        writes=tuple(dict.fromkeys(written)),
        required_hook_states=tuple(dict.fromkeys(needs)),
        hook_states=tuple(HookState(PREFIX + name, _init_all(init)) for name, init in hook_states),
        dry_run=lift(dry_parts) if any(part.dry_run for part in parts) else None,
        gather=MAPPED if first.stage == "observe" else (),
        rekeys=any(part.rekeys for part in parts),
        check_background=_call_all([part.check_background for part in parts]),
        flush=_call_all([part.flush for part in parts]),
        close=_call_all([part.close for part in reversed(parts)]),
    )


def _call_all(calls: Sequence[Callable[..., None] | None]) -> Callable[..., None] | None:
    present = [call for call in calls if call]

    def run(*given: Any) -> None:
        for call in present:
            call(*given)

    return run if present else None


def _init_all(init: Callable[[TrainState], PyTree]) -> Callable[[TrainState], list[PyTree]]:
    def init_all(state: TrainState) -> list[PyTree]:
        get_live_members(state, "each")
        return [copy_to_host(init(one)) for one in split_members(state)]

    return init_all


def _run(
    who: str,
    parts: Sequence[Hook],
    hook_states: Sequence[HookState],
    state: TrainState,
    metrics: Mapping[str, float],
) -> TrainState:
    live = np.array(get_live_members(state, f"hook {who!r}"))
    seeing = _select_members(parts[0].at, live, metrics)
    kept = {
        name.removeprefix(PREFIX): rows
        for name, rows in state.hook_state.items()
        if name.startswith(PREFIX)
    }
    for name, init in hook_states:
        if name not in kept:
            kept[name] = _init_all(init)(state)
    before = split_members(state)
    for number, one in enumerate(before):
        own = {name: rows[number] for name, rows in kept.items()}
        before[number] = one.replace(stop=state.stop, hook_state=own)
    seen, after = _MemberMetrics(metrics), list(before)
    for number in np.flatnonzero(seeing).tolist():
        try:
            after[number] = _run_member(parts, before[number], seen.select(number))
        except Exception as error:
            error.add_note(f"for member {number} of the population")
            raise
    joined = merge_members(who, state, before, after)
    joined = _merge_hook_states(who, joined, before, after)
    joined = _merge_scores(joined, after, seeing)
    stopped = live & np.array([bool(one.stop) and not state.stop for one in after])
    if not stopped.any():
        return joined
    live = live & ~stopped
    log.info("%s: stopping members %s; %d live", who, np.flatnonzero(stopped).tolist(), live.sum())
    carry = {**joined.carry, LIVE: jnp.asarray(live)}
    return joined.replace(carry=carry, stop=joined.stop or not live.any())


def _select_members(event: str, live: np.ndarray, metrics: Mapping[str, float]) -> np.ndarray:
    """Return for which members hooks run, bool `[members]`: those that were live in this epoch.

    Hooks after one that stopped a member still run for it at this event: their order is no matter.
    """
    if event == "end":
        return np.ones_like(live)
    measured = [value.live for value in metrics.values() if isinstance(value, Members)]
    return np.logical_or.reduce([live, *measured])


def _run_member(parts: Sequence[Hook], state: TrainState, metrics: Metrics) -> TrainState:
    """Run the parts for one member, like a chain."""
    answers: dict[Gate, bool] = {}
    guard = MutationGuard(state, metrics.output)
    for part in parts:
        if part.is_due(state, metrics, answers):
            after = part.apply(state, metrics)
            guard.check_unchanged(f"hook {part.name!r}")
            guard.follow(after)
            if after.scores is not state.scores:
                metrics = metrics.with_scores(after.scores)
            state = after
    return state


class _MemberMetrics:
    """The metrics of an event, split by member."""

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

    def select(self, number: int) -> Metrics:
        """Return the metrics of one member."""
        values = dict(self.shared)
        if self.names:
            row, present = self.rows[number], self.present[number]
            found = zip(self.names, row, present, strict=True)
            values |= {name: value for name, value, has in found if has}
        steps = {k: v.values[number] for k, v in self.steps.items() if isinstance(v, Traces)}
        output = jax.tree.map(lambda leaf: leaf[number, ...], self.output)
        return Metrics(values, steps=steps, output=output, epochs=self.epochs)


def _merge_hook_states(
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
                "make it with hooks.stateful"
            )
        for name, own in new.hook_state.items():
            if own is not old.hook_state[name]:
                rows = changed.setdefault(name, [one.hook_state[name] for one in before])
                rows[number] = copy_to_host(own)
    if not changed:
        return state
    named = {PREFIX + name: rows for name, rows in changed.items()}
    return state.replace(hook_state={**state.hook_state, **named})


def _merge_scores(state: TrainState, after: Sequence[TrainState], seeing: np.ndarray) -> TrainState:
    names = dict.fromkeys(name for one in after for name in one.scores)
    if not names:
        return state
    scores = dict(state.scores)
    for name in names:
        present = [name in one.scores for one in after]
        values = [float(one.scores.get(name, np.nan)) for one in after]
        scores[name] = Members(values, seeing, present)
    return state.replace(scores=scores)
