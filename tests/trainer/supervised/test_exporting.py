"""An exported network: called by JAX alone, it returns the values of the network itself."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import models
import trainer

RNG = np.random.default_rng(0)

CALL = """
import sys
for name in ("trainer", "hooks", "models", "entracte", "flax", "optax"):
    sys.modules[name] = None  # importing it fails
import jax, numpy as np
for file in sys.argv[1:]:
    run = jax.jit(jax.export.deserialize(open(file, "rb").read()).call)
    outputs = run(dict(np.load(file + ".npz")) if "dict" in file else np.load(file + ".npy"))
    np.savez(file + ".out.npz", **(outputs if isinstance(outputs, dict) else {"": outputs}))
"""
"""A program that has JAX and numpy, and calls each file with the arrays beside it."""


class Normalised(nnx.Module):
    """A layer and batch statistics."""

    def __init__(self, rngs):
        self.layer, self.norm = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.layer(x))


class Pair(linen.Module):
    """Two heads over two inputs, by name."""

    @linen.compact
    def __call__(self, inputs, train):
        x = jnp.concatenate([inputs["a"], inputs["b"].astype(jnp.float32)], 1)
        return {"one": linen.Dense(2)(x), "two": linen.BatchNorm(use_running_average=not train)(x)}


NETWORKS = {
    "nnx": (
        models.from_nnx(lambda rngs, example: Normalised(rngs)),
        {"inputs": RNG.normal(size=(8, 4)).astype(np.float32)},
    ),
    "linen-dict": (
        models.from_linen(Pair()),
        {"inputs": {"a": RNG.normal(size=(4, 2)).astype(np.float32), "b": np.arange(4)[:, None]}},
    ),
}


def trained(network, batch, mesh=None):
    """Take two steps, on a mesh if there is one, so that batch statistics differ from the first."""

    def loss(outputs, batch):
        return {"loss": jax.tree.leaves(outputs)[0].mean(1)}

    task = trainer.supervised(network, loss, optax.sgd(0.5))
    state = task.init(jax.random.key(1), batch)
    if mesh is not None:
        state = trainer.spread(state, mesh, rules=[("^params/", trainer.fsdp())])
    for _ in range(2):
        state, _ = jax.jit(task.step)(state, batch)
    return state


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    """Export each network, call the files in one other process; return (wanted, found, file)."""
    folder, wanted = tmp_path_factory.mktemp("exported"), {}
    states = {name: (*NETWORKS[name], trained(*NETWORKS[name])) for name in NETWORKS}
    network, batch = NETWORKS["nnx"]
    states["mesh"] = network, batch, trained(network, batch, trainer.mesh())
    for name, (network, batch, state) in states.items():
        file, rows = folder / name, jax.tree.map(lambda x: x[:3], batch["inputs"])
        trainer.export(network, state.params, batch, file, model_state=state.model_state)
        if isinstance(rows, dict):
            np.savez(f"{file}.npz", **rows)
        else:
            np.save(f"{file}.npy", rows)
        variables = jax.device_get((state.params, state.model_state))
        outputs, _ = network.apply(*variables, rows, key=None, train=False)
        wanted[name] = outputs if isinstance(outputs, dict) else {"": outputs}
    files = [str(folder / name) for name in states]
    subprocess.run([sys.executable, "-c", CALL, *files], check=True, cwd=folder, timeout=120)
    return folder, {
        name: (wanted[name], dict(np.load(f"{folder / name}.out.npz"))) for name in states
    }


@pytest.mark.parametrize("name", [*NETWORKS, "mesh"])
def test_a_process_with_jax_alone_gets_the_values_for_another_batch_size(called, name):
    wanted, found = called[1][name]
    assert found.keys() == wanted.keys()
    for part in wanted:
        assert found[part].shape[0] == 3
        np.testing.assert_allclose(found[part], wanted[part], rtol=1e-5, atol=1e-6)


def test_the_file_beside_it_names_inputs_and_outputs(called):
    described = json.loads((called[0] / "linen-dict.json").read_text())
    assert described["inputs"] == [
        {"name": "inputs/a", "shape": ["batch", 2], "dtype": "float32"},
        {"name": "inputs/b", "shape": ["batch", 1], "dtype": "int32"},
    ]
    assert [(one["name"], one["shape"]) for one in described["outputs"]] == [
        ("outputs/one", ["batch", 2]),
        ("outputs/two", ["batch", 3]),
    ]
    assert described["platforms"] == ["cpu", "cuda", "tpu"]
    assert described["jax"] == jax.__version__


def of(apply, example=None):
    """A network of one parameter, and an example for it."""
    network = SimpleNamespace(
        init=lambda key, x: ({"w": jnp.ones(3)}, {}),
        apply=lambda params, model_state, x, *, key, train: (apply(params, x, key), model_state),
    )
    return network, {"w": jnp.ones(3)}, example or {"inputs": np.ones((4, 3), np.float32)}


def test_a_network_that_must_know_the_batch_is_exported_for_the_examples_with_a_warning(
    tmp_path, caplog
):
    network, params, example = of(lambda params, x, key: x.reshape(len(x), -1) * params["w"])
    with caplog.at_level(logging.WARNING):
        trainer.export(network, params, example, tmp_path / "a", platforms=["cpu"])
    assert "batches of exactly 4 examples" in caplog.text
    loaded = jax.export.deserialize((tmp_path / "a").read_bytes())
    assert loaded.call(jnp.full((4, 3), 2.0)).tolist() == [[2.0] * 3] * 4
    assert json.loads((tmp_path / "a.json").read_text())["inputs"][0]["shape"] == [4, 3]
    with pytest.raises(ValueError, match="shape"):
        loaded.call(jnp.ones((3, 3)))


def call_host(params, x, key):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize(
    ("apply", "kind", "says"),
    [
        (call_host, NotImplementedError, "callback"),
        (lambda params, x, key: jax.random.normal(key, x.shape), Exception, "random numbers"),
        (lambda params, x, key: x @ jnp.ones((5, 5)), TypeError, "in export for cpu, cuda, tpu"),
        (lambda params, x, key: SimpleNamespace(x=x), TypeError, "types.SimpleNamespace"),
    ],
)
def test_what_cannot_be_exported_is_an_error_and_leaves_no_file(tmp_path, apply, kind, says):
    network, params, example = of(apply)
    with pytest.raises(kind) as caught:
        trainer.export(network, params, example, tmp_path / "a")
    assert says in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert list(tmp_path.iterdir()) == []


def test_parameters_and_example_that_do_not_fit_are_listed(tmp_path):
    network, batch = NETWORKS["nnx"]
    variables = jax.device_get(network.init(jax.random.key(0), batch["inputs"]))
    with pytest.raises(ValueError, match=r"model_state/norm/mean: needs \[8\], got nothing"):
        trainer.export(network, variables[0], batch, tmp_path / "a")
    narrow = jax.tree.map(lambda x: x[..., :2], variables[0])
    wanted = re.escape("params/layer/kernel: needs [4, 8], got [4, 2]")
    with pytest.raises(ValueError, match=wanted):
        trainer.export(network, narrow, batch, tmp_path / "a", model_state=variables[1])
