"""Sources of data: arrays on the device; streams, files and conversations on the host."""

from trainer.data import augmentation
from trainer.data.adapters.data_frames import from_pandas
from trainer.data.adapters.grain_streams import from_grain
from trainer.data.adapters.hub_datasets import from_datasets
from trainer.data.adapters.image_folders import image_folder
from trainer.data.adapters.indexed_source import IndexedSource
from trainer.data.adapters.tar_shards import tar_shards
from trainer.data.adapters.tf_datasets import from_tf
from trainer.data.adapters.torch_loaders import from_torch
from trainer.data.arrays import Arrays
from trainer.data.conversations.chat import chat
from trainer.data.conversations.conversation_source import Conversations
from trainer.data.conversations.opening_tokenizers import open_tokenizer
from trainer.data.conversations.preference_pairs import preferences
from trainer.data.conversations.text_tokenizer import TextTokenizer
from trainer.data.digits import digits
from trainer.data.memory_map import MemoryMap
from trainer.data.mixing import mixture
from trainer.data.packing import pack_tokens
from trainer.data.source import Feed, Source
from trainer.data.streams import Stream
from trainer.data.tokens import Tokens
from trainer.data.zipping import zip_sources

__all__ = [
    "Arrays",
    "Conversations",
    "Feed",
    "IndexedSource",
    "MemoryMap",
    "Source",
    "Stream",
    "TextTokenizer",
    "Tokens",
    "augmentation",
    "chat",
    "digits",
    "from_datasets",
    "from_grain",
    "from_pandas",
    "from_tf",
    "from_torch",
    "image_folder",
    "mixture",
    "open_tokenizer",
    "pack_tokens",
    "preferences",
    "tar_shards",
    "zip_sources",
]
