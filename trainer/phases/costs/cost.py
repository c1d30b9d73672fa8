"""Cost of an epoch of each phase, in operations and bytes, before it runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.sharding import Mesh

from trainer.phases.compiled_phase import trace
from trainer.phases.costs.collectives import Collective, count_collectives
from trainer.phases.jaxprs import count_flops, find_outer_scans
from trainer.phases.packed import get_shapes, pack
from trainer.phases.phase import Phase
from trainer.placement.constraints import (
    choose_output_shardings,
    shape_batches,
    trace_on_mesh,
)
from trainer.placement.meshes import get_mesh
from trainer.placement.rules import Rule
from trainer.placement.virtual_meshes import count_device_bytes, place_shapes
from trainer.state import PyTree, TrainState

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
    """Bytes read and written by the step on one device, as XLA estimates them; None if it does
    not."""
    steps: int | None
    """Steps per epoch; 1 for a hand-written phase, whose step is one call of `run`; None for a
    stream whose length is unknown before it is read."""
    peak: float | None
    """FLOP/s that the devices reach together; None if unknown, as for CPUs."""
    state_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Bytes of the state on each device, by field: `params`, `opt_state`, `model_state`,
    `carry`."""
    temporary_bytes: int | None = None
    """Bytes that a step takes on each device besides state and data, such as gradients and
    activations, as XLA plans them where the state is updated in place; None if it does not say."""
    collectives: Mapping[str, Collective] = dataclasses.field(default_factory=dict)
    """What the devices exchange in a step, by kind: `all-reduce`, `all-gather` and so on."""

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


def cost(
    program: Phase | Sequence[Phase],
    state: TrainState,
    *,
    mesh: Mesh | str | None = None,
    rules: Sequence[Rule] = (),
) -> dict[str, Cost]:
    """Compute what an epoch of each phase costs, without running it.

    XLA counts the body of a loop once, however often it runs. So the cost of a single step is
    multiplied by the steps of an epoch, and that of a loop within it (`lax.scan` over layers) by
    its length. A `while_loop`, whose length is unknown, counts once; a `cond` counts as its
    costliest branch.

    It traces and compiles each step, and the body of each loop: it takes about as long as the start
    of a run. For a mesh it compiles another time. Nothing is allocated, so the model may be larger
    than the memory.

    Args:
        program: a phase, or several in order, as `fit` takes them.
        state: to train on, or its shapes, `jax.eval_shape(lambda: task.init(key, example))`; only
            shapes and devices are used.
        mesh: the cost for the state on this mesh, instead of where it lies: of `trainer.mesh`, or
            one that is not there, `"data=64,model=8"`. The latter is compiled for CPUs, however
            many: bytes of the state are exact; XLA for GPUs or TPUs may plan other temporaries,
            and join or split collectives.
        rules: how leaves are split over `mesh`, as for `trainer.spread`.

    Returns:
        Cost by the name of the phase.

    Raises:
        TypeError, ValueError: mesh or rules do not suit the state, as in `trainer.spread`.

    >>> import jax.numpy as jnp
    >>> def multiply(state, data):
    ...     return state.replace(params=state.params @ state.params), None, {}
    >>> start = TrainState.create(params=jnp.eye(100), rng=jax.random.key(0))
    >>> found = cost(Phase("square", multiply), start)["square"]
    >>> found.flops_per_step, found.steps, found.state_bytes["params"]
    (2000000, 1, 40000)
    >>> from trainer import fsdp
    >>> found = cost(Phase("square", multiply), start, mesh="data=50", rules=[("params", fsdp())])
    >>> found["square"].state_bytes["params"], sorted(found["square"].collectives)
    (800, ['all-gather'])
    """
    phases = (program,) if isinstance(program, Phase) else tuple(program)
    for phase in phases:
        state = phase.add_position(state)
    placed = place_shapes(state, mesh, rules)
    shapes = get_shapes(placed)
    there = get_mesh(placed)
    devices = _list_devices(state) if there is None else list(there.devices.flat)
    peak = get_peak_flops(devices[0].device_kind)
    costs: dict[str, Cost] = {}
    output: PyTree = None
    for phase in phases:
        function, data, steps = _get_step(phase, shapes, output)
        donated = (0,) if phase.updates_state else ()  # as fit does: or gradients seem to be free
        traced = jax.jit(function, donate_argnums=donated).trace(shapes, data)
        alone = traced.lower().compile()
        compiled = alone if there is None else _compile_step(phase, placed, data)
        memory = compiled.memory_analysis()
        costs[phase.name] = Cost(
            flops_per_step=count_flops(traced.jaxpr),
            bytes_per_step=_count_bytes(traced.jaxpr, alone),
            steps=steps,
            peak=None if peak is None else peak * len(devices),
            state_bytes=count_device_bytes(placed),
            temporary_bytes=None if memory is None else int(memory.temp_size_in_bytes),
            collectives=count_collectives(compiled.as_text() or ""),
        )
        output = phase.infer_shapes(state if mesh is None else shapes, output).output
    return costs


def _list_devices(state: TrainState) -> list[jax.Device]:
    """Return the devices of a state; the first of all for shapes that lie nowhere."""
    sharding = getattr(state.step, "sharding", None)
    devices = jax.devices()[:1] if sharding is None else sharding.device_set
    return sorted(devices, key=lambda device: device.id)


def _compile_step(phase: Phase, state: TrainState, data: PyTree) -> Any:
    """Compile the step of a phase for the mesh that a state's shapes lie on."""
    scan, feed = phase.scanned, phase.feed
    if scan is None or feed is None:
        data = shape_batches(data, state, axis=feed.batch_axis if feed else None)
        with trace_on_mesh(state):
            donate = phase.updates_state
            return trace(phase.computation, state, data, donate=donate)[0].lower().compile()

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState | None, None, jax.Array]:
        after, numbers = scan.run_once(state, batch)
        return after if phase.updates_state else None, None, pack(numbers)

    with trace_on_mesh(state):
        options = choose_output_shardings(updates_state=phase.updates_state)
        batch = shape_batches(data, state, axis=None if phase.passes else 0)
        donated = (0,) if phase.updates_state else ()
        return jax.jit(step, donate_argnums=donated, **options).lower(state, batch).compile()


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


def _count_bytes(jaxpr: Any, compiled: Any = None) -> float | None:
    """Estimate the bytes that a computation moves; a loop counts as often as it runs."""
    if compiled is None:
        avals = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in jaxpr.in_avals]
        compiled = jax.jit(core.jaxpr_as_fun(jaxpr)).lower(*avals).compile()
    analysis = compiled.cost_analysis() or {}
    total = analysis.get("bytes accessed")
    for length, body in find_outer_scans(jaxpr):
        once = _count_bytes(body)
        if total is None or once is None:
            return None
        total += (length - 1) * once
    return total
