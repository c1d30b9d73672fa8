"""Parameters by path: from runs and files, all or some, bit for bit."""

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


@pytest.fixture(params=["run", "safetensors", "npz"])
def source(request, params, tmp_path):
    """The same parameters as a run and as files."""
    if request.param != "run":
        export_params(params, tmp_path / f"params.{request.param}")
        return tmp_path / f"params.{request.param}"
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


def test_all_parameters_are_loaded(source, params, zeros):
    loaded = load_params(source, zeros)
    assert equal(loaded, params)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))


def test_only_some_are_loaded_and_the_others_stay_the_same_objects(source, params, zeros, caplog):
    caplog.set_level(logging.INFO, "entracte")
    loaded = load_params(source, zeros, only="^body/.*kernel")
    assert equal(loaded["body"][0]["kernel"], params["body"][0]["kernel"])
    assert loaded["head"]["kernel"] is zeros["head"]["kernel"]
    assert loaded["body"][0]["bias"] is zeros["body"][0]["bias"]
    assert "loaded 1 of 3 parameters from" in caplog.text
    assert "unchanged: body/0/bias, head/kernel; not used: body/0/bias, head/kernel" in (
        caplog.text
    )


def test_paths_of_the_source_are_renamed_in_order(source, params):
    target = {"trunk": {"first": {"kernel": jnp.zeros((2, 3))}}}
    loaded = load_params(source, target, rename={"^body/": "trunk/", "/0/": "/first/"})
    assert equal(loaded["trunk"]["first"]["kernel"], params["body"][0]["kernel"])
    with pytest.raises(ValueError, match="rename gives two leaves of .* the path 'same'"):
        load_params(source, target, rename={".*kernel": "same"})


def test_the_error_lists_every_leaf_that_does_not_fit(source, params):
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
    assert "select leaves with only=" in str(raised.value)
    assert equal(load_params(source, target, only="head/kernel")["head"]["kernel"],
                 params["head"]["kernel"])  # fmt: skip


def test_a_pattern_that_matches_nothing_lists_the_paths(source, zeros):
    with pytest.raises(ValueError, match="only='tail' matches no path.*body/0/bias"):
        load_params(source, zeros, only="tail")


def test_floats_are_cast_with_a_warning(source, params, zeros, caplog):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), zeros)
    loaded = load_params(source, half)
    assert equal(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    assert caplog.messages[0] == "cast float32 to bfloat16: body/0/bias, body/0/kernel, head/kernel"
    assert caplog.records[0].levelno == logging.WARNING


def test_a_value_that_would_become_infinite_is_an_error(tmp_path):
    file = tmp_path / "large.safetensors"
    export_params({"w": jnp.array([1e6, 1.0, jnp.inf])}, file)
    with pytest.raises(ValueError, match="w: 1 of its 3 values, saved as float32, are too large"):
        load_params(file, {"w": jnp.zeros(3, jnp.float16)})
    loaded = load_params(file, {"w": jnp.zeros(3, jnp.bfloat16)})["w"]
    assert loaded.tolist() == [999424.0, 1.0, float("inf")]


def test_the_best_checkpoint_of_a_run_is_loaded_on_request(tmp_path, zeros):
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


def test_loaded_parameters_can_be_donated_and_trained(start, train, tmp_path):
    first, _ = trainer.fit(start, train, epochs=1, hooks=hooks.save_checkpoints(tmp_path))
    tuned = start.replace(params=load_params(tmp_path, start.params))
    assert equal(tuned.params, first.params)
    trainer.fit(tuned, train, epochs=1)
    jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(tuned.params)
    assert tuned.params["w"].is_deleted()


def test_leaves_stay_in_numpy_or_on_their_device(source, zeros):
    device = jax.devices()[0]
    target = {
        **jax.tree.map(np.asarray, zeros),
        "head": {"kernel": jax.device_put(zeros["head"]["kernel"], device)},
    }
    loaded = load_params(source, target)
    assert type(loaded["body"][0]["bias"]) is np.ndarray
    loaded["body"][0]["bias"][0] = 5  # writable, and its own
    assert loaded["head"]["kernel"].committed


def test_leaves_can_be_transformed(source, params, caplog):
    target = {
        "body": [{"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(3)}],
        "head": {"kernel": jnp.zeros((2, 3))},
    }
    turn = {"kernel$": np.transpose, "^head/": lambda array: 2 * array}
    loaded = load_params(source, target, transform=turn)
    assert equal(loaded["body"][0]["kernel"], params["body"][0]["kernel"].T)
    assert equal(loaded["body"][0]["bias"], params["body"][0]["bias"])
    assert equal(loaded["head"]["kernel"], 2 * params["head"]["kernel"].T)
    fits = r"head/kernel: .*; its transpose fits: transform=\{'head/kernel': np.transpose\}"
    with pytest.raises(ValueError, match=fits):
        load_params(source, target)
    with pytest.raises(ValueError, match="transform names 'kernal', which matches no path that"):
        load_params(source, target, transform={"kernal": np.transpose})
    with pytest.raises(ValueError, match="axes") as raised:
        load_params(source, target, transform={"bias": lambda array: array.transpose(1, 0)})
    assert raised.value.__notes__ == ["in transform['bias'] of body/0/bias, float32[3]"]


def test_a_square_matrix_of_torch_is_loaded_with_a_warning(tmp_path, caplog):
    from safetensors.numpy import save_file

    weight = np.arange(4, dtype=np.float32).reshape(2, 2)
    save_file({"fc.weight": weight, "fc.bias": weight[0]}, tmp_path / "torch.safetensors")
    target = {"fc": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
    rename = {r"\.": "/", "weight$": "kernel"}
    load_params(tmp_path / "torch.safetensors", target, rename=rename)
    assert "fc/kernel: square, and named weight in the source" in caplog.text
    caplog.clear()
    turn = {"kernel$": np.transpose}
    loaded = load_params(tmp_path / "torch.safetensors", target, rename=rename, transform=turn)
    assert equal(loaded["fc"]["kernel"], weight.T)
    assert "square, and named" not in caplog.text


def test_batch_statistics_are_loaded_separately(params, zeros, tmp_path, caplog):
    caplog.set_level(logging.INFO, "entracte")
    statistics = {"norm": {"mean": jnp.arange(3.0)}}
    state = TrainState.create(params=params, model_state=statistics, rng=jax.random.key(0))
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(state)
    load_params(tmp_path / "run", zeros)
    assert "its model_state is loaded with part='model_state'" in caplog.text
    caplog.clear()
    empty = jax.tree.map(jnp.zeros_like, statistics)
    assert equal(load_params(tmp_path / "run", empty, part="model_state"), statistics)
    assert "its model_state" not in caplog.text
    with pytest.raises(ValueError, match="part must be params or model_state; got 'modelstate'"):
        load_params(tmp_path / "run", empty, part="modelstate")
    with pytest.raises(ValueError, match="nothing to load into: model_state has no arrays"):
        load_params(tmp_path / "run", {}, part="model_state")
    both = {"params": params, "model_state": statistics}
    export_params(both, tmp_path / "both.npz")
    assert equal(load_params(tmp_path / "both.npz", both), both)
    with pytest.raises(ValueError, match="part='model_state' selects within a run"):
        load_params(tmp_path / "both.npz", statistics, part="model_state")


def test_npz_files_are_exchanged_with_numpy(params, tmp_path):
    export_params({**params, "file": jnp.ones(2)}, tmp_path / "params.npz")
    with np.load(tmp_path / "params.npz") as archive:
        assert sorted(archive) == ["body/0/bias", "body/0/kernel", "file", "head/kernel"]
        assert np.array_equal(archive["head/kernel"], np.full((3, 2), 2.0))
    np.savez_compressed(tmp_path / "other.npz", w=np.arange(3, dtype=np.float32))
    loaded = load_params(tmp_path / "other.npz", {"w": jnp.zeros(3)})
    assert loaded["w"].tolist() == [0, 1, 2]
    np.savez(tmp_path / "pickled.npz", w=np.array([{}]))
    with pytest.raises(ValueError, match="cannot be read as a npz file: .*allow_pickle=False"):
        load_params(tmp_path / "pickled.npz", {"w": jnp.zeros(1)})


@pytest.mark.parametrize("name", ["params", "params.bin", "params.pt", "params.json"])
def test_the_suffix_determines_the_kind_of_file(params, zeros, tmp_path, name):
    with pytest.raises(
        ValueError, match=r"a .safetensors or a .npz file, by its suffix; got params"
    ):
        export_params(params, tmp_path / name)
    assert not (tmp_path / name).exists()
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(ValueError, match="by its suffix") as raised:
        load_params(tmp_path / name, zeros)
    torch = 'safetensors.torch.save_file(model.state_dict(), "params.safetensors")'
    assert (torch in str(raised.value)) == (name in ("params.bin", "params.pt"))


def test_only_safetensors_holds_bfloat16(tmp_path):
    with pytest.raises(
        TypeError, match=r"(?s)a .npz file.*w: bfloat16.*.safetensors file holds bf"
    ):
        export_params({"w": jnp.ones(2, jnp.bfloat16)}, tmp_path / "params.npz")
    assert not list(tmp_path.iterdir())


@settings(max_examples=15)
@given(
    dtype=st.sampled_from(["bool", "int8", "uint32", "float16", "bfloat16", "float32"]),
    shape=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 9),
)
def test_a_file_keeps_every_bit(tmp_path_factory, dtype, shape, seed):
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


def test_a_file_appears_complete_or_the_old_one_stays(params, tmp_path, monkeypatch):
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


def test_unsupported_types_and_paths_are_errors(tmp_path):
    file = tmp_path / "params.safetensors"
    odd = {"key": jax.random.key(0), "n": 3, "small": jnp.ones(2, jnp.float8_e4m3fn)}
    with pytest.raises(TypeError, match=r"(?s)key: key<fry>\[\].*n: int.*small: float8_e4m3fn"):
        export_params(odd, file)
    with pytest.raises(ValueError, match="share a path.*: a/b"):
        export_params({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, file)
    assert not file.exists()


def test_missing_and_damaged_sources_are_errors(zeros, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a run directory nor a file of parameters"):
        load_params(tmp_path / "nothing.safetensors", zeros)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        load_params(tmp_path, zeros)
    (tmp_path / "torn.safetensors").write_bytes(b"torn" * 9)
    with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
        load_params(tmp_path / "torn.safetensors", zeros)
    with pytest.raises(ValueError, match="best='val/loss' selects within a run"):
        load_params(tmp_path / "torn.safetensors", zeros, best="val/loss")


def test_without_safetensors_the_error_names_the_extra(zeros, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError) as raised:
        export_params(zeros, tmp_path / "params.safetensors")
    assert 'pip install "entracte[safetensors]"' in raised.value.__notes__[0]


@pytest.mark.parametrize("kind", ["run", "file"])
def test_parameters_may_be_a_single_array(tmp_path, kind):
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
    with pytest.raises(ValueError, match="the source also has: params"):
        load_params(source, {"w": jnp.zeros(2)})
