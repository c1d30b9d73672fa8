"""Sources of data: arrays on the device, streams from the host, and digits to try things on."""

from trainer.data.arrays import Arrays
from trainer.data.digits import digits
from trainer.data.feed import Feed, Source
from trainer.data.streams import Stream

__all__ = ["Arrays", "Feed", "Source", "Stream", "digits"]
