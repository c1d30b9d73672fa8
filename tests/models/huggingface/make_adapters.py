"""Make the adapters of `adapters`, with the logits that PEFT computes with them.

Run after `make_fixtures.py` in an environment with torch, transformers and peft, none of which the
tests need:

    python tests/models/huggingface/make_adapters.py

Each folder holds an adapter of the model of this name in `fixtures`, as PEFT saves it, and
`expected.npz`: the logits of the text in the `expected.npz` of the model.
"""

from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

FOLDER = Path(__file__).parent
CONFIGS = {
    "qwen2": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"down_proj": 3},
        "alpha_pattern": {"down_proj": 5},
        "use_rslora": True,
    },
    "gpt2": {"target_modules": ["c_attn", "attn.c_proj"], "fan_in_fan_out": True},
}


def main() -> None:
    """Write the folders."""
    for name, settings in CONFIGS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(FOLDER / "fixtures" / name)
        config = LoraConfig(
            r=2, lora_alpha=3, init_lora_weights=False, task_type="CAUSAL_LM", **settings
        )
        adapted = get_peft_model(model, config).eval()
        with np.load(FOLDER / "fixtures" / name / "expected.npz") as expected:
            text = torch.from_numpy(expected["text"]).long()
        with torch.no_grad():
            logits = adapted(text).logits.numpy()
        folder = FOLDER / "adapters" / name
        adapted.peft_config["default"].base_model_name_or_path = name
        adapted.save_pretrained(folder)
        (folder / "README.md").unlink()
        np.savez_compressed(folder / "expected.npz", text_logits=logits)


if __name__ == "__main__":
    main()
