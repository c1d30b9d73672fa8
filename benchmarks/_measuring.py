"""What the benchmarks share: rounds of interleaved contestants, their spread, tables and files."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
PEERS = ("keras", "lightning", "stable-baselines3", "torch", "rejax", "gymnax")

Samples = dict[str, list[float]]
"""Contestant to one figure a round."""


def arguments(description: str) -> argparse.ArgumentParser:
    """Build the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small and few: a check that it runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON file goes")
    return parser


def arguments_with_gpu(description: str) -> argparse.ArgumentParser:
    """Build the options of a benchmark that has a size for one large GPU."""
    parser = arguments(description)
    parser.add_argument("--gpu", action="store_true", help="the size for one large GPU: few rounds")
    return parser


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds of a call, which must block until all that it computed is there."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def interleaved(
    contestants: Mapping[str, Callable[[], float]], *, rounds: int, warm_up: int = 1
) -> Samples:
    """Measure A B C A B C ..., since machines drift; the rounds of the warm-up do not count.

    Args:
        contestants: name to a function that runs once and gives its figure.
        rounds: that count.
        warm_up: rounds before them.
    """
    samples: Samples = {name: [] for name in contestants}
    for number in range(warm_up + rounds):
        for name, measure in contestants.items():
            figure = measure()
            if number >= warm_up:
                samples[name].append(figure)
    return samples


def spread(figures: Sequence[float]) -> dict[str, Any]:
    """Describe figures by their median, quartiles and extremes."""
    low, median, high = np.percentile(figures, (25, 50, 75))
    return {
        "median": float(median),
        "quartiles": [float(low), float(high)],
        "min": float(min(figures)),
        "max": float(max(figures)),
        "repeats": len(figures),
    }


def ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Describe the ratios of two contestants' figures, taken round by round."""
    return spread([a / b for a, b in zip(one, other, strict=True)])


def bar(what: str, measured: float, *, least: float = 0.0, most: float = np.inf) -> dict[str, Any]:
    """Hold a figure to what it must reach."""
    limit = {"at least": least} if least else {"at most": most}
    return {"what": what, **limit, "measured": measured, "holds": bool(least <= measured <= most)}


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is a name, the others are figures."""
    table = Table(title=Text(title, "bold"), title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)


def finish(options: argparse.Namespace, name: str, **content: Any) -> None:
    """Print the bars and notes, and write all to `<results>/<name>.json`.

    Args:
        options: parsed from `arguments`.
        name: of the benchmark.
        content: `measured`, `ratios`, `bars`, `unit`, `warm_up`, `repeats`, and perhaps `notes`.
    """
    if options.quick:
        content |= {"bars": [], "notes": ["a quick run: its figures say nothing"]}
    if bars := content["bars"]:
        rows = []
        for entry in bars:
            kind = "at least" if "at least" in entry else "at most"
            verdict = "holds" if entry["holds"] else "MISSED"
            rows.append(
                (entry["what"], f"{kind} {entry[kind]:g}", text(entry["measured"]), verdict)
            )
        show("Bars", ("what", "bar", "measured", ""), rows)
    for note in content.get("notes", ()):
        CONSOLE.print(f"Note: {note}")
    options.results.mkdir(parents=True, exist_ok=True)
    file = options.results / f"{name}.json"
    record = {"benchmark": name, "quick": options.quick, **environment(), **content}
    file.write_text(json.dumps(record, indent=2) + "\n")
    CONSOLE.print(f"{describe(record)}\nwritten to {file}")


def environment() -> dict[str, Any]:
    """Return what figures were measured on and with."""
    device = jax.devices()[0]
    versions = {"python": platform.python_version()}
    for library in LIBRARIES + PEERS:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions,
    }


def processor() -> str:
    """Name the CPU."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(record: Mapping[str, Any]) -> str:
    """Put an environment in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"{record['device']}, {record['processor']}, {record['cores']} cores; {versions}"


def text(figure: float) -> str:
    """Write a figure with three digits that matter.

    >>> text(0.98765), text(12.345), text(12345.6)
    ('0.988', '12.3', '12,346')
    """
    if abs(figure) >= 100:
        return f"{figure:,.0f}"
    return f"{figure:.3g}"


def columns(described: Mapping[str, Any]) -> tuple[str, str]:
    """Write a spread as two cells: the median, and the quartiles."""
    low, high = described["quartiles"]
    return text(described["median"]), f"{text(low)} to {text(high)}"


CONSOLE = Console(width=120, highlight=False, markup=False, emoji=False)  # "[peers]" is no style
