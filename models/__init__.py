"""Networks as two pure functions: adapters for other libraries, and some bundled networks."""

from models.actor_critic import ActorCritic, actor_critic
from models.cnn import cnn
from models.fine_tuning.lora import lora, merge_lora
from models.fine_tuning.pretrained import pretrained
from models.fine_tuning.reference_logits import with_reference
from models.huggingface.adapter_files import from_peft, to_peft
from models.huggingface.loading import from_huggingface
from models.huggingface.writing import to_huggingface
from models.language.architecture import Architecture
from models.language.captioner import captioner
from models.language.decoding import Decoder
from models.language.generating import generate
from models.language.rotary import LinearScaling, Llama3Scaling
from models.language.sampling import Sampled
from models.language.transformer import transformer
from models.linen import from_linen
from models.mlp import mlp
from models.network import Network
from models.nnx import from_nnx
from models.rematerialising import remat
from models.resnet import resnet
from models.sharding import transformer_rules

__all__ = [
    "ActorCritic",
    "Architecture",
    "Decoder",
    "LinearScaling",
    "Llama3Scaling",
    "Network",
    "Sampled",
    "actor_critic",
    "captioner",
    "cnn",
    "from_huggingface",
    "from_linen",
    "from_nnx",
    "from_peft",
    "generate",
    "lora",
    "merge_lora",
    "mlp",
    "pretrained",
    "remat",
    "resnet",
    "to_huggingface",
    "to_peft",
    "transformer",
    "transformer_rules",
    "with_reference",
]
