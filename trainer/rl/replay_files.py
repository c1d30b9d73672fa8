"""Files of replays: small, the same bytes for the same replay, and read with care."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checks.paths import to_absolute_path
from trainer.host.safe_open import read_bytes
from trainer.rl.replays import Replay

FORMAT, VERSION = "entracte replay", 1

FILE = re.compile(r"([0-9]+)-[0-9]+\.(?:gif|json)")
"""The names that replays have; no other file is touched."""

MOST_BYTES = 2**30
"""Of a file that is read."""

NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
"""What JSON has no number for; params may hold it."""


def load_replay(path: str | os.PathLike[str]) -> Replay:
    """Read a replay that `record_replays` wrote.

    Its `states(env)` and `frames(env)` make again what was seen, bit for bit on the same kind of
    device with the same versions; an episode that goes otherwise is refused.

    Args:
        path: of the JSON file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, is no replay, or is one of a later format.
    """
    file = to_absolute_path(path, "load_replay")
    try:
        text = read_bytes(file, follow=True, most=MOST_BYTES).decode()
        found = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"it must be an object with the format {FORMAT!r}")
        if found.get("version") != VERSION:
            raise ValueError(f"its version must be {VERSION}; got {found.get('version')!r:.100}")
        return _read(found)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no replay, or a damaged one: {error}") from error


def encode_replay(replay: Replay) -> bytes:
    """Give the JSON of a replay, the same bytes for the same replay."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "environment": replay.environment,
        "lesson": replay.lesson,
        "seed": replay.seed,
        "number": replay.number,
        "greedy": replay.greedy,
        "epoch": replay.epoch,
        "step": replay.step,
        "length": replay.length,
        "return": replay.episode_return,
        "terminated": replay.terminated,
        "truncated": replay.truncated,
        "checksum": replay.checksum,
        "params": [[_short(number) for number in leaf] for leaf in replay.params],
        "rewards": [_short(reward) for reward in replay.rewards],
        "actions": np.vectorize(_short, otypes=[object])(replay.actions).tolist(),
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _short(number: Any) -> int | float | str:
    """Give a number of numpy by the fewest digits that are it again in its type."""
    if np.issubdtype(type(number), np.floating):
        return float(str(number)) if np.isfinite(number) else str(number)
    return int(number)


def _read(found: Mapping[str, Any]) -> Replay:
    """Make a replay of what a file holds.

    Raises:
        ValueError: something is missing, or of another type or size.
    """

    def take(name: str, kind: type, wanted: str) -> Any:
        if type(found.get(name)) is not kind:
            raise ValueError(f"{name!r} must be {wanted}; got {found.get(name)!r:.100}")
        return found[name]

    def count(name: str, limit: int) -> int:
        number = take(name, int, "a whole number")
        if not 0 <= number < limit:
            raise ValueError(f"{name!r} must be at least 0 and below {limit}; got {number!r:.100}")
        return int(number)

    length = count("length", 2**31)
    columns = {name: take(name, list, "a list") for name in ("params", "rewards", "actions")}
    for name in ("rewards", "actions"):
        if len(columns[name]) != length or not length:
            raise ValueError(f"{name!r} must have the replay's {length} steps, and at least 1")
    rewards = _numbers("rewards", columns["rewards"])
    if rewards.ndim != 1:
        raise ValueError("'rewards' must be one number a step")
    return Replay(
        environment=take("environment", str, "a name"),
        lesson=None if found.get("lesson", 0) is None else take("lesson", str, "a name or null"),
        params=tuple(_numbers("params", _with_infinities(leaf)) for leaf in columns["params"]),
        seed=count("seed", 2**32),
        number=count("number", 2**31),
        greedy=take("greedy", bool, "true or false"),
        epoch=count("epoch", 2**31),
        step=count("step", 2**31),
        actions=_numbers("actions", columns["actions"]),
        rewards=rewards.astype(np.float32),
        terminated=take("terminated", bool, "true or false"),
        truncated=take("truncated", bool, "true or false"),
        checksum=take("checksum", str, "16 hexadecimal digits"),
    )


def _numbers(name: str, values: Any) -> np.ndarray:
    """Give int32 or float32; params keep 64 bits, since only the environment knows their type."""
    numbers = np.asarray(values)
    kinds = {"i": np.int32, "f": np.float32}
    if numbers.dtype.kind not in kinds:
        raise ValueError(f"{name!r} must be numbers in lists of one length")
    if name == "params":
        return numbers
    with np.errstate(over="ignore"):  # infinity is refused below
        kept = numbers.astype(kinds[numbers.dtype.kind])
    if not np.isfinite(kept).all() or (numbers.dtype.kind == "i" and (kept != numbers).any()):
        raise ValueError(f"{name!r} must be numbers that fit 32 bits")
    return kept


def _with_infinities(leaf: Any) -> list[Any]:
    if not isinstance(leaf, list):
        raise ValueError("'params' must be lists of numbers")
    return [NOT_FINITE.get(value, value) if isinstance(value, str) else value for value in leaf]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"JSON has no number {name}")


def list_replay_files(folder: Path) -> list[tuple[int, Path]]:
    """List the files of replays in a folder, with their epochs."""
    names = ((FILE.fullmatch(path.name), path) for path in folder.iterdir())
    return [(int(name[1]), path) for name, path in names if name]
