"""Phases: named pure functions that jit, and the programs compiled from them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer.checks.arguments import in_words, require_function
from trainer.data.iteration import iterator_state
from trainer.data.source import Check, Feed, Source
from trainer.host.exception_notes import noting
from trainer.host.time_spans import advancing, span, spans
from trainer.phases.ahead_of_time import looked_into
from trainer.phases.compiled_phase import Packed, Program, Running, on_host, whole
from trainer.phases.executors import Choice, Repetition, Scanned, choose, compiled_steps
from trainer.phases.flops import products
from trainer.phases.in_place_changes import read_only
from trainer.phases.metrics import reduced, reported
from trainer.phases.packed import Layout
from trainer.phases.population_metrics import finalized_members, reduced_members
from trainer.phases.scan_pieces import compiled_cut, pieces_of
from trainer.phases.shared_compilation import Compiled, compiled_for, settings_now
from trainer.phases.tracing import Run, looked_into_at_each_call, run_settled, signature_of, trace
from trainer.state import PyTree, TrainState, device_part, rejoin


class Measured(NamedTuple):
    """What a phase measured in one epoch, still on the device."""

    phase: Phase
    packed: list[tuple[Program, Packed]]

    def read(self) -> tuple[dict[str, float], dict[str, np.ndarray], int]:
        """Wait for the phase, and give (values, traces, optimizer steps that it took)."""
        phase, pieces, taken = self.phase, [], 0
        with span("wait", phase.name):
            jax.block_until_ready([packed for _, packed in self.packed])  # lets signals through
            arrived = [(program, on_host(packed)) for program, packed in self.packed]
        for program, words in arrived:
            numbers = program.layout.unpack(words, rows=program.stepwise)
            pieces.append(numbers[0])
            taken += int(numbers[1].sum())
        if phase.members is None:
            values, traces = reduced(pieces, phase.reduce, phase.name)
            read_only(traces)
            return phase.finalized(values), traces, taken
        live = numbers[2].astype(bool)
        each, traces = reduced_members(pieces, live, phase.reduce, phase.name)
        read_only(traces)
        if phase.finalize is not None:
            each = finalized_members(phase.finalize, each, live, phase.name)
        return {**each}, traces, taken


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
    """A named pure function that jits: one act of an epoch.

    It keeps what was compiled, so that a second `fit`, with other hooks, compiles nothing. Phases
    of `training` or of `evaluation` share it where they repeat the very same step or measure over
    data of the same shapes, such as the folds of a data set. Like `jax.jit`, they go by the
    function, and not by what it reads from outside: that is as it was when it was traced.

    Args:
        name: prefix of its metrics, and the name of the event after it.
        run: `(state, data) -> (state, output, metrics)`, jittable. A metric is a scalar `()`, a
            trace `[steps]`, or a pair (totals, weights) that is divided once over the epoch. Beside
            a scalar or a trace `x` may be `x.weight`, of its shape: how much each counts in the
            epoch's mean. `run` is called for every piece of data that the source gives in an epoch.
        source: where the data comes from; without one, `data` is the output of the phase before
            this one (None for the first).
        reduce: how a trace becomes the epoch's value: mean (where silent), sum, last or max.

    >>> import jax.numpy as jnp
    >>> from trainer import TrainState
    >>> def decay(state, data):
    ...     params = jax.tree.map(lambda w: 0.5 * w, state.params)
    ...     return state.replace(params=params, step=state.step + 1), None, {"size": params["w"][0]}
    >>> phase = Phase("decay", decay)
    >>> state = TrainState.create(params={"w": jnp.ones(2)}, rng=jax.random.key(0))
    >>> state, output, measured = phase.execute(state, None, donate=False)
    >>> measured.read()[0]
    {'decay/size': 0.5}
    """

    name: str
    run: Run
    source: Source | None = None
    reduce: Mapping[str, str] = dataclasses.field(default_factory=dict)
    repetition: Repetition | None = None
    """The phase taken apart, where `training` or `evaluation` made it."""
    check: Check | None = None
    """Raises where host data does not suit the task, such as labels outside the classes."""
    changes: bool = True
    """Whether `run` changes the state; an evaluation does not, and never copies it."""
    finalize: Callable[[Mapping[str, float]], Mapping[str, float | None]] | None = None
    """`(means) -> {name: value}` on the host: what is no mean but follows from some. None leaves
    the name out: of an epoch in which nothing was measured, or for good."""
    members: int | None = None
    """How many are trained at once, where `population` made it; it reports `[members, ...]`."""
    inspect: Callable[[TrainState], None] | None = None
    """Raises where it would not measure what it should, such as an example by others beside it;
    asked when its data are checked."""
    _traces: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)
    _programs: dict[Any, Program] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"Phase(name, run) needs a text as name; got {in_words(self.name)}")
        require_function(
            f"phase {self.name!r}", self.run, "(state, data) -> (state, output, metrics)"
        )
        if not self.name or "/" in self.name:
            raise ValueError(f"a phase's name must be a word without '/'; got {self.name!r}")

    @functools.cached_property
    def feed(self) -> Feed | None:
        """How its source is read."""
        if self.repetition:
            return self.repetition.feed
        return None if self.source is None else self.source.training()

    @property
    def _scanned(self) -> Scanned | None:
        """What it repeats, where what it measures is packed step by step."""
        return self.run if isinstance(self.run, Scanned) else None

    @functools.cached_property
    def _shared(self) -> Compiled:
        """What phases that compute the same compiled."""
        scan = self._scanned
        if scan is None or self.repetition is None:
            return Compiled()
        reduce = tuple(sorted(self.reduce.items()))
        return compiled_for(scan, self.repetition.executor, reduce)

    @property
    def steps_per_epoch(self) -> int | None:
        """Updates an epoch where they are known before training, for a phase of `training`.

        None for a stream without `steps_per_epoch`, an evaluation, or a phase written by hand.
        """
        return self.repetition.feed.steps if self.repetition and self.changes else None

    def prepared(self, state: TrainState) -> TrainState:
        """Add the position at which its source begins, `carry["position/<name>"]`, if it needs one.

        `fit` does this for every phase, before it restores; the very same state comes back where
        there is nothing to add.

        Raises:
            TypeError: `state.carry` is no dict, which could hold the position.
            ValueError: the position that is there belongs to another kind of stream.
        """
        if self.feed is None or self.feed.start is None:
            return state
        return iterator_state.prepared(state, self.name, self.feed.start)

    def verify(self, state: TrainState) -> None:
        """Check the data that is already there, before anything is compiled."""
        if self.feed and self.check:
            with noting(f"in checking phase {self.name!r}"):
                self.feed.verify(state, self.check)
        if self.inspect is not None:
            with noting(f"in checking phase {self.name!r}"):
                self.inspect(state)

    def shapes(
        self, state: TrainState, previous: PyTree = None, *, donate: bool = False
    ) -> tuple[PyTree, dict[str, Any]]:
        """Give the shapes of (output, metrics), without computing anything.

        Args:
            state: to run on.
            previous: output of the phase before, or its shapes.
            donate: as it will be compiled, so that it is traced once.
        """
        data = self.feed.example if self.feed else previous
        traced, numbers = self._traced(device_part(state), data, donate and self.changes)
        return traced.out_info[1], numbers[0]

    def keys(self, state: TrainState) -> tuple[str, ...]:
        """Name the metrics that it reports, prefix included."""
        return self.names(self.shapes(state)[1])

    def names(self, metrics: Mapping[str, Any]) -> tuple[str, ...]:
        """Name what comes of metrics that `run` reports: these, and what is finalized of them."""
        return tuple(self.finalized({f"{self.name}/{key}": 1.0 for key in reported(metrics)}))

    def finalized(self, values: dict[str, float]) -> dict[str, float]:
        """Add what follows from an epoch's values; names have the prefix."""
        if self.finalize is None:
            return values
        means = {name.removeprefix(f"{self.name}/"): value for name, value in values.items()}
        found = {f"{self.name}/{name}": value for name, value in self.finalize(means).items()}
        kept = {name: value for name, value in values.items() if found.get(name, 0.0) is not None}
        return kept | {name: float(value) for name, value in found.items() if value is not None}

    def program(self, state: TrainState, data: Any, *, donate: bool) -> Program:
        """Compile for this structure of state and data, or give what was compiled already."""
        state, donate = device_part(state), donate and self.changes
        signature = signature_of(state, placed=True), signature_of(data), donate
        key = signature, settings_now()
        if key not in self._programs:
            shared = self._shared.programs
            if key not in shared:
                with span("compile", self.name):
                    shared[key] = self._compile(state, data, donate)
            self._programs[key] = shared[key]
        return self._programs[key]

    def execute(
        self,
        state: TrainState,
        previous: PyTree,
        program: Program | None = None,
        *,
        donate: bool,
    ) -> tuple[TrainState, PyTree, Measured]:
        """Run one epoch of it, without waiting for the device.

        Args:
            state: to run on; with `donate`, its device part is used up.
            previous: output of the phase before.
            program: compiled for this state and the first piece, where it is at hand.
            donate: let the program reuse the state's buffers.

        Returns:
            (state, output, what was measured).

        Raises:
            ValueError: the state lacks the position that the source needs; see `prepared`.
        """
        device, output = device_part(state), None
        packed: list[tuple[Program, Packed]] = []
        advance = advancing(self.name, self.feed.steps if self.feed else None)
        for piece, position in spans(self.pieces(device, previous), "data", self.name):
            if program is None or (self.feed and piece is not self.feed.example):
                program = self.program(device, piece, donate=donate)
            if advance is not None and self.feed and piece is self.feed.example:
                advance.total = program.steps  # all the data is on the device
            with span("dispatch", self.name):
                device, output, numbers = program.run(device, piece, advance)
            packed.append((program, numbers))
            if position is not None:
                device = iterator_state.moved(device, self.name, position)
            if len(packed) > 1:  # or a stream would pile up on the device
                with span("wait", self.name):
                    jax.block_until_ready(packed[-2][1])
        return rejoin(device, state), output, Measured(self, packed)

    def pieces(self, state: TrainState, previous: PyTree) -> Iterator[tuple[Any, PyTree]]:
        """Give the pieces of the state's epoch, and with the last where the next one begins."""
        if self.feed is None:
            return iter([(previous, None)])
        position = None if self.feed.start is None else iterator_state.found(state, self.name)
        return self.feed.pieces(state, self.check, position)

    def settled(self, state: TrainState, data: Any) -> tuple[TrainState, PyTree, dict[str, Any]]:
        """Run, while tracing, and check that what comes back is a state as it was given."""
        return run_settled(self.run, self.name, state, data)

    def _traced(self, state: TrainState, data: Any, donate: bool) -> tuple[Any, PyTree]:
        """Trace once: give the traced function, and the shapes of (metrics, steps taken).

        Of a population also of which members live.
        """
        # With the placement: what is lowered from the trace lies where its arguments lay.
        signature = signature_of(state, placed=True), signature_of(data), donate
        if signature in self._traces:
            return self._traces[signature]
        shared, key = self._shared.traces, (signature, settings_now())
        if key not in shared:
            with noting(f"in checking phase {self.name!r}"):
                shared[key] = trace(
                    self.run,
                    self.name,
                    self.reduce,
                    state,
                    data,
                    changes=self.changes,
                    alone=self.members is None,
                    donate=donate,
                )
        self._traces[signature] = shared[key]
        return self._traces[signature]

    @property
    def stepwise(self) -> bool:
        """Whether what it measures is packed step by step."""
        return self._scanned is not None

    def _compile(self, state: TrainState, data: Any, donate: bool) -> Program:
        traced, measured = self._traced(state, data, donate)
        platform = next(iter(state.step.devices())).platform
        if self.repetition is None:
            choice = Choice("scan", "the phase is one function")
        elif self.stepwise and looked_into():
            choice = Choice("step", "JAX looks into each call, which is a step then")
        else:
            choice = choose(self.repetition.executor, traced.jaxpr, platform)
        steps = None
        if self.stepwise:
            metrics, taken = measured
            steps = next((x.shape[0] for x in jax.tree.leaves(metrics)), None)
            measured = (
                jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), metrics),
                taken,
            )
        layout = Layout.of(measured)
        run: Running
        scan, count = self._scanned, 1
        if scan is not None and steps is not None:
            count = pieces_of(steps, products(traced.jaxpr), state.step.devices())
        if choice.executor == "step":
            assert self.repetition is not None
            run = compiled_steps(
                self.repetition, state, data, measured, changes=self.changes, donate=donate
            )
        elif scan is not None and count > 1:
            choice = choice.cut(count, (steps or 0) // count)
            run = compiled_cut(scan, state, data, count, donate=donate)
        else:
            if looked_into():
                compiled = looked_into_at_each_call(
                    self.run, self.name, changes=self.changes, alone=self.members is None
                )
            else:
                compiled = traced.lower().compile()
            run = whole(compiled, changes=self.changes, steps=steps)
        return Program(run, layout, self.stepwise, choice, steps)
