"""Everything that is not training, as functions `(state, metrics) -> state` between epochs."""

# ruff: noqa: E402 - before anything of `trainer` is imported, that it is the one that is meant
from hooks.origin import require_beside

require_beside("trainer")

from hooks.averaging import average_params, swa
from hooks.base import observe, reads, rekeys, stateful, writes
from hooks.checkpoint import save_checkpoints
from hooks.collecting import collect_scores
from hooks.combining import chain, every, every_steps, on, once, when
from hooks.configuration import configured, configured_writers, from_config, write_config
from hooks.console import Console
from hooks.curriculum import adapt_curriculum
from hooks.database import Database
from hooks.evaluation import evaluate
from hooks.failing import background, guard
from hooks.following import follow_checkpoints
from hooks.gradients import watch_gradients
from hooks.keeping_best import keep_best
from hooks.learning_rates import find_learning_rate
from hooks.metrics import log_metrics
from hooks.mlflow import MLflow
from hooks.monitoring import beat, watch_system
from hooks.plotting import plot_history
from hooks.populations import each
from hooks.profiling import profile
from hooks.recalibrating import recalibrate
from hooks.recording import image_grid, record
from hooks.replay_files import load_replay
from hooks.replaying import replay
from hooks.replays import record_replays
from hooks.report import write_report
from hooks.requesting import request_evaluation
from hooks.rolling_back import roll_back_on_nan, roll_back_on_spike
from hooks.schedules import reduce_on_plateau, set_hyperparams
from hooks.stopping import stop_at_return, stop_early, stop_on_nan, time_limit
from hooks.tensorboard import TensorBoard
from hooks.timing import record_times
from hooks.unfreezing import unfreeze_at
from hooks.wandb import WandB
from hooks.weighing_lessons import learning_progress, thresholds
from hooks.writers import Histogram, Image, JsonLines, Progress, Text, Trace, Video, Writer
from trainer import Hook

__all__ = [
    "Console",
    "Database",
    "Histogram",
    "Hook",
    "Image",
    "JsonLines",
    "MLflow",
    "Progress",
    "TensorBoard",
    "Text",
    "Trace",
    "Video",
    "WandB",
    "Writer",
    "adapt_curriculum",
    "average_params",
    "background",
    "beat",
    "chain",
    "collect_scores",
    "configured",
    "configured_writers",
    "each",
    "evaluate",
    "every",
    "every_steps",
    "find_learning_rate",
    "follow_checkpoints",
    "from_config",
    "guard",
    "image_grid",
    "keep_best",
    "learning_progress",
    "load_replay",
    "log_metrics",
    "observe",
    "on",
    "once",
    "plot_history",
    "profile",
    "reads",
    "recalibrate",
    "record",
    "record_replays",
    "record_times",
    "reduce_on_plateau",
    "rekeys",
    "replay",
    "request_evaluation",
    "roll_back_on_nan",
    "roll_back_on_spike",
    "save_checkpoints",
    "set_hyperparams",
    "stateful",
    "stop_at_return",
    "stop_early",
    "stop_on_nan",
    "swa",
    "thresholds",
    "time_limit",
    "unfreeze_at",
    "watch_gradients",
    "watch_system",
    "when",
    "write_config",
    "write_report",
    "writes",
]
