"""Training as jitted pure functions over an immutable state, with hooks between epochs."""

import logging

from trainer import configuration, data, losses, runs
from trainer.checkpoints import Checkpoints, restore
from trainer.configuration import TrainingConfig, load_config, parse_config
from trainer.hook import Hook, Interrupt
from trainer.host import escaping
from trainer.host.notices import show_notices
from trainer.loop.fit import fit
from trainer.loop.history import History
from trainer.parameters.summaries import summary
from trainer.parameters.transfer import export_params, load_params
from trainer.phases.batch_functions import Measure, Step
from trainer.phases.compilation import cache_compilations
from trainer.phases.costs.cost import cost
from trainer.phases.factories import evaluate, evaluation, training
from trainer.phases.metrics import Members, Metrics
from trainer.phases.passes import repeated
from trainer.phases.phase import Phase
from trainer.phases.population import best_member, member, population, population_of, stack_states
from trainer.placement.distributed import distributed
from trainer.placement.gathering import gather
from trainer.placement.meshes import mesh
from trainer.placement.rules import fsdp
from trainer.placement.spread import spread
from trainer.state import TrainState, fingerprint
from trainer.supervised import measures, optimizers
from trainer.supervised.exact_matching import exact_match
from trainer.supervised.exporting import export
from trainer.supervised.learning_rate_finder import find_learning_rate
from trainer.supervised.overfitting import overfit
from trainer.supervised.predicting import predict
from trainer.supervised.recalibration import recalibrate_batch_stats, recalibration
from trainer.supervised.reference import add_reference
from trainer.supervised.task import supervised

show_notices()
# Escape whatever a message holds from elsewhere.
logging.getLogger("entracte").addFilter(escaping.escape_record)

__all__ = [
    "Checkpoints",
    "History",
    "Hook",
    "Interrupt",
    "Measure",
    "Members",
    "Metrics",
    "Phase",
    "Step",
    "TrainState",
    "TrainingConfig",
    "add_reference",
    "best_member",
    "cache_compilations",
    "configuration",
    "cost",
    "data",
    "distributed",
    "evaluate",
    "evaluation",
    "exact_match",
    "export",
    "export_params",
    "find_learning_rate",
    "fingerprint",
    "fit",
    "fsdp",
    "gather",
    "load_config",
    "load_params",
    "losses",
    "measures",
    "member",
    "mesh",
    "optimizers",
    "overfit",
    "parse_config",
    "population",
    "population_of",
    "predict",
    "recalibrate_batch_stats",
    "recalibration",
    "repeated",
    "restore",
    "runs",
    "spread",
    "stack_states",
    "summary",
    "supervised",
    "training",
]
