"""BLEU of sequences of tokens over a whole split."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from trainer.checks.arguments import require_function
from trainer.phases.batch_functions import Measure
from trainer.state import TrainState
from trainer.supervised.measures.split_values import over_split

ORDER = 4
"""The longest n-grams that count."""


def bleu(tokens: Callable[[TrainState, Any], Any]) -> Measure:
    """Build a measure of BLEU, between 0 and 1, of token sequences with one reference each.

    N-grams of up to four tokens are counted over the whole split, without smoothing. The tokens are
    those of the network, so the score is comparable between runs of one tokenizer; for published
    scores decode the texts and use sacrebleu.

    Args:
        tokens: `(state, batch) -> (predicted [batch, time], reference [batch, time])`, integers,
            jittable; the lengths may differ. A sequence ends before its first token below 0.

    Source: K. Papineni et al., BLEU: a Method for Automatic Evaluation of Machine Translation, ACL
    2002.

    >>> from trainer import data, evaluate, evaluation
    >>> import jax
    >>> source = data.Arrays({"inputs": np.array([[1, 2, 3, 4, 5, -1]])}, batch_size=1)
    >>> score = bleu(lambda state, batch: (batch["inputs"][:, :4], batch["inputs"]))
    >>> state = TrainState.create(params={}, rng=jax.random.key(0))
    >>> round(evaluate(state, evaluation(score, source))["val/bleu"], 4)    # exp(1 - 5/4)
    0.7788
    """
    form = "(state, batch) -> (predicted, reference)"
    require_function("measures.bleu takes tokens, which", tokens, form)

    def values(state: TrainState, batch: Any) -> dict[str, Any]:
        predicted, reference = tokens(state, batch)
        return {"predicted": predicted, "reference": reference}

    return over_split(values, {"bleu": compute_bleu})


def compute_bleu(split: dict[str, np.ndarray]) -> float:
    """Compute BLEU of `predicted` and `reference`, `[examples, time]` each."""
    matches, possible = np.zeros(ORDER), np.zeros(ORDER)
    lengths = np.zeros(2)
    for predicted, reference in zip(split["predicted"], split["reference"], strict=True):
        ours, theirs = _cut(predicted), _cut(reference)
        lengths += len(ours), len(theirs)
        for order in range(ORDER):
            mine = _count_ngrams(ours, order + 1)
            matches[order] += (mine & _count_ngrams(theirs, order + 1)).total()
            possible[order] += mine.total()
    if not matches.all():
        return 0.0
    brevity = min(0.0, 1.0 - lengths[1] / lengths[0])
    return math.exp(brevity + np.mean(np.log(matches / possible)))


def _cut(tokens: np.ndarray) -> list[int]:
    ends = np.flatnonzero(tokens < 0)
    return tokens[: ends[0] if len(ends) else None].tolist()


def _count_ngrams(tokens: list[int], size: int) -> Counter[tuple[int, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(size)), strict=False))
