"""Write a page about a run, when it is over."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from hooks.combining import Chain
from hooks.reports.histories import call_on_finish, read_pictures, read_texts
from hooks.reports.report_page import Report, write_page
from hooks.reports.text_tables import tabulate_texts
from trainer import TrainState
from trainer.checks.paths import to_absolute_path
from trainer.configuration.setting_rows import format_settings
from trainer.host.amounts import format_duration
from trainer.host.folders import make_folder
from trainer.host.machine import describe_environment
from trainer.host.rendering.panels import Curve, sum_epoch_seconds
from trainer.state import read_step_epoch

OUTCOMES = {"end": "finished", "error": "failed"}
"""How a run ended, by the last event reached; at others it was interrupted."""


def write_report(
    path: str | os.PathLike[str],
    *,
    records: str | os.PathLike[str],
    config: Any = None,
    title: str | None = None,
) -> Chain:
    """Write a page about the whole run when it ends, is interrupted or fails.

    One self-contained HTML file, which loads nothing: how far the run came, its curves with values
    under the pointer and a switch to logarithmic axes, the best scores and their epochs, the last
    confusion matrix (of metrics such as `val/confusion/2/7`), the configuration, the hooks' times
    and their share, the versions and devices, the last pictures, such as those of `show_mistakes`,
    and texts of some epochs, such as samples. Without scripts it lacks the values under the pointer
    alone. A resumed run has a complete page.

    Args:
        path: of the page, `runs/digits/report.html`; it is replaced.
        records: path of the file that a `JsonLines` of `log_metrics` writes.
        config: the run's configuration: mappings, sequences and dataclasses, in any nesting.
            Passwords are left out.
        title: of the page; if None, the name of its folder.

    Raises:
        FileNotFoundError: at the start, nothing writes the records.
        OSError: the page's folder cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(write_report(f"{folder}/report.html", records=f"{folder}/metrics.jsonl"))
    event  stage    hook                reads  writes
    start  observe  write_report/start
    epoch  observe  write_report/epoch
    end    observe  write_report
    error  observe  write_report/error
    """
    path, records = (to_absolute_path(one, "write_report") for one in (path, records))
    make_folder(path.parent, "write_report")
    name = path.resolve().parent.name if title is None else title
    seen: dict[str, str] = {}

    def follow(event: str, state: TrainState, metrics: Mapping[str, float]) -> None:
        step, epoch = read_step_epoch(state)
        total = getattr(metrics, "epochs", None)
        stopped = event == "end" and state.stop
        seen["outcome"] = "stopped early" if stopped else OUTCOMES.get(event, "interrupted")
        seen["epochs"] = f"{epoch:,}" if total is None else f"{epoch:,} of {total:,}"
        seen["steps"] = f"{step:,}"

    def write(curves: Mapping[str, Curve]) -> None:
        seconds = sum_epoch_seconds(curves)
        report = Report(
            title=name,
            outcome={
                **seen,
                "training time": format_duration(seconds, digits=3),
                "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            },
            curves=curves,
            config=format_settings(config),
            environment=describe_environment(),
            tables={"Texts": tabulate_texts(read_texts(records))},
            pictures=read_pictures(records),
        )
        write_page(path, report)

    return call_on_finish("write_report", write, records=records, follow=follow)
