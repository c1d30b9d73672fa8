"""Write the index of an OCDBT database over bytes that lie in other files.

OCDBT is the format in which TensorStore and Orbax store many small arrays in few files: a tree of
nodes that say where the value of each key lies. A node may refer to bytes of any file below its
folder, so bytes that were written in another way become a database by adding an index.

Source: "Storage format" of https://google.github.io/tensorstore/kvstore/ocdbt/index.html
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MANIFEST, NODES = "manifest.ocdbt", "nodes.ocdbt"
"""The files of an index: where readers begin, and the tree."""

_MANIFEST_MAGIC, _NODE_MAGIC = 0x0CDB3A2A, 0x0CDB20DE
_INLINE, _INDIRECT = 0, 1
_MOST_INLINE, _MOST_DECODED, _ARITY_LOG2 = 1024, 100_000_000, 4


class Place(NamedTuple):
    """Where the value of a key lies."""

    file: str
    """Its path from the folder of the index: `process_0`."""
    offset: int
    size: int
    """In bytes."""


def build_index(values: Mapping[str, bytes | Place]) -> dict[str, bytes]:
    """Build the files of a database with these values: name to content.

    Args:
        values: key to its value, or to where that lies.

    >>> sorted(build_index({"a/.zarray": b"{}", "a/0": Place("process_0", 64, 12)}))
    ['manifest.ocdbt', 'nodes.ocdbt']
    """
    node = _build_node({key.encode(): value for key, value in sorted(values.items())})
    indirect = sum(value.size for value in values.values() if isinstance(value, Place))
    config = [
        uuid.UUID(int=0).bytes,
        _varint(0),  # one manifest
        _varint(_MOST_INLINE),
        _varint(_MOST_DECODED),
        bytes([_ARITY_LOG2]),
        _varint(0),  # no compression
    ]
    version = [
        _varint(1),  # number of versions
        _varint(1),  # generation
        bytes([0]),  # height of the root
        *map(_varint, (0, 0, len(node), len(values), len(node), indirect)),
        struct.pack("<Q", 1),  # time; none, so that equal trees give equal bytes
        _varint(0),  # no older versions
    ]
    body = b"".join([*config, _build_file_table([NODES]), *version])
    return {MANIFEST: _wrap(_MANIFEST_MAGIC, body), NODES: node}


def _build_node(values: Mapping[bytes, bytes | Place]) -> bytes:
    """Build a leaf of the tree, which is its root; keys ascend."""
    keys = list(values)
    places = [value for value in values.values() if isinstance(value, Place)]
    inline = [value for value in values.values() if not isinstance(value, Place)]
    files = sorted({place.file for place in places})
    numbers = {file: number for number, file in enumerate(files)}
    sizes = [v.size if isinstance(v, Place) else len(v) for v in values.values()]
    kinds = [_INDIRECT if isinstance(v, Place) else _INLINE for v in values.values()]
    columns = (
        [0] * (len(keys) - 1),  # bytes shared with the key before: none, for speed
        map(len, keys),
        keys,
        sizes,
        kinds,
        (numbers[place.file] for place in places),
        (place.offset for place in places),
        inline,
    )
    parts = [bytes([0]), _build_file_table(files), _varint(len(keys))]
    for column in columns:
        parts += [item if isinstance(item, bytes) else _varint(item) for item in column]
    return _wrap(_NODE_MAGIC, b"".join(parts))


def _build_file_table(files: Sequence[str]) -> bytes:
    names = [file.encode() for file in files]
    parts = [_varint(len(names)), *(_varint(0) for _ in names[1:])]  # nothing shared
    parts += [_varint(len(name)) for name in names]
    return b"".join([*parts, *(_varint(0) for _ in names), *names])


def _wrap(magic: int, body: bytes) -> bytes:
    """Put a header before a body and its checksum after it."""
    from tensorboardX.crc32c import crc32c  # 0.1 s, for runs that save

    head = struct.pack(">I", magic)
    rest = _varint(0) + _varint(0) + body  # version, no compression
    content = head + struct.pack("<Q", len(head) + 8 + len(rest) + 4) + rest
    return content + struct.pack("<I", crc32c(content))


def _varint(value: int) -> bytes:
    """Encode a number, seven bits a byte, the low ones first.

    >>> _varint(300)
    b'\\xac\\x02'
    """
    if value < 0x80:
        return bytes((value,))
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
