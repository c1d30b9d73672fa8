"""BLEU of tokens, by hand."""

import numpy as np
import pytest

from trainer.supervised.measures.bleu_score import compute_bleu


def score(predicted, reference):
    width = max(map(len, predicted + reference))
    padded = [
        np.array([row + [-1] * (width - len(row)) for row in rows])
        for rows in (predicted, reference)
    ]
    return compute_bleu({"predicted": padded[0], "reference": padded[1]})


@pytest.mark.parametrize(
    ("predicted", "reference", "expected"),
    [
        ([[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5]], 1.0),
        ([[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], np.exp(1 - 5 / 4)),
        ([[1, 2, 3, 4, 9]], [[1, 2, 3, 4, 5]], (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),
        ([[1, 1, 1, 1, 1]], [[1, 2, 3, 4, 5]], 0.0),  # a match counts once
        ([[1, 2, 3, 4], [7, 8]], [[1, 2, 3, 4], [7, 9]], (5 / 6 * 3 / 4 * 1 * 1) ** 0.25),
        ([[]], [[1]], 0.0),
    ],
)
def test_bleu_counts_ngrams_of_the_whole_corpus(predicted, reference, expected):
    assert score(predicted, reference) == pytest.approx(expected)
