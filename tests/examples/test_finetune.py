"""The example of fine-tuning: what is held out, and a run that is killed in a later stage."""

import re

import pytest
from running import fingerprint, finished, killed_after, started

SMALL = (
    *("--layers", "1", "--width", "16", "--vocabulary", "400", "--context", "512", "--rank", "2"),
    *("--base-epochs", "1", "--steps-per-epoch", "5", "--epochs", "2", "--batch-size", "16"),
    *("--preference-epochs", "1", "--checkpointing.max-cost", "None"),
    *("--logging.no-console", "--logging.no-tensorboard", "--logging.no-report"),
)


@pytest.fixture(scope="module")
def example(script):
    """The script as a module."""
    pytest.importorskip("tokenizers")
    return script("finetune")


def test_no_held_out_passage_is_in_the_training_text(example):
    train, held_out = example.split_paragraphs()
    text = " ".join(" ".join(train).split())
    passages, asked = example.cut_passages(train), example.cut_passages(held_out, train)
    assert len(passages) > 500
    assert len(asked) > 100
    assert {name for _, name in passages} == set(example.SECTIONS.values())
    assert not [passage for passage, _ in asked if passage in text]


def test_a_passage_is_of_the_section_that_has_it(example):
    train, _ = example.split_paragraphs()
    topic = {name: topic for topic, name in example.SECTIONS.items()}
    for text, name in example.cut_passages(train)[::20]:
        assert len(text) <= example.PASSAGE
        assert text in " ".join(example.topics[topic[name]].split())


def test_naive_bayes_guesses_by_words(example):
    train = [("red red blue", "colors"), ("one two", "numbers")]
    asked = [("two two", "numbers"), ("red one blue", "colors"), ("one", "colors")]
    assert example.guess_sections(train, asked) == pytest.approx(2 / 3)


def _run(run):
    return started("finetune", run, *SMALL)


@pytest.mark.soak  # smaller tests hold the same laws
def test_it_resumes_bit_for_bit_after_a_kill_among_questions(example, tmp_path):
    straight = finished(_run(tmp_path / "straight"))
    parts = tmp_path / "parts"
    printed = killed_after(_run(parts), parts / "questions", 1)
    assert "base:" in printed
    resumed = finished(_run(parts))
    assert re.search(r"held-out preferences: [01]\.\d{3} right", resumed)
    assert fingerprint(resumed) == fingerprint(straight)
    for name in ("adapter/adapter_config.json", "merged/config.json", "merged/tokenizer.json"):
        assert (parts / name).exists()
