"""`Phase`: a named pure function that jits, compiled and run once per epoch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from trainer.checks.arguments import describe_value, require_function
from trainer.data.iteration import positions
from trainer.data.source import Check, Feed, Source
from trainer.host.computed_once import ComputedOnce
from trainer.host.exception_notes import annotate_errors
from trainer.host.time_spans import span, start_step_counter, time_items
from trainer.phases.compilation import SharedCache, get_shared_cache, pause_gc
from trainer.phases.compiled_phase import (
    CompiledPhase,
    Computation,
    Packed,
    PhaseFunction,
    PhaseShapes,
    compute_signature,
    lower_phase,
    make_compilation_key,
    split_state,
    trace,
)
from trainer.phases.dispatch import Dispatch, Dispatched
from trainer.phases.executors import RepeatedStep, ScannedStep
from trainer.phases.host_metrics.collected import SplitMetrics, list_collected_names
from trainer.phases.host_metrics.pending_metrics import PendingMetrics
from trainer.phases.reductions import Finalize, exclude_weights, finalize_values
from trainer.placement.constraints import place_batches, shape_batches, trace_on_mesh
from trainer.placement.meshes import get_mesh
from trainer.state import PyTree, TrainState, attach_host_fields, strip_host_fields


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
    """A named pure function that jits: one act of an epoch.

    It keeps what it compiled, so a second `fit`, with other hooks, compiles nothing. Phases of
    `training` or `evaluation` share compiled functions if they repeat the same step or measure over
    data of the same shapes, such as the folds of a data set. As with `jax.jit`, the cache key is
    the function itself; values that it reads from outside are fixed when it is traced.

    Args:
        name: prefix of its metrics, and the name of the event after it.
        run: `(state, data) -> (state, output, metrics)`, jittable. A metric is a scalar `()`, a
            trace `[steps]`, or a pair (totals, weights) that is divided once over the epoch. Beside
            a scalar or a trace `x` it may report `x.weight`, of the same shape: the weight of each
            value in the epoch's mean. `run` is called for each piece of the epoch's data.
        source: of the data; without one, `data` is the output of the phase before this one (None
            for the first).
        reduce: how the trace of a metric becomes the epoch's value: mean (default), sum, first,
            last, max.

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
    """The step that it repeats, in phases of `training` or `evaluation`."""
    check_data: Check | None = None
    """Raises if host data does not suit the task, such as labels outside the classes."""
    updates_state: bool = True
    """Whether `run` changes the state; an evaluation does not, and never copies it."""
    finalize: Finalize | None = None
    """`(means) -> {name: value}` on the host: values derived from means; None removes a metric."""
    members: int | None = None
    """Members in a phase of `population`; it reports `[members, ...]`."""
    check_independence: Callable[[TrainState], None] | None = None
    """Raises if the values of an example depend on other examples of its batch."""
    split_metrics: Mapping[str, SplitMetrics] = dataclasses.field(default_factory=dict)
    """Metrics of what an evaluation collects over a split."""
    passes: tuple[Phase, ...] = ()
    """The phases of one pass, in a phase of `repeated`, whose metrics are theirs."""

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
        """The feed of its source."""
        if self.repeated_step:
            return self.repeated_step.feed
        return None if self.source is None else self.source.training()

    @property
    def scanned(self) -> ScannedStep | None:
        """The step that it repeats; None for a hand-written phase or one of a population."""
        return self.run if isinstance(self.run, ScannedStep) else None

    @functools.cached_property
    def computation(self) -> Computation:
        """What it computes, without its data."""
        kinds = self.updates_state, self.members is not None, bool(self.passes)
        return Computation(self.name, self.run, self.reduce, *kinds)

    @functools.cached_property
    def _shared(self) -> SharedCache:
        """The cache shared with phases that compute the same."""
        if self.scanned is None or self.repeated_step is None:
            return SharedCache()
        reduce = tuple(sorted(self.reduce.items()))
        return get_shared_cache(self.scanned, self.repeated_step.executor, reduce)

    @property
    def steps_per_epoch(self) -> int | None:
        """Updates per epoch of a phase of `training`; None where not known before training."""
        if self.passes and self.repeated_step:
            each = [phase.steps_per_epoch for phase in self.passes]
            passes = self.repeated_step.feed.steps or 0
            return None if None in each else passes * sum(filter(None, each))
        return self.repeated_step.feed.steps if self.repeated_step and self.updates_state else None

    def add_position(self, state: TrainState) -> TrainState:
        """Add the start position of its source, `carry["position/<name>"]`, if it needs one.

        `fit` does this for every phase, before it restores.

        Raises:
            TypeError: `state.carry` is not a dict, which could hold the position.
            ValueError: the existing position belongs to another kind of stream.
        """
        if self.feed is None or self.feed.start is None:
            return state
        return positions.ensure_position(state, self.name, self.feed.start)

    def verify(self, state: TrainState) -> None:
        """Check the data that are available before training, before anything is compiled."""
        for phase in self.passes:
            phase.verify(state)
        with annotate_errors(f"in checking phase {self.name!r}"), pause_gc():
            if self.feed and self.check_data:
                self.feed.verify(state, self.check_data)
            if self.check_independence is not None:
                self.check_independence(state)

    def infer_shapes(
        self, state: TrainState, previous: PyTree = None, *, donate: bool = False
    ) -> PhaseShapes:
        """Return the shapes of what it returns, without computing anything.

        `previous` is the output of the phase before, or its shapes; `donate` is that of the later
        compilation, so that it is traced once.
        """
        state, donate = strip_host_fields(state), donate and self.updates_state
        data = self.feed.example if self.feed else previous
        with trace_on_mesh(state):
            traced, numbers = self._trace(state, self._shape(data, state), donate)
        split = split_state(self.computation, traced, state)
        return PhaseShapes(traced.out_info[1], numbers[0], split.passed)

    def list_metric_names(self, state: TrainState) -> tuple[str, ...]:
        """Return the names of the metrics that it reports, prefix included."""
        return self.expand_metric_names(self.infer_shapes(state).metrics)

    def expand_metric_names(self, metrics: Any) -> tuple[str, ...]:
        """Return the names of the metrics of `run` and of those that `finalize` derives."""
        if self.passes:
            shapes = metrics["phases"]
            names = (phase.expand_metric_names(shapes[phase.name]) for phase in self.passes)
            return tuple(itertools.chain.from_iterable(names))
        values = {f"{self.name}/{key}": 1.0 for key in exclude_weights(metrics)}
        whole = list_collected_names(metrics, self.split_metrics, self.name)
        return (*finalize_values(self.finalize, values, self.name), *whole)

    def get_compiled(self, state: TrainState, data: Any, *, donate: bool) -> CompiledPhase:
        """Return the compiled phase for this structure of state and data; compile it if needed."""
        lowered = self.lower(state, data, donate=donate)
        with contextlib.nullcontext() if lowered.known else span("compile", self.name):
            return lowered.get()

    def lower(self, state: TrainState, data: Any, *, donate: bool) -> ComputedOnce[CompiledPhase]:
        """Trace and lower it for this structure of state and data; compile it when asked."""
        state, donate = strip_host_fields(state), donate and self.updates_state
        key, compiled = make_compilation_key(state, data, donate), self._shared.compiled
        if key not in compiled:
            data = self._shape(data, state)
            executor = self.repeated_step.executor if self.repeated_step else None
            with span("compile", self.name), trace_on_mesh(state), pause_gc():
                traced = self._trace(state, data, donate)
                arguments = self.computation, traced, executor, state, data
                compiled[key] = ComputedOnce(lower_phase(*arguments, donate=donate))
        return compiled[key]

    def execute(
        self,
        state: TrainState,
        previous: PyTree,
        compiled: CompiledPhase | None = None,
        *,
        donate: bool,
    ) -> tuple[TrainState, PyTree, PendingMetrics]:
        """Run one epoch, without waiting for the device; return (state, output, pending metrics).

        Args:
            state: to run on; `donate` deletes the arrays of its device part but what it passes on.
            previous: output of the phase before.
            compiled: for this state and the first piece, if available.
            donate: whether the state's buffers may be reused.

        Raises:
            ValueError: the state lacks the position that the source needs; see `add_position`.
        """
        return Dispatch(self.dispatch(state, previous, compiled, donate=donate)).finish()

    def dispatch(
        self,
        state: TrainState,
        previous: PyTree,
        compiled: CompiledPhase | None = None,
        *,
        donate: bool,
    ) -> Dispatched[tuple[TrainState, PyTree, PendingMetrics]]:
        """Run one epoch as `execute` does, in parts: yield before whatever has to be in its turn.

        That is a wait for the device, or what cannot be done again.
        """
        device, output = strip_host_fields(state), None
        packed: list[tuple[CompiledPhase, Packed]] = []
        if self.feed and self.feed.in_turn:
            yield
        advance = start_step_counter(self.name, self.feed.steps if self.feed else None)
        for piece, position in time_items(self.pieces(device, previous), "data", self.name):
            if compiled is None or not self._suits(compiled, piece):
                before, compiled = compiled, self.get_compiled(device, piece, donate=donate)
                if before and any(map(operator.gt, before.passed, compiled.passed)):
                    compiled = self.get_compiled(device, piece, donate=False)  # not what is kept
            if advance is not None and self.feed and piece is self.feed.example:
                advance.total = compiled.steps  # all the data is on the device
            if compiled.in_turn:
                yield
            with span("dispatch", self.name):
                device, output, numbers = compiled.run(device, piece, advance)
            packed.append((compiled, numbers))
            if position is not None:
                device = positions.set_position(device, self.name, position)
            if len(packed) > 1:  # or a stream would pile up on the device
                yield
                with span("wait", self.name):
                    jax.block_until_ready(packed[-2][1])
        return attach_host_fields(device, state), output, PendingMetrics(self, packed)

    def _suits(self, compiled: CompiledPhase, piece: Any) -> bool:
        same = self.feed is None or piece is self.feed.example
        return same or bool(compute_signature(piece) == compiled.signature)

    def pieces(self, state: TrainState, previous: PyTree) -> Iterator[tuple[Any, PyTree]]:
        """Yield the pieces of the state's epoch, the last with the start position of the next."""
        if self.feed is None:
            return iter([(previous, None)])
        keeps = self.feed.start is not None
        position = positions.get_position(state, self.name) if keeps else None
        read = self.feed.pieces(state, self.check_data, position)
        if get_mesh(state) is None:
            return read
        axis = self.feed.batch_axis
        return ((place_batches(piece, state, axis=axis), after) for piece, after in read)

    def _shape(self, data: Any, state: TrainState) -> Any:
        """Return data to trace with; for a mesh their shapes, where `pieces` places them."""
        return shape_batches(data, state, axis=self.feed.batch_axis if self.feed else None)

    def _trace(self, state: TrainState, data: Any, donate: bool) -> tuple[Any, PyTree]:
        """Return the traced function, and the shapes of what it measures, as `trace` does; once."""
        key, traces = make_compilation_key(state, data, donate), self._shared.traces
        if key not in traces:
            with annotate_errors(f"in checking phase {self.name!r}"), pause_gc():
                traces[key] = trace(self.computation, state, data, donate=donate)
        return traces[key]
