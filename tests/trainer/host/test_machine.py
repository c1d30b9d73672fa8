"""What a run runs on is reported, with the revision of the code if there is one."""

import os
import platform
import shutil
import subprocess

import jax
import pytest

from trainer.host.machine import describe_environment


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit of `train.py`, which is what runs."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    script = tmp_path / "train.py"
    script.write_text("one\n")
    for variable in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(variable, raising=False)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init"], ["add", "train.py"], [*author, "commit", "--no-gpg-sign", "-m", "a"]):
        subprocess.run(["git", "-C", tmp_path, *command], check=True, capture_output=True)
    monkeypatch.setattr("sys.argv", [str(script), "--rate", "0.1"])
    return tmp_path


def test_devices_versions_and_command_are_described(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--rate", "0.1"])
    found = describe_environment()
    assert found["devices"].endswith(f"({jax.default_backend()})")
    assert (found["python"], found["jax"]) == (platform.python_version(), jax.__version__)
    assert found["command"] == "train.py --rate 0.1"
    assert all(isinstance(value, str) for value in found.values())


def test_the_revision_is_that_of_the_script_and_mentions_changes(repository):
    command = ["git", "-C", repository, "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert describe_environment()["revision"] == head
    (repository / "notes.txt").touch()  # not of the repository
    assert describe_environment()["revision"] == head
    (repository / "train.py").write_text("two\n")
    assert describe_environment()["revision"] == f"{head} and changed files"


@pytest.mark.parametrize("without", ["repository", "git", "directory"])
def test_without_git_there_is_no_revision(tmp_path, monkeypatch, without):
    monkeypatch.setattr("sys.argv", ["-c"])
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if without == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    if without == "directory":
        os.rmdir(folder)
    assert "revision" not in describe_environment()
