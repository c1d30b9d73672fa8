"""The picture of a run's curves."""

from __future__ import annotations

import math
import sys

import numpy as np
import PIL.Image
import pytest

import hooks
import trainer
from hooks.testing import check_hook
from hooks.writers.json_lines import JsonLines
from trainer.host.rendering.figures import COLORS, draw_panels
from trainer.host.rendering.panels import Curve


def pixels(path):
    return np.asarray(PIL.Image.open(path).convert("RGB"))


def near(picture, color):
    """Count the pixels of about this color, `#rrggbb`."""
    wanted = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
    return int((np.abs(picture.astype(int) - wanted).max(axis=-1) < 16).sum())


def test_a_run_draws_a_picture_with_a_curve_for_each_metric(state, phase, tmp_path):
    lines, path = JsonLines(tmp_path / "metrics.jsonl"), tmp_path / "new" / "history.png"
    chain = hooks.chain(hooks.log_metrics(lines), hooks.plot_history(lines.path, path))
    plain, _ = trainer.fit(state, phase, epochs=3)
    plotted, _ = trainer.fit(state, phase, epochs=3, hooks=chain)
    assert trainer.fingerprint(plain) == trainer.fingerprint(plotted)
    picture = pixels(path)
    assert picture.shape[0] > 300
    assert near(picture, COLORS[0]) > 200
    assert [file.name for file in path.parent.iterdir()] == ["history.png"]


def test_curves_of_one_name_share_a_panel_in_different_colors(tmp_path):
    curve, low = Curve([1, 2, 3], [3.0, math.nan, 1.0]), Curve([1, 2, 3], [1.0, 1.0, 1.0])
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    draw_panels({"loss": {"train": curve, "val": low}}).savefig(one)
    draw_panels({"loss": {"train": curve}, "accuracy": {"train": low}}).savefig(two)
    assert pixels(two).shape[1] > 1.8 * pixels(one).shape[1]
    colors = dict(zip(["train", "val"], COLORS, strict=False))
    assert near(pixels(one), colors["val"]) > 200
    assert near(pixels(two), colors["val"]) == 0


@pytest.mark.parametrize("name", ["$", "$x_", "_hidden", "\\frac", "a" * 300, "{}"])
def test_names_are_no_formulas(tmp_path, name):
    panels = {name: {name: Curve([1], [math.nan]), "b": Curve([1], [1.0])}}
    draw_panels(panels).savefig(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").size


def test_a_run_without_metrics_draws_no_picture(state, phase, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    hook = hooks.plot_history(tmp_path / "empty.jsonl", tmp_path / "history.png")
    trainer.fit(state, phase, epochs=1, hooks=hook)
    assert not (tmp_path / "history.png").exists()


def test_a_metric_that_nothing_writes_is_an_error_before_training(state, phase, tmp_path):
    (tmp_path / "a.jsonl").touch()
    hook = hooks.plot_history(tmp_path / "a.jsonl", tmp_path / "a.png", metrics=("val/loss",))
    with pytest.raises(ValueError, match="reads 'val/loss', which nothing writes before it"):
        trainer.fit(state, phase, epochs=1, hooks=hook)


def test_without_matplotlib_it_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "trainer.host.rendering.figures", raising=False)
    with pytest.raises(ImportError) as raised:
        hooks.plot_history(tmp_path / "a.jsonl", tmp_path / "a.png")
    assert 'pip install "entracte[plots]"' in raised.value.__notes__[0]


def test_it_holds_the_laws(state, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 1.0}\n')
    check_hook(hooks.plot_history(tmp_path / "a.jsonl", tmp_path / "a.png"), state, {})
    assert (tmp_path / "a.png").exists()
