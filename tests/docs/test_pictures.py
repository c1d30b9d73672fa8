"""Pictures of the documents: described, used, small, and complete in themselves."""

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = [
    (page, text, page.parent / target.partition("#")[0])
    for page in PAGES
    for text, target in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", page.read_text())
    if not target.startswith("http")
]
"""A page, an alternative text and a file, of each picture on a page."""


def test_each_picture_that_a_page_shows_exists_and_has_an_alternative_text():
    assert SHOWN
    for page, text, file in SHOWN:
        assert file.is_file(), (page, file)
        assert len(text) >= 10, (page, file)


def test_each_picture_is_shown():
    shown = {file.resolve() for _, _, file in SHOWN}
    assert {file for file in PICTURES.iterdir() if file not in shown} == set()


def test_the_pictures_are_small():
    assert sum(file.stat().st_size for file in PICTURES.iterdir()) <= 1_500_000


def test_svg_pictures_load_nothing():
    for file in PICTURES.glob("*.svg"):
        text = file.read_text().replace('"http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|@import|<script|<image|href=", text), file


def test_the_screens_of_a_live_display_are_told_apart(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / ".ci" / "pictures")
    list_screens = importlib.import_module("terminal_picture").list_screens
    redrawn = "saved\r\nepoch 1\r\nloss 2\r\x1b[2K\x1b[1A\x1b[2Kepoch 2\r\nloss 1\r\n\x1b[?25h"
    first, last = list_screens(redrawn)
    assert first == ["saved", "epoch 1", "loss 2"]
    assert last == ["saved", "epoch 2", "loss 1", ""]
