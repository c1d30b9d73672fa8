"""Draw the pictures of the documentation from real runs. It needs chromium for some.

python .ci/pictures/draw.py terminal replay --runs runs/pictures

Examples that have run in the folder of runs are not trained again: remove it to draw anew.
"""

import argparse
from pathlib import Path

from browser_pictures import draw_report, draw_tensorboard
from epoch_diagram import draw_epoch
from example_runs import ROOT
from learning_curves import draw_agents, draw_supervised
from replay_picture import draw_replay
from terminal_picture import draw_terminal
from tutorial_replays import draw_tutorial

PICTURES = {
    "terminal": draw_terminal,
    "epoch": draw_epoch,
    "report": draw_report,
    "tensorboard": draw_tensorboard,
    "replay": draw_replay,
    "tutorial": draw_tutorial,
    "supervised": draw_supervised,
    "agents": draw_agents,
}
"""Functions of the folder of runs and that of the pictures."""


def main() -> None:
    """Draw the pictures that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--runs", type=Path, default=Path("runs/pictures"))
    given = parser.parse_args()
    unknown = sorted({*given.names} - {*PICTURES})
    if unknown:
        parser.error(f"names must be of {', '.join(PICTURES)}; got {', '.join(unknown)}")
    to = ROOT / "docs" / "pictures"
    to.mkdir(exist_ok=True)
    for name in given.names or PICTURES:
        PICTURES[name](given.runs.resolve(), to)


if __name__ == "__main__":
    main()
