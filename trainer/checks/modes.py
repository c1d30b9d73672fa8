"""Modes: whether the smaller or the larger of two values of a metric is better."""

from __future__ import annotations

import difflib
import math
import re
from typing import Literal

from trainer.checks.arguments import describe_value
from trainer.host.rendering.panels import ASIDE

Mode = Literal["min", "max"]


def _split(words: str) -> frozenset[str]:
    return frozenset(words.split())


LOWER_IS_BETTER = _split(
    """
    loss losses error errors err mse rmse mae mape nll ppl perplexity divergence kl
    xent bce ece brier bpc bpb bpd bits wer cer fid rmsd
    regret cost costs penalty failures mistakes violations
    """
)
HIGHER_IS_BETTER = _split(
    """
    accuracy acc top return returns reward rewards score scores success successes solved wins
    winrate f1 f2 fbeta precision recall specificity sensitivity auc auroc roc auprc ap map
    iou miou dice jaccard mcc kappa r2 correlation pearson spearman likelihood elbo
    bleu rouge meteor cider chrf ndcg mrr hits match matches psnr ssim elo
    """
)
"""Words of a metric's name that tell which of two values is better."""

QUALIFYING = _split(
    """
    std stddev deviation variance var norm scale weight weights count counts number steps
    time seconds gap difference delta change ratio negative neg negated
    """
)
"""Words that turn a loss or a score into something else, so that the name does not tell."""


def infer_mode(name: str) -> Mode | None:
    """Infer from a metric's name which of two values is better; None if the name does not tell.

    The last part of the path with a telling word decides. The first of several parts is ignored,
    since it names a phase: `rollout/return/maze` is a return.

    >>> infer_mode("val/loss"), infer_mode("val/top5_accuracy"), infer_mode("gradients/norm")
    ('min', 'max', None)
    >>> (infer_mode("rollout/return/maze"), infer_mode("val/bits_per_character"),
    ...  infer_mode("val/valAUC"))
    ('max', 'min', 'max')
    >>> infer_mode("train/loss_scale"), infer_mode("time/hook/stop_at_return/val/return")
    (None, None)
    """
    first, *rest = name.split("/")
    if name.startswith(ASIDE):
        return None
    for part in reversed(rest or [first]):
        words = _words(part)
        if words & QUALIFYING:
            return "min" if words & {"negative", "neg"} and "likelihood" in words else None
        if words & LOWER_IS_BETTER or {"cross", "entropy"} <= words:
            return "min"
        if words & HIGHER_IS_BETTER:
            return "max"
    return None


def resolve_mode(who: str, metric: str | None, mode: str | None, *, optional: bool = False) -> Mode:
    """Return the mode to compare a metric by: the given one, else the one that its name tells.

    Everything with a `mode` calls this, so that nothing silently keeps the worst: `val/accuracy`
    needs no `mode="max"`, and a name that does not tell needs one.

    Args:
        who: takes the mode, for the message.
        metric: its name.
        mode: `min` if a smaller value is better, `max` if a larger is, None to go by the name.
        optional: accept None as the metric: nothing is compared, and the mode is only checked.

    Raises:
        TypeError: the metric is not a name.
        ValueError: the mode is unknown, or missing although the name does not tell it.

    >>> resolve_mode("keep_best", "val/accuracy", None), resolve_mode("keep_best", "a/b", "min")
    ('max', 'min')
    >>> resolve_mode("keep_best", "val/length", None)
    Traceback (most recent call last):
        ...
    ValueError: keep_best compares values of 'val/length', whose name does not tell whether smaller
    or larger is better; give mode='min' or mode='max'
    >>> resolve_mode("keep_best", "val/acuracy", None)
    Traceback (most recent call last):
        ...
    ValueError: keep_best compares values of 'val/acuracy', whose name does not tell whether smaller
    or larger is better. Did you mean 'val/accuracy'? Else give mode='min' or mode='max'
    """
    if not isinstance(metric, str) and not (optional and metric is None):
        raise TypeError(
            f"{who} needs the name of a metric, such as 'val/loss'; got {describe_value(metric)}"
        )
    if mode not in ("min", "max", None):
        raise ValueError(
            f"mode must be 'min' or 'max', or None to go by the metric's name; got {mode!r}"
        )
    found = mode or ("min" if metric is None else infer_mode(metric))
    if found is None:
        known = sorted(LOWER_IS_BETTER | HIGHER_IS_BETTER)
        prefix, slash, last = str(metric).rpartition("/")
        near = difflib.get_close_matches(last, known, 1, 0.8)
        meant = f". Did you mean {prefix + slash + near[0]!r}? Else give" if near else "; give"
        raise ValueError(
            f"{who} compares values of {metric!r}, whose name does not tell whether smaller or "
            f"larger is better{meant} mode='min' or mode='max'"
        )
    return found  # type: ignore[return-value]


def improvement(before: float, after: float, mode: str | None) -> float:
    """Return by how much a second value is better than a first, under a resolved mode.

    >>> improvement(0.5, 0.75, "min"), improvement(0.5, 0.75, "max")
    (-0.25, 0.25)
    """
    return before - after if mode == "min" else after - before


def worst(mode: str | None) -> float:
    """Return the value that every other one is better than, under a resolved mode.

    >>> worst("min"), worst("max")
    (inf, -inf)
    """
    return math.inf if mode == "min" else -math.inf


def _words(part: str) -> set[str]:
    """Split a part of a name into its words: `val_loss`, `rougeL`, `hits@10`, `top5_accuracy`.

    >>> sorted(_words("bleu4")), sorted(_words("valAUC"))
    (['bleu', 'bleu4'], ['auc', 'val', 'valauc'])
    """
    plain = re.split(r"[^A-Za-z0-9]+", part)
    humps = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+|[0-9]+", part)
    words = {word.lower() for word in (*plain, *humps) if word}
    return words | {word.rstrip("0123456789") for word in words} - {""}
