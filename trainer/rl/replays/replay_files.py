"""Replay files: small, the same bytes for the same replay, and validated when they are read."""

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
from trainer.rl.replays.replay import Replay

FORMAT, VERSION = "entracte replay", 1

FILE = re.compile(r"([0-9]+)-[0-9]+\.(?:gif|json)")
"""Names of replay files; no other file is touched."""

MAX_BYTES = 2**30
"""Largest size of a file that is read."""

NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
"""Values of params that JSON has no number for."""


def load_replay(path: str | os.PathLike[str]) -> Replay:
    """Read a replay that `record_replays` wrote.

    Its `states(env)` and `frames(env)` reproduce the episode, bit for bit on the same kind of
    device with the same versions; an episode that differs is refused.

    Args:
        path: of the JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, is no replay, or has a later format.
    """
    file = to_absolute_path(path, "load_replay")
    try:
        text = read_bytes(file, follow=True, most=MAX_BYTES).decode()
        found = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"it must be an object with the format {FORMAT!r}")
        if found.get("version") != VERSION:
            raise ValueError(f"its version must be {VERSION}; got {found.get('version')!r:.100}")
        return _parse_replay(found)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no replay, or a damaged one: {error}") from error


def encode_replay(replay: Replay) -> bytes:
    """Return the JSON of a replay, the same bytes for the same replay."""
    before = ("environment", "lesson", "seed", "number", "greedy", "epoch", "step", "length")
    after = ("terminated", "truncated", "checksum")
    content = {
        "format": FORMAT,
        "version": VERSION,
        **{name: getattr(replay, name) for name in before},
        "return": replay.episode_return,
        **{name: getattr(replay, name) for name in after},
        "params": [[_shorten(number) for number in leaf] for leaf in replay.params],
        "rewards": [_shorten(reward) for reward in replay.rewards],
        "actions": np.vectorize(_shorten, otypes=[object])(replay.actions).tolist(),
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _shorten(number: Any) -> int | float | str:
    """Return a numpy number with the fewest digits that round-trip in its type."""
    if np.issubdtype(type(number), np.floating):
        return float(str(number)) if np.isfinite(number) else str(number)
    return int(number)


def _parse_replay(found: Mapping[str, Any]) -> Replay:
    """Build a replay, or raise ValueError if a field is missing, or has another type or size."""

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
    rewards = _to_numbers("rewards", columns["rewards"])
    if rewards.ndim != 1:
        raise ValueError("'rewards' must be one number a step")
    return Replay(
        environment=take("environment", str, "a name"),
        lesson=None if found.get("lesson", 0) is None else take("lesson", str, "a name or null"),
        params=tuple(_to_numbers("params", _restore_nonfinite(leaf)) for leaf in columns["params"]),
        seed=count("seed", 2**32),
        number=count("number", 2**31),
        greedy=take("greedy", bool, "true or false"),
        epoch=count("epoch", 2**31),
        step=count("step", 2**31),
        actions=_to_numbers("actions", columns["actions"]),
        rewards=rewards.astype(np.float32),
        terminated=take("terminated", bool, "true or false"),
        truncated=take("truncated", bool, "true or false"),
        checksum=take("checksum", str, "16 hexadecimal digits"),
    )


def _to_numbers(name: str, values: Any) -> np.ndarray:
    """Return int32 or float32; params keep 64 bits: only the environment knows their type."""
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


def _restore_nonfinite(leaf: Any) -> list[Any]:
    if not isinstance(leaf, list):
        raise ValueError("'params' must be lists of numbers")
    return [NOT_FINITE.get(value, value) if isinstance(value, str) else value for value in leaf]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"JSON has no number {name}")


def list_replay_files(folder: Path) -> list[tuple[int, Path]]:
    """Return the replay files in a folder, with their epochs."""
    names = ((FILE.fullmatch(path.name), path) for path in folder.iterdir())
    return [(int(name[1]), path) for name, path in names if name]
