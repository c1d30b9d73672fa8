"""Export a network with its parameters to a file that JAX alone can load and call."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from trainer.checks.paths import to_absolute_path
from trainer.checks.pytrees import describe_leaf, format_path
from trainer.checks.suggestions import suggest_name
from trainer.host.atomic_files import atomic_replace
from trainer.host.escaping import escape_text
from trainer.host.exception_notes import annotate_errors
from trainer.host.extras import require_extra
from trainer.host.processes import fail_together, is_main_process
from trainer.placement.gathering import gather
from trainer.state import PyTree, TrainState
from trainer.supervised.network_checks import check_example, check_network, check_pair

log = logging.getLogger("entracte")

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""That JAX lowers to; it would take any other name, and treat it as none of these."""

LARGEST = 2**31 - 2**20
"""Bytes of parameters that a file holds: its format addresses 2 GiB."""


def export(
    network: Any,
    params: PyTree,
    example: Any,
    path: str | os.PathLike[str],
    *,
    model_state: PyTree = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> None:
    """Write a network and its parameters to a file that needs JAX alone to run.

    The file holds the forward pass as StableHLO, with `train=False` and without random numbers, and
    the parameters. A program loads it with `jax.export` and flatbuffers, without this library:

        run = jax.jit(jax.export.deserialize(open("digits.jaxexport", "rb").read()).call)
        outputs = run(inputs)

    The axis of the batch stays open, so that `run` takes any number of examples, if the network can
    be traced without knowing it. If it cannot, the file takes batches of the size of `example`, and
    a warning says why. Beside the file lies `digits.jaxexport.json`: names, shapes and dtypes of
    inputs and outputs, the platforms, and the version of JAX.

    JAX promises that what it exports runs with versions released up to 6 months later, and up to 3
    weeks earlier, if the network uses no custom calls but those that JAX keeps stable; others are
    refused. Keep the checkpoint too, and export it again for later versions. Gradients are not in
    the file. The network computes in the dtypes of `params`: cast them first for another precision.

    Both files appear complete or not at all, and replace earlier ones. On several processes all
    must call it, and the main process writes.

    Args:
        network: a pair (init, apply) as `models.Network` describes, of any library.
        params: such as `state.params`, on one device or on a mesh.
        example: a batch with `inputs` for the network, arrays `[batch, ...]`, such as
            `source.example`; only shapes and dtypes are read.
        path: of the file; its folder must exist.
        model_state: `state.model_state`, such as batch statistics; None if the network has none.
        platforms: on which the file can run, of `cpu`, `cuda`, `rocm` and `tpu`; this machine need
            not have them.

    Raises:
        ImportError: flatbuffers is not installed.
        OSError: a file cannot be written.
        TypeError: an argument is something else, or inputs or outputs are in containers other than
            dicts, lists and tuples.
        ValueError: a platform is unknown; `params` or `model_state` are not those of the network
            for this example, or they exceed 2 GiB. An exception of tracing or lowering gains a
            note, for example where the network calls Python on the host.

    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> double = SimpleNamespace(
    ...     init=lambda key, x: ({"scale": jax.numpy.ones(3)}, {}),
    ...     apply=lambda params, model_state, x, *, key, train: (x * params["scale"], model_state),
    ... )
    >>> batch = {"inputs": np.ones((4, 3), np.float32)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export(double, {"scale": jax.numpy.full(3, 2.0)}, batch, f"{folder}/a.jaxexport")
    ...     loaded = jax.export.deserialize(Path(f"{folder}/a.jaxexport").read_bytes())
    >>> loaded.in_avals, loaded.platforms, loaded.call(np.ones((2, 3), np.float32))[1]
    ((ShapedArray(float32[batch,3]),), ('cpu', 'cuda', 'tpu'), Array([2., 2., 2.], dtype=float32))

    See also: `export_params`, which writes the parameters alone.
    """
    check_network(network, "export")
    if isinstance(params, TrainState):
        remedy = "export(network, state.params, example, path, model_state=state.model_state)"
        raise TypeError(f"export takes parameters; got a TrainState: {remedy}")
    if isinstance(platforms, str) or not platforms:
        one = f"({platforms!r},)" if platforms else '("cpu",)'
        raise TypeError(f"platforms must be a sequence of names, such as {one}; got {platforms!r}")
    for name in platforms:
        if name not in PLATFORMS:
            known = ", ".join(PLATFORMS)
            hint = suggest_name(name, PLATFORMS)
            raise ValueError(f"platforms are {known}; got {name!r}.{hint}")
    call = "export(network, params, {example}, path)"
    check_example(example, "export takes a network, parameters and", call)
    file = to_absolute_path(path, "export")
    with require_extra("export", "export", "flatbuffers"):
        import flatbuffers  # noqa: F401
    inputs = jax.tree.map(_require_batch, example["inputs"])
    _require_plain(example["inputs"], "inputs")
    model_state = {} if model_state is None else model_state
    _check_variables(network, inputs, params, model_state)
    variables = jax.device_get(gather((params, model_state)))
    with fail_together(f"exporting to {file}"):  # afterwards the others find it
        if is_main_process():
            exported = _export(network, variables, inputs, tuple(platforms))
            _write(exported, file)


def _require_batch(leaf: Any) -> jax.ShapeDtypeStruct:
    if not getattr(leaf, "shape", ()):
        raise TypeError(
            "export needs inputs of arrays [batch, ...] in the example; got "
            f"{describe_leaf(leaf)}: pass a batch, such as source.example"
        )
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))


def _require_plain(tree: PyTree, what: str) -> None:
    """Check that a tree needs no class of a library to be read: dicts, lists, tuples, arrays."""
    if jax.tree_util.all_leaves([tree]) or tree is None:
        return
    if type(tree) not in (dict, list, tuple):
        kind = f"{type(tree).__module__}.{type(tree).__qualname__}"
        raise TypeError(
            f"export needs {what} in dicts, lists and tuples, which a program without this library "
            f"can read; got {kind}: wrap the network in one that takes and returns those"
        )
    for part in tree.values() if isinstance(tree, dict) else tree:
        _require_plain(part, what)


def _check_variables(network: Any, inputs: PyTree, params: PyTree, model_state: PyTree) -> None:
    """Check that parameters and model state have the paths and shapes that the network inits."""
    shown = ", ".join(describe_leaf(leaf) for leaf in jax.tree.leaves(inputs))
    with annotate_errors(f"in export, from the network's init on an example of {shown}"):
        made = jax.eval_shape(network.init, jax.random.key(0), inputs)
        wanted = dict(
            zip(("params", "model_state"), check_pair(network, "init", made), strict=True)
        )
    given = {"params": params, "model_state": model_state}
    shapes, got = (
        {
            format_path(path): list(np.shape(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (wanted, given)
    )
    lines = [
        f"{escape_text(name)}: needs {shapes.get(name, 'nothing')}, got {got.get(name, 'nothing')}"
        for name in sorted(shapes.keys() | got.keys())
        if shapes.get(name) != got.get(name)
    ]
    if lines:
        more = [f"and {len(lines) - 12} more"] if len(lines) > 12 else []
        raise ValueError(
            f"export needs the parameters and the model state of the network for an example of "
            f"{shown}; they differ:\n  "
            + "\n  ".join(lines[:12] + more)
            + "\npass state.params, model_state=state.model_state, and an example of its data"
        )
    size = sum(getattr(leaf, "nbytes", 8) for leaf in jax.tree.leaves(given))
    if size > LARGEST:
        raise ValueError(
            f"export writes at most {LARGEST:,} bytes of parameters into a file; got {size:,}: "
            "cast them to bfloat16, or write them with export_params"
        )


def _export(
    network: Any, variables: tuple[PyTree, PyTree], inputs: PyTree, platforms: tuple[str, ...]
) -> Any:
    """Lower the forward pass, for any size of the batch if the network allows it."""
    params, model_state = variables

    def forward(inputs: PyTree) -> PyTree:
        returned = network.apply(params, model_state, inputs, key=None, train=False)
        outputs, _ = check_pair(network, "apply", returned)
        _require_plain(outputs, "outputs")
        return outputs

    lower = jax.export.export(jax.jit(forward), platforms=platforms)
    (batch,) = jax.export.symbolic_shape("batch")
    anysize = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype), inputs
    )
    try:
        return lower(anysize)
    except Exception as error:  # of any type, from code of the network
        reason = error
    with annotate_errors(
        f"in export for {', '.join(platforms)}: what is exported is made of JAX's own operations, "
        "draws no random numbers, and exists on all of the platforms; platforms= selects fewer"
    ):
        exported = lower(inputs)
    sizes = sorted({leaf.shape[0] for leaf in jax.tree.leaves(inputs)})
    log.warning(
        "export: the file takes batches of exactly %s examples, since the network cannot be traced "
        "without their number: %s: %s",
        *(" or ".join(map(str, sizes)), type(reason).__name__),
        (str(reason).splitlines() or [""])[0],
    )
    return exported


def _write(exported: Any, file: Path) -> None:
    """Write the file, and what a caller needs to know beside it."""
    content = bytes(exported.serialize())
    (inputs,), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    described = {
        "inputs": _describe(inputs, "inputs"),
        "outputs": _describe(outputs, "outputs"),
        "platforms": list(exported.platforms),
        "jax": jax.__version__,
        "call": f"jax.export.deserialize(open({file.name!r}, 'rb').read()).call(inputs)",
    }
    with atomic_replace(file) as beside:
        beside.write_bytes(content)
    with atomic_replace(file.with_name(f"{file.name}.json")) as beside:
        beside.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    log.info("exported %s bytes to %s", f"{len(content):,}", file)


def _describe(tree: PyTree, root: str) -> list[dict[str, Any]]:
    """List the arrays of a tree: name, shape with `batch` where it is open, dtype."""
    return [
        {
            "name": "/".join(filter(None, (root, format_path(path)))),
            "shape": [size if isinstance(size, int) else str(size) for size in leaf.shape],
            "dtype": str(leaf.dtype),
        }
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
