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
from forging import forge, make, read, restore
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.checkpoints import DamagedCheckpoint, manifest, manifest_schema

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
    "another size": ("params/w", {"bytes": 800}),
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
    leaf_of(content, path).update(fields)
    forge(run / "checkpoints/2", content)
    with pytest.raises(DamagedCheckpoint, match="checkpoint 2 in .*: .* cannot be"):
        restore(run, strict=True)
    assert restore(run).epoch == 1


def test_a_leaf_whose_bytes_are_not_its_dtypes_is_damage(run):
    content = read(run / "checkpoints/2")
    leaf_of(content, "rng")["bytes"] = 16
    forge(run / "checkpoints/2", content)
    with pytest.raises(DamagedCheckpoint, match="gives a wrong size to rng"):
        restore(run, strict=True)


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
        {**leaf, "shape": [size], "bytes": size, "offset": before, "value": None}
    ]
    content["hooks"].append("big")
    forge(checkpoint, content)
    return before + size


def describe(checkpoint, size, **changes):
    file = checkpoint / "arrays/leaves/.zarray"
    content = json.loads(file.read_text()) | {"shape": [size], "chunks": [size]} | changes
    file.write_text(json.dumps(content, separators=(",", ":")))


def sparse_manifest(checkpoint):
    sparse(checkpoint / "manifest.json", HUGE)


def claimed_only(checkpoint):
    claim(checkpoint, HUGE - HUGE % 64)


def claimed_and_described(checkpoint):
    size = claim(checkpoint, HUGE - HUGE % 64)
    describe(checkpoint, size)


def sparse_arrays(checkpoint):
    size = claim(checkpoint, HUGE - HUGE % 64)
    describe(checkpoint, size)
    sparse(checkpoint / "arrays/process_0", size)


def bomb(checkpoint):
    size = claim(checkpoint, 2**33)
    describe(checkpoint, size, compressor={"id": "zlib", "level": 9})
    (checkpoint / "arrays/process_0").write_bytes(bytes(10_000))


def huge_chunk(checkpoint):
    size = (checkpoint / "arrays/process_0").stat().st_size
    describe(checkpoint, size, chunks=[2**50])


def huge_metadata(checkpoint):
    sparse(checkpoint / "arrays/_METADATA", HUGE)


def huge_description(checkpoint):
    sparse(checkpoint / "arrays/leaves/.zarray", HUGE)


SIZES = {
    sparse_manifest: "DamagedCheckpoint .* it has more than 16,777,216 bytes",
    claimed_only: "DamagedCheckpoint .*leaves/.zarray does not describe 1000000",
    claimed_and_described: "DamagedCheckpoint .*leaves/0 has .* bytes instead of 1000000",
    sparse_arrays: "MemoryError the arrays in .* take 1,000,000,.* bytes and this machine has",
    bomb: "DamagedCheckpoint .*leaves/.zarray does not describe",
    huge_chunk: "DamagedCheckpoint .*leaves/.zarray does not describe",
    huge_metadata: "DamagedCheckpoint .*arrays/_METADATA has 1000000000000 bytes instead of",
    huge_description: "DamagedCheckpoint .*leaves/.zarray does not describe",
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
