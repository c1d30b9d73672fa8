"""The report and TensorBoard of a run of `examples/digits.py`, as a browser shows them."""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from browser import open_page
from example_runs import train

SCHEMES = ("light", "dark")

CHOSEN = "^(train|val)/(loss|accuracy)"
"""The tags that TensorBoard shows."""

CLOSE_SETTINGS = """[...document.querySelectorAll("button")]
  .find(button => button.textContent.includes("Settings")).click()"""


def draw_report(runs: Path, to: Path) -> None:
    """Write `report-light.png` and `report-dark.png`."""
    train("digits", runs)
    address = (runs / "runs" / "digits" / "report.html").as_uri()
    with open_page() as page:
        for scheme in SCHEMES:
            page.show(address, 1200, 1080, scheme, seconds=2)
            page.save(to / f"report-{scheme}.png")


def draw_tensorboard(runs: Path, to: Path) -> None:
    """Write `tensorboard-light.png` and `tensorboard-dark.png`."""
    train("digits", runs)
    with _serve_tensorboard(runs / "runs" / "digits") as address:
        for scheme in SCHEMES:
            dark = str(scheme == "dark").lower()
            query = f"darkMode={dark}&smoothing=0&tagFilter={quote(CHOSEN)}"
            with open_page() as page:  # another one remembers that the settings are closed
                page.show(f"{address}?{query}#timeseries", 1200, 1000, scheme, seconds=10)
                page.call("Runtime.evaluate", expression=CLOSE_SETTINGS)
                time.sleep(3)
                page.save(to / f"tensorboard-{scheme}.png")


@contextmanager
def _serve_tensorboard(run: Path) -> Iterator[str]:
    """Serve the event files of a run alone, under the run's name, and yield the address."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / run.name).mkdir()
        for file in run.glob("events.*"):
            shutil.copy(file, Path(folder) / run.name)
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--port", "0"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            found = (re.search(r"http://\S+", line) for line in server.stderr)
            yield next(match[0] for match in found if match)
        finally:
            server.terminate()
            server.wait()
