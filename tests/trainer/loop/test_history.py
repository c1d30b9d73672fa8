"""The history of a training: a list, with the numbers of its epochs."""

from __future__ import annotations

import copy
import json
import math
import pickle
import sys

import pytest

import hooks
import trainer
from trainer import History

METRICS = [{"train/loss": 2.0, "val/loss": 3.0}, {"train/loss": 1.0}]


def test_it_is_a_list_of_dicts():
    history = History(METRICS)
    assert history == METRICS
    assert json.dumps(history) == json.dumps(METRICS)
    assert repr(history) == repr(METRICS)
    assert isinstance(history, list)
    for twin in (copy.deepcopy(history), pickle.loads(pickle.dumps(history))):
        assert (twin, twin.epochs) == (METRICS, [1, 2])


def test_a_resumed_run_counts_on(state, phase, tmp_path):
    def run(epochs, *more):
        saving = hooks.save_checkpoints(tmp_path / "run", max_cost=None)
        return trainer.fit(state, phase, epochs=epochs, hooks=[saving, *more])[1]

    assert run(2).epochs == [1, 2]
    history = run(5)
    assert history.epochs == [3, 4, 5]
    assert list(history.frame().index) == [3, 4, 5]
    assert history.plot().axes[0].lines[0].get_xdata().tolist() == [3, 4, 5]
    assert run(5).epochs == [5]  # nothing left: that of the checkpoint


def test_recorded_epochs_keep_their_numbers(state, phase, tmp_path):
    lines = hooks.log_metrics(hooks.JsonLines(tmp_path / "metrics.jsonl"))
    chain = [hooks.every(2, lines), hooks.save_checkpoints(tmp_path / "run", max_cost=None)]
    for _ in range(2):
        _, history = trainer.fit(state, phase, epochs=5, hooks=chain)
    assert history.epochs == [2, 4, 5]


def test_a_frame_has_a_column_of_floats_for_each_metric():
    frame = History(METRICS, [7, 8]).frame()
    assert frame.index.name == "epoch"
    assert list(frame.columns) == ["train/loss", "val/loss"]
    assert frame["train/loss"].to_dict() == {7: 2.0, 8: 1.0}
    assert frame["val/loss"][7] == 3.0
    assert math.isnan(frame["val/loss"][8])


def test_a_plot_draws_the_named_metrics_and_a_notebook_shows_it_once():
    history = History([{**epoch, "val/accuracy": 0.5, "time/s": 9.0} for epoch in METRICS])
    figure = history.plot("train/loss", "val/loss")
    (panel,) = figure.axes
    assert [line.get_ydata().tolist() for line in panel.lines] == [[2.0, 1.0], [3.0]]
    assert [axes.get_title("left") for axes in history.plot().axes] == ["loss", "accuracy"]
    png, shown = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert 300 < shown["width"] < 500
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="no epoch has the metric 'loss'. Did you mean 'train/los"):
        History(METRICS).plot("loss")
    with pytest.raises(ValueError, match="got 0 epochs"):
        History().plot()


def test_a_changed_list_is_refused():
    history = History(METRICS)
    history.append({})
    with pytest.raises(ValueError, match=r"got 3 epochs and 2 numbers: add epochs with history"):
        history.frame()
    with pytest.raises(ValueError, match="2 epochs and 1 numbers"):
        History(METRICS, [1])


@pytest.mark.parametrize(
    ("library", "call", "extra"),
    [("pandas", History.frame, "frames"), ("matplotlib.figure", History.plot, "plots")],
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, library, call, extra):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "trainer.host.rendering.figures", raising=False)
    with pytest.raises(ImportError) as raised:
        call(History(METRICS))
    assert f'pip install "entracte[{extra}]"' in raised.value.__notes__[0]


def test_a_notebook_shows_a_table_with_escaped_names():
    history = History([{"<b>/loss": 0.5, "time/s": 9.0}, {"<b>/loss": 0.25}])
    table = history._repr_html_()
    assert "&lt;b&gt;/loss" in table
    assert "epochs 1 to 2" in table
    assert "0.2500" in table
    assert "<b>" not in table
    assert "time/" not in table
