"""How a phase that repeats a step is run: as one program an epoch, or one dispatch a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trainer.data.source import Feed
from trainer.host.time_spans import StepCounter
from trainer.phases.ahead_of_time import compile_ahead, is_debug_mode
from trainer.phases.packed import PackedLayout, pack
from trainer.state import PyTree, TrainState, data_key

EXECUTORS = ("auto", "scan", "step")
"""What a phase may be asked to run with: one program an epoch, or one dispatch a step."""

TOLD = 64
"""How often an epoch of single steps is told of at most, where somebody listens."""

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
"""`(state, batch) -> (state, metrics)`."""


class RepeatedStep(NamedTuple):
    """A phase taken apart: a step, repeated over what a feed gives."""

    step: Step
    feed: Feed
    executor: str
    """`scan`, `step` or `auto`."""


class ExecutorChoice(NamedTuple):
    """An executor and why."""

    executor: str
    reason: str

    def cut(self, count: int, steps: int) -> ExecutorChoice:
        """Say into how many dispatches it is cut, of so many steps each."""
        return ExecutorChoice(
            self.executor, f"{self.reason}, in {count} dispatches of {steps} steps"
        )


def choose_executor(executor: str, jaxpr: Any, platform: str) -> ExecutorChoice:
    """Choose how to run a step, by what it computes and where, never by a clock.

    Inside a loop or a `cond`, XLA on CPU runs a convolution 3 to 24 times slower than outside.

    Args:
        executor: `scan`, `step`, or `auto` to choose.
        jaxpr: of the step.
        platform: of the device: `cpu`, `gpu`, `tpu`.
    """
    if executor != "auto":
        return ExecutorChoice(executor, "as asked")
    if platform != "cpu":
        return ExecutorChoice("scan", f"one program an epoch is fastest on {platform}")
    if has_convolution(jaxpr):
        return ExecutorChoice(
            "step", "on cpu a convolution runs several times slower inside a loop"
        )
    return ExecutorChoice(
        "scan", "one program an epoch is fastest, and nothing in the step prevents it"
    )


def has_convolution(jaxpr: Any) -> bool:
    """Say whether a jaxpr contains a convolution at any depth.

    >>> signal = jnp.ones(8)
    >>> has_convolution(jax.make_jaxpr(jax.jit(lambda x: jnp.convolve(x, signal)))(signal))
    True
    >>> has_convolution(jax.make_jaxpr(lambda x: x @ x)(signal))
    False
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(has_convolution(inner) for inner in find_inner_jaxprs(equation.params.values()))
        for equation in jaxpr.eqns
    )


def find_inner_jaxprs(params: Any) -> Iterator[Any]:
    """Find the jaxprs among the parameters of an equation."""
    for value in params:
        if hasattr(getattr(value, "jaxpr", value), "eqns"):
            yield value
        elif isinstance(value, tuple | list):
            yield from find_inner_jaxprs(value)


@dataclasses.dataclass(frozen=True)
class ScannedStep:
    """A step repeated over a piece of data in one `lax.scan`: what a phase's `run` is.

    Two that are equal compute the same, so that phases share what was compiled; and it holds no
    data, or a program that outlives its phase would keep them.
    """

    step: Step
    """What to repeat."""
    rows: Callable[[Any, jax.Array], Any]
    batch: Callable[[Any, Any], Any]
    """How a piece is cut into steps, see `Feed`."""
    updates_state: bool
    """Whether the step changes the state; else the loop carries none."""

    @property
    def owner(self) -> Any:
        """The function that what was compiled belongs to; None where nothing is shared."""
        return getattr(self.step, "owner", None)

    def __call__(self, state: TrainState, piece: Any) -> tuple[TrainState, None, dict[str, Any]]:
        """Run all steps of a piece."""
        rows = self.rows(piece, data_key(state))
        state, metrics = self._scan(state, piece, rows, lambda told, taken: told)
        return state, None, metrics

    def packed(
        self, state: TrainState, piece: Any, rows: Any = None
    ) -> tuple[TrainState, jax.Array, PyTree]:
        """Run the steps of a piece, while tracing, their metrics packed within the loop.

        A trace for each metric would be written by a kernel of its own, all of which XLA compiles.

        Args:
            state: to run on.
            piece: of data.
            rows: to run; all if None.

        Returns:
            (state, packed uint32 `[steps, words]`, shapes of (metrics, steps taken) of one step).
        """
        shapes: list[PyTree] = []

        def packed(*numbers: PyTree) -> jax.Array:
            shapes.append(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), numbers))
            return pack(numbers)

        rows = self.rows(piece, data_key(state)) if rows is None else rows
        state, table = self._scan(state, piece, rows, packed)
        return state, table, shapes[-1]

    def _scan(
        self,
        state: TrainState,
        piece: Any,
        rows: Any,
        collect: Callable[[dict[str, Any], jax.Array], Any],
    ) -> tuple[TrainState, Any]:
        """Step over rows; collect something of each step's (metrics, steps taken)."""

        def change(state: TrainState, row: Any) -> tuple[TrainState, Any]:
            after, metrics = self.step(state, self.batch(piece, row))
            return after, collect(metrics, after.step - state.step)

        def look(_: None, row: Any) -> tuple[None, Any]:
            return None, change(state, row)[1]

        if self.updates_state:
            return lax.scan(change, state, rows)
        return state, lax.scan(look, None, rows)[1]


def compile_steps(
    repetition: RepeatedStep,
    state: TrainState,
    piece: Any,
    measured: PyTree,
    *,
    changes: bool,
    donate: bool,
) -> Callable[[TrainState, Any, StepCounter | None], tuple[TrainState, None, jax.Array]]:
    """Compile a step for one dispatch each, its metrics collected on the device.

    Args:
        repetition: the step and its feed.
        state: the device part, to compile for.
        piece: of data, to compile for.
        measured: shapes of (metrics, steps taken) as one step gives them.
        changes: whether the step changes the state; else it is passed by and never copied.
        donate: whether the state's buffers may be reused.

    Returns:
        `(state, piece, advance) -> (state, None, packed)`, `packed` uint32 `[steps, words]`.
    """
    # What is compiled may outlive the phase: it must not close over the feed, which has the data.
    step, cut, batch_of = repetition.step, repetition.feed.rows, repetition.feed.batch
    rows = jax.eval_shape(lambda: cut(piece, data_key(state)))
    steps = jax.tree.leaves(rows)[0].shape[0]
    words = PackedLayout.from_shapes(measured).words

    def begin(state: TrainState, piece: Any) -> tuple[Any, jax.Array, jax.Array]:
        order = jax.tree.map(jnp.asarray, cut(piece, data_key(state)))
        return order, jnp.zeros((steps, words), jnp.uint32), jnp.zeros((), jnp.int32)

    def advance(state: Any, scratch: Any, fixed: Any, order: Any, piece: Any) -> Any:
        table, place = scratch
        row = jax.tree.map(lambda rows: rows[place], order)
        before = state if changes else fixed
        after, metrics = step(before, batch_of(piece, row))
        table = table.at[place].set(pack((metrics, after.step - before.step)))
        seen = metrics if is_debug_mode() else None  # packed, a nan would be words to JAX
        return after if changes else None, (table, place + 1), seen

    started = compile_ahead(begin, state, piece)
    order, table, place = jax.eval_shape(begin, state, piece)
    fixed = None if changes else state
    changing = state if changes else None
    arguments = changing, (table, place), fixed, order, piece
    one = compile_ahead(advance, *arguments, donate_argnums=(0, 1) if donate else (1,))

    def run(
        state: TrainState, piece: Any, advance: StepCounter | None = None
    ) -> tuple[TrainState, None, jax.Array]:
        order, table, place = started(state, piece)
        changing: Any = state if changes else None
        fixed, scratch = None if changes else state, (table, place)
        told = 0
        for done in range(1, steps + 1):
            changing, scratch, _ = one(changing, scratch, fixed, order, piece)
            if advance is not None and (done - told >= steps / TOLD or done == steps):
                advance.add(done - told, _after(scratch[1]))
                told = done
        return changing if changes else state, None, scratch[0]

    return run


@jax.jit
def _after(place: jax.Array) -> jax.Array:
    """Copy what the next step uses up, as a mark of how far the device is."""
    return place + 0
