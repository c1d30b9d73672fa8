"""Learning curves of the examples, as small charts in one picture."""

import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from colors import draw_card
from example_runs import train

from trainer.host.rendering.panels import Curve, choose_ticks


class Chart(NamedTuple):
    """Curves of a run."""

    title: str
    run: str
    """In the folder of the runs; its first part names the example."""
    metrics: Mapping[str, str]
    """Names of metrics to what they are called in the chart."""


SUPERVISED = (
    Chart("digits.py: accuracy", "digits", {"train/accuracy": "train", "val/accuracy": "val"}),
    Chart(
        "captions.py: exact captions",
        "captions",
        {"seen/exact_match": "seen combinations", "held_out/exact_match": "unseen"},
    ),
    Chart(
        "text.py: bits per character",
        "text",
        {"train/bits_per_character": "train", "val/bits_per_character": "val"},
    ),
    Chart(
        "finetune.py: accuracy of answers",
        "finetune/questions",
        {"train/accuracy": "train", "val/accuracy": "val"},
    ),
)

AGENTS = (
    Chart("cartpole.py: return", "cartpole", {"rollout/return": "rollout", "val/return": "val"}),
    Chart("population.py: return, mean of live", "population", {"val/return": "val"}),
    Chart(
        "gridworld.py: return by lesson",
        "gridworld",
        {f"val/return/{name}": name for name in ("empty", "two_rooms", "key")},
    ),
    Chart(
        "arithmetic.py: reward by lesson",
        "arithmetic",
        {f"sample/reward/{name}": name for name in ("one_digit", "two_digits")},
    ),
)

WIDTH, HEIGHT = 384, 236
"""Of a chart, which has these margins around its curves:"""
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 54, 32

STYLE = """
path { fill: none; stroke-width: 2; stroke-linejoin: round; }
.grid { stroke: var(--line); stroke-width: 1; }
text { font-size: 13px; } .title { font-size: 15px; font-weight: 600; } .dim { fill: var(--dim); }
""" + "".join(
    f"path.c{n} {{ stroke: var(--c{n}); }} text.c{n} {{ fill: var(--c{n}); }}\n" for n in range(3)
)


def draw_supervised(runs: Path, to: Path) -> None:
    """Write `curves-supervised.svg`."""
    title = "Learning curves of the supervised examples, by epoch"
    (to / "curves-supervised.svg").write_text(_draw_charts(SUPERVISED, runs, title))


def draw_agents(runs: Path, to: Path) -> None:
    """Write `curves-agents.svg`."""
    title = "Learning curves of the examples with agents, by epoch"
    (to / "curves-agents.svg").write_text(_draw_charts(AGENTS, runs, title))


def read_curves(file: Path, names: Mapping[str, str]) -> dict[str, Curve]:
    """Read metrics from lines of JSON; the last line of an epoch counts."""
    curves = {label: Curve() for label in names.values()}
    for line in file.read_text().splitlines():
        record = json.loads(line)
        for name, label in names.items():
            if name in record:
                curves[label].add(record["epoch"], record[name])
    missing = [label for label, curve in curves.items() if not curve.values]
    if missing:
        raise ValueError(f"{file} must have {', '.join(names)}; it has no {', '.join(missing)}")
    return curves


def _draw_charts(charts: tuple[Chart, ...], runs: Path, title: str) -> str:
    parts = []
    for number, chart in enumerate(charts):
        train(chart.run.partition("/")[0], runs)
        curves = read_curves(runs / "runs" / chart.run / "metrics.jsonl", chart.metrics)
        x, y = 6 + number % 2 * WIDTH, 6 + number // 2 * HEIGHT
        drawn = "\n".join(_draw_chart(chart.title, curves))
        parts.append(f'<g transform="translate({x} {y})">\n{drawn}\n</g>')
    rows = -(-len(charts) // 2)
    return draw_card(2 * WIDTH + 12, rows * HEIGHT + 12, STYLE, parts, title)


def _draw_chart(title: str, curves: Mapping[str, Curve]) -> list[str]:
    epochs = [epoch for curve in curves.values() for epoch in curve.epochs]
    values = [value for curve in curves.values() for value in curve.values]
    across = _scale(min(epochs), max(epochs), LEFT, WIDTH - RIGHT)
    up = _scale(min(values), max(values), HEIGHT - BOTTOM, TOP)
    parts = [_text(LEFT, 22, title, "start", "title")]
    for value in choose_ticks(min(values), max(values)):
        y = up(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 7, y + 4, f"{value:g}", "end", "dim"))
    below = HEIGHT - BOTTOM + 20
    parts += [
        _text(across(value), below, f"{value:g}", "middle", "dim")
        for value in choose_ticks(min(epochs), max(epochs), whole=True)
    ]
    parts.append(_text(LEFT - 7, below, "epoch", "end", "dim"))
    left: float = LEFT
    for number, (label, curve) in enumerate(curves.items()):
        points = zip(map(across, curve.epochs), map(up, curve.values), strict=True)
        line = "L".join(f"{x} {y}" for x, y in points)
        parts.append(f'<path class="c{number}" d="M{line}"/>')
        parts.append(_text(left, 41, label, "start", f"c{number}"))
        left += 8 * len(label) + 14
    return parts


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    def place(number: float) -> float:
        share = (number - low) / (high - low) if high > low else 0.5
        return round(start + share * (end - start), 1)

    return place


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    shown = html.escape(text)
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{shown}</text>'
