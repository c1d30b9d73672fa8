"""Read the metrics of a recorded run as curves, and its texts."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.host.rendering.panels import Curve
from trainer.runs.requests import list_results
from trainer.runs.store import Store


def metric_names(store: Store, run: str) -> list[str]:
    """List the names of the numbers that a run recorded or evaluators measured, sorted.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    ...     store.write_records("digits", 1, 28, {"val/loss": 0.5, "sample": "Once"})
    ...     metric_names(store, "digits")
    ['val/loss']
    """
    rows = store.connection.execute(
        "SELECT name FROM records WHERE run = ? AND text IS NULL UNION "
        "SELECT name FROM results WHERE run = ?",
        (run, run),
    )
    return sorted(name for (name,) in rows)


def read_curves(store: Store, run: str, names: Sequence[str] | None = None) -> dict[str, Curve]:
    """Read the curves of a run: numbers by epoch, the last of each epoch.

    Scores of evaluators are included under names that training did not record; if several suites
    measured one, it is named `SUITE/NAME`. None for `names` selects all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    ...     store.write_records("digits", 1, 28, {"val/loss": 0.5})
    ...     store.write_records("digits", 2, 56, {"val/loss": 0.25, "sample": "Once"})
    ...     read_curves(store, "digits")
    {'val/loss': Curve(epochs=[1, 2], values=[0.5, 0.25])}
    """
    curves: dict[str, Curve] = {}
    for name, epoch, _, value in store.records(run, names):
        if not isinstance(value, str):
            curves.setdefault(name, Curve()).add(epoch, value)
    found: dict[str, dict[str, Curve]] = {}
    for (suite, epoch), scores in list_results(store, run).items():
        for name, value in scores.items():
            if name not in curves and (names is None or name in names):
                found.setdefault(name, {}).setdefault(suite, Curve()).add(epoch, value)
    for name, suites in found.items():
        if len(suites) == 1:
            curves[name] = next(iter(suites.values()))
        else:
            curves |= {f"{suite}/{name}": curve for suite, curve in suites.items()}
    return curves


def read_texts(store: Store, run: str) -> dict[str, dict[int, str]]:
    """Read the texts that a run recorded, by name and epoch, the last of each epoch.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, Store(folder) as store:
    ...     store.write_records("digits", 1, 28, {"val/loss": 0.5, "sample": "Once"})
    ...     read_texts(store, "digits")
    {'sample': {1: 'Once'}}
    """
    rows = store.connection.execute(
        "SELECT DISTINCT name FROM records WHERE run = ? AND text IS NOT NULL", (run,)
    )
    texts: dict[str, dict[int, str]] = {}
    names = sorted(name for (name,) in rows)
    for name, epoch, _, value in store.records(run, names) if names else ():
        if isinstance(value, str):
            texts.setdefault(name, {})[epoch] = value
    return texts
