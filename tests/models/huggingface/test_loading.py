"""Directories are read to dtypes and places, and refused where they do not fit."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

import models
import trainer
from models.huggingface.tensor_files import StoredTensor

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def change(tmp_path):
    """Return a function that copies a fixture, with changed settings and tensors."""

    def copy(name, tensors=lambda arrays: arrays, **settings):
        folder = tmp_path / name
        shutil.copytree(FIXTURES / name, folder)
        config = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(config))
        if (file := folder / "model.safetensors").exists():
            save_file(tensors(load_file(file)), file)
        return folder

    return copy


def test_kernels_are_transposed_and_cast():
    _, params = models.from_huggingface(FIXTURES / "qwen3", dtype=jnp.bfloat16)
    stored = load_file(FIXTURES / "qwen3" / "model.safetensors")
    for ours, theirs in (
        (params["blocks"]["1"]["down"]["kernel"], "model.layers.1.mlp.down_proj.weight"),
        (params["embed"]["embedding"].T, "model.embed_tokens.weight"),
    ):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_array_equal(ours, stored[theirs].T.astype(jnp.bfloat16))


def test_layers_are_stacked_for_a_scan():
    _, loop = models.from_huggingface(FIXTURES / "gpt2")
    _, scan = models.from_huggingface(FIXTURES / "gpt2", scan=True)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(loop["blocks"][str(n)] for n in range(2)))
    jax.tree.map(np.testing.assert_array_equal, scan, loop | {"blocks": stacked})


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_each_device_of_a_mesh_gets_its_part_and_no_value_is_copied_twice(monkeypatch, name):
    _, whole = models.from_huggingface(FIXTURES / name)
    read, original = [], StoredTensor.read_into

    def count(self, out, rows, columns, *, transposed):
        read.append(out.size)
        original(self, out, rows, columns, transposed=transposed)

    monkeypatch.setattr(StoredTensor, "read_into", count)
    mesh = trainer.mesh(data=2, model=4)
    rules = models.transformer_rules("fsdp+tensor")
    _, params = models.from_huggingface(FIXTURES / name, mesh=mesh, rules=rules)
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    assert params["blocks"]["0"]["up"]["kernel"].sharding.spec == PartitionSpec("data", "model")
    assert params["norm"]["scale"].sharding.is_fully_replicated
    assert sum(read) == sum(leaf.size for leaf in jax.tree.leaves(whole))


def test_parameters_without_a_mesh_may_follow_other_arrays():
    _, params = models.from_huggingface(FIXTURES / "llama2")
    elsewhere = jax.device_put(jnp.ones(16), jax.devices()[3])
    assert (params["norm"]["scale"] + elsewhere).devices() == {jax.devices()[3]}


def test_a_head_that_is_the_embedding_and_buffers_are_left_out(change):
    def add(arrays):
        tied = {"lm_head.weight": arrays["model.embed_tokens.weight"]}
        return arrays | tied | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4)}

    _, params = models.from_huggingface(change("llama3", add))
    assert "head" not in params


def test_a_head_that_is_not_the_embedding_is_refused(change):
    def add(arrays):
        return arrays | {"lm_head.weight": arrays["model.embed_tokens.weight"] + 1}

    with pytest.raises(ValueError, match="tie_word_embeddings is true.*set it to false"):
        models.from_huggingface(change("llama3", add))


def test_one_error_lists_tensors_that_are_missing_extra_or_misshapen(change):
    def spoil(arrays):
        del arrays["model.norm.weight"]
        name = "model.layers.1.mlp.up_proj.weight"
        bias = {"model.layers.1.mlp.up_proj.bias": np.ones(24, np.float32)}
        numbers = {"model.layers.0.mlp.up_proj.weight": np.ones((24, 16), np.int8)}
        return arrays | {name: arrays[name].T.copy()} | bias | numbers

    message = (
        r"(?s)missing: model.norm.weight.*not expected: model.layers.1.mlp.up_proj.bias.*"
        r"of another shape or dtype: model.layers.0.mlp.up_proj.weight is I8\[24, 16\], not "
        r"\[24, 16\] of F64.*model.layers.1.mlp.up_proj.weight is F32\[16, 24\], not \[24, 16\]"
    )
    with pytest.raises(ValueError, match=message):
        models.from_huggingface(change("mistral", spoil))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
        ({"num_hidden_layers": 3}, "missing: model.layers.2.*and 3 more"),
        ({"num_hidden_layers": 1000}, "has 1,000 layers, and the files beside it have 24 tensors"),
        ({"vocab_size": 97}, r"F32\[96, 16\], not \[97, 16\]"),
    ],
)
def test_a_configuration_of_other_sizes_is_refused(change, settings, message):
    with pytest.raises(ValueError, match=message):
        models.from_huggingface(change("qwen3", **settings))


def test_an_index_that_leads_elsewhere_is_refused(change):
    folder = change("llama2")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    name = "model.norm.weight"
    for place, message in (
        ("../other/model.safetensors", "must name .safetensors files beside it"),
        ("weights.bin", "must name .safetensors files beside it"),
        ("model-00003-of-00003.safetensors", "is missing, which"),
    ):
        changed = {"weight_map": index["weight_map"] | {name: place}}
        file.write_text(json.dumps(changed))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            models.from_huggingface(folder)
    file.write_text(
        json.dumps({"weight_map": index["weight_map"] | {"other": index["weight_map"][name]}})
    )
    with pytest.raises(ValueError, match="names tensors that the shards do not hold: other"):
        models.from_huggingface(folder)


def test_a_directory_of_pickles_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json does not exist; pass a directory"):
        models.from_huggingface(tmp_path)
    shutil.copy(FIXTURES / "gpt2" / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(FileNotFoundError, match="but pytorch_model.bin; weights in another form"):
        models.from_huggingface(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="must hold a JSON object"):
        models.from_huggingface(tmp_path)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="dtype must be one of float64, float32"):
        models.from_huggingface(FIXTURES / "gpt2", dtype=jnp.int8)
    with pytest.raises(ValueError, match="takes rules together with a mesh"):
        models.from_huggingface(FIXTURES / "gpt2", rules=models.transformer_rules("fsdp"))
