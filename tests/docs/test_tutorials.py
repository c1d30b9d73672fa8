"""Tutorials, followed word by word: their files are written, their commands run in a shell."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.soak


def read(name):
    return (ROOT / "docs" / "tutorials" / f"{name}.md").read_text()


def run(command, folder):
    """Run a command in a folder to its success; return what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def follow(name, folder):
    """Follow a tutorial in a folder; return what each of its commands printed."""
    printed = []
    for language, text in BLOCK.findall(read(name)):
        if language == "sh":
            printed.append(run(["bash", "-c", text], folder))
        elif file := re.match(r"# (\w+\.py)\n", text):
            (folder / file[1]).write_text(text)
    return printed


def test_a_first_model_is_trained_and_resumed_and_its_hook_tested(tmp_path):
    trained, resumed, tested, _ = follow("first_model", tmp_path)
    assert "epoch 20/20" in trained
    assert float(re.search(r"held-out digits: (\S+)", trained)[1]) > 0.97
    assert re.search(r"resuming from epoch \d+", resumed)
    assert "epoch 3000/3000" in resumed
    assert "1 passed" in tested


def test_agents_balance_a_pole_and_catch_a_ball(tmp_path):
    trained, watched, resumed, tested, caught, compared = follow("reinforcement", tmp_path)
    assert float(re.search(r"of 32 episodes: (\S+)", trained)[1]) > 400
    assert "'val/return'" in watched
    assert len(list((tmp_path / "runs" / "watched" / "replays").glob("*.gif"))) == 3
    assert re.search(r"resuming from epoch \d+", resumed)
    assert "epoch 200/200" in resumed
    assert "1 passed" in tested
    assert float(re.search(r"of 128 episodes: (\S+)", caught)[1]) > 0.9
    assert float(re.search(r"as above +(\S+),", compared)[1]) > 0.6


def test_a_language_model_is_tuned_written_and_prefers_direct_answers(tmp_path):
    shutil.copy(ROOT / "examples" / "finetune.py", tmp_path)
    base, questions, tuned, asked, scored, exported, preferred = follow("language", tmp_path)
    assert "model.safetensors" in base
    assert "asked.jsonl" in questions
    assert "conversations in" in tuned
    assert asked.strip()
    before, after, last = (
        [float(share) for share in re.search(rf"{name}: +(\S+) of .*, (\S+) of", text).groups()]
        for name, text in (("before", scored), ("tuned", scored), ("preferred", preferred))
    )
    assert before[0] < 0.3 < 0.6 < after[0]
    assert last[1] < 0.2 < after[1]
    assert "merged/model.safetensors" in exported
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        (program,) = re.findall(r"^```py\n(.*?)^```", read("language"), re.DOTALL | re.MULTILINE)
        assert "In compound statements." in run([sys.executable, "-c", program], tmp_path)
