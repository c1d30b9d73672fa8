"""Phases: named pure functions that jit, and the programs compiled from them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from trainer.checks.arguments import describe_value, require_function
from trainer.data.iteration import iterator_state
from trainer.data.source import Check, Feed, Source
from trainer.host.exception_notes import annotate_errors
from trainer.host.time_spans import span, spans, start_step_counter
from trainer.phases.ahead_of_time import is_debug_mode
from trainer.phases.compiled_phase import (
    CompiledPhase,
    Packed,
    PhaseRunner,
    fetch_packed,
    wrap_single_dispatch,
)
from trainer.phases.executors import (
    ExecutorChoice,
    RepeatedStep,
    ScannedStep,
    choose_executor,
    compile_steps,
)
from trainer.phases.flops import count_flops
from trainer.phases.in_place_changes import read_only
from trainer.phases.metrics import exclude_weights, reduce_pieces
from trainer.phases.packed import PackedLayout
from trainer.phases.population_metrics import finalize_members, reduce_members
from trainer.phases.scan_pieces import choose_dispatch_count, compile_dispatches
from trainer.phases.shared_compilation import SharedCache, get_shared_cache, read_jax_settings
from trainer.phases.tracing import (
    PhaseFunction,
    compute_signature,
    jit_for_debugging,
    run_checked,
    trace,
)
from trainer.state import PyTree, TrainState, attach_host_fields, strip_host_fields


class PendingMetrics(NamedTuple):
    """What a phase measured in one epoch, still on the device."""

    phase: Phase
    packed: list[tuple[CompiledPhase, Packed]]

    def read(self) -> tuple[dict[str, float], dict[str, np.ndarray], int]:
        """Wait for the phase, and give (values, traces, optimizer steps that it took)."""
        phase, pieces, taken = self.phase, [], 0
        with span("wait", phase.name):
            jax.block_until_ready([packed for _, packed in self.packed])  # lets signals through
            arrived = [(program, fetch_packed(packed)) for program, packed in self.packed]
        for program, words in arrived:
            numbers = program.layout.unpack(words, rows=program.stepwise)
            pieces.append(numbers[0])
            taken += int(numbers[1].sum())
        if phase.members is None:
            values, traces = reduce_pieces(pieces, phase.reduce, phase.name)
            read_only(traces)
            return phase.apply_finalize(values), traces, taken
        live = numbers[2].astype(bool)
        each, traces = reduce_members(pieces, live, phase.reduce, phase.name)
        read_only(traces)
        if phase.finalize is not None:
            each = finalize_members(phase.finalize, each, live, phase.name)
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
    run: PhaseFunction
    source: Source | None = None
    reduce: Mapping[str, str] = dataclasses.field(default_factory=dict)
    repeated_step: RepeatedStep | None = None
    """The phase taken apart, where `training` or `evaluation` made it."""
    check_data: Check | None = None
    """Raises where host data does not suit the task, such as labels outside the classes."""
    updates_state: bool = True
    """Whether `run` changes the state; an evaluation does not, and never copies it."""
    finalize: Callable[[Mapping[str, float]], Mapping[str, float | None]] | None = None
    """`(means) -> {name: value}` on the host: what is no mean but follows from some. None leaves
    the name out: of an epoch in which nothing was measured, or for good."""
    members: int | None = None
    """How many are trained at once, where `population` made it; it reports `[members, ...]`."""
    check_independence: Callable[[TrainState], None] | None = None
    """Raises where it would not measure what it should, such as an example by others beside it;
    asked when its data are checked."""
    _traces: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)
    _programs: dict[Any, CompiledPhase] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(
                f"Phase(name, run) needs a text as name; got {describe_value(self.name)}"
            )
        require_function(
            f"phase {self.name!r}", self.run, "(state, data) -> (state, output, metrics)"
        )
        if not self.name or "/" in self.name:
            raise ValueError(f"a phase's name must be a word without '/'; got {self.name!r}")

    @functools.cached_property
    def feed(self) -> Feed | None:
        """How its source is read."""
        if self.repeated_step:
            return self.repeated_step.feed
        return None if self.source is None else self.source.training()

    @property
    def _scanned(self) -> ScannedStep | None:
        """What it repeats, where what it measures is packed step by step."""
        return self.run if isinstance(self.run, ScannedStep) else None

    @functools.cached_property
    def _shared(self) -> SharedCache:
        """What phases that compute the same compiled."""
        scan = self._scanned
        if scan is None or self.repeated_step is None:
            return SharedCache()
        reduce = tuple(sorted(self.reduce.items()))
        return get_shared_cache(scan, self.repeated_step.executor, reduce)

    @property
    def steps_per_epoch(self) -> int | None:
        """Updates an epoch where they are known before training, for a phase of `training`.

        None for a stream without `steps_per_epoch`, an evaluation, or a phase written by hand.
        """
        return self.repeated_step.feed.steps if self.repeated_step and self.updates_state else None

    def add_position(self, state: TrainState) -> TrainState:
        """Add the position at which its source begins, `carry["position/<name>"]`, if it needs one.

        `fit` does this for every phase, before it restores; the very same state comes back where
        there is nothing to add.

        Raises:
            TypeError: `state.carry` is no dict, which could hold the position.
            ValueError: the position that is there belongs to another kind of stream.
        """
        if self.feed is None or self.feed.start is None:
            return state
        return iterator_state.ensure_position(state, self.name, self.feed.start)

    def verify(self, state: TrainState) -> None:
        """Check the data that is already there, before anything is compiled."""
        if self.feed and self.check_data:
            with annotate_errors(f"in checking phase {self.name!r}"):
                self.feed.verify(state, self.check_data)
        if self.check_independence is not None:
            with annotate_errors(f"in checking phase {self.name!r}"):
                self.check_independence(state)

    def infer_shapes(
        self, state: TrainState, previous: PyTree = None, *, donate: bool = False
    ) -> tuple[PyTree, dict[str, Any]]:
        """Give the shapes of (output, metrics), without computing anything.

        Args:
            state: to run on.
            previous: output of the phase before, or its shapes.
            donate: as it will be compiled, so that it is traced once.
        """
        data = self.feed.example if self.feed else previous
        traced, numbers = self._traced(
            strip_host_fields(state), data, donate and self.updates_state
        )
        return traced.out_info[1], numbers[0]

    def list_metric_names(self, state: TrainState) -> tuple[str, ...]:
        """Name the metrics that it reports, prefix included."""
        return self.expand_metric_names(self.infer_shapes(state)[1])

    def expand_metric_names(self, metrics: Mapping[str, Any]) -> tuple[str, ...]:
        """Name what comes of metrics that `run` reports: these, and what is finalized of them."""
        return tuple(
            self.apply_finalize({f"{self.name}/{key}": 1.0 for key in exclude_weights(metrics)})
        )

    def apply_finalize(self, values: dict[str, float]) -> dict[str, float]:
        """Add what follows from an epoch's values; names have the prefix."""
        if self.finalize is None:
            return values
        means = {name.removeprefix(f"{self.name}/"): value for name, value in values.items()}
        found = {f"{self.name}/{name}": value for name, value in self.finalize(means).items()}
        kept = {name: value for name, value in values.items() if found.get(name, 0.0) is not None}
        return kept | {name: float(value) for name, value in found.items() if value is not None}

    def get_compiled(self, state: TrainState, data: Any, *, donate: bool) -> CompiledPhase:
        """Compile for this structure of state and data, or give what was compiled already."""
        state, donate = strip_host_fields(state), donate and self.updates_state
        signature = compute_signature(state, placed=True), compute_signature(data), donate
        key = signature, read_jax_settings()
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
        program: CompiledPhase | None = None,
        *,
        donate: bool,
    ) -> tuple[TrainState, PyTree, PendingMetrics]:
        """Run one epoch of it, without waiting for the device.

        Args:
            state: to run on; with `donate`, its device part is used up.
            previous: output of the phase before.
            program: compiled for this state and the first piece, where it is at hand.
            donate: let the program reuse the state's buffers.

        Returns:
            (state, output, what was measured).

        Raises:
            ValueError: the state lacks the position that the source needs; see `add_position`.
        """
        device, output = strip_host_fields(state), None
        packed: list[tuple[CompiledPhase, Packed]] = []
        advance = start_step_counter(self.name, self.feed.steps if self.feed else None)
        for piece, position in spans(self.pieces(device, previous), "data", self.name):
            if program is None or (self.feed and piece is not self.feed.example):
                program = self.get_compiled(device, piece, donate=donate)
            if advance is not None and self.feed and piece is self.feed.example:
                advance.total = program.steps  # all the data is on the device
            with span("dispatch", self.name):
                device, output, numbers = program.run(device, piece, advance)
            packed.append((program, numbers))
            if position is not None:
                device = iterator_state.set_position(device, self.name, position)
            if len(packed) > 1:  # or a stream would pile up on the device
                with span("wait", self.name):
                    jax.block_until_ready(packed[-2][1])
        return attach_host_fields(device, state), output, PendingMetrics(self, packed)

    def pieces(self, state: TrainState, previous: PyTree) -> Iterator[tuple[Any, PyTree]]:
        """Give the pieces of the state's epoch, and with the last where the next one begins."""
        if self.feed is None:
            return iter([(previous, None)])
        position = (
            None if self.feed.start is None else iterator_state.get_position(state, self.name)
        )
        return self.feed.pieces(state, self.check_data, position)

    def run_checked(
        self, state: TrainState, data: Any
    ) -> tuple[TrainState, PyTree, dict[str, Any]]:
        """Run, while tracing, and check that what comes back is a state as it was given."""
        return run_checked(self.run, self.name, state, data)

    def _traced(self, state: TrainState, data: Any, donate: bool) -> tuple[Any, PyTree]:
        """Trace once: give the traced function, and the shapes of (metrics, steps taken).

        Of a population also of which members live.
        """
        # With the placement: what is lowered from the trace lies where its arguments lay.
        signature = compute_signature(state, placed=True), compute_signature(data), donate
        if signature in self._traces:
            return self._traces[signature]
        shared, key = self._shared.traces, (signature, read_jax_settings())
        if key not in shared:
            with annotate_errors(f"in checking phase {self.name!r}"):
                shared[key] = trace(
                    self.run,
                    self.name,
                    self.reduce,
                    state,
                    data,
                    changes=self.updates_state,
                    alone=self.members is None,
                    donate=donate,
                )
        self._traces[signature] = shared[key]
        return self._traces[signature]

    @property
    def stepwise(self) -> bool:
        """Whether what it measures is packed step by step."""
        return self._scanned is not None

    def _compile(self, state: TrainState, data: Any, donate: bool) -> CompiledPhase:
        traced, measured = self._traced(state, data, donate)
        platform = next(iter(state.step.devices())).platform
        if self.repeated_step is None:
            choice = ExecutorChoice("scan", "the phase is one function")
        elif self.stepwise and is_debug_mode():
            choice = ExecutorChoice("step", "JAX looks into each call, which is a step then")
        else:
            choice = choose_executor(self.repeated_step.executor, traced.jaxpr, platform)
        steps = None
        if self.stepwise:
            metrics, taken = measured
            steps = next((x.shape[0] for x in jax.tree.leaves(metrics)), None)
            measured = (
                jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), metrics),
                taken,
            )
        layout = PackedLayout.from_shapes(measured)
        run: PhaseRunner
        scan, count = self._scanned, 1
        if scan is not None and steps is not None:
            count = choose_dispatch_count(steps, count_flops(traced.jaxpr), state.step.devices())
        if choice.executor == "step":
            assert self.repeated_step is not None
            run = compile_steps(
                self.repeated_step, state, data, measured, changes=self.updates_state, donate=donate
            )
        elif scan is not None and count > 1:
            choice = choice.cut(count, (steps or 0) // count)
            run = compile_dispatches(scan, state, data, count, donate=donate)
        else:
            if is_debug_mode():
                compiled = jit_for_debugging(
                    self.run, self.name, changes=self.updates_state, alone=self.members is None
                )
            else:
                compiled = traced.lower().compile()
            run = wrap_single_dispatch(compiled, changes=self.updates_state, steps=steps)
        return CompiledPhase(run, layout, self.stepwise, choice, steps)
