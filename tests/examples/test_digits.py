"""The digits example as a user runs it."""

import pytest
from running import fingerprint, finished, started

from trainer import evaluators


def _digits(run, *flags):
    """Run the example until it succeeds; return its output."""
    return finished(started("digits", run, *flags))


def _refused(run, *flags):
    """Run the example until it fails; return its message."""
    said, _ = (process := started("digits", run, *flags)).communicate(timeout=120)
    assert process.returncode in (1, 2)
    return said


def test_it_trains_resumes_and_refuses(tmp_path):
    small = ("--network", "mlp", "--batch-size", "256", "--augment")
    file = tmp_path / "small.yaml"
    file.write_text("{network: mlp, batch_size: 256, augment: true, epochs: 9}")
    straight = _digits(tmp_path / "straight", "--config", str(file), "--epochs", "4")
    assert "val/accuracy" in straight
    first = _digits(tmp_path / "run", "--epochs", "2", *small)
    assert fingerprint(first) != fingerprint(straight)
    second = _digits(tmp_path / "run", "--epochs", "4", *small)
    assert "resuming from epoch 2" in second.replace("\n", " ")
    assert fingerprint(second) == fingerprint(straight)
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert "epochs: 4\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert "val/accuracy" in (tmp_path / "run" / "report.html").read_text()

    assert "holds a run" in _refused(tmp_path / "run", "--fresh", *small)
    assert "seed" in _refused(tmp_path / "run", "--epochs", "6", "--seed", "1", *small)


def test_it_trains_the_cnn_which_an_evaluator_measures(tmp_path, script):
    printed = _digits(tmp_path / "run", "--epochs", "1", "--batch-size", "512", "--fresh")
    fingerprint(printed)
    suite = script("digits").suite()
    assert evaluators.work(tmp_path, suite, idle=0, runs=["run"]).done == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--network", "rnn"), "rnn"), (("--epoch",), "--epochs"), (("--batch-size", "9999"), "9999")],
)
def test_a_mistake_is_reported(tmp_path, flags, said):
    assert said in _refused(tmp_path, *flags)
