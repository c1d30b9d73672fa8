"""Executors: run a repeated step in one compiled scan per epoch, or in one dispatch per step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trainer.checks.suggestions import suggest_name
from trainer.data.source import Feed
from trainer.host.time_spans import StepCounter
from trainer.phases.batch_functions import StepFunction
from trainer.phases.buffers.passed_leaves import LeafSplit
from trainer.phases.compilation import is_debug_mode, lower_ahead
from trainer.phases.jaxprs import has_convolution
from trainer.phases.packed import PackedLayout, get_shapes, pack
from trainer.placement.constraints import (
    check_batch,
    choose_output_shardings,
    constrain_changes,
    constrain_state,
    replicate_outputs,
    replicate_shapes,
    split_batch,
)
from trainer.state import PyTree, TrainState, data_key

EXECUTORS = ("auto", "scan", "step")
"""Executors of a phase: one dispatch per epoch (`scan`), or one per step (`step`)."""

PROGRESS_REPORTS = 64
"""Progress reports per epoch of single steps, at most."""


def require_executor(executor: str) -> None:
    """Check that an executor is one of `EXECUTORS`.

    Raises:
        ValueError: it is another.
    """
    if executor not in EXECUTORS:
        raise ValueError(
            "executor must be auto, scan or step; got "
            f"{executor!r}.{suggest_name(executor, EXECUTORS)}"
        )


IN_FLIGHT = 3
"""Steps between two waits on several devices: more than about 8 unfinished dispatches can starve
the threads that meet in an exchange, which then hangs."""


class ExecutorChoice(NamedTuple):
    """An executor, and the reason for choosing it."""

    executor: str
    reason: str


def choose_executor(executor: str, jaxpr: Any, platform: str) -> ExecutorChoice:
    """Choose an executor by what the step computes and on which platform, never by a clock.

    Inside a loop or a `cond`, XLA on CPU runs a convolution 3 to 24 times slower than outside.
    """
    if executor != "auto":
        return ExecutorChoice(executor, "as asked")
    if platform != "cpu":
        return ExecutorChoice("scan", f"one program an epoch is fastest on {platform}")
    if has_convolution(jaxpr):
        slow = "on cpu a convolution runs several times slower inside a loop"
        return ExecutorChoice("step", slow)
    fast = "one program an epoch is fastest, and nothing in the step prevents it"
    return ExecutorChoice("scan", fast)


@dataclasses.dataclass(frozen=True)
class ScannedStep:
    """A step repeated over a piece of data in one `lax.scan`: the `run` of a phase.

    Equal ones compute the same, so phases share what was compiled. It holds no data: a compiled
    function that outlives its phase would keep them in memory.
    """

    step: StepFunction
    """The step to repeat."""
    rows: Callable[[Any, jax.Array], Any]
    batch: Callable[[Any, Any], Any]
    """How a piece is cut into steps, see `Feed`."""
    updates_state: bool
    """Whether the step changes the state; if not, the loop does not carry it."""

    @property
    def owner(self) -> Any:
        """The function on which compiled functions are cached; None if nothing is shared."""
        return getattr(self.step, "owner", None)

    def __call__(self, state: TrainState, piece: Any) -> tuple[TrainState, None, dict[str, Any]]:
        """Run all steps of a piece."""
        rows = self.order(state, piece)
        state, metrics = self._scan(state, piece, rows, lambda numbers: numbers[0])
        return state, None, metrics

    def order(self, state: TrainState, piece: Any) -> Any:
        """Return the rows of a piece, one per step, in the order of the state's epoch."""
        return jax.tree.map(jnp.asarray, self.rows(piece, data_key(state)))

    def first_batch(self, state: TrainState, piece: Any) -> Any:
        """Return the batch of the first step of a piece."""
        return self.batch(piece, jax.tree.map(lambda rows: rows[0], self.order(state, piece)))

    def run_once(self, state: TrainState, batch: Any) -> tuple[TrainState, PyTree]:
        """Run one step; return (state, (metrics, optimizer steps taken))."""
        if self.updates_state:
            check_batch(batch)
        batch = split_batch(batch)
        constrained = constrain_state(state)
        after, metrics = self.step(constrained, batch)
        steps = after.step - state.step
        return constrain_changes(state, constrained, after), (metrics, steps)

    def packed(
        self, state: TrainState, piece: Any, rows: Any = None
    ) -> tuple[TrainState, jax.Array, PyTree]:
        """Run the steps of these rows, or all, while tracing; pack their metrics within the loop.

        Otherwise XLA would compile a kernel for the trace of each metric.

        Returns:
            (state, packed uint32 `[steps, words]`, shapes of (metrics, steps taken) of one step).
        """
        shapes: list[PyTree] = []

        def pack_step(numbers: PyTree) -> jax.Array:
            shapes.append(get_shapes(numbers))
            return pack(numbers)

        rows = self.order(state, piece) if rows is None else rows
        state, table = self._scan(state, piece, rows, pack_step)
        return state, table, shapes[-1]

    def _scan(
        self, state: TrainState, piece: Any, rows: Any, collect: Callable[[PyTree], Any]
    ) -> tuple[TrainState, Any]:
        """Run a step for each row; collect something of each step's (metrics, steps taken)."""

        def advance(state: TrainState, row: Any) -> tuple[TrainState, Any]:
            after, numbers = self.run_once(state, self.batch(piece, row))
            return after, collect(numbers)

        def measure(_: None, row: Any) -> tuple[None, Any]:
            return None, advance(state, row)[1]

        if self.updates_state:
            return lax.scan(advance, state, rows)
        return state, lax.scan(measure, None, rows)[1]


class RepeatedStep(NamedTuple):
    """A step that is repeated over the batches of a feed."""

    scan: ScannedStep
    feed: Feed
    executor: str
    """`scan`, `step` or `auto`."""


StepRunner = Callable[..., tuple[TrainState, None, jax.Array]]
"""`(state, piece, advance) -> (state, None, packed)`, `packed` uint32 `[steps, words]`."""


def lower_steps(
    scanned: ScannedStep,
    state: TrainState,
    piece: Any,
    measured: PyTree,
    split: LeafSplit,
    *,
    donate: bool,
) -> Callable[[], StepRunner]:
    """Lower a step that is dispatched one by one; its metrics are collected on the device.

    A state that it does not change is never copied, nor are the leaves that it passes through,
    by `split`. `measured` are the shapes of (metrics, steps taken) of one step.

    Returns:
        A function that compiles it, on any thread.
    """
    changes = scanned.updates_state
    steps = jax.tree.leaves(jax.eval_shape(scanned.order, state, piece))[0].shape[0]
    words, several = PackedLayout.from_shapes(measured).words, len(state.step.devices()) > 1

    def start(state: TrainState, piece: Any) -> tuple[Any, jax.Array, jax.Array]:
        table = jnp.zeros((steps, words), jnp.uint32)
        return scanned.order(state, piece), table, jnp.zeros((), jnp.int32)

    def advance(changing: Any, passed: Any, scratch: Any, order: Any, piece: Any) -> Any:
        state, (table, place) = split.join(changing, passed), scratch
        row = jax.tree.map(lambda rows: rows[place], order)
        after, numbers = scanned.run_once(state, scanned.batch(piece, row))
        table = table.at[place].set(pack(numbers))
        seen = numbers[0] if is_debug_mode() else None  # JAX sees no nan in packed words
        return split.split(after)[0] if changes else None, (table, place + 1), seen

    lowered_start = lower_ahead(start, state, piece, **replicate_outputs())
    order, table, place = replicate_shapes(jax.eval_shape(start, state, piece))
    arguments = *split.split(state), (table, place), order, piece
    options = choose_output_shardings(updates_state=changes)
    options = split.split_shardings(options) if changes else options
    donated = (0, 2) if donate else (2,)
    lowered = lower_ahead(advance, *arguments, donate_argnums=donated, **options)

    def finish() -> StepRunner:
        compiled_start, compiled = lowered_start(), lowered()

        def run(
            state: TrainState, piece: Any, advance: StepCounter | None = None
        ) -> tuple[TrainState, None, jax.Array]:
            order, table, place = compiled_start(state, piece)
            scratch, reported, earlier = (table, place), 0, None
            changing, passed = split.split(state)
            for done in range(1, steps + 1):
                after, scratch, _ = compiled(changing, passed, scratch, order, piece)
                changing = after if changes else changing
                if several and done % IN_FLIGHT == 0:
                    jax.block_until_ready(earlier)
                    earlier = _copy_progress(scratch[1])
                due = done - reported >= steps / PROGRESS_REPORTS or done == steps
                if advance is not None and due:
                    advance.add(done - reported, _copy_progress(scratch[1]))
                    reported = done
            return split.join(changing, passed), None, scratch[0]

        return run

    return finish


@jax.jit
def _copy_progress(place: jax.Array) -> jax.Array:
    """Copy the step count, which the next step donates, to see how far the device is."""
    return place + 0
