"""The settings of a run as frozen dataclasses; a script adds its own in a subclass."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.checks.modes import resolve_mode
from trainer.checks.paths import to_absolute_path


def _require(holds: bool, what: str, got: Any) -> None:
    if not holds:
        raise ValueError(f"{what}; got {got!r}")


@dataclass(frozen=True)
class Optimizer:
    """The optimizer, from optax."""

    name: Literal["adamw", "adam", "sgd", "lion", "muon"] = "adamw"
    """Muon is for matrices: not for networks whose layers are stacked (`scan=True`)."""
    learning_rate: float = 1e-3
    """The highest rate of the schedule."""
    weight_decay: float | None = None
    """For parameters with two or more axes; None: 1e-4 for adamw, 1e-3 for lion, else 0."""
    betas: tuple[float, float] | None = None
    """Decay of the first and second moment: adamw, adam, lion, and muon for non-matrices."""
    momentum: float | None = None
    """Of sgd (None: none) and muon (None: 0.95)."""
    clip_norm: float | None = None
    """Largest L2 norm of the gradient over all parameters; None: not clipped."""
    accumulate: int = 1
    """Number of parts in which a batch is computed, to save memory."""

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate must be above 0", self.learning_rate)
        decay, norm = self.weight_decay, self.clip_norm
        _require(decay is None or decay >= 0, "weight_decay must not be negative", decay)
        for beta in (*(self.betas or ()), self.momentum or 0.0):
            _require(0 <= beta < 1, "betas and momentum must be in [0, 1)", beta)
        _require(norm is None or norm > 0, "clip_norm must be above 0", norm)
        _require(self.accumulate >= 1, "accumulate must be at least 1", self.accumulate)
        if self.name == "adam" and self.weight_decay:
            raise ValueError(
                "adam has no weight decay of its own; choose adamw, or leave weight_decay away"
            )
        if self.name == "sgd" and self.betas is not None:
            raise ValueError("sgd has no betas; give momentum")
        if self.name not in ("sgd", "muon") and self.momentum is not None:
            raise ValueError(f"{self.name} has no momentum; give betas")


@dataclass(frozen=True)
class Schedule:
    """The learning rate over time: up in the warmup, then down to a share of its peak."""

    name: Literal["constant", "cosine", "linear"] = "constant"
    """The shape after the warmup."""
    warmup_steps: int = 0
    """Steps in which the rate rises linearly from 0 to the optimizer's."""
    warmup_share: float = 0.0
    """The same as a share of the schedule's steps; give one of the two."""
    steps: int | None = None
    """Length of the schedule, warmup included; None: that of the run."""
    decay_to: float = 0.0
    """Share of the optimizer's rate at the end of the schedule; a constant one ignores it."""

    def __post_init__(self) -> None:
        _require(self.warmup_steps >= 0, "warmup_steps must not be negative", self.warmup_steps)
        _require(0 <= self.warmup_share < 1, "warmup_share must be in [0, 1)", self.warmup_share)
        _require(self.steps is None or self.steps >= 1, "steps must be at least 1", self.steps)
        _require(0 <= self.decay_to <= 1, "decay_to must be in [0, 1]", self.decay_to)
        if self.warmup_steps and self.warmup_share:
            raise ValueError("warmup_steps and warmup_share mean the same; give one of them")


@dataclass(frozen=True)
class Checkpointing:
    """Which checkpoints of the run are kept, as `hooks.save_checkpoints` takes it."""

    keep: int = 3
    """How many of the newest to keep."""
    best: str | None = None
    """Metric by which the best one is kept in addition, such as val/accuracy."""
    mode: Literal["min", "max"] | None = None
    """Whether a smaller or a larger metric is better; None infers it by name."""
    max_cost: float | None = 0.05
    """Share of the run's time that saving may take; None: save at every epoch."""

    def __post_init__(self) -> None:
        resolve_mode("checkpointing.best", self.best, self.mode, optional=True)


@dataclass(frozen=True)
class Logging:
    """Where metrics go."""

    console: bool = True
    tensorboard: bool = True
    """Event files in the run directory."""
    json_lines: bool = True
    """The file metrics.jsonl in the run directory."""
    report: bool = True
    """The page report.html in the run directory when the run is over; it needs metrics.jsonl."""
    store: str = "beside"
    """Where the run is recorded: `beside`, in the SQLite store of the directory that contains the
    run directory; a directory, a file or a URL, as trainer.runs.Store takes it; or `off`."""
    wandb: bool = False
    """A run for Weights & Biases in the run directory, with its checkpoints and replays."""
    mlflow: bool = False
    """A run for MLflow in the run directory, with its checkpoints and replays."""

    def __post_init__(self) -> None:
        if self.report and not self.json_lines:
            raise ValueError(
                "report is made from what json_lines writes; turn both on, or report off"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """The settings that training scripts share.

    A script adds its own settings and defaults in a subclass. `load_config` reads one from a file,
    `parse_config` from the command line; `configuration.optimizer` and `hooks.build_hooks` build
    from it.

    >>> @dataclass(frozen=True)
    ... class Config(TrainingConfig):
    ...     width: int = 128
    ...     schedule: Schedule = Schedule("cosine", warmup_share=0.1)
    >>> Config(seed=1).optimizer.learning_rate
    0.001
    """

    run: Path = Path("runs/default")
    """Where checkpoints and logs go, and where a run resumes from."""
    epochs: int = 20
    """The total number of epochs to reach."""
    seed: int = 0
    """Seed of all random numbers."""
    batch_size: int = 64
    """Examples per step."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the network's computation; parameters are float32."""
    fresh: bool = False
    """Refuse to resume: start in a directory that is empty or absent."""
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    checkpointing: Checkpointing = Checkpointing()
    logging: Logging = Logging()
    hooks: tuple[Mapping[str, Any] | str, ...] = ()
    """Hooks by name, as `hooks.from_config` takes them; from a file alone."""

    def __post_init__(self) -> None:
        to_absolute_path(self.run, "run")  # refuses a URL; a relative path stays so in the file
        object.__setattr__(self, "run", Path(os.path.expanduser(self.run)))
        _require(self.epochs >= 0, "epochs must not be negative", self.epochs)
        _require(self.batch_size >= 1, "batch_size must be at least 1 example", self.batch_size)
