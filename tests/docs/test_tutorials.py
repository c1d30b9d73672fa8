"""The first tutorial, followed word by word: its files are written, its commands run in a shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorials" / "first_model.md"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.soak
def test_a_user_who_follows_it_trains_resumes_and_tests_a_hook(tmp_path):
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    printed = []
    for language, text in BLOCK.findall(TUTORIAL.read_text()):
        if language == "sh":
            ran = subprocess.run(
                ["bash", "-c", text],
                cwd=tmp_path,
                env=environ,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert ran.returncode == 0, ran.stdout + ran.stderr
            printed.append(ran.stdout + ran.stderr)
        elif name := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / name[1]).write_text(text)
    trained, resumed, tested = printed
    assert "epoch 20/20" in trained
    assert float(re.search(r"held-out digits: (\S+)", trained)[1]) > 0.97
    assert re.search(r"resuming from epoch \d+", resumed)
    assert "epoch 1000/1000" in resumed
    assert "1 passed" in tested
