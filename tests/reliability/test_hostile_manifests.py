"""Forged manifests with the right checksums: junk, lies, nesting, sizes."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import xxhash
from forging import add_piece, forge, lay_out, make, read, restore
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.checkpoints import DamagedCheckpoint, manifest, manifest_schema
from trainer.checkpoints.load import read_params

HUGE = 10**12


# Manifests with any content

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["numpy.object", "numpy.float32", "0x1p999999", "key<fry>", "-0x", "inf"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(tree, path=()):
    """Yield the path of every value in a tree of JSON."""
    yield path
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


@given(content=junk)
@settings(max_examples=100)
def test_a_manifest_of_anything_is_damage(tmp_path_factory, content):
    with pytest.raises(DamagedCheckpoint):
        manifest_schema.check_manifest(manifest.decode_manifest(manifest.encode_manifest(content)))


@given(draw=st.data())
@settings(max_examples=200)
def test_a_manifest_with_anything_anywhere_is_restored_or_refused(original, draw):
    run = original.with_name("junk")
    if not run.exists():
        shutil.copytree(original, run)
    content = read(original / "checkpoints/2")
    path = draw.draw(st.sampled_from(list(places(content))[1:]))
    spoiled = copy.deepcopy(content)
    inner = spoiled
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = draw.draw(junk)
    forge(run / "checkpoints/2", spoiled)
    with contextlib.suppress(DamagedCheckpoint, ValueError):
        checkpoint = restore(run, epoch=2, config={"seed": 0})
        assert bool((checkpoint.state.params["w"] == make(2).params["w"]).all())


def leaf_of(content, path):
    return next(x for group in content["leaves"].values() for x in group if x["path"] == path)


LIES = {
    "another size": ("params/w", {"itemsize": 8}),
    "a negative size": ("params/w", {"itemsize": -4}),
    "a box outside": ("params/w", {"box": [[0, 101]]}),
    "an empty box": ("params/w", {"box": [[7, 7]]}),
    "a box of another rank": ("params/w", {"box": [[0, 100], [0, 1]]}),
    "a box reversed": ("params/w", {"box": [[50, 0]]}),
    "a box before": ("params/w", {"box": [[-1, 99]]}),
    "a side of three": ("params/w", {"box": [[0, 50, 100]]}),
    "a box that is none": ("params/w", {"box": 100}),
    "a box of truths": ("params/w", {"box": [[False, True]]}),
    "no size": ("params/w", {"itemsize": None}),
    "a truth for an itemsize": ("params/w", {"itemsize": True}),
    "a size for a scalar": ("hook_state/h/n", {"itemsize": 8}),
    "no pieces": ("params/w", {"pieces": None}),
    "a piece that is none": ("params/w", {"pieces": [3]}),
    "a piece without fields": ("params/w", {"pieces": [{}]}),
    "a value of an array": ("params/w", {"value": "0x1"}),
    "pieces of a scalar": ("hook_state/h/n", {"pieces": [{}]}),
    "a negative offset": ("params/w", {"offset": -64}),
    "an offset that is no multiple": ("params/w", {"offset": 1}),
    "an offset far away": ("params/w", {"offset": 2**62}),
    "a shape that overflows": ("params/w", {"shape": [2**62, 2**62]}),
    "a negative shape": ("params/w", {"shape": [-100]}),
    "a truth for a size": ("params/w", {"shape": [True, 100]}),
    "no shape": ("params/w", {"shape": None}),
    "a shape for a scalar": ("hook_state/h/n", {"shape": []}),
    "an object": ("hook_state/h/rate", {"type": "numpy.object"}),
    "a record": ("hook_state/h/rate", {"type": "numpy.i4, f8"}),
    "too many bytes": ("hook_state/h/rate", {"value": "00" * 5}),
    "no hexadecimals": ("hook_state/h/rate", {"value": "0000 000"}),
    "an int that is none": ("hook_state/h/n", {"value": "__import__('os')"}),
    "a float too large": ("hook_state/h/best", {"value": "0x1p999999"}),
    "a text that is none": ("hook_state/h/name", {"value": 3}),
    "something for None": ("hook_state/h/none", {"value": False}),
    "no checksum": ("params/w", {"checksum": ""}),
    "a field more": ("params/w", {"driver": "http"}),
    "another's path": ("hook_state/h/n", {"path": "hook_state/h/best"}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_a_leaf_is_damage(run, lie):
    content = read(run / "checkpoints/2")
    path, fields = LIES[lie]
    leaf = leaf_of(content, path)
    (leaf["pieces"][0] if fields.keys() <= {"offset", "box", "checksum"} else leaf).update(fields)
    forge(run / "checkpoints/2", content)
    with pytest.raises(DamagedCheckpoint, match="checkpoint 2 in .*: .* cannot be"):
        restore(run, strict=True)
    assert restore(run).epoch == 1


def test_a_leaf_whose_bytes_are_not_its_dtypes_is_damage(run):
    content = read(run / "checkpoints/2")
    row = leaf_of(content, "rng")
    row |= {"itemsize": 1, "shape": []}
    forge(run / "checkpoints/2", content)
    with pytest.raises(DamagedCheckpoint, match="gives a wrong size to rng"):
        restore(run, strict=True)


# Pieces and parts, each with the right offset and checksum


@pytest.mark.parametrize(
    "processes",
    [
        [[None]],
        [[(0, 50), (50, 100)]],
        [[(70, 100), (0, 70)]],
        [[(0, 50)], [(50, 100)]],
        [[], [None]],
        [[(0, 10)], [(90, 100)], [(10, 90)]],
    ],
)
def test_pieces_and_parts_that_make_an_array_are_restored(run, processes):
    lay_out(run / "checkpoints/2", *processes)
    restored = restore(run, epoch=2).state.params["w"]
    assert bool((restored == make(2).params["w"]).all())


UNFIT = {
    "none": [[]],
    "none in any part": [[], []],
    "a half": [[(0, 50)]],
    "a gap": [[(0, 50), (51, 100)]],
    "a gap between parts": [[(0, 50)], [(51, 100)]],
    "the whole twice": [[None, None]],
    "the whole and a box": [[None, (0, 50)]],
    "more than the whole": [[(0, 75), (25, 100)]],
    "more than the whole, in parts": [[(0, 75)], [(25, 100)]],
    "a half twice": [[(0, 50), (0, 50)]],
    "a half twice, in parts": [[(0, 50)], [(0, 50)]],
    "as many as the whole has": [[(0, 50), (25, 75)]],
    "as many as the whole has, in parts": [[(0, 50)], [(25, 75)]],
}


@pytest.mark.parametrize("lie", UNFIT)
def test_pieces_that_overlap_or_do_not_cover_are_damage(run, lie):
    lay_out(run / "checkpoints/2", *UNFIT[lie])
    with pytest.raises(DamagedCheckpoint, match="checkpoint 2 in .*: .*params/w"):
        restore(run, strict=True)
    assert restore(run).epoch == 1


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (["0" * 16], "part_1.json cannot be read"),
        (3, "its parts cannot be 3"),
        (["0"], "its parts cannot be"),
        ([None], "its parts cannot be"),
        ({"0" * 16: 1}, "its parts cannot be"),
    ],
)
def test_parts_that_are_missing_or_none_are_damage(run, listed, said):
    lay_out(run / "checkpoints/2", [])
    forge(run / "checkpoints/2", read(run / "checkpoints/2") | {"parts": listed})
    with pytest.raises(DamagedCheckpoint, match=f"checkpoint 2 in .*{said}"):
        restore(run, strict=True)


def of_part(**fields):
    return lambda part: part.update(fields)


def of_leaf(**fields):
    return lambda part: part["leaves"][""][0].update(fields)


def of_piece(**fields):
    return lambda part: part["leaves"][""][0]["pieces"][0].update(fields)


PARTS = {
    "of another format": of_part(format=3),
    "of another epoch": of_part(epoch=1),
    "of another process": of_part(process=2),
    "of no leaves": of_part(leaves={}),
    "of leaves that are none": of_part(leaves={"": [3]}),
    "of another leaf": of_leaf(path="params/v"),
    "of another type": of_leaf(type="int32"),
    "of another shape": of_leaf(shape=[200]),
    "of another rank": of_leaf(shape=[100, 1]),
    "of another size": of_leaf(itemsize=2),
    "of no pieces": of_leaf(pieces=[]),
    "of a box outside": of_piece(box=[[50, 101]]),
    "of an empty box": of_piece(box=[[50, 50]]),
    "of a box of another rank": of_piece(box=[[50, 100], [0, 1]]),
    "of a larger box": of_piece(box=[[0, 100]]),
    "of another box": of_piece(box=[[0, 50]]),
    "of an offset": of_piece(offset=64),
    "of another checksum": of_piece(checksum="0" * 16),
}


@pytest.mark.parametrize("lie", PARTS)
def test_a_lie_in_a_part_is_damage(run, lie):
    lay_out(run / "checkpoints/2", [(0, 50)], [(50, 100)], changes=[PARTS[lie]])
    with pytest.raises(DamagedCheckpoint, match="checkpoint 2 in .*: "):
        restore(run, strict=True)
    assert restore(run).epoch == 1


@pytest.mark.parametrize("pieces", [[], [None]], ids=["in its place", "beside it"])
@pytest.mark.parametrize(
    "fields", [{}, {"shape": [10, 10]}, {"type": "uint8", "itemsize": 1, "shape": [100]}]
)
def test_a_leaf_of_another_section_is_never_taken_for_one_of_the_same_path(run, pieces, fields):
    checkpoint = run / "checkpoints/2"
    lay_out(checkpoint, pieces)
    content = read(checkpoint)
    twin = leaf_of(content, "params/w") | fields
    buffer = bytearray((checkpoint / "arrays/process_0").read_bytes())
    twin["pieces"] = [add_piece(buffer, bytes(100 * twin["itemsize"]))]
    (checkpoint / "arrays/process_0").write_bytes(buffer)
    content["leaves"]["hook_state/x"] = [twin]
    content["hooks"].append("x")
    forge(checkpoint, content)
    if pieces:  # all that params/w needs is there
        with contextlib.suppress(DamagedCheckpoint):
            restored = restore(run, strict=True).state.params["w"]
            assert bool((restored == make(2).params["w"]).all())
    else:
        with pytest.raises(DamagedCheckpoint, match="checkpoint 2 in .*: .*params/w"):
            restore(run, strict=True)
        assert restore(run).epoch == 1


@pytest.mark.parametrize("depth", [900, 100_000])
def test_deep_nesting_is_damage(run, depth):
    content = json.dumps(read(run / "checkpoints/2") | {"config": "HERE"})
    deep = content.replace('"HERE"', '{"a": ' * depth + "1" + "}" * depth)
    body = deep + "}\n"
    digest = xxhash.xxh3_64_hexdigest(body.encode())
    whole = f'{{"checksum": "{digest}", "manifest": {body}'
    (run / "checkpoints/2/manifest.json").write_text(whole)
    with pytest.raises(DamagedCheckpoint, match="checkpoint 2 in .*nested too deeply|no JSON"):
        restore(run, strict=True, config={"seed": 0})


# Sizes

LIMITED = """
import resource, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from trainer import Checkpoints, TrainState

def read(run):
    state = TrainState.create(params={"w": jnp.zeros(100)}, rng=jax.random.key(0))
    hook_state = {"h": {"best": 0.0, "n": 0, "name": "", "rate": np.float32(0), "none": None}}
    with Checkpoints(run, read_only=True) as checkpoints:
        checkpoints.restore(state.replace(hook_state=hook_state), strict=True)

read(sys.argv[1])
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30,) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for run in sys.argv[2:]:
    try:
        read(run)
    except Exception as error:
        print(type(error).__name__, str(error).replace("\\n", " "))
    else:
        print("nothing was raised")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def sparse(file, size):
    file.unlink(missing_ok=True)
    file.touch()
    os.truncate(file, size)


def claim(checkpoint, size):
    """Add a leaf of so many bytes to a manifest, described as written."""
    content = read(checkpoint)
    before = (checkpoint / "arrays/process_0").stat().st_size
    leaf = {**leaf_of(content, "params/w"), "path": "hook_state/big/x", "type": "uint8"}
    content["leaves"]["hook_state/big"] = [
        {
            **leaf,
            "shape": [size],
            "itemsize": 1,
            "pieces": [{**leaf["pieces"][0], "offset": before}],
            "value": None,
        }
    ]
    content["hooks"].append("big")
    forge(checkpoint, content)
    return before + size


def sparse_manifest(checkpoint):
    sparse(checkpoint / "manifest.json", HUGE)


def claimed_only(checkpoint):
    claim(checkpoint, HUGE - HUGE % 64)


def sparse_arrays(checkpoint):
    size = claim(checkpoint, HUGE - HUGE % 64)
    sparse(checkpoint / "arrays/process_0", size)


def sparse_part(checkpoint):
    content = read(checkpoint)
    for row in content["leaves"][""]:
        row["pieces"] = []
    forge(checkpoint, content | {"parts": ["0" * 16]})
    sparse(checkpoint / "part_1.json", HUGE)


SIZES = {
    sparse_manifest: "DamagedCheckpoint .* it has more than 16,777,216 bytes",
    claimed_only: "DamagedCheckpoint .*arrays/process_0 has .* bytes instead of 1000000",
    sparse_arrays: "MemoryError the arrays in .* take 1,000,000,.* bytes",
    sparse_part: "DamagedCheckpoint .*part_1.json cannot be read .* has more than 16,777,216 bytes",
}


def test_huge_sizes_are_an_error_that_allocates_nothing(original, tmp_path):
    runs = [shutil.copytree(original, tmp_path / spoil.__name__) for spoil in SIZES]
    for spoil, spoiled in zip(SIZES, runs, strict=True):
        spoil(spoiled / "checkpoints/2")
    command = [sys.executable, "-c", LIMITED, str(original), *map(str, runs)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 0, child.stderr
    *lines, kilobytes = child.stdout.splitlines()
    assert len(lines) == len(SIZES)
    for line, wanted in zip(lines, SIZES.values(), strict=True):
        assert re.match(wanted, line), line
    assert int(kilobytes) < 100_000


def test_huge_arrays_without_a_target_are_refused_before_they_are_read(run):
    checkpoint = run / "checkpoints/2"
    size = claim(checkpoint, HUGE - HUGE % 64)
    content = read(checkpoint)
    leaf_of(content, "hook_state/big/x")["path"] = "params/big"
    forge(checkpoint, content)
    sparse(checkpoint / "arrays/process_0", size)
    with pytest.raises(MemoryError, match="take 1,000,000,.* bytes and this machine has"):
        read_params(run)
