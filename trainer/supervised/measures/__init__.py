"""Measures of a whole split that are no means over examples, exact at any batch size."""

from trainer.supervised.measures.bleu_score import bleu
from trainer.supervised.measures.classification_scores import (
    auc,
    calibration_error,
    confusion_matrix,
    f1,
)
from trainer.supervised.measures.collecting import over_split
from trainer.supervised.measures.merging import merged

__all__ = [
    "auc",
    "bleu",
    "calibration_error",
    "confusion_matrix",
    "f1",
    "merged",
    "over_split",
]
