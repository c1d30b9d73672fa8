"""Sources of data: arrays on the device; streams, files and conversations on the host."""

from trainer.data import augmentation
from trainer.data.arrays import Arrays
from trainer.data.conversations.chat import chat
from trainer.data.conversations.conversation_source import Conversations
from trainer.data.conversations.opening_tokenizers import open_tokenizer
from trainer.data.conversations.preference_pairs import preferences
from trainer.data.conversations.text_tokenizer import TextTokenizer
from trainer.data.digits import digits
from trainer.data.grain_streams import from_grain
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
    "MemoryMap",
    "Source",
    "Stream",
    "TextTokenizer",
    "Tokens",
    "augmentation",
    "chat",
    "digits",
    "from_grain",
    "mixture",
    "open_tokenizer",
    "pack_tokens",
    "preferences",
    "zip_sources",
]
