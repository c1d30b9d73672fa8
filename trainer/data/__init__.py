"""Sources of data: arrays on the device, streams and files on the host, and example digits."""

from trainer.data import augmentation
from trainer.data.arrays import Arrays
from trainer.data.digits import digits
from trainer.data.grain_streams import from_grain
from trainer.data.memory_map import MemoryMap
from trainer.data.packing import pack_tokens
from trainer.data.source import Feed, Source
from trainer.data.streams import Stream
from trainer.data.tokens import Tokens
from trainer.data.zipping import zip_sources

__all__ = [
    "Arrays",
    "Feed",
    "MemoryMap",
    "Source",
    "Stream",
    "Tokens",
    "augmentation",
    "digits",
    "from_grain",
    "pack_tokens",
    "zip_sources",
]
