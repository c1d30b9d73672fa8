"""The settings of a run: frozen dataclasses, from files and flags, and what they build."""

from trainer.configuration.config_files import (
    as_data,
    check_fresh,
    comparable,
    load_config,
    parse_config,
    save_config,
)
from trainer.configuration.dataclasses import (
    Checkpointing,
    Logging,
    Optimizer,
    Schedule,
    TrainingConfig,
)
from trainer.configuration.optimizer_building import optimizer, schedule

__all__ = [
    "Checkpointing",
    "Logging",
    "Optimizer",
    "Schedule",
    "TrainingConfig",
    "as_data",
    "check_fresh",
    "comparable",
    "load_config",
    "optimizer",
    "parse_config",
    "save_config",
    "schedule",
]
