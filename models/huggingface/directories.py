"""Directories of weights as on the Hugging Face hub: their files, and the tensors in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.huggingface.families import Family
from models.huggingface.tensor_files import DTYPES, StoredTensor, is_same, read_header

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

LARGEST_TEXT = 100_000_000
"""Bytes of the longest JSON file that is read."""

MOST_LISTED = 8
"""Faults of each kind that a message lists."""


def read_json(file: Path) -> dict[str, Any]:
    """Read an object from a JSON file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it holds something else, or is larger than any such file.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"{file} does not exist; pass a directory as on the Hugging Face hub, with {CONFIG} "
            f"and {WEIGHTS}"
        )
    try:
        if file.stat().st_size > LARGEST_TEXT:
            raise ValueError(f"it has more than {LARGEST_TEXT:,} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {content!r:.100}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} must hold a JSON object: {error}") from None
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write an object to a JSON file, which appears complete or not at all."""
    beside = file.with_name(f"{file.name}.tmp")
    beside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(beside, file)


def find_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Return where each tensor of a directory lies: in one file, or in the shards of an index.

    Raises:
        FileNotFoundError: there is no such file, or a shard is missing.
        ValueError: a file is damaged, or the index names what is not there.
    """
    if (whole := directory / WEIGHTS).exists():
        return read_header(whole)
    if not (index := directory / INDEX).exists():
        others = sorted(path.name for path in directory.iterdir() if path.name != CONFIG)
        raise FileNotFoundError(
            f"{directory} has neither {WEIGHTS} nor {INDEX}, but {', '.join(others) or 'nothing'}; "
            "weights in another form must be saved again by transformers' save_pretrained"
        )
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index} must have a weight_map from tensors to files")
    shards = {}
    for name in sorted({*places.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} must name .safetensors files beside it; got {name!r:.100}")
        if not (directory / name).exists():
            raise FileNotFoundError(f"{directory / name} is missing, which {INDEX} names")
        shards[name] = read_header(directory / name)
    if lost := [tensor for tensor, name in places.items() if tensor not in shards[name]]:
        raise ValueError(f"{index} names tensors that the shards do not hold: {_list(lost)}")
    return {tensor: shards[name][tensor] for tensor, name in places.items()}


def match_tensors(
    directory: Path,
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, StoredTensor],
    family: Family,
) -> dict[str, StoredTensor]:
    """Return the tensors of a network by their usual names.

    Args:
        directory: of the tensors, for messages.
        expected: shapes of the network's tensors, by name.
        found: of `find_tensors`. Names may lack the family's prefix; masks and the like are left
            out, and so is the head of a network whose logits have the weights of the embedding, if
            it is the embedding.
        family: whose names these are.

    Raises:
        ValueError: tensors are missing, not expected, of another shape, or no floats. All are
            listed.
    """
    prefix = family.tensors["embed/embedding"].partition(".")[0] + "."
    head, embedding = (family.tensors[name] for name in ("head/kernel", "embed/embedding"))
    if not any(name.startswith(prefix) for name in found):
        found = {name if name == head else prefix + name: each for name, each in found.items()}
    found = {name: each for name, each in found.items() if not re.search(family.ignored, name)}
    if head in found and head not in expected and embedding in found:
        if not is_same(found[head], found[embedding]):
            raise ValueError(
                f"{directory}: tie_word_embeddings is true in {CONFIG}, but {head} is not "
                f"{embedding}; set it to false"
            )
        del found[head]
    wrong = [
        f"{name} is {found[name].dtype}{list(found[name].shape)}, not {list(expected[name])} of "
        f"{', '.join(DTYPES)}"
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name] or found[name].dtype not in DTYPES
    ]
    faults = [
        f"{kind}: {_list(names)}"
        for kind, names in (
            ("missing", expected.keys() - found.keys()),
            ("not expected", found.keys() - expected.keys()),
            ("of another shape or dtype", wrong),
        )
        if names
    ]
    if faults:
        raise ValueError(f"{directory}: the tensors do not fit {CONFIG}:\n  " + "\n  ".join(faults))
    return dict(found)


def _list(names: Any) -> str:
    listed = sorted(names)
    more = [f"and {len(listed) - MOST_LISTED} more"] * (len(listed) > MOST_LISTED)
    return ", ".join([f"{name:.100}" for name in listed[:MOST_LISTED]] + more)
