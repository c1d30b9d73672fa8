"""What the documents show, run as it stands."""

import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(document):
    return re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.usefixtures("compiled_quickly")
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_examples_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {"__name__": document.stem}
    for number, block in enumerate(_blocks(document), 1):
        if file := re.match(r"# (\w+\.py)\n", block):  # it is one's own, for what comes later
            Path(file[1]).write_text(block)
        code = block.replace("epochs=20", "epochs=1")  # the full run is `make train`
        exec(compile(code, f"{document.name}, example {number}", "exec"), names)
    for test in [thing for name, thing in names.items() if name.startswith("test_")]:
        takes = len(inspect.signature(test).parameters)
        test(*[names["state"]][:takes])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_catalog_has_every_hook():
    import hooks

    catalog = (ROOT / "docs" / "hook_catalog.md").read_text()
    values = {"Hook", "Histogram", "Image", "Text", "Trace", "Progress", "Writer", "Resumes"}
    missing = [name for name in hooks.__all__ if name not in values and f"`{name}" not in catalog]
    assert not missing
