"""`repeated`: several passes through a program, as one phase in one compiled loop."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trainer.checks.arguments import describe_value, require_integer
from trainer.data import Arrays
from trainer.data.source import Feed
from trainer.phases.compiled_phase import PhaseFunction, run_checked
from trainer.phases.executors import RepeatedStep, ScannedStep
from trainer.phases.phase import Phase
from trainer.phases.reductions import check_metrics
from trainer.placement.constraints import constrain_changes, constrain_state
from trainer.state import LIVE, PyTree, TrainState


def repeated(program: Phase | Sequence[Phase], count: int, *, name: str = "repeated") -> Phase:
    """Make one phase of several passes through a program, where nothing looks in between.

    The passes run in one compiled loop, so that short ones do not wait for the host. An epoch of
    `fit` is then `count` passes. In pass `i` of the epoch with the number `e`, from 0, the program
    sees the epoch `e * count + i`: keys and orders of data, and so all bits on one device, are
    those of as many single epochs. `state.epoch` itself counts the epochs of `fit`.

    Metrics keep the names of the phases that report them. Each is reduced over all passes as over
    the steps of an epoch, by the `reduce` of its phase: a mean where it says nothing, or the ratio
    of sums for pairs. `metrics.steps` has the trace over all passes, for a scalar `[count]`. The
    phase has no output.

    Args:
        program: a phase, or several that make up a pass, in order. They read `data.Arrays`, or
            the output of the phase before, and each may be one of a population.
        count: number of passes.
        name: of the phase and its event. The phases inside have no events.

    Raises:
        TypeError: the program is not made of phases.
        ValueError: a phase reads data of the host, only measures, or runs step by step; on CPU,
            before training, a phase has a convolution, which is slow in a loop.

    >>> def halve(state, data):
    ...     return state.replace(params=state.params / 2), None, {"size": state.params}
    >>> phase = repeated(Phase("shrink", halve), 3)
    >>> state = TrainState.create(params=jnp.float32(1), rng=jax.random.key(0))
    >>> after, _, measured = phase.execute(state, None, donate=False)
    >>> values, traces, _ = measured.read()
    >>> float(after.params), round(values["shrink/size"], 3), traces["shrink/size"].tolist()
    (0.125, 0.583, [1.0, 0.5, 0.25])
    """
    require_integer("count", count, 1)
    phases = (program,) if isinstance(program, Phase) else tuple(program)
    if not phases:
        raise ValueError("repeated needs a phase to repeat, or several; got none")
    for phase in phases:
        _check_phase(phase)
    names = [phase.name for phase in phases]
    if len({*names, name}) <= len(names):
        raise ValueError(f"phases need names of their own; got {names} in {name!r}")
    acts = tuple(
        _Act(phase.name, phase.run, phase.reduce, phase.feed is not None, phase.members is not None)
        for phase in phases
    )
    scan = _ScannedPasses(
        _Pass(acts, count),
        lambda piece, key: jnp.arange(count, dtype=jnp.int32),
        lambda piece, number: (piece, number),
        updates_state=True,
    )
    examples = tuple(phase.feed.example if phase.feed else None for phase in phases)

    def read(state: TrainState, check: Any, position: PyTree) -> Iterator[tuple[Any, PyTree]]:
        pieces = tuple(
            next(phase.feed.pieces(state, None, None))[0] if phase.feed else None
            for phase in phases
        )  # for a mesh they are copies
        same = all(map(operator.is_, pieces, examples))
        return iter([(examples if same else pieces, None)])

    feed = Feed(
        read,
        examples,
        scan.rows,
        scan.batch,
        lambda state, check: None,
        steps=count,
        repeatable=True,
    )
    return Phase(name, scan, repeated_step=RepeatedStep(scan, feed, "auto"), passes=phases)


def _check_phase(phase: Any) -> None:
    """Check that a phase can run in a loop on the device."""
    if not isinstance(phase, Phase):
        raise TypeError(f"repeated takes a phase, or several; got {describe_value(phase)}")
    where = f"phase {phase.name!r} cannot be repeated"
    if phase.passes:
        raise ValueError(f"{where}: it is several passes already; multiply their number")
    if phase.source is not None and not isinstance(phase.source, Arrays):
        raise ValueError(
            f"{where}: it reads a {type(phase.source).__name__} on the host between the passes; "
            "give it data.Arrays, or list the phase itself in the program"
        )
    if not phase.updates_state:
        raise ValueError(
            f"{where}: it only measures, and once an epoch is enough; list it beside: "
            "[trainer.repeated(...), trainer.evaluation(...)]"
        )
    if phase.feed is not None and phase.feed.start is not None:
        raise ValueError(
            f"{where}: its position in the data is counted on the host; leave steps_per_epoch out, "
            "a pass is then all of the data"
        )
    if phase.repeated_step and phase.repeated_step.executor == "step":
        raise ValueError(f"{where}: with executor='step' the host dispatches each of its steps")


class _Act(NamedTuple):
    """What a phase does in a pass, without its data."""

    name: str
    run: PhaseFunction
    reduce: Mapping[str, str]
    reads: bool
    """Whether it has data of its own, and does not read the output of the phase before."""
    population: bool
    """Whether it is one of a population, which checks its metrics itself."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Pass:
    """A pass through the program: the step of the loop."""

    acts: tuple[_Act, ...]
    count: int

    def __call__(
        self, state: TrainState, batch: tuple[Any, jax.Array]
    ) -> tuple[TrainState, dict[str, Any]]:
        """Run all phases; return the metrics of each, and which members are live."""
        pieces, number = batch
        inside = state.replace(epoch=state.epoch * self.count + number)
        output: PyTree = None
        measured = {}
        for act, piece in zip(self.acts, pieces, strict=True):
            data = piece if act.reads else output
            within = constrain_state(inside)
            after, output, measured[act.name] = run_checked(act.run, act.name, within, data)
            inside = constrain_changes(inside, within, after)
            if not act.population:
                check_metrics(measured[act.name], act.reduce, act.name)
        live = inside.carry[LIVE] if any(act.population for act in self.acts) else None
        return inside.replace(epoch=state.epoch), {"phases": measured, "live": live}


class _ScannedPasses(ScannedStep):
    """Passes in one `lax.scan`. What they read is whole data sets: no batch is split here."""

    def order(self, state: TrainState, piece: Any) -> Any:
        return self.rows(piece, state.rng)

    def run_once(self, state: TrainState, batch: Any) -> tuple[TrainState, PyTree]:
        constrained = constrain_state(state)
        after, metrics = self.step(constrained, batch)
        steps = after.step - state.step
        return constrain_changes(state, constrained, after), (metrics, steps)
