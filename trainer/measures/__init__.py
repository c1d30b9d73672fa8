"""Measures of a whole split that are no means over examples, exact at any batch size."""

from trainer.measures.bleu_score import bleu
from trainer.measures.classification_scores import auc, calibration_error, confusion_matrix, f1
from trainer.measures.collecting import over_split
from trainer.measures.merging import merged

__all__ = [
    "auc",
    "bleu",
    "calibration_error",
    "confusion_matrix",
    "f1",
    "merged",
    "over_split",
]
