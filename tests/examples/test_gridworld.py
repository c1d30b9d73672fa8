"""The gridworld example as a user runs it: killed in the middle, and with a teacher."""

import json
import re

import pytest
from running import fingerprint, finished, killed_after, started

EPOCHS = 40
SMALL = (
    *("--envs", "2", "--steps", "8", "--batch-size", "8", "--recurrent-size", "4"),
    *("--checkpointing.max-cost", "None"),
    *("--logging.no-tensorboard", "--logging.no-report"),
)


def _run(run, epochs=EPOCHS):
    return started("gridworld", run, *SMALL, "--epochs", str(epochs))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The directory of a short run."""
    run = tmp_path_factory.mktemp("teacher")
    finished(_run(run, epochs=20))
    return run


def _student(teacher, run, *, teacher_recurrent_size):
    """Start a student of that run."""
    return started(
        *("gridworld", run, "--epochs", "4", "--envs", "8", "--steps", "8", "--batch-size", "8"),
        *(
            "--recurrent-size",
            "6",
            "--teacher",
            teacher,
            "--teacher-recurrent-size",
            teacher_recurrent_size,
        ),
        *("--optimizer.learning-rate", "1e-2"),
        *("--logging.no-console", "--logging.no-tensorboard", "--logging.no-report"),
    )


@pytest.mark.soak  # smaller tests hold the same law
def test_it_resumes_bit_for_bit_after_a_kill(tmp_path):
    """Including levels, recurrent states, curriculum and evaluations."""
    straight = finished(_run(tmp_path / "straight"))
    parts = tmp_path / "parts"
    killed = _run(parts)
    printed = killed_after(killed, parts, 3)
    assert killed.returncode < 0, printed
    resumed = finished(_run(parts))
    assert re.search(r"resuming from epoch [1-3]?\d,", resumed.replace("\n", " "))
    assert f"missed 0.6 after {EPOCHS * 16:,} steps" in resumed
    assert fingerprint(resumed) == fingerprint(straight)


def test_a_student_learns_to_act_as_its_teacher(teacher, tmp_path):
    fingerprint(finished(_student(teacher, tmp_path, teacher_recurrent_size=4)))
    records = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    apart = [record["update/kl_to_teacher"] for record in records]
    assert apart[-1] < apart[0]  # rewards alone move it away


def test_a_teacher_of_another_size_is_refused_before_training(teacher, tmp_path):
    process = _student(teacher, tmp_path, teacher_recurrent_size=8)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ValueError: the teacher cannot be restored" in said
    wanted = r"cell/dense_h/kernel: saved float32\[4, 12\], wanted float32\[8, 24\]"
    assert re.search(wanted, said)
    assert not any(tmp_path.iterdir())
