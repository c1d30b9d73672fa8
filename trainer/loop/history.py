"""The history of a training: the metrics of each epoch, as a frame, a plot or a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trainer.checks.suggestions import suggest_and_list
from trainer.host.extras import require_extra
from trainer.host.rendering.html_tables import render_metrics
from trainer.host.rendering.panels import Curve, group_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


class History(list[dict[str, float]]):
    """The metrics of epochs, as `fit` returns them: a list with a dict for each epoch.

    In a notebook it is shown as a table of the last, lowest and highest value of each metric.

    Args:
        metrics: of each epoch.
        epochs: the number of each; 1, 2, ... if None. A resumed run begins with a later one.

    Raises:
        ValueError: there are not as many numbers as epochs.

    >>> history = History([{"train/loss": 0.5}, {"train/loss": 0.25}])
    >>> history[-1]["train/loss"], history.epochs, history
    (0.25, [1, 2], [{'train/loss': 0.5}, {'train/loss': 0.25}])
    """

    epochs: list[int]
    """The number of each epoch."""

    def __init__(
        self, metrics: Iterable[dict[str, float]] = (), epochs: Iterable[int] | None = None
    ) -> None:
        super().__init__(metrics)
        self.epochs = list(range(1, len(self) + 1) if epochs is None else epochs)
        self._check_numbers()

    def add(self, epoch: int, metrics: dict[str, float]) -> None:
        """Append the metrics of an epoch, with its number."""
        self.append(metrics)
        self.epochs.append(epoch)

    def frame(self) -> DataFrame:
        """Return a pandas frame with a row for each epoch, its number as the index.

        A metric is a column of floats; in an epoch without it, nan.

        Raises:
            ImportError: pandas is not installed.

        >>> frame = History([{"train/loss": 0.5, "val/loss": 0.75}, {"train/loss": 0.25}]).frame()
        >>> frame["train/loss"].to_dict(), bool(frame["val/loss"].isna()[2])
        ({1: 0.5, 2: 0.25}, True)
        """
        with require_extra("frames", "history.frame", "pandas"):
            import pandas
        self._check_numbers()
        return pandas.DataFrame(list(self), index=pandas.Index(self.epochs, name="epoch"))

    def plot(self, *metrics: str) -> Figure:
        """Draw metrics by epoch; those that differ in their first part alone share a panel.

        A notebook shows the figure if it is the last value of a cell. A script saves it:
        `history.plot("train/loss", "val/loss").savefig("losses.png")`.

        Args:
            metrics: their names; if none is given, all except times and the machine's.

        Returns:
            A `matplotlib.figure.Figure`, whose `axes` are the panels. It is not one of pyplot's.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: no epoch has one of the metrics, or there is nothing to draw.

        >>> history = History([{"train/loss": 0.5, "val/loss": 0.75, "val/accuracy": 0.5}])
        >>> (panel,) = history.plot("train/loss", "val/loss").axes
        >>> panel.get_title("left"), [line.get_ydata().tolist() for line in panel.lines]
        ('loss', [[0.5], [0.75]])
        """
        with require_extra("plots", "history.plot", "matplotlib"):
            from trainer.host.rendering.figures import draw_panels
        curves = self._curves()
        for name in metrics:
            if name not in curves:
                raise ValueError(
                    f"history.plot: no epoch has the metric {name!r}"
                    f"{suggest_and_list(name, curves)}"
                )
        panels = group_panels(curves, metrics or None)
        if not panels:
            raise ValueError(
                f"history.plot needs epochs with metrics; got {len(self)} epochs: `fit` returns "
                "those that this call ran"
            )
        return draw_panels(panels)

    def _check_numbers(self) -> None:
        if len(self.epochs) != len(self):
            raise ValueError(
                f"a history needs the number of each epoch; got {len(self)} epochs and "
                f"{len(self.epochs)} numbers: add epochs with history.add(number, metrics)"
            )

    def _curves(self) -> dict[str, Curve]:
        self._check_numbers()
        curves: dict[str, Curve] = {}
        for number, epoch in zip(self.epochs, self, strict=True):
            for name, value in epoch.items():
                curves.setdefault(name, Curve()).add(number, value)
        return curves

    def _repr_html_(self) -> str:
        curves = self._curves()
        shown = {n: curve.summary for n, curve in curves.items() if not n.startswith("time/")}
        span = f"epochs {self.epochs[0]} to {self.epochs[-1]}" if self else "no epochs"
        return render_metrics(shown, caption=span)
