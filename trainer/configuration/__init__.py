"""The settings of a run: frozen dataclasses, from files and flags, and what they build."""

from trainer.configuration.building import optimizer, schedule
from trainer.configuration.files import (
    as_data,
    check_fresh,
    comparable,
    load_config,
    parse_config,
    save_config,
)
from trainer.configuration.sections import (
    Checkpointing,
    Logging,
    Optimizer,
    Schedule,
    TrainingConfig,
)

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
