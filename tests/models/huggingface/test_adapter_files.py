"""Adapters in PEFT's files compute what PEFT computes with them, and keep their bits."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FOLDER = Path(__file__).parent
NAMES = sorted(folder.name for folder in (FOLDER / "adapters").iterdir())


@functools.cache
def read(name, *, scan=False):
    """A network without adapters, its parameters, and a text."""
    with np.load(FOLDER / "fixtures" / name / "expected.npz") as file:
        text = file["text"]
    return *models.from_huggingface(FOLDER / "fixtures" / name, scan=scan), text


def compute(network, params, model_state, text):
    apply = jax.jit(functools.partial(network.apply, key=None, train=False))
    return np.asarray(apply(params, model_state, text)[0])


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_peft_and_survive_a_round_trip(name, tmp_path):
    network, params, text = read(name, scan=name == "gpt2")
    adapted, adapters = models.from_peft(FOLDER / "adapters" / name, network, params)
    found = compute(adapted, adapters, {"base": params}, text)
    with np.load(FOLDER / "adapters" / name / "expected.npz") as file:
        wanted = file["text_logits"]
    with np.load(FOLDER / "fixtures" / name / "expected.npz") as file:
        without = file["text_logits"]
    assert np.abs(wanted - without).max() > 0.1
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=0)
    models.to_peft(adapted, adapters, tmp_path, family=name)
    again, same = models.from_peft(tmp_path, network, params)
    assert again.lora.scale == pytest.approx(adapted.lora.scale)
    for one, other in zip(*map(jax.tree.leaves, (adapters, same)), strict=True):
        np.testing.assert_array_equal(one, other)
    init = jax.eval_shape(again.init, jax.random.key(0), text)
    assert jax.tree.structure(init) == jax.tree.structure((adapters, {"base": params}))


@pytest.mark.parametrize("targets", [("query", "value"), ("attention",)])
def test_adapters_of_a_fused_module_add_up_their_ranks(targets, tmp_path):
    network, params, text = read("gpt2", scan=True)
    adapted = models.lora(network, params, rank=2, targets=targets)
    adapters, model_state = adapted.init(jax.random.key(0), text)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    models.to_peft(adapted, adapters, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    rank = 2 * (2 if "query" in targets else 3)
    assert set(config["rank_pattern"].values()) == {rank}
    assert (
        config["target_modules"] == ["c_attn"] if "query" in targets else ["attn.c_proj", "c_attn"]
    )
    again, read_back = models.from_peft(tmp_path, network, params)
    wanted = compute(adapted, adapters, model_state, text)
    found = compute(again, read_back, {"base": params}, text)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_live_peft_computes_what_was_trained_here(tmp_path):
    """Where it is installed."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    network, params, text = read("qwen2")
    adapted = models.lora(network, params, rank=2, targets=("query", "blocks/1/up"))
    adapters, model_state = adapted.init(jax.random.key(0), text)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    models.to_peft(adapted, adapters, tmp_path, family="qwen2")
    base = transformers.AutoModelForCausalLM.from_pretrained(FOLDER / "fixtures" / "qwen2")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        logits = loaded(torch.from_numpy(text).long()).logits.numpy()
    np.testing.assert_allclose(
        compute(adapted, adapters, model_state, text), logits, atol=1e-4, rtol=0
    )


def copy(tmp_path, **changes):
    """Copy the adapter of qwen2, with other settings."""
    source = FOLDER / "adapters" / "qwen2"
    config = json.loads((source / "adapter_config.json").read_text()) | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    weights = (source / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type must be one of 'LORA'; got 'IA3'"),
        ({"use_dora": True}, "use_dora is not understood; got True"),
        ({"bias": "all", "modules_to_save": ["x"]}, r"bias must .*modules_to_save is not"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must be one of"),
        ({"lora_alpha": 0}, "lora_alpha must be a number above 0; got 0"),
        ({"alpha_pattern": {"down_proj": None}}, "down_proj must be a number above 0"),
    ],
)
def test_adapters_of_other_kinds_are_refused(tmp_path, changes, said):
    network, params, _ = read("qwen2")
    with pytest.raises(ValueError, match=f"adapter_config.json: .*{said}"):
        models.from_peft(copy(tmp_path, **changes), network, params)


def test_files_and_networks_that_do_not_fit_are_refused(tmp_path):
    network, params, text = read("qwen2")
    other, others, _ = read("gpt2", scan=True)
    with pytest.raises(ValueError, match=r"does not fit the network: base_model.* is not expected"):
        models.from_peft(FOLDER / "adapters" / "qwen2", other, others)
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        models.from_peft(tmp_path, network, params)
    with pytest.raises(TypeError, match="from_peft takes a network of models.transformer"):
        models.from_peft(FOLDER / "adapters" / "qwen2", models.mlp(), params)
    with pytest.raises(TypeError, match="to_peft takes a network that models.lora made"):
        models.to_peft(network, params, tmp_path)
    adapted = models.lora(network, params, rank=2, targets=("query",))
    adapters, _ = adapted.init(jax.random.key(0), text)
    with pytest.raises(FileExistsError, match="holds adapter_config.json, adapter_model"):
        models.to_peft(adapted, adapters, copy(tmp_path))
