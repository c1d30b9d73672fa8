"""Directories that are written hold the bits that were read."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import models
from models.huggingface.configs import read_config

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FIXTURES = Path(__file__).parent / "fixtures"
FAMILIES = sorted(folder.name for folder in FIXTURES.iterdir())


def tensors(folder):
    return {
        name: array
        for file in sorted(folder.glob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_round_trip_gives_the_same_bits_and_settings(tmp_path, name, scan):
    network, params = models.from_huggingface(FIXTURES / name, scan=scan)
    models.to_huggingface(network, params, tmp_path, like=FIXTURES / name)
    before, after = tensors(FIXTURES / name), tensors(tmp_path)
    if name == "gpt2":  # as on the hub: without a prefix, and with masks
        before = {f"transformer.{key}": x for key, x in before.items() if x.ndim < 4}
    assert before.keys() == after.keys()
    for key, array in before.items():
        assert (array.dtype, array.shape) == (after[key].dtype, after[key].shape)
        assert array.tobytes() == after[key].tobytes(), key
    again, same = models.from_huggingface(tmp_path, scan=scan)
    assert again.settings == network.settings
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert config(tmp_path)["eos_token_id"] == config(FIXTURES / name)["eos_token_id"]


def llama(**changes):
    fields = {"gated": True, "activation": "silu", "embedding_scale": 1.0, "kv_heads": 1} | changes
    return models.transformer(
        vocabulary=5,
        context=8,
        layers=1,
        heads=2,
        width=8,
        architecture=models.Architecture(**fields),
    )


def draw(network):
    """Parameters, without compiling `init`."""
    random = np.random.default_rng(0)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0), tokens)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), shapes)


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({}, "llama"),
        ({"window": 4}, "mistral"),
        ({"attention_bias": True}, "qwen2"),
        ({"qk_norm": True}, "qwen3"),
    ],
)
def test_the_family_is_the_first_that_has_such_networks(tmp_path, changes, family):
    network = llama(**changes)
    params = draw(network)
    models.to_huggingface(network, params, tmp_path)
    assert config(tmp_path)["model_type"] == family
    again, same = models.from_huggingface(tmp_path)
    assert again.settings == network.settings
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_what_no_family_has_is_refused(tmp_path):
    network = models.transformer(vocabulary=5, context=8, layers=1, heads=2, width=8)
    with pytest.raises(
        ValueError, match=r"(?s)no family has such networks:.*llama: gated is False"
    ):
        models.to_huggingface(network, draw(network), tmp_path)
    network = llama(window=4)
    with pytest.raises(
        ValueError, match="the family has no such networks:\n  llama: window is 4, not None"
    ):
        models.to_huggingface(network, draw(network), tmp_path, family="llama")
    with pytest.raises(ValueError, match="family must be one of llama, mistral"):
        models.to_huggingface(network, draw(network), tmp_path, family="bert")
    mlp = models.mlp()
    with pytest.raises(TypeError, match="takes a network of models.transformer"):
        models.to_huggingface(mlp, {}, tmp_path)
    adapted = models.lora(llama(), draw(llama()), rank=1)
    with pytest.raises(TypeError, match="takes a network without adapters, and merged param"):
        models.to_huggingface(adapted, {}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_written_as_it_is(tmp_path):
    network = llama()
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw(network))
    models.to_huggingface(network, params, tmp_path)
    assert config(tmp_path)["torch_dtype"] == "bfloat16"
    _, same = models.from_huggingface(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(same)} == {jnp.dtype(jnp.bfloat16)}


def test_a_directory_with_weights_and_other_parameters_are_refused(tmp_path):
    network = llama()
    params = draw(network)
    models.to_huggingface(network, params, tmp_path / "one")
    with pytest.raises(FileExistsError, match="holds config.json, model.safetensors"):
        models.to_huggingface(network, params, tmp_path / "one")
    with pytest.raises(ValueError, match="params: the arrays do not fit"):
        models.to_huggingface(network, params | {"head": params["norm"]}, tmp_path / "two")
    params["norm"]["scale"] = params["norm"]["scale"].astype(jnp.int32)
    with pytest.raises(TypeError, match=r"model.norm.weight is int32; cast it"):
        models.to_huggingface(network, params, tmp_path / "two")
    assert not list((tmp_path / "two").iterdir())


def test_tokenizer_and_template_come_along(tmp_path):
    network, params = models.from_huggingface(FIXTURES / "llama2")
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "pytorch_model.bin"):
        (tmp_path / name).write_text('{"model_type": "llama", "pad_token_id": 7}')
    models.to_huggingface(network, params, tmp_path / "to", like=tmp_path)
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert config(tmp_path / "to")["pad_token_id"] == 7
    read_config(config(tmp_path / "to"))
