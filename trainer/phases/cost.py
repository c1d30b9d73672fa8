"""Cost of an epoch of each phase, in operations and bytes, before it runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from trainer.phases.jaxprs import count_flops, find_outer_scans
from trainer.phases.packed import get_shapes
from trainer.phases.phase import Phase
from trainer.state import PyTree, TrainState, strip_host_fields

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
"""FLOP/s of dense matrix products in bfloat16 (V100: float16), by a pattern of `device_kind`; the
first match counts. Numbers as published by the makers."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one phase."""

    flops_per_step: int
    """Floating-point operations of matrix products and convolutions; a multiplication and an
    addition count as two. Other operations, fused kernels (such as attention) and `ragged_dot` do
    not count; recomputation in the backward pass (`jax.checkpoint`) does."""
    bytes_per_step: float | None
    """Bytes read and written by the compiled step, as XLA estimates them; None if it does not."""
    steps: int | None
    """Steps per epoch; 1 for a hand-written phase, whose step is one call of `run`; None for a
    stream whose length is unknown before it is read."""
    peak: float | None
    """FLOP/s that the devices reach together; None if unknown, as for CPUs."""

    @property
    def flops(self) -> int | None:
        """Operations per epoch."""
        return None if self.steps is None else self.steps * self.flops_per_step

    @property
    def bytes(self) -> float | None:
        """Bytes per epoch."""
        if self.steps is None or self.bytes_per_step is None:
            return None
        return self.steps * self.bytes_per_step

    def utilisation(self, steps_per_second: float) -> float | None:
        """Return the share of the devices' peak that training reaches (MFU); None without a peak.

        Args:
            steps_per_second: `time/steps_per_second` of the metrics.

        >>> Cost(2 * 10**12, None, 28, peak=312e12).utilisation(steps_per_second=78.0)
        0.5
        """
        if self.peak is None:
            return None
        return self.flops_per_step * steps_per_second / self.peak


def cost(program: Phase | Sequence[Phase], state: TrainState) -> dict[str, Cost]:
    """Compute what an epoch of each phase costs, without running it.

    XLA counts the body of a loop once, however often it runs. So the cost of a single step is
    multiplied by the steps of an epoch, and that of a loop within it (`lax.scan` over layers) by
    its length. A `while_loop`, whose length is unknown, counts once; a `cond` counts as its
    costliest branch.

    It traces and compiles each step, and the body of each loop: it takes about as long as the start
    of a run.

    Args:
        program: a phase, or several in order, as `fit` takes them.
        state: to train on; only its shapes and devices are used.

    Returns:
        Cost by the name of the phase.

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
    shapes = get_shapes(strip_host_fields(state))
    costs: dict[str, Cost] = {}
    output: PyTree = None
    for phase in phases:
        function, data, steps = _get_step(phase, shapes, output)
        traced = jax.jit(function).trace(shapes, data)
        costs[phase.name] = Cost(
            flops_per_step=count_flops(traced.jaxpr),
            bytes_per_step=_count_bytes(traced.jaxpr, traced),
            steps=steps,
            peak=None if peak is None else peak * len(devices),
        )
        output, _ = phase.infer_shapes(state, output)
    return costs


def get_peak_flops(kind: str) -> float | None:
    """Return the peak of a kind of device, in FLOP/s of matrix products in bfloat16.

    >>> (get_peak_flops("NVIDIA H100 80GB HBM3"), get_peak_flops("TPU v5 lite"),
    ...  get_peak_flops("cpu"))
    (989000000000000.0, 197000000000000.0, None)
    """
    return next((peak for name, peak in PEAKS.items() if re.search(name, kind)), None)


def _get_step(phase: Phase, state: PyTree, previous: PyTree) -> tuple[Callable[..., Any], Any, Any]:
    """Return (function, shapes of its data, calls per epoch)."""
    if (scan := phase.scanned) is None or phase.feed is None:
        return phase.run, get_shapes(phase.feed.example if phase.feed else previous), 1
    piece = get_shapes(phase.feed.example)
    batch = jax.eval_shape(scan.first_batch, state, piece)
    steps = phase.feed.steps
    shapes = (isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(phase.feed.example))
    if not any(shapes):  # all the data is on the device
        steps = jax.tree.leaves(jax.eval_shape(scan.order, state, piece))[0].shape[0]
    return scan.step, batch, steps


def _count_bytes(jaxpr: Any, traced: Any = None) -> float | None:
    """Estimate the bytes that a computation moves; a loop counts as often as it runs."""
    if traced is None:
        avals = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in jaxpr.in_avals]
        traced = jax.jit(core.jaxpr_as_fun(jaxpr)).trace(*avals)
    analysis = traced.lower().compile().cost_analysis() or {}
    total = analysis.get("bytes accessed")
    for length, body in find_outer_scans(jaxpr):
        once = _count_bytes(body)
        if total is None or once is None:
            return None
        total += (length - 1) * once
    return total
