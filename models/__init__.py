"""Networks as two pure functions, made of any library's modules, and some bundled ones."""

from models.cnn import cnn
from models.linen import from_linen
from models.mlp import mlp
from models.network import Network
from models.nnx import from_nnx

__all__ = ["Network", "cnn", "from_linen", "from_nnx", "mlp"]
