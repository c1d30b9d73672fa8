"""Texts that a run recorded, such as samples of a language model, as a table of a report."""

from __future__ import annotations

from collections.abc import Mapping

from hooks.reports.report_page import ReportTable

EPOCHS = 5
"""Epochs whose texts are shown, of each name, at most."""

CHARACTERS = 4000
"""Characters of a text that are shown, at most."""


def tabulate_texts(texts: Mapping[str, Mapping[int, str]]) -> ReportTable:
    """Arrange texts by name and epoch: the first, the last, and evenly picked ones between.

    >>> texts = {"samples/0": {epoch: f"of epoch {epoch}" for epoch in range(1, 101)}}
    >>> [epoch for _, epoch, _ in tabulate_texts(texts).rows]
    ['1', '26', '51', '75', '100']
    """
    rows = [
        (name, f"{epoch:,}", _shorten(by_epoch[epoch]))
        for name, by_epoch in sorted(texts.items())
        for epoch in _pick_evenly(sorted(by_epoch))
    ]
    return ReportTable(("name", "epoch", "text"), rows, words=("text",))


def _pick_evenly(epochs: list[int]) -> list[int]:
    """Pick a few epochs of a list, the first and the last among them."""
    if len(epochs) <= EPOCHS:
        return epochs
    last = len(epochs) - 1
    return [epochs[round(place * last / (EPOCHS - 1))] for place in range(EPOCHS)]


def _shorten(text: str) -> str:
    if len(text) <= CHARACTERS:
        return text
    return f"{text[:CHARACTERS]} ... ({len(text) - CHARACTERS:,} more characters)"
