"""The captions example: its scenes, and a run as a user starts it."""

import numpy as np
import pytest
from running import fingerprint, finished, started


@pytest.fixture(scope="module")
def captions(script):
    """The script as a module."""
    return script("captions")


def test_a_caption_reads_as_the_scene_is_composed(captions):
    images = {digit: np.full((1, 8, 8), (digit + 1) / 10, np.float32) for digit in range(10)}
    for combination, said in (
        ((3, 0, 7), "a three left of a seven"),
        ((8, 1, 0), "an eight above a zero"),
    ):
        batch = captions.scenes(np.array([combination]), images, 5, seed=0)
        assert {captions.words(row) for row in batch["labels"]} == {said}
        assert (batch["mask"].sum(1) == len(said.split()) + 1).all()
        np.testing.assert_array_equal(batch["inputs"]["tokens"][:, 1:], batch["labels"][:, :-1])
        for pixels in batch["inputs"]["image"][..., 0]:
            first, second = (
                np.argwhere(np.isclose(pixels, (digit + 1) / 10)).min(0)
                for digit in (combination[0], combination[2])
            )
            axis = 1 if combination[1] == 0 else 0
            assert first[axis] + 8 <= second[axis]
            assert abs(first[1 - axis] - second[1 - axis]) < 8


def test_held_out_combinations_are_never_trained_on(captions):
    config = captions.Config(scenes=512)
    train, measured = captions.drawn(config)

    def said(source):
        return {captions.words(row) for row in np.asarray(source.arrays["labels"])}

    assert said(measured["seen"]) - said(measured["held_out"]) == said(measured["seen"])
    assert not said(train) & said(measured["held_out"])
    assert len(said(measured["held_out"])) == 40


def test_it_trains_writes_samples_and_reports_mistakes(tmp_path):
    run = tmp_path / "run"
    flags = ("--epochs", "4", "--scenes", "64", "--fresh")
    printed = finished(started("captions", run, *flags, "--schedule.warmup-share", "0"))
    assert "held_out/exact_match" in printed
    assert "(it is a" in printed
    fingerprint(printed)
    assert (run / "report.html").exists()
    said, _ = (again := started("captions", run, *flags)).communicate(timeout=240)
    assert again.returncode != 0
    assert "holds a run" in said
