"""The tour: its notebook runs as it stands, and its page shows what the notebook holds."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "tour.py"
spec = importlib.util.spec_from_file_location("tour", SCRIPT)
tour = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tour)


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(tour.NOTEBOOK, 4)


def read_outputs(notebook):
    """Return the code of each cell, and what it shows except logs, which may come in pieces."""
    return [
        (cell.source, [one for one in cell.outputs if one.output_type != "stream"])
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def list_kinds(outputs):
    return [[(one.output_type, *sorted(one.data)) for one in shown] for _, shown in outputs]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_runs_and_each_fit_leaves_one_display(committed, tmp_path):
    executed = tour.execute(tmp_path)
    tour.tidy(executed, tmp_path)
    outputs = read_outputs(executed)
    assert len(outputs) == 10
    fits = [shown for source, shown in outputs if "trainer.fit(" in source]
    displays = [
        [one.data["text/html"] for one in shown if one.output_type == "display_data"]
        for shown in fits
    ]
    assert [len(one) for one in displays] == [1, 1, 1]
    reached = [re.search(r"(\d+)/(\d+) epochs", display)[0] for (display,) in displays]
    assert reached[:2] == ["12/12 epochs", "4/30 epochs"]  # then somebody pressed stop
    text = "".join(
        one.text for cell in executed.cells for one in cell.get("outputs", ()) if "text" in one
    )
    resumed = re.search(r"epochs of this call: \[5, .*?(\d+)\]", text)
    assert reached[2] == f"{resumed[1]}/30 epochs"
    assert int(re.search(r"(\d+) of 360 held-out digits are wrong", text)[1]) < 30
    assert list_kinds(outputs) == list_kinds(read_outputs(committed)), "`make tour` executes it"


def test_the_outputs_of_the_committed_notebook_are_of_no_machine(committed):
    page, _ = tour.convert(committed)
    assert [cell.execution_count for cell in committed.cells if "outputs" in cell] == [
        *range(1, 11)
    ]
    assert not re.search(r"/(home|root|tmp|work|Users)/", page)
    assert "<script" not in page


def test_the_page_shows_the_notebook(committed):
    page, pictures = tour.convert(committed)
    assert page == tour.PAGE.read_text(), "`make tour` writes it again"
    for name, picture in pictures.items():
        assert (tour.PAGE.parent / name).read_bytes() == picture
