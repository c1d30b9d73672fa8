"""How a phase that repeats a step is run: as one program an epoch, or one dispatch a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from trainer.data.feed import Feed
from trainer.metrics import Layout, pack
from trainer.state import PyTree, TrainState, data_key

EXECUTORS = ("auto", "scan", "step")
"""What a phase may be asked to run with: one program an epoch, or one dispatch a step."""

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]
"""`(state, batch) -> (state, metrics)`."""


class Repetition(NamedTuple):
    """A phase taken apart: a step, repeated over what a feed gives."""

    step: Step
    feed: Feed
    executor: str
    """`scan`, `step` or `auto`."""


class Choice(NamedTuple):
    """An executor and why."""

    executor: str
    reason: str


def choose(executor: str, jaxpr: Any, platform: str) -> Choice:
    """Choose how to run a step, by what it computes and where, never by a clock.

    Inside a loop or a `cond`, XLA on CPU runs a convolution 3 to 24 times slower than outside.

    Args:
        executor: `scan`, `step`, or `auto` to choose.
        jaxpr: of the step.
        platform: of the device: `cpu`, `gpu`, `tpu`.
    """
    if executor != "auto":
        return Choice(executor, "as asked")
    if platform != "cpu":
        return Choice("scan", f"one program an epoch is fastest on {platform}")
    if has_convolution(jaxpr):
        return Choice("step", "on cpu a convolution runs several times slower inside a loop")
    return Choice("scan", "one program an epoch is fastest, and nothing in the step prevents it")


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
        or any(has_convolution(inner) for inner in inner_jaxprs(equation.params.values()))
        for equation in jaxpr.eqns
    )


def inner_jaxprs(params: Any) -> Iterator[Any]:
    """Find the jaxprs among the parameters of an equation."""
    for value in params:
        if hasattr(getattr(value, "jaxpr", value), "eqns"):
            yield value
        elif isinstance(value, tuple | list):
            yield from inner_jaxprs(value)


def scanned(step: Step, feed: Feed, *, changes: bool) -> Callable[[TrainState, Any], Any]:
    """Repeat a step over a piece of data in one `lax.scan`: what a phase's `run` is.

    Args:
        step: what to repeat.
        feed: how a piece is cut into steps.
        changes: whether the step changes the state; else the loop carries none.
    """

    def run(state: TrainState, piece: Any) -> tuple[TrainState, None, dict[str, Any]]:
        rows = feed.rows(piece, data_key(state))
        state, metrics = _scan(step, feed, state, piece, rows, lambda told, taken: told, changes)
        return state, None, metrics

    return run


def packed_scan(
    repetition: Repetition, state: TrainState, piece: Any, *, changes: bool
) -> tuple[TrainState, jax.Array, PyTree]:
    """Repeat a step as `scanned` does, while tracing, its metrics packed within the loop.

    A trace for each metric would be written by a kernel of its own, all of which XLA compiles.

    Returns:
        (state, packed uint32 `[steps, words]`, shapes of (metrics, steps taken) of one step).
    """
    step, feed, _ = repetition
    shapes: list[PyTree] = []

    def packed(*numbers: PyTree) -> jax.Array:
        shapes.append(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), numbers))
        return pack(numbers)

    rows = feed.rows(piece, data_key(state))
    state, table = _scan(step, feed, state, piece, rows, packed, changes)
    return state, table, shapes[-1]


def _scan(
    step: Step,
    feed: Feed,
    state: TrainState,
    piece: Any,
    rows: Any,
    collect: Callable[[dict[str, Any], jax.Array], Any],
    changes: bool,
) -> tuple[TrainState, Any]:
    """Step over rows; collect something of each step's (metrics, steps taken)."""

    def change(state: TrainState, row: Any) -> tuple[TrainState, Any]:
        after, metrics = step(state, feed.batch(piece, row))
        return after, collect(metrics, after.step - state.step)

    def look(_: None, row: Any) -> tuple[None, Any]:
        return None, change(state, row)[1]

    if changes:
        return lax.scan(change, state, rows)
    return state, lax.scan(look, None, rows)[1]


def compiled_steps(
    repetition: Repetition,
    state: TrainState,
    piece: Any,
    measured: PyTree,
    *,
    changes: bool,
    donate: bool,
) -> Callable[[TrainState, Any], tuple[TrainState, None, jax.Array]]:
    """Compile a step for one dispatch each, its metrics collected on the device.

    Args:
        repetition: the step and its feed.
        state: the device part, to compile for.
        piece: of data, to compile for.
        measured: shapes of (metrics, steps taken) as one step gives them.
        changes: whether the step changes the state; else it is passed by and never copied.
        donate: whether the state's buffers may be reused.

    Returns:
        `(state, piece) -> (state, None, packed)`, `packed` uint32 `[steps, words]`.
    """
    step, feed, _ = repetition
    rows = jax.eval_shape(lambda: feed.rows(piece, data_key(state)))
    steps = jax.tree.leaves(rows)[0].shape[0]
    words = Layout.of(measured).words

    def begin(state: TrainState, piece: Any) -> tuple[Any, jax.Array, jax.Array]:
        order = jax.tree.map(jnp.asarray, feed.rows(piece, data_key(state)))
        return order, jnp.zeros((steps, words), jnp.uint32), jnp.zeros((), jnp.int32)

    def advance(state: Any, scratch: Any, fixed: Any, order: Any, piece: Any) -> Any:
        table, place = scratch
        row = jax.tree.map(lambda rows: rows[place], order)
        before = state if changes else fixed
        after, metrics = step(before, feed.batch(piece, row))
        table = table.at[place].set(pack((metrics, after.step - before.step)))
        return after if changes else None, (table, place + 1)

    started = jax.jit(begin).lower(state, piece).compile()
    order, table, place = jax.eval_shape(begin, state, piece)
    fixed = None if changes else state
    changing = state if changes else None
    jitted = jax.jit(advance, donate_argnums=(0, 1) if donate else (1,))
    one = jitted.lower(changing, (table, place), fixed, order, piece).compile()

    def run(state: TrainState, piece: Any) -> tuple[TrainState, None, jax.Array]:
        order, table, place = started(state, piece)
        changing: Any = state if changes else None
        fixed, scratch = None if changes else state, (table, place)
        for _ in range(steps):
            changing, scratch = one(changing, scratch, fixed, order, piece)
        return changing if changes else state, None, scratch[0]

    return run
