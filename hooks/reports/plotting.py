"""Plot the curves of a run as a picture, when it is over."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from hooks.combining import Chain
from hooks.reports.histories import call_on_finish
from trainer.checks.paths import to_absolute_path
from trainer.host.atomic_files import atomic_replace
from trainer.host.extras import require_extra
from trainer.host.folders import make_folder
from trainer.host.rendering.panels import Curve, group_panels

log = logging.getLogger("entracte")


def plot_history(
    records: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
) -> Chain:
    """Draw the curves of the whole run as a PNG, when it ends, is interrupted or fails.

    A resumed run has complete curves. Metrics that differ only in their first part, `train/loss`
    and `val/loss`, share a panel, and so do all layers in a score of `watch_gradients`.

    Args:
        records: path of the file that a `JsonLines` of `log_metrics` writes.
        path: of the picture, `runs/digits/history.png`; it is replaced.
        metrics: names of those to show, such as `("train/loss", "val/loss")`; if None, all except
            times and the machine's.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: before training, nothing writes one of the metrics.
        FileNotFoundError: at the start, nothing writes the records.
        OSError: the picture's folder cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(plot_history(f"{folder}/metrics.jsonl", f"{folder}/history.png"))
    event  stage    hook                reads  writes
    start  observe  plot_history/start
    end    observe  plot_history
    """
    with require_extra("plots", "plot_history", "matplotlib"):
        from trainer.host.rendering.figures import draw_panels
    path, where = to_absolute_path(path, "plot_history"), to_absolute_path(records, "plot_history")
    make_folder(path.parent, "plot_history")

    def draw(curves: Mapping[str, Curve]) -> None:
        if panels := group_panels(curves, metrics):
            with atomic_replace(path) as beside:
                draw_panels(panels).savefig(beside, format="png")
        else:
            log.info("plot_history: there is nothing to plot yet in %s", where)

    expects = () if metrics is None else tuple(metrics)
    return call_on_finish("plot_history", draw, records=where, expects=expects)
