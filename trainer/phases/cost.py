"""Cost: what an epoch of each phase computes and moves, known before it runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from trainer.phases.executors import find_inner_jaxprs
from trainer.phases.flops import count_flops
from trainer.phases.phase import Phase
from trainer.state import PyTree, TrainState, data_key, strip_host_fields

PEAKS = {
    r"A100": 312e12,
    r"H[12]00 NVL": 835e12,
    r"GH200|H200": 989e12,
    r"H100 PCIe": 756e12,
    r"H100": 989e12,
    r"\bL4\b": 121e12,
    r"V100": 125e12,
    r"TPU v4$": 275e12,
    r"TPU v5( lite|e)": 197e12,
    r"TPU v5p?$": 459e12,
    r"TPU v6( lite|e)": 918e12,
}
"""FLOP/s of dense matrix products in bfloat16 (V100: float16), by what a device calls its kind; the
first that matches. As the makers state them."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one phase takes."""

    flops_per_step: int
    """Floating-point operations of matrix products and convolutions, two for a multiplication and
    addition. The rest is not counted, nor is what a fused kernel computes, as of attention, or
    `ragged_dot`; what is computed again in the backward pass (`jax.checkpoint`) is."""
    bytes_per_step: float | None
    """Bytes read and written by the compiled program, as XLA estimates them; None where it does
    not."""
    steps: int | None
    """Of an epoch; 1 for a phase written by hand, whose step is one call of `run`; None for a
    stream whose length is not known before it is read."""
    peak: float | None
    """FLOP/s that the devices can reach together; None where it is not known, as of CPUs."""

    @property
    def flops(self) -> int | None:
        """Operations of an epoch."""
        return None if self.steps is None else self.steps * self.flops_per_step

    @property
    def bytes(self) -> float | None:
        """Bytes of an epoch."""
        if self.steps is None or self.bytes_per_step is None:
            return None
        return self.steps * self.bytes_per_step

    def utilisation(self, steps_per_second: float) -> float | None:
        """Give the share of the devices' peak that training reaches (MFU); None without a peak.

        Args:
            steps_per_second: as `time/steps_per_second` of the metrics tells.

        >>> Cost(2 * 10**12, None, 28, peak=312e12).utilisation(steps_per_second=78.0)
        0.5
        """
        if self.peak is None:
            return None
        return self.flops_per_step * steps_per_second / self.peak


def cost(program: Phase | Sequence[Phase], state: TrainState) -> dict[str, Cost]:
    """Tell what an epoch of each phase costs, without running it.

    XLA counts the body of a loop once, however often it runs. So a step is costed alone and taken
    as often as an epoch does; loops within it (`lax.scan` over layers) are taken as often as they
    run. Of a `while_loop`, whose rounds nobody knows, one counts; of a `cond` the costliest branch.

    It traces and compiles each step, and each loop's body, anew: it takes about as long as the
    start of a run.

    Args:
        program: a phase, or several in order, as `fit` takes them.
        state: to train on; only shapes and devices are looked at.

    Returns:
        The costs by the phases' names.

    >>> import jax.numpy as jnp
    >>> def multiply(state, data):
    ...     return state.replace(params=state.params @ state.params), None, {}
    >>> start = TrainState.create(params=jnp.eye(100), rng=jax.random.key(0))
    >>> found = cost(Phase("square", multiply), start)["square"]
    >>> found.flops_per_step, found.steps
    (2000000, 1)
    """
    phases = (program,) if isinstance(program, Phase) else tuple(program)
    for phase in phases:
        state = phase.add_position(state)
    devices = sorted(state.step.devices(), key=lambda device: device.id)
    peak = get_peak_flops(devices[0].device_kind)
    shapes = _shapes(strip_host_fields(state))
    costs: dict[str, Cost] = {}
    output: PyTree = None
    for phase in phases:
        function, data, steps = _step_of(phase, shapes, output)
        traced = jax.jit(function).trace(shapes, data)
        costs[phase.name] = Cost(
            flops_per_step=count_flops(traced.jaxpr),
            bytes_per_step=_moved(traced.jaxpr, traced),
            steps=steps,
            peak=None if peak is None else peak * len(devices),
        )
        output, _ = phase.infer_shapes(state, output)
    return costs


def get_peak_flops(kind: str) -> float | None:
    """Give the peak of a device by its kind, FLOP/s of matrix products in bfloat16.

    >>> (get_peak_flops("NVIDIA H100 80GB HBM3"), get_peak_flops("TPU v5 lite"),
    ...  get_peak_flops("cpu"))
    (989000000000000.0, 197000000000000.0, None)
    """
    return next((peak for name, peak in PEAKS.items() if re.search(name, kind)), None)


def _step_of(phase: Phase, state: PyTree, previous: PyTree) -> tuple[Callable[..., Any], Any, Any]:
    """Give (function, shapes of its data, how often an epoch calls it)."""
    if phase.repeated_step is None or phase.members is not None:
        return phase.run, _shapes(phase.feed.example if phase.feed else previous), 1
    feed = phase.repeated_step.feed
    piece = _shapes(feed.example)

    def first(state: TrainState, piece: Any) -> tuple[Any, Any]:
        rows = feed.rows(piece, data_key(state))
        return rows, feed.batch(piece, jax.tree.map(lambda rows: rows[0], rows))

    rows, batch = jax.eval_shape(first, state, piece)
    steps = feed.steps
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(feed.example)):
        steps = jax.tree.leaves(rows)[0].shape[0]  # all the data is on the device
    return phase.repeated_step.step, batch, steps


def _moved(jaxpr: Any, traced: Any = None) -> float | None:
    """Estimate the bytes that a program moves, loops as often as they run."""
    if traced is None:
        avals = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in jaxpr.in_avals]
        traced = jax.jit(core.jaxpr_as_fun(jaxpr)).trace(*avals)
    analysis = traced.lower().compile().cost_analysis() or {}
    total = analysis.get("bytes accessed")
    for length, body in _loops(jaxpr):
        once = _moved(body)
        if total is None or once is None:
            return None
        total += (length - 1) * once
    return total


def _loops(jaxpr: Any) -> list[tuple[int, Any]]:
    """Find the outermost scans: how often they run, and their bodies."""
    found = []
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "scan":
            found.append((equation.params["length"], equation.params["jaxpr"]))
        else:
            found += [
                loop
                for inner in find_inner_jaxprs(equation.params.values())
                for loop in _loops(inner)
            ]
    return found


def _shapes(tree: PyTree) -> PyTree:
    """Strip a tree to shapes and dtypes: what it costs is asked of one device."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
