"""Losses: `(outputs, batch) -> {name: values}`, per example; `loss` is minimised."""

from collections.abc import Mapping
from types import MappingProxyType

from trainer.losses.classification import classification, sequence_classification
from trainer.losses.language import captioning, language_modeling
from trainer.losses.loss import Loss
from trainer.losses.preferences import dpo, orpo
from trainer.losses.regression import regression
from trainer.losses.total import total

by_task: Mapping[str, Loss] = MappingProxyType(
    {
        "captioning": captioning,
        "classification": classification,
        "language_modeling": language_modeling,
        "regression": regression,
        "sequence_classification": sequence_classification,
    }
)
"""The losses by task, for a configuration that names one."""

__all__ = [
    "Loss",
    "by_task",
    "captioning",
    "classification",
    "dpo",
    "language_modeling",
    "orpo",
    "regression",
    "sequence_classification",
    "total",
]
