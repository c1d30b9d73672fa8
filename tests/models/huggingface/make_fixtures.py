"""Make the tiny random models of `fixtures`, with the results that transformers computes for them.

Run in an environment with torch, transformers and safetensors, none of which the tests need:

    python tests/models/huggingface/make_fixtures.py

Each folder is a directory as transformers saves it, or as it lies on the hub, and `expected.npz`:
a text past every window and its logits, two prompts of different lengths padded on the left and
their logits, and the tokens that follow them, the likeliest each.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

FOLDER = Path(__file__).parent / "fixtures"
VOCABULARY, TEXT, PROMPTS, NEW = 96, 20, (5, 9), 8
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TWO_HEADS = SIZES | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CONFIGS = {
    "llama2": transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 4}),
    "llama3": transformers.LlamaConfig(
        **TWO_HEADS | {"max_position_embeddings": 256},
        tie_word_embeddings=True,
        rope_parameters={"rope_theta": 500.0, **LLAMA3_ROPE},
    ),
    "mistral": transformers.MistralConfig(**SIZES, head_dim=6, sliding_window=6),
    "qwen2": transformers.Qwen2Config(**SIZES, rope_parameters={"rope_theta": 1e6}),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
    "gemma2": transformers.Gemma2Config(
        **TWO_HEADS | {"num_hidden_layers": 4},
        sliding_window=6,
        query_pre_attn_scalar=12,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=4.0,
    ),
    "gemma3": transformers.Gemma3TextConfig(
        **TWO_HEADS | {"num_hidden_layers": 6},
        sliding_window=5,
        query_pre_attn_scalar=12,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=4,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    ),
}

OLD_FORM = {
    "llama3": {"rope_theta": 500.0, "rope_scaling": LLAMA3_ROPE},
    "mistral": {"rope_theta": 10000.0},
    "gemma3": {
        "rope_theta": 1e6,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 6,
    },
}
"""Settings as transformers 4 wrote them, which most directories on the hub still have."""


def randomise(model: torch.nn.Module) -> None:
    """Draw every weight anew, norms and biases too, so that each matters to the logits."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim == 1:
            centre = weight.detach() if "norm" in name or "ln_" in name else 0.0
            weight.data = centre + 0.3 * noise
        else:
            weight.data = noise * (0.7 if "emb" in name or "wte" in name else 0.35)


def rewrite(folder: Path, family: str) -> None:
    """Turn what transformers saved into what lies on the hub."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if family in OLD_FORM:
        for key in ("rope_parameters", "layer_types"):
            config.pop(key, None)
        config |= OLD_FORM[family] | {"torch_dtype": config.pop("dtype")}
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    if family == "gpt2":  # the hub's has no prefix, and keeps the masks of its layers
        weights = load_file(folder / "model.safetensors")
        weights = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
        mask = torch.ones(32, 32, dtype=torch.uint8).tril()[None, None]
        weights |= {f"h.{layer}.attn.bias": mask.clone() for layer in range(2)}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "generation_config.json").unlink()


@torch.no_grad()
def compute(folder: Path) -> dict[str, np.ndarray]:
    """Compute what the model in a directory says of a text and of padded prompts."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None  # every text has the same length
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(1, VOCABULARY, (1, TEXT), generator=generator)
    longest = max(PROMPTS)
    mask = torch.stack([torch.arange(longest) >= longest - length for length in PROMPTS]).int()
    prompts = torch.randint(1, VOCABULARY, (len(PROMPTS), longest), generator=generator) * mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    written = model.generate(
        prompts,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=NEW,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    margins = torch.stack([logits.topk(2).values.diff().abs() for logits in written.logits])
    assert margins.min() > 2e-3, f"{folder.name}: the likeliest token is not clear, {margins.min()}"
    return {
        "text": text.numpy().astype(np.int32),
        "text_logits": model(text).logits.numpy(),
        "prompts": prompts.numpy().astype(np.int32),
        "mask": mask.numpy().astype(bool),
        "prompt_logits": model(prompts, attention_mask=mask, position_ids=positions).logits.numpy(),
        "written": written.sequences[:, longest:].numpy().astype(np.int32),
    }


def main() -> None:
    """Make all of them."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for family, config in CONFIGS.items():
        folder = FOLDER / family
        model = AutoModelForCausalLM.from_config(config)
        randomise(model)
        # One of them in shards, with their index.
        model.save_pretrained(folder, max_shard_size="20KB" if family == "llama2" else "1GB")
        rewrite(folder, family)
        np.savez_compressed(folder / "expected.npz", **compute(folder))
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{family:8} {size:7,} bytes {sorted(file.name for file in folder.iterdir())}")


if __name__ == "__main__":
    main()
