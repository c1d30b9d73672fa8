"""A forged checkpoint: nothing in it runs, reaches outside, or exhausts the machine.

Whoever makes one can compute every checksum, so all that is tried here carries the right ones.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forging import forge, lay_out, make, read, restore, save

from trainer import Checkpoints

ROOT = Path(__file__).parents[2]


# No code could run what it reads

MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "code", "runpy"}
SOURCES = [file for folder in ("trainer", "hooks", "models") for file in (ROOT / folder).rglob("*")]


def wrong_in(tree):
    """Return the imports and calls of a module that could run data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.module
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "compile", "__import__", "os.system"):
                yield called
            yield from ("allow_pickle" for word in node.keywords if word.arg == "allow_pickle")


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from joblib import load", "eval(x)", "np.load(f, allow_pickle=True)"],
)
def test_code_that_could_run_data_is_recognised(source):
    assert list(wrong_in(ast.parse(source)))


def test_no_module_could_run_what_it_reads():
    files = [file for file in SOURCES if file.suffix == ".py"]
    assert len(files) > 30
    assert {f.name: list(wrong_in(ast.parse(f.read_text()))) for f in files} == {
        f.name: [] for f in files
    }


# Nothing runs, and nothing outside is opened

AUDITED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from trainer import Checkpoints, TrainState

def read():
    state = TrainState.create(params={"w": jnp.zeros(100)}, rng=jax.random.key(0))
    hook_state = {"h": {"best": 0.0, "n": 0, "name": "", "rate": np.float32(0), "none": None}}
    with Checkpoints(sys.argv[1], best="val/loss", read_only=True) as checkpoints:
        checkpoint = checkpoints.restore(state.replace(hook_state=hook_state), config={"seed": 0})
        for epoch in checkpoints.epochs():
            try:
                checkpoints.manifest(epoch)
            except RuntimeError:
                pass
        return checkpoint.epoch, checkpoints.best()

warm = read()
events = []
def note(event, arguments):
    if watching:
        events.append((event, str(arguments[0]) if arguments else ""))
watching = False
sys.addaudithook(note)
watching = True
again = read()
watching = False
runs = ("pickle", "marshal", "exec", "compile", "os.system", "subprocess", "os.exec", "os.spawn",
        "os.posix_spawn", "os.fork", "import", "ctypes", "socket.connect", "socket.bind",
        "code.", "cpython.run")
changes = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "shutil")
ran = sorted({event for event, _ in events if event.startswith(runs + changes)})
opened = sorted({path for event, path in events if event == "open"})
print([warm == again, again, ran, opened])
"""


def spoil_paths(content):
    """Name leaves so that, as files, they would lie outside."""
    wanted = content["leaves"]["hook_state/h"]
    content["leaves"]["hook_state/../../outside"] = [{**wanted[0], "path": "/outside/secret"}]
    content["leaves"]["hook_state//outside/secret"] = [{**wanted[0], "path": "../../../outside"}]
    content["hooks"] += ["../../outside", "/outside/secret"]


def spoil_parts(checkpoint):
    """Name the part of a process that is outside."""
    content = read(checkpoint)
    for row in content["leaves"][""]:
        row["pieces"] = []
    forge(checkpoint, content | {"parts": ["0" * 16]})
    (checkpoint / "part_1.json").symlink_to("/outside/part_1.json")


def test_reading_runs_nothing_and_opens_nothing_outside(original, run):
    checkpoints = run / "checkpoints"
    for number in (3, 4, 5):
        shutil.copytree(checkpoints / "2", checkpoints / str(number))
        forge(checkpoints / str(number), read(checkpoints / "2") | {"epoch": number})
    spoil_parts(checkpoints / "3")
    (checkpoints / "4/arrays/process_0").unlink()
    (checkpoints / "4/arrays/process_0").symlink_to(original / "checkpoints/2/arrays/process_0")
    forge(checkpoints / "5", {"format": 1, "__reduce__": ["os.system", "true"]})
    content = read(checkpoints / "2")
    spoil_paths(content)
    forge(checkpoints / "2", content)
    command = [sys.executable, "-c", AUDITED, str(run)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 0, child.stderr
    same, found, ran, opened = ast.literal_eval(child.stdout)
    assert same
    assert found[0] == 2
    assert ran == []
    assert opened
    asked = {"/proc/meminfo", "/sys/fs/cgroup/memory.max"}  # available memory
    outside = [path for path in opened if not path.startswith(str(run)) and path not in asked]
    assert [path for path in outside if not path.isdigit()] == []  # of an open descriptor


def test_names_with_dots_and_slashes_open_nothing_and_are_dropped(run, caplog):
    content = read(run / "checkpoints/2")
    spoil_paths(content)
    forge(run / "checkpoints/2", content)
    assert list(restore(run).state.hook_state) == ["h"]


# Files of another kind than expected


def linked(path):
    """Replace a file or folder by a link to it."""
    aside = path.parents[len(path.parts) - path.parts.index("run") - 1] / "aside"
    path.rename(aside)
    path.symlink_to(aside)


def special(path):
    path.unlink()
    os.mkfifo(path)


def a_folder(path):
    path.unlink()
    path.mkdir()


KINDS = [
    *((linked, name) for name in ("manifest.json", "arrays", "arrays/process_0")),
    *((special, name) for name in ("manifest.json", "arrays/process_0")),
    (a_folder, "arrays/process_0"),
]


@pytest.mark.parametrize(("spoil", "name"), KINDS)
def test_any_other_file_or_kind_of_file_is_damage_before_it_is_opened(run, caplog, spoil, name):
    spoil(run / "checkpoints/2" / name)
    assert restore(run).epoch == 1
    assert "skipped a damaged checkpoint: checkpoint 2 in " in caplog.text


@pytest.mark.parametrize("spoil", [linked, special, a_folder, Path.unlink])
@pytest.mark.parametrize("name", ["part_1.json", "arrays/process_1"])
def test_so_it_is_for_what_another_process_wrote(run, caplog, spoil, name):
    lay_out(run / "checkpoints/2", [(0, 50)], [(50, 100)])
    assert restore(run).epoch == 2
    spoil(run / "checkpoints/2" / name)
    assert restore(run).epoch == 1
    assert "skipped a damaged checkpoint: checkpoint 2 in " in caplog.text


def test_files_that_nobody_reads_are_no_damage(run):
    for name in (".DS_Store", "._process_0", ".nfs0001", "process_7"):
        (run / "checkpoints/2/arrays" / name).touch()
    assert restore(run).epoch == 2


# Links are not followed, to write or to remove


@pytest.fixture
def outside(original, tmp_path):
    """A checkpoint outside the run, which must stay unchanged."""
    path = shutil.copytree(original / "checkpoints/2", tmp_path / "outside/2")
    before = contents(path)
    yield path
    assert contents(path) == before


def contents(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_checkpoint_that_is_a_link_is_not_restored(run, outside, caplog):
    (run / "checkpoints/9").symlink_to(outside)
    assert restore(run).epoch == 2
    assert "skipped a damaged checkpoint: checkpoint 9 in " in caplog.text
    assert f"9 is a link to {outside}" in caplog.text


@pytest.mark.parametrize(
    "name", ["3", "3.staged", "3.0123456789abcdef-1.staged", "7.removed", "3.replaced"]
)
def test_a_link_in_the_way_of_a_save_is_a_clear_error(run, outside, name):
    (run / "checkpoints" / name).symlink_to(outside)
    with (
        pytest.raises(NotADirectoryError, match=f"is a link to {outside}.*remove the link"),
        Checkpoints(run) as checkpoints,
    ):
        checkpoints.save(make(3))
    assert restore(run, epoch=2).epoch == 2
    for link in [p for p in (run / "checkpoints").iterdir() if p.is_symlink()]:
        link.unlink()
    save(run, 3)
    assert restore(run).epoch == 3


def test_a_checkpoint_that_is_a_link_is_never_removed_nor_counted(run, outside):
    (run / "checkpoints/0").symlink_to(outside)
    with Checkpoints(run, keep=1) as checkpoints:
        checkpoints.save(make(3))
    assert checkpoints.epochs() == [3]
    assert (run / "checkpoints/0").is_symlink()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_checkpoint_folder_that_is_a_link_is_refused(tmp_path, outside, read_only):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to(outside.parent)
    with pytest.raises(NotADirectoryError, match="checkpoints is a link to .*remove the link"):
        Checkpoints(tmp_path / "run", read_only=read_only)


def test_a_link_inside_a_checkpoint_is_removed_and_not_followed(run, outside):
    (run / "checkpoints/1/link").symlink_to(outside)
    with Checkpoints(run, keep=1) as checkpoints:
        checkpoints.save(make(3))
    assert not (run / "checkpoints/1").exists()
