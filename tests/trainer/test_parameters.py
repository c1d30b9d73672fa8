"""Parameters by path: from runs and files, whole and in part, bit for bit."""

from __future__ import annotations

import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hooks
import trainer
from trainer import Checkpoints, TrainState, export_params, load_params


@pytest.fixture
def params():
    return {
        "body": [{"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}],
        "head": {"kernel": jnp.full((3, 2), 2.0)},
    }


@pytest.fixture
def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)


@pytest.fixture(params=["run", "file"])
def source(request, params, tmp_path):
    """The same parameters as a run and as a file."""
    if request.param == "file":
        export_params(params, tmp_path / "params.safetensors")
        return tmp_path / "params.safetensors"
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(TrainState.create(params=params, rng=jax.random.key(0)))
    return tmp_path / "run"


def equal(one, other):
    same = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes(),
        one,
        other,
    )
    return all(jax.tree.leaves(same))


def test_all_of_them_are_taken(source, params, zeros):
    loaded = load_params(source, zeros)
    assert equal(loaded, params)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))


def test_only_some_are_taken_and_the_others_stay_the_same_objects(source, params, zeros, caplog):
    caplog.set_level(logging.INFO, "entracte")
    loaded = load_params(source, zeros, only="^body/.*kernel")
    assert equal(loaded["body"][0]["kernel"], params["body"][0]["kernel"])
    assert loaded["head"]["kernel"] is zeros["head"]["kernel"]
    assert loaded["body"][0]["bias"] is zeros["body"][0]["bias"]
    assert "took 1 of 3 parameters from" in caplog.text
    assert "as they were: body/0/bias, head/kernel; not used: body/0/bias, head/kernel" in (
        caplog.text
    )


def test_paths_of_the_source_are_renamed_in_order(source, params):
    target = {"trunk": {"first": {"kernel": jnp.zeros((2, 3))}}}
    loaded = load_params(source, target, rename={"^body/": "trunk/", "/0/": "/first/"})
    assert equal(loaded["trunk"]["first"]["kernel"], params["body"][0]["kernel"])
    with pytest.raises(ValueError, match="rename gives two leaves of .* the path 'same'"):
        load_params(source, target, rename={".*kernel": "same"})


def test_every_leaf_that_does_not_fit_is_listed(source, params):
    target = {
        "body": [{"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(3, jnp.int32)}],
        "head": {"kernel": jnp.zeros((3, 2)), "scale": jnp.zeros(())},
    }
    with pytest.raises(ValueError, match="does not fit the parameters") as raised:
        load_params(source, target)
    assert str(raised.value).splitlines()[1:4] == [
        "  body/0/bias: saved float32[3], wanted int32[3]",
        "  body/0/kernel: saved float32[2, 3], wanted float32[2, 4]",
        "  head/scale: saved nothing, wanted float32[]",
    ]
    assert "name with only= what to take" in str(raised.value)
    assert equal(load_params(source, target, only="head/kernel")["head"]["kernel"],
                 params["head"]["kernel"])  # fmt: skip


def test_only_that_is_found_nowhere_names_what_there_is(source, zeros):
    with pytest.raises(ValueError, match="only='tail' is found in no path.*body/0/bias"):
        load_params(source, zeros, only="tail")


def test_floats_are_cast_with_a_warning(source, params, zeros, caplog):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), zeros)
    loaded = load_params(source, half)
    assert equal(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    assert caplog.messages == ["cast float32 to bfloat16: body/0/bias, body/0/kernel, head/kernel"]


def test_a_value_that_would_become_infinite_is_refused(tmp_path):
    file = tmp_path / "large.safetensors"
    export_params({"w": jnp.array([1e6, 1.0, jnp.inf])}, file)
    with pytest.raises(ValueError, match="w: 1 of its 3 values, saved as float32, are too large"):
        load_params(file, {"w": jnp.zeros(3, jnp.float16)})
    loaded = load_params(file, {"w": jnp.zeros(3, jnp.bfloat16)})["w"]
    assert loaded.tolist() == [999424.0, 1.0, float("inf")]


def test_the_best_commit_of_a_run_is_taken_when_asked_for(tmp_path, zeros):
    with Checkpoints(tmp_path) as checkpoints:
        for epoch, loss in ((1, 0.25), (2, 0.5)):
            params = jax.tree.map(lambda x: x + epoch, zeros)  # noqa: B023
            state = TrainState.create(params=params, rng=jax.random.key(0))
            state = state.replace(epoch=jnp.int32(epoch))
            checkpoints.save(state, scores={"val/loss": loss})
    assert float(load_params(tmp_path, zeros)["body"][0]["bias"][0]) == 2
    assert float(load_params(tmp_path, zeros, best="val/loss")["body"][0]["bias"][0]) == 1
    best = load_params(tmp_path, zeros, best="val/loss", mode="max")
    assert float(best["body"][0]["bias"][0]) == 2


def test_what_is_taken_can_be_donated_and_trained_on(start, train, tmp_path):
    first, _ = trainer.fit(start, train, epochs=1, hooks=hooks.save_checkpoints(tmp_path))
    tuned = start.replace(params=load_params(tmp_path, start.params))
    assert equal(tuned.params, first.params)
    trainer.fit(tuned, train, epochs=1)
    jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(tuned.params)
    assert tuned.params["w"].is_deleted()


def test_leaves_of_numpy_and_on_a_device_stay_such(source, zeros):
    device = jax.devices()[0]
    target = {
        **jax.tree.map(np.asarray, zeros),
        "head": {"kernel": jax.device_put(zeros["head"]["kernel"], device)},
    }
    loaded = load_params(source, target)
    assert type(loaded["body"][0]["bias"]) is np.ndarray
    loaded["body"][0]["bias"][0] = 5  # writable, and its own
    assert loaded["head"]["kernel"].committed


@settings(max_examples=15)
@given(
    dtype=st.sampled_from(["bool", "int8", "uint32", "float16", "bfloat16", "float32"]),
    shape=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 9),
)
def test_a_file_gives_back_every_bit(tmp_path_factory, dtype, shape, seed):
    file = tmp_path_factory.mktemp("bits") / "params.safetensors"
    dtype = jnp.dtype(dtype)
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = np.random.default_rng(seed).integers(0, 2 if dtype.kind == "b" else 256, size, np.uint8)
    array = np.frombuffer(raw.tobytes(), dtype).reshape(shape)
    turned = np.array(array, order="F")  # such a file knows rows first alone
    export_params({"a/b": {"c": jnp.asarray(array)}, "d": [turned]}, file)
    like = {"a/b": {"c": jnp.zeros(shape, dtype)}, "d": [np.zeros(shape, dtype)]}
    loaded = load_params(file, like)
    assert np.asarray(loaded["a/b"]["c"]).tobytes() == array.tobytes()
    assert loaded["d"][0].tobytes() == array.tobytes()


def test_other_programs_read_the_file(params, tmp_path):
    from safetensors import safe_open

    export_params(params, tmp_path / "params.safetensors")
    with safe_open(tmp_path / "params.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "np", "writer": "entracte"}
        assert set(file.keys()) == {"body/0/kernel", "body/0/bias", "head/kernel"}
        assert np.array_equal(file.get_tensor("head/kernel"), np.full((3, 2), 2.0))
    from safetensors.numpy import save_file

    save_file({"body.0.kernel": np.ones((2, 3), np.float32)}, tmp_path / "dots.safetensors")
    target = {"body": [{"kernel": jnp.zeros((2, 3))}]}
    loaded = load_params(tmp_path / "dots.safetensors", target, rename={r"\.": "/"})
    assert loaded["body"][0]["kernel"].all()


def test_a_file_appears_at_once_or_the_old_one_stays(params, tmp_path, monkeypatch):
    import os

    file = tmp_path / "params.safetensors"
    export_params({"w": jnp.ones(2)}, file)
    before = file.read_bytes()

    def cut(*paths):
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(OSError, match="power cut"):
        export_params(params, file)
    assert file.read_bytes() == before


def test_what_a_file_cannot_hold_is_refused(tmp_path):
    file = tmp_path / "params.safetensors"
    odd = {"key": jax.random.key(0), "n": 3, "small": jnp.ones(2, jnp.float8_e4m3fn)}
    with pytest.raises(TypeError, match=r"(?s)key: key<fry>\[\].*n: int.*small: float8_e4m3fn"):
        export_params(odd, file)
    with pytest.raises(ValueError, match="share a path.*: a/b"):
        export_params({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, file)
    assert not file.exists()


def test_what_is_no_source_is_refused(zeros, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a run directory nor a safetensors file"):
        load_params(tmp_path / "nothing.safetensors", zeros)
    with pytest.raises(FileNotFoundError, match="there is no commit in"):
        load_params(tmp_path, zeros)
    (tmp_path / "torn.safetensors").write_bytes(b"torn" * 9)
    with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
        load_params(tmp_path / "torn.safetensors", zeros)
    with pytest.raises(ValueError, match="chooses among the commits of a run"):
        load_params(tmp_path / "torn.safetensors", zeros, best="val/loss")


def test_without_safetensors_it_says_what_to_install(zeros, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError) as raised:
        export_params(zeros, tmp_path / "params.safetensors")
    assert raised.value.__notes__ == ['safetensors files need: pip install "entracte[safetensors]"']


@pytest.mark.parametrize("kind", ["run", "file"])
def test_parameters_that_are_one_array(tmp_path, kind):
    source, wanted = tmp_path / f"{kind}.safetensors", jnp.arange(3.0)
    if kind == "file":
        export_params(wanted, source)
    else:
        with Checkpoints(source) as checkpoints:
            checkpoints.save(TrainState.create(params=wanted, rng=jax.random.key(0)))
    got = load_params(source, jnp.zeros(3))
    assert got.tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match=r"params: saved float32\[3\], wanted float32\[2\]"):
        load_params(source, jnp.zeros(2))
    with pytest.raises(ValueError, match="it has besides: params"):
        load_params(source, {"w": jnp.zeros(2)})
