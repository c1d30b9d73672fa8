"""Measures of a whole split that are no means over examples, exact at any batch size."""

from trainer.supervised.measures.bleu_score import bleu
from trainer.supervised.measures.classification_scores import (
    auc,
    calibration_error,
    confusion_matrix,
    f1,
)
from trainer.supervised.measures.merging import merged
from trainer.supervised.measures.split_values import over_split

__all__ = [
    "auc",
    "bleu",
    "calibration_error",
    "confusion_matrix",
    "f1",
    "merged",
    "over_split",
]
