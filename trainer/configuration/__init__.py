"""The settings of a run: frozen dataclasses, read from files and flags, and what they build."""

from trainer.configuration.config_files import (
    check_fresh,
    load_config,
    parse_config,
    save_config,
    to_comparable,
    to_dict,
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
    "check_fresh",
    "load_config",
    "optimizer",
    "parse_config",
    "save_config",
    "schedule",
    "to_comparable",
    "to_dict",
]
