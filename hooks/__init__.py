"""Everything that is not training, as functions `(state, metrics) -> state` between epochs."""

from hooks.averaging import average_params
from hooks.base import observe, reads, stateful, writes
from hooks.checkpoint import save_checkpoints
from hooks.combining import chain, every, every_steps, on, once, when
from hooks.evaluation import evaluate
from hooks.failing import background, guard
from hooks.stopping import stop_early, stop_on_nan
from trainer import Hook

__all__ = [
    "Hook",
    "average_params",
    "background",
    "chain",
    "evaluate",
    "every",
    "every_steps",
    "guard",
    "observe",
    "on",
    "once",
    "reads",
    "save_checkpoints",
    "stateful",
    "stop_early",
    "stop_on_nan",
    "when",
    "writes",
]
