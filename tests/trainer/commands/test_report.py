"""The command `report`: a page about a recorded run."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.commands.report import ROWS
from trainer.runs import Artifact, CheckpointRow
from trainer.runs.requests import claim_request, create_request, fail_request, finish_request


class Reader(HTMLParser):
    """Collects the tags, and the text of headings and cells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("th", "td", "h1", "h2", "h3", "dt", "dd", "script"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data.rstrip("\n")


def checkpoint_row(epoch):
    return CheckpointRow(
        epoch, f"/c/{epoch}", 2_000_000, {"val/loss": 0.5}, str(epoch), "2025-01-02T03"
    )


def test_the_page_has_curves_scores_and_how_far_the_run_is(digits_store, capsys):
    assert main(["report", "runs/digits"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == Path("runs/digits/report.html").absolute()
    page = Reader(path.read_text())
    assert page.cells[:3] == ["digits", "outcome", "stalled"]
    assert page.cells[page.cells.index("epochs") + 1] == "6"  # although it wrote no heartbeat
    assert page.cells[page.cells.index("steps") + 1] == "168"
    at = page.cells.index("val/loss")
    assert page.cells[at + 1 : at + 4] == ["0.3500", "0.3000 at 5", "0.5000 at 1"]
    assert page.tags.count("svg") == 2  # on a linear and a logarithmic axis
    assert page.cells[page.cells.index("directory") + 1] == str(Path("runs/digits").absolute())


def test_settings_are_formatted_as_in_show(digits_store, capsys):
    config = {"optimizer": {"name": "adamw", "clip": None, "betas": [0.9, 0.99]}, "on": True}
    digits_store.register("set", directory="/s", host="here", pid=1, time=0.0, config=config)
    assert main(["report", "set"]) == 0
    cells = Reader(Path(capsys.readouterr().out.strip()).read_text()).cells
    assert main(["show", "set"]) == 0
    printed = capsys.readouterr().out.splitlines()
    at = printed.index("Configuration")
    shown = [line.split(maxsplit=1) for line in printed[at + 1 :] if line][:4]
    for name, value in shown:
        assert cells[cells.index(name) + 1] == value.strip()
    assert [name for name, _ in shown] == [
        "optimizer.name",
        "optimizer.clip",
        "optimizer.betas",
        "on",
    ]


def test_texts_are_listed_by_name_and_epoch(digits_store, capsys):
    digits_store.write_records("digits", 2, 56, {"samples/1": "Once", "samples/0": "to be"})
    digits_store.write_records("digits", 3, 84, {"samples/1": "Twice"})
    assert main(["report", "digits"]) == 0
    cells = Reader(Path(capsys.readouterr().out.strip()).read_text()).cells
    at = cells.index("Texts") + 4
    assert cells[at : at + 6] == ["samples/0", "2", "to be", "samples/1", "2", "Once"]
    assert cells[at + 6 : at + 9] == ["samples/1", "3", "Twice"]


def test_checkpoints_evaluations_and_files_are_listed(digits_store, capsys):
    digits_store.write_checkpoint("digits", checkpoint_row(2))
    digits_store.write_artifact(
        "digits", Artifact(f"{Path.cwd()}/runs/digits/a.gif", "replay", 2, 56, 9)
    )
    for epoch in (1, 2):
        create_request(
            digits_store, "digits", epoch, "full", checksum=str(epoch), time=float(epoch)
        )
    request = claim_request(digits_store, "worker", ["full"], lease=60)
    finish_request(digits_store, request, {"full/loss": 0.25})
    fail_request(
        digits_store,
        claim_request(digits_store, "worker", ["full"], lease=60),
        "OSError: no",
        final=True,
    )
    assert main(["report", "digits", "--to", "pages/digits.html"]) == 0
    cells = Reader(Path("pages/digits.html").read_text()).cells
    at = cells.index("Checkpoints")
    assert cells[at + 5 : at + 9] == ["2025-01-02 03", "2", "2.0 MB", "val/loss 0.5000"]
    at = cells.index("Evaluations")
    assert cells[at + 6 : at + 11] == ["full", "1", "done", "1", "full/loss 0.2500"]
    assert cells[at + 11 : at + 16] == ["full", "2", "failed", "1", "OSError: no"]
    at = cells.index("Files")
    assert cells[at + 5 : at + 9] == ["a.gif", "replay", "2", "9 B"]


def test_only_the_last_of_many_checkpoints_are_listed(digits_store, capsys):
    for epoch in range(1, ROWS + 3):
        digits_store.write_checkpoint("digits", checkpoint_row(epoch))
    main(["report", "digits"])
    assert not Path("runs/digits/report.html").exists()  # only the store names that directory
    cells = Reader(Path("digits.html").read_text()).cells
    at = cells.index(f"Checkpoints: the last {ROWS} of {ROWS + 2}")
    assert cells[at + 6] == "3"


def test_the_page_escapes_every_text(hostile, capsys):
    assert main(["report", hostile]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.name == f"{hostile}.html"
    page = Reader(path.read_text())
    assert page.tags.count("script") == 1  # its own
    assert not {"b", "img"} & set(page.tags)
    assert page.cells[0] == hostile
    assert page.cells[page.cells.index("error") + 1] == f"ValueError: {hostile}"
    assert f"{hostile}/loss" in page.cells


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digit"], "digits"),
        (["digits", "--to", "runs/store.sqlite/page.html"], "cannot be written"),
    ],
)
def test_errors_name_the_problem(digits_store, words, said, capsys):
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err
