"""Everything that is not training, as functions `(state, metrics) -> state` between epochs."""

from hooks.averaging import average_params
from hooks.base import observe, reads, stateful, writes
from hooks.checkpoint import save_checkpoints
from hooks.combining import chain, every, every_steps, on, once, when
from hooks.console import Console
from hooks.evaluation import evaluate
from hooks.failing import background, guard
from hooks.metrics import log_metrics
from hooks.monitoring import beat, watch_system
from hooks.rolling_back import roll_back_on_nan, roll_back_on_spike
from hooks.stopping import stop_early, stop_on_nan
from hooks.tensorboard import TensorBoard
from hooks.writers import Histogram, Image, JsonLines, Progress, Text, Trace, Writer
from trainer import Hook

__all__ = [
    "Console",
    "Histogram",
    "Hook",
    "Image",
    "JsonLines",
    "Progress",
    "TensorBoard",
    "Text",
    "Trace",
    "Writer",
    "average_params",
    "background",
    "beat",
    "chain",
    "evaluate",
    "every",
    "every_steps",
    "guard",
    "log_metrics",
    "observe",
    "on",
    "once",
    "reads",
    "roll_back_on_nan",
    "roll_back_on_spike",
    "save_checkpoints",
    "stateful",
    "stop_early",
    "stop_on_nan",
    "watch_system",
    "when",
    "writes",
]
