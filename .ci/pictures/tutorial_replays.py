"""Episodes of the agents that the tutorial of reinforcement learning trains."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

from example_runs import ROOT
from PIL import Image

from trainer import rl
from trainer.rl import environments

TUTORIAL = ROOT / "docs" / "tutorials" / "reinforcement.md"
FILE = re.compile(r"^```python\n(# (\w+\.py)\n.*?)^```", re.DOTALL | re.MULTILINE)

STEPS = 200
"""Of the pole, every second of which is shown."""


def draw_tutorial(runs: Path, to: Path) -> None:
    """Write `pole.gif`, the last episode of the pole, and `catch.gif`, four of the ball."""
    folder = runs / "tutorial"
    folder.mkdir(parents=True, exist_ok=True)
    for text, name in FILE.findall(TUTORIAL.read_text()):
        (folder / name).write_text(text)
    for name in ("pole", "catch"):
        if not (folder / "runs" / name).exists():
            script = "play.py" if name == "catch" else f"{name}.py"
            subprocess.run([sys.executable, script], cwd=folder, check=True)
    catch = runpy.run_path(str(folder / "catch.py"))["catch"]
    pole = _read(folder / "runs" / "pole", environments.cartpole())[0][:STEPS:2]
    _write(to / "pole.gif", pole, scale=2, milliseconds=60)
    caught = [frame for frames in _read(folder / "runs" / "catch", catch) for frame in frames]
    _write(to / "catch.gif", caught, scale=2, milliseconds=160)


def _read(run: Path, env: environments.Environment) -> list:
    """Return the frames of the episodes after the last epoch."""
    files = sorted((run / "replays").glob("*.json"), key=lambda file: file.name)
    last = max(int(file.name.partition("-")[0]) for file in files)
    shown = [file for file in files if file.name.startswith(f"{last}-")]
    return [rl.load_replay(file).frames(env) for file in shown]


def _write(file: Path, frames: list, *, scale: int, milliseconds: int) -> None:
    images = [Image.fromarray(frame) for frame in frames]
    size = images[0].width * scale, images[0].height * scale
    images = [image.resize(size, Image.Resampling.NEAREST) for image in images]
    images[0].save(
        file, save_all=True, append_images=images[1:], duration=milliseconds, loop=0, optimize=True
    )
