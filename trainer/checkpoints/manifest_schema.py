"""The schema of a manifest and of part files: every field is checked before any is used."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import align, get_box_shape
from trainer.checkpoints.arrays.piece_files import is_shared_file_of
from trainer.checkpoints.manifest import FORMAT
from trainer.checkpoints.storage.bucket_checkpoints import SAVE

MOST_BYTES = 2**24
"""Size limit of a manifest's file, some 75,000 leaves. Larger ones are not written or read."""


def check_size(content: bytes, subject: str) -> None:
    """Raise ValueError if a manifest or part file is larger than what a reader accepts."""
    if len(content) > MOST_BYTES:
        raise ValueError(
            f"{subject} takes {len(content)} bytes and may take {MOST_BYTES}: keep texts and large "
            "integers out of the state, or join leaves"
        )


_LEAF_FIELDS = {"path", "type", "shape", "itemsize", "pieces", "value"}
_PIECE_FIELDS = {"offset", "box", "checksum"}
_SHARED_PIECE_FIELDS = {*_PIECE_FIELDS, "file"}
_CHECKSUM = re.compile(r"[0-9a-f]{16}")
_MOST_DIMENSIONS = 64
"""The most dimensions of a numpy array."""


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _CHECKSUM.fullmatch(value) is not None


def _is_save(value: Any) -> bool:
    """Return whether a value is the name of a save."""
    return isinstance(value, str) and SAVE.fullmatch(value) is not None


def _is_line(value: Any) -> bool:
    """Return whether a value is text that can be printed as it is."""
    return isinstance(value, str) and value.isprintable() and len(value) < 1000


def _is_holders_row(value: Any) -> bool:
    """Return whether a value is a row of `grids.describe_holders`."""
    if not isinstance(value, dict) or value.keys() != {"grid", "processes", "paths"}:
        return False
    grid, processes, paths = value["grid"], value["processes"], value["paths"]
    return (
        all(isinstance(column, list) for column in (grid, processes, paths))
        and len(grid) <= _MOST_DIMENSIONS
        and all(map(_is_size, (*grid, *processes)))
        and math.prod(grid) == len(processes)
        and all(isinstance(path, str) for path in paths)
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "epoch": _is_size,
    "config": lambda value: value is None or isinstance(value, dict),
    "run": lambda value: value is None or _is_digest(value),
    "settings": lambda value: value is None or isinstance(value, dict),
    "versions": lambda value: isinstance(value, dict),
    "devices": lambda value: value is None or _is_line(value),
    "mesh": lambda value: value is None or _is_line(value),
    "parts": lambda value: (
        value is None or (isinstance(value, list) and all(map(_is_digest, value)))
    ),
    "scores": lambda value: isinstance(value, dict),
    "holders": lambda value: (
        value is None or (isinstance(value, list) and all(map(_is_holders_row, value)))
    ),
    "data": lambda value: value is None or _is_save(value),
    "save": lambda value: value is None or _is_save(value),
    "refers": lambda value: (
        value is None or (isinstance(value, list) and all(isinstance(x, str) for x in value))
    ),
}
"""The fields of a manifest beside its format, files, hooks and leaves."""


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Check the fields of a manifest; if its format is newer, the format alone.

    A checksum detects damage, not intent: whoever changes a file can compute it again. After this
    check no field can break or mislead the code that uses it. Unknown fields are allowed, except
    in leaves.

    Raises:
        DamagedCheckpoint: names the first field that is not as this library writes it.
    """
    given: Any = {**dict.fromkeys(("format", "files", "hooks", "leaves", *_FIELDS)), **manifest}
    number = given["format"]
    _require(type(number) is int and number >= 1, "its format", number)
    if number > FORMAT:
        return
    for field, is_valid in _FIELDS.items():
        _require(is_valid(given[field]), f"its {field}", given[field])
    for subject, rows in (given["settings"] or {}).items():
        _require(_is_line(subject) and isinstance(rows, dict), "its settings", rows)
        for name, value in rows.items():
            _require(_is_line(name) and _is_line(value), f"its setting {_short(name)}", value)
    for name, version in given["versions"].items():
        _require(_is_line(version), f"its version of {_short(name)}", version)
    for name, score in given["scores"].items():
        finite = type(score) is float and math.isfinite(score)
        _require(finite or score in ("nan", "inf", "-inf"), f"its score {_short(name)}", score)
    _check_leaves(given["leaves"], given["files"], 0)
    sections = [name.removeprefix("hook_state/") for name in given["leaves"] if name]
    _require(given["hooks"] == sections, "its hooks", given["hooks"])


def check_part(content: Mapping[str, Any], epoch: int, process: int) -> None:
    """Check the fields of the part file that a process wrote for a checkpoint.

    Raises:
        DamagedCheckpoint: names the first field that is not as this library writes it.
    """
    given: Any = {**dict.fromkeys(("format", "epoch", "process", "files", "leaves")), **content}
    number = given["format"]
    _require(type(number) is int and 1 <= number <= FORMAT, "its format", number)
    for field, wanted in (("epoch", epoch), ("process", process)):
        _require(given[field] == wanted, f"its {field}", given[field])
    _check_leaves(given["leaves"], given["files"], process)


def _check_leaves(sections: Any, files: Any, process: int) -> None:
    """Check that leaves are well formed, and that no pieces overlap.

    Those in the file of the checkpoint are adjacent, those in the shared `files` lie within them.
    """
    sizes = {} if files is None else files
    _require(isinstance(sizes, dict), "its files", sizes)
    for name, size in sizes.items():
        _require(is_shared_file_of(name, process), "a file of it", name)
        _require(_is_size(size), "the size of", size, name)
    shared = _check_sections(sections, sizes)
    for name, spans in shared.items():
        end = 0
        for start, stop in sorted(spans):
            _require(end <= start and stop <= sizes[name], "a place in", start, name)
            end = stop


_Spans = dict[str, list[tuple[int, int]]]


def _check_sections(sections: Any, sizes: Mapping[str, int]) -> _Spans:
    """Check the leaves of all sections, and return where pieces lie in the shared files."""
    _require(isinstance(sections, dict) and "" in sections, "its leaves", sections)
    end, paths = 0, set()
    shared: _Spans = {name: [] for name in sizes}
    for name, leaves in sections.items():
        _require(name == "" or name.startswith("hook_state/"), "its section", name)
        _require(isinstance(leaves, list), f"its section {_short(name)}", leaves)
        for leaf in leaves:
            _require(isinstance(leaf, dict) and leaf.keys() == _LEAF_FIELDS, "its leaf", leaf)
            path = leaf["path"]
            _require(isinstance(path, str) and path not in paths, "its path", path)
            paths.add(path)
            _require(isinstance(leaf["type"], str), "the type of", leaf["type"], path)
            if leaf["shape"] is None:
                _check_scalar(leaf)
            else:
                end = _check_array(leaf, end, shared)
    return shared


def _check_array(leaf: Mapping[str, Any], end: int, shared: _Spans) -> int:
    """Check an array's leaf, whose pieces begin at `end`, and return where they end.

    The places of those in a shared file are added to `shared`. The bytes are compared with the
    dtype when the target is known.
    """
    path, shape, size = leaf["path"], leaf["shape"], leaf["itemsize"]
    whole = isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS and all(map(_is_size, shape))
    _require(whole, "the shape of", shape, path)
    _require(_is_size(size), "the itemsize of", size, path)
    _require(leaf["value"] is None, "the value of the array", leaf["value"], path)
    _require(isinstance(leaf["pieces"], list), "the pieces of", leaf["pieces"], path)
    for piece in leaf["pieces"]:
        fields = isinstance(piece, dict) and piece.keys() in (_PIECE_FIELDS, _SHARED_PIECE_FIELDS)
        _require(fields, "a piece of", piece, path)
        box, offset, checksum = piece["box"], piece["offset"], piece["checksum"]
        if not _is_box(box, shape):
            _require(False, f"a box of {_short(path)}, of shape {shape},", box)
        _require(_is_digest(checksum), "the checksum of", checksum, path)
        count = math.prod(get_box_shape(shape, box)) * size
        if "file" not in piece:
            _require(_is_size(offset) and offset == end, "the offset of", offset, path)
            end = align(end + count)
        else:
            file = piece["file"]
            _require(isinstance(file, str) and file in shared, "the file of", file, path)
            _require(_is_size(offset) and offset == align(offset), "the offset of", offset, path)
            shared[file].append((offset, align(offset + count)))
    return end


def _is_box(box: Any, shape: list[int]) -> bool:
    """Return whether a value is a box of an array of this shape, or None, the whole array."""
    if box is None:
        return True
    if not isinstance(box, list) or len(box) != len(shape):
        return False
    for side, size in zip(box, shape, strict=True):
        if not (isinstance(side, list) and len(side) == 2 and all(map(_is_size, side))):
            return False
        if not side[0] < side[1] <= size:
            return False
    return True


def _check_scalar(leaf: Mapping[str, Any]) -> None:
    path, kind, value = _short(leaf["path"]), leaf["type"], leaf["value"]
    place = leaf["itemsize"], leaf["pieces"]
    _require(place == (0, []), f"the place of {path}, a scalar,", place)
    try:
        valid = _is_scalar(kind, value)
    except (TypeError, ValueError, OverflowError):
        valid = False
    _require(valid, f"the value of {path}, of type {_short(kind)},", value)


def _is_scalar(kind: str, value: Any) -> bool:
    """Return whether `manifest.encode_scalar` produces such a value for this type."""
    if kind in ("bool", "str"):
        return type(value).__name__ == kind
    if kind == "None":
        return value is None
    if kind == "int":
        return hex(int(value, 16)) == value
    if kind == "float":
        return float.fromhex(value).hex() == value
    dtype = parse_dtype(kind.removeprefix("numpy.")) if kind.startswith("numpy.") else None
    if dtype is None or len(value) != 2 * dtype.itemsize:
        return False
    return bytes.fromhex(value).hex() == value


def parse_dtype(name: str) -> np.dtype | None:
    """Return numpy's dtype of this name, if its values are numbers, booleans or times.

    >>> (parse_dtype("bfloat16"), parse_dtype("object"), parse_dtype("O"), parse_dtype("i4, f8"),
    ...  parse_dtype("float"))
    (dtype(bfloat16), None, None, None, None)
    """
    kind = np.sctypeDict.get(name.partition("[")[0])
    if kind is None or issubclass(kind, np.flexible | np.object_):
        return None
    dtype = np.dtype(name)
    return dtype if str(dtype) == name else None


def _require(valid: bool, what: str, got: Any, path: str | None = None) -> None:
    if not valid:  # formatted only here: 1,000 processes write 1,000 pieces of each array
        subject = what if path is None else f"{what} {_short(path)}"
        raise DamagedCheckpoint(f"{subject} cannot be {_short(got)}")


def _short(value: Any) -> str:
    """Format a value of any size in one line."""
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, str):
        return repr(value[:_MOST_DIMENSIONS])
    if isinstance(value, int) and value.bit_length() > _MOST_DIMENSIONS:
        return "an int of that size"
    return repr(value)
