"""Training as jitted pure functions over an immutable state, with hooks between epochs."""

import logging

from trainer import configuration, data, escaping, losses, optimizers, runs
from trainer.caching import cache_compilations
from trainer.checkpoints import Checkpoints, restore
from trainer.configuration import TrainingConfig, load_config, parse_config
from trainer.cost import cost
from trainer.evaluating import evaluate
from trainer.hook import Hook, Interrupt
from trainer.loop import fit
from trainer.member_metrics import Members
from trainer.metrics import Metrics
from trainer.notices import show_notices
from trainer.overfitting import overfit
from trainer.parameters import export_params, load_params
from trainer.phases import Phase
from trainer.population import best_member, member, population, population_of, stacked
from trainer.predicting import predict
from trainer.recalibrating import recalibrated, recalibration
from trainer.repeating import evaluation, training
from trainer.state import TrainState, fingerprint
from trainer.summaries import summary
from trainer.supervised import supervised

show_notices()
logging.getLogger("entracte").addFilter(escaping.escape)  # whatever a message holds from elsewhere

__all__ = [
    "Checkpoints",
    "Hook",
    "Interrupt",
    "Members",
    "Metrics",
    "Phase",
    "TrainState",
    "TrainingConfig",
    "best_member",
    "cache_compilations",
    "configuration",
    "cost",
    "data",
    "evaluate",
    "evaluation",
    "export_params",
    "fingerprint",
    "fit",
    "load_config",
    "load_params",
    "losses",
    "member",
    "optimizers",
    "overfit",
    "parse_config",
    "population",
    "population_of",
    "predict",
    "recalibrated",
    "recalibration",
    "restore",
    "runs",
    "stacked",
    "summary",
    "supervised",
    "training",
]
