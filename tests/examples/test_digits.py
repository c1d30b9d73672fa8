"""The digits example as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest
from running import fingerprint

ROOT = Path(__file__).parents[2]


def _digits(run, *flags, status=0):
    """Run the example; give its standard output and error as one text."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "digits.py"), "--run", str(run), *flags],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def test_it_trains_resumes_and_refuses(tmp_path):
    small = ("--network", "mlp", "--batch-size", "256", "--augment")
    file = tmp_path / "small.yaml"
    file.write_text("{network: mlp, batch_size: 256, augment: true, epochs: 9}")
    straight, _ = _digits(tmp_path / "straight", "--config", str(file), "--epochs", "4")
    assert "val/accuracy" in straight
    first, _ = _digits(tmp_path / "run", "--epochs", "2", *small)
    assert fingerprint(first) != fingerprint(straight)
    second, _ = _digits(tmp_path / "run", "--epochs", "4", *small)
    assert "resuming from epoch 2" in second.replace("\n", " ")
    assert fingerprint(second) == fingerprint(straight)
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert "epochs: 4\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert "val/accuracy" in (tmp_path / "run" / "report.html").read_text()

    _, said = _digits(tmp_path / "run", "--fresh", *small, status=1)
    assert "holds a run" in said
    _, said = _digits(tmp_path / "run", "--epochs", "6", "--seed", "1", *small, status=1)
    assert "seed" in said


def test_it_trains_the_cnn(tmp_path):
    printed, _ = _digits(tmp_path / "run", "--epochs", "1", "--batch-size", "512", "--fresh")
    fingerprint(printed)


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--network", "rnn"), "rnn"), (("--epoch",), "--epochs"), (("--batch-size", "9999"), "9999")],
)
def test_a_mistake_is_told(tmp_path, flags, said):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "digits.py"), "--run", str(tmp_path), *flags],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
