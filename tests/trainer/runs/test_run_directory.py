"""The files that a run writes in its directory are recorded, for as long as they exist."""

import pytest

from trainer.runs import Run, Store
from trainer.runs.run_directory import list_artifacts


@pytest.fixture
def directory(tmp_path):
    """A run's directory with a replay, a plot, and other files."""
    directory = tmp_path / "maze"
    (directory / "replays").mkdir(parents=True)
    for name in ("replays/3-0.gif", "replays/3-0.json", "history.png"):
        (directory / name).write_text("some")
    for name in ("replays/notes.txt", "replays/.3-1.gif.tmp", "metrics.jsonl", "queue.json"):
        (directory / name).write_text("else")
    (directory / "checkpoints" / "3").mkdir(parents=True)
    return directory


def list_recorded(directory):
    with Store(directory.parent) as store:
        return [
            (str(file.path).removeprefix(f"{directory}/"), file.kind, file.epoch, file.bytes)
            for file in store.artifacts("maze")
        ]


def test_replays_plots_and_pages_are_found(directory):
    (directory / "report.html").write_text("page")
    (directory / "trace.json").write_text("{}")
    (directory / "link.png").symlink_to("/etc/passwd")
    (directory / "folder.png").mkdir()
    assert [(file.kind, file.epoch) for file in list_artifacts(directory)] == [
        ("plot", 0),
        ("replay", 3),
        ("replay", 3),
        ("report", 0),
        ("trace", 0),
    ]
    assert list_artifacts(directory / "nowhere") == {}


def test_the_files_of_a_run_are_recorded_while_they_exist(directory):
    run = Run(directory)
    run.resume(epoch=3, step=30)
    run.close()
    replays = [("replays/3-0.gif", "replay", 3, 4), ("replays/3-0.json", "replay", 3, 4)]
    assert list_recorded(directory) == [("history.png", "plot", 0, 4), *replays]

    run.resume(epoch=3, step=30)
    run.record(4, 40, {"loss": 1.0})
    (directory / "history.png").write_text("longer")
    (directory / "replays" / "3-0.json").unlink()
    run.close()
    assert list_recorded(directory) == [("history.png", "plot", 0, 6), replays[0]]
