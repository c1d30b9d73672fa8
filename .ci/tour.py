"""Execute examples/tour.ipynb, and make its page of the site: docs/tutorials/tour.md.

The notebook runs in a new folder, whose path is taken out of the outputs.
"""

import base64
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "tour.ipynb"
PAGE = ROOT / "docs" / "tutorials" / "tour.md"


def execute(folder):
    """Execute the notebook in a folder, with no settings but its own, and return it."""
    notebook = nbformat.read(NOTEBOOK, 4)
    settings = {
        name: str(folder)
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    client = NotebookClient(
        notebook,
        timeout=300,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, **settings})
    return notebook


def tidy(notebook, folder):
    """Take the folder's path out of the outputs, and texts that are shown as HTML, too."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "text/html" in output.get("data", ()):
                output.data.pop("text/plain", None)
            if "text" in output:
                output.text = output.text.replace(f"{os.path.realpath(folder)}/", "")


def convert(notebook):
    """Return the page, and the pictures beside it by name."""
    parts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source.replace("](../docs/tutorials/", "]("))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            found = output.get("data", {})
            if "text/html" in found:
                parts.append(found["text/html"])
            elif "image/png" in found:
                name = f"tour_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(found["image/png"])
                width = output.metadata["image/png"]["width"]
                parts.append(f"![the output of this cell]({name}){{ width={width} }}")
            else:
                text = output.get("text") or found["text/plain"]
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def main():
    """Execute, tidy, write both."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(folder)
    tidy(notebook, folder)
    nbformat.write(notebook, NOTEBOOK)
    page, pictures = convert(notebook)
    PAGE.write_text(page)
    for name, picture in pictures.items():
        (PAGE.parent / name).write_bytes(picture)


if __name__ == "__main__":
    main()
