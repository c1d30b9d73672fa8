"""Everything besides training, as functions `(state, metrics) -> state` between epochs."""

# ruff: noqa: E402 - check that `trainer` is ours before anything of it is imported
from hooks.origin import check_package_origin

check_package_origin("trainer")

from hooks.backtesting.rerun import backtest
from hooks.base import observe, reads, rekeys, stateful, writes
from hooks.checkpointing import save_checkpoints
from hooks.combining import chain
from hooks.config.hooks_by_name import build_hooks, build_writers, from_config, write_config
from hooks.control.adapting_curriculum import adapt_curriculum
from hooks.control.averaging import average_params, recalibrate, swa
from hooks.control.following import follow_checkpoints
from hooks.control.keeping_best import keep_best
from hooks.control.lesson_weights import learning_progress, thresholds
from hooks.control.rolling_back import roll_back_on_nan, roll_back_on_spike
from hooks.control.schedules import reduce_on_plateau, set_hyperparams
from hooks.control.stopping import stop_at_return, stop_early, stop_on_nan, time_limit
from hooks.control.unfreezing import unfreeze_at
from hooks.evaluation.collecting import collect_scores
from hooks.evaluation.evaluating import evaluate
from hooks.evaluation.requesting import request_evaluation
from hooks.evaluation.showing_mistakes import show_mistakes
from hooks.failing import background, guard
from hooks.members.each_member import each
from hooks.metric_logging import log_metrics
from hooks.monitoring.profiling import profile
from hooks.monitoring.showing_samples import show_samples
from hooks.monitoring.system import heartbeat, watch_system
from hooks.monitoring.timing import record_times
from hooks.monitoring.watching_gradients import watch_gradients
from hooks.recording import image_grid, record
from hooks.recording_replays import record_replays
from hooks.reports.plotting import plot_history
from hooks.reports.writing_report import write_report
from hooks.triggers import every, every_steps, on, once, when
from hooks.writers.console import Console
from hooks.writers.database import Database
from hooks.writers.json_lines import JsonLines
from hooks.writers.mlflow import MLflow
from hooks.writers.tensorboard import TensorBoard
from hooks.writers.values import Histogram, Image, Progress, Text, Trace, Video
from hooks.writers.wandb import WandB
from hooks.writers.writer import Writer
from trainer import Hook
from trainer.hook import SKIP

__all__ = [
    "SKIP",
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
    "backtest",
    "build_hooks",
    "build_writers",
    "chain",
    "collect_scores",
    "each",
    "evaluate",
    "every",
    "every_steps",
    "follow_checkpoints",
    "from_config",
    "guard",
    "heartbeat",
    "image_grid",
    "keep_best",
    "learning_progress",
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
    "request_evaluation",
    "roll_back_on_nan",
    "roll_back_on_spike",
    "save_checkpoints",
    "set_hyperparams",
    "show_mistakes",
    "show_samples",
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
