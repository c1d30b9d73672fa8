"""Watch gradients: their norm per layer, the size of updates, the share of dead units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hooks.base import observe
from hooks.combining import Chain, chain
from hooks.recording import record
from hooks.triggers import every
from hooks.writers.values import Histogram
from hooks.writers.writer import Writer
from trainer import Hook, TrainState
from trainer.checks.pytrees import format_path
from trainer.phases.batch_functions import as_measure
from trainer.state import PyTree, strip_host_fields

SHOWN = 2**14
"""Numbers of a layer in a histogram, at most; from more, evenly picked ones."""


_READ = ("params", "opt_state", "model_state", "carry")
"""Fields of the state that an update reads."""

Statistics = tuple[dict[str, float], dict[str, jax.Array]]
"""Scores, and numbers of gradients and parameters by layer, still on the device."""


def watch_gradients(
    task: Any,
    batch: Any,
    *writers: Writer,
    depth: int = 2,
    histograms_every: int = 10,
) -> Chain:
    """Score the gradients of each layer on one fixed batch; place it before `log_metrics`.

    They are computed after the epoch by a compiled function of their own; on several processes by
    the main one, on its own device, where the state must fit whole. A layer is a prefix of
    the parameters' paths. The scores of each layer, under `gradients/`:

    - `norm/<layer>` and `param_norm/<layer>`: L2 norms of the gradients and the parameters;
    - `update_ratio/<layer>`: the norm of the optimizer's update for these gradients, without
      clipping, divided by the norm of the parameters; 0 if nothing would change. Around 1e-3 is
      usual with Adam;
    - `dead/<layer>`: the share of units whose gradient is exactly zero on the whole batch, such as
      a relu that no example activates. A unit is an index of the last axis of an array with two or
      more; a layer without such an array has no such score.

    The batch is used without `augment`. In float16 gradients may overflow to infinity, as in a
    training step. Each event takes a backward pass: `every(5, watch_gradients(...))` takes fewer.

    Args:
        task: made by `trainer.supervised`.
        batch: dict of arrays `[batch, ...]`, or a source, whose first batch is used.
        writers: for histograms, `gradients/histogram/<layer>` and
            `gradients/param_histogram/<layer>`; they may be those of `log_metrics`.
        depth: number of path parts that name a layer: `blocks/3` for `blocks/3/attention/kernel`.
        histograms_every: epochs between histograms.

    Raises:
        ValueError: `depth` is below 1; before training, the batch does not fit the task.

    >>> from types import SimpleNamespace
    >>> import optax, trainer
    >>> linear = SimpleNamespace(
    ...     init=lambda key, x: ({"head": {"kernel": jnp.ones((3, 2))}}, {}),
    ...     apply=lambda p, model_state, x, *, key, train: (x @ p["head"]["kernel"], model_state),
    ... )
    >>> task = trainer.supervised(linear, trainer.losses.classification, optax.sgd(0.1))
    >>> batch = {"inputs": jnp.ones((4, 3)), "labels": jnp.zeros(4, jnp.int32)}
    >>> state = task.init(jax.random.key(0), batch)
    >>> scores = watch_gradients(task, batch)(state, {}).scores
    >>> for name, score in scores.items():
    ...     print(f"{name} {score:.3f}")
    gradients/norm/head 1.225
    gradients/param_norm/head 2.449
    gradients/update_ratio/head 0.050
    gradients/dead/head 0.000
    """
    if depth < 1:
        raise ValueError(f"watch_gradients needs a depth of at least 1 part of a path; got {depth}")
    batch = jax.tree.map(jnp.asarray, dict(getattr(batch, "example", batch)))
    compute_stats = make_stats_function(task, batch, depth)

    def score(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        scores, _ = compute_stats(state)
        return state.replace(scores={**state.scores, **scores})

    def names(state: TrainState) -> tuple[str, ...]:
        if check := as_measure(task.measure).check:
            check(state, jax.tree.map(np.asarray, batch))
        return score_names(state.params, depth)

    def histograms(state: TrainState, metrics: Mapping[str, float]) -> dict[str, Histogram]:
        _, samples = compute_stats(state)
        return {name: Histogram(np.asarray(values)) for name, values in samples.items()}

    watch = Hook(score, "watch_gradients", stage="observe", writes=names, gather=_READ)
    if not writers:
        return chain(watch)
    shown = observe(record("gradients", histograms, *writers), gather=_READ)
    return chain(watch, every(histograms_every, shown))


def make_stats_function(task: Any, batch: Any, depth: int) -> Callable[[TrainState], Statistics]:
    """Make the function that computes the statistics: one compiled function, one transfer."""

    @jax.jit
    def compute(state: TrainState, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        grads, updates = task.updates(state, batch)
        by_grads, by_params, by_updates = (
            group_by_layer(tree, depth) for tree in (grads, state.params, updates)
        )
        measured: dict[str, jax.Array] = {}
        samples: dict[str, jax.Array] = {}
        for name, layer_grads in by_grads.items():
            size, change = global_norm(by_params[name]), global_norm(by_updates[name])
            measured[f"gradients/norm/{name}"] = global_norm(layer_grads)
            measured[f"gradients/param_norm/{name}"] = size
            measured[f"gradients/update_ratio/{name}"] = jnp.where(change == 0, 0, change / size)
            if kernels := [leaf for leaf in layer_grads if _is_kernel(leaf)]:
                measured[f"gradients/dead/{name}"] = dead_share(kernels)
            samples[f"histogram/{name}"] = sample(layer_grads)
            samples[f"param_histogram/{name}"] = sample(by_params[name])
        names = score_names(state.params, depth)
        return jnp.stack([measured[name] for name in names]), samples

    def compute_stats(state: TrainState) -> Statistics:
        numbers, samples = compute(strip_host_fields(state), batch)
        names = score_names(state.params, depth)
        return dict(zip(names, np.asarray(numbers).tolist(), strict=True)), samples

    return compute_stats


def score_names(params: PyTree, depth: int) -> tuple[str, ...]:
    """List the names of the scores for these parameters."""
    layers = group_by_layer(params, depth)
    kernels = [name for name, leaves in layers.items() if any(map(_is_kernel, leaves))]
    kinds = {"norm": layers, "param_norm": layers, "update_ratio": layers, "dead": kernels}
    return tuple(f"gradients/{kind}/{name}" for kind, names in kinds.items() for name in names)


def group_by_layer(tree: PyTree, depth: int) -> dict[str, list[Any]]:
    """Group arrays by the first parts of their paths, without the last part.

    >>> tree = {"blocks": [{"attention": {"query": 1}, "scale": 2}], "bias": 3}
    >>> group_by_layer(tree, 2)
    {'bias': [3], 'blocks/0': [1, 2]}
    """
    layers: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        parts = format_path(path).split("/")
        layers.setdefault("/".join((parts[:-1] or parts)[:depth]), []).append(leaf)
    return layers


def global_norm(leaves: list[jax.Array]) -> jax.Array:
    """Compute the L2 norm over all arrays, in float32."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def dead_share(kernels: list[jax.Array]) -> jax.Array:
    """Compute the share of columns that are all zero.

    >>> float(dead_share([jnp.array([[0.0, 1.0], [0.0, 0.0]]), jnp.ones((2, 2))]))
    0.25
    """
    dead = [jnp.all(kernel == 0, axis=tuple(range(kernel.ndim - 1))) for kernel in kernels]
    return jnp.mean(jnp.concatenate(dead))


def sample(leaves: list[jax.Array]) -> jax.Array:
    """Pick numbers evenly, so that the histogram of a large layer is cheap."""
    stride = -(-sum(leaf.size for leaf in leaves) // SHOWN)
    return jnp.concatenate([leaf.ravel()[::stride].astype(jnp.float32) for leaf in leaves])


def _is_kernel(leaf: Any) -> bool:
    return len(leaf.shape) >= 2
