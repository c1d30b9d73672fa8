"""Suggestions for unknown names: the intended one is found, and no other."""

import pytest

from trainer.checks.suggestions import MANY, find_similar_names, suggest_and_list, suggest_name

METRICS = ["train/loss", "train/accuracy", "val/loss", "val/accuracy", "train/grad_norm"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("val_loss", ["val/loss"]),
        ("Val/Loss", ["val/loss"]),
        ("valloss", ["val/loss"]),
        ("val/los", ["val/loss"]),
        ("val/acuracy", ["val/accuracy"]),
        ("loss", ["train/loss", "val/loss"]),
        ("gradnorm", ["train/grad_norm"]),
        ("test/loss", []),  # another split is no slip of the pen
        ("perplexity", []),
        ("", []),
        (3, []),
    ],
)
def test_the_intended_metric_is_suggested(name, near):
    assert find_similar_names(name, METRICS) == near


def test_at_most_three_are_suggested():
    assert find_similar_names("loss", [f"part{n}/loss" for n in range(9)]) == [
        f"part{n}/loss" for n in range(3)
    ]


def test_each_name_is_listed_once():
    assert suggest_name("trian", ["train", "train"]) == " Did you mean 'train'?"


def test_a_long_list_is_cut():
    said = suggest_and_list("x", [f"metric{n}" for n in range(MANY + 5)])
    assert said.endswith("metric19 and 5 more)")
