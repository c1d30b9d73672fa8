"""Examples in the documents run, and their links work."""

import re
from pathlib import Path

import pytest
from running import Script, finished

ROOT = Path(__file__).parents[2]
PLAYING = Path(__file__).with_name("playing.py")
DOCUMENTS = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "```python" in page.read_text()),
]
DOCUMENTS.remove(ROOT / "docs" / "tutorials" / "tour.md")  # a notebook, which tests/examples runs


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_examples_run(document, tmp_path):
    """In a process of its own, in which XLA compiles quickly."""
    finished(Script(PLAYING, document, tmp_path))


def test_links_of_the_front_page_lead_somewhere():
    """Those of the other pages are checked when the site is built."""
    for target in re.findall(r"\]\(([^)#]+)\)", DOCUMENTS[0].read_text()):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_catalog_has_every_hook():
    import hooks

    catalog = (ROOT / "docs" / "reference" / "hook_catalog.md").read_text()
    values = {"Hook", "Histogram", "Image", "Text", "Trace", "Progress", "Writer", "Resumes"}
    missing = [name for name in hooks.__all__ if name not in values and f"`{name}" not in catalog]
    assert not missing
