import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoints.arrays import host_snapshot, two_threads
from trainer.checkpoints.arrays.copied_arrays import CopiedArrays
from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.arrays.leaves import ALIGNMENT, flatten_section, to_box
from trainer.checkpoints.arrays.rebuild import rebuild_section


def taken(tree, buffer=None):
    leaves, values, structure = flatten_section("", tree)
    groups, buffer = host_snapshot.copy_to_host(
        {"": (leaves, values, structure)},
        np.empty(0, np.uint8) if buffer is None else buffer,
        CopiedArrays(),
    )
    data = buffer[: host_snapshot.count_bytes(groups[""])]
    return host_snapshot.add_checksums(groups[""], data), data, (leaves, values, structure)


def rebuilt(leaves, data, target):
    """Rebuild a section from the whole buffer."""
    blocks = {
        leaf.path: [(to_box((), leaf.shape), data[x.offset : x.offset + leaf.count_bytes()])]
        for leaf in leaves
        for x in leaf.pieces
    }
    return rebuild_section(leaves, blocks, *target)


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@given(st.lists(st.tuples(shapes, st.sampled_from(["bool", "int8", "float16", "complex64"]))))
def test_arrays_are_adjacent_and_can_be_rebuilt(kinds):
    tree = [
        np.random.default_rng(n).integers(0, 2, shape).astype(dtype)
        for n, (shape, dtype) in enumerate(kinds)
    ]
    leaves, data, target = taken(tree)
    starts = [leaf.pieces[0].offset for leaf in leaves]
    assert all(start % ALIGNMENT == 0 for start in starts)
    ends = [start + leaf.count_bytes() for start, leaf in zip(starts, leaves, strict=True)]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    host_snapshot.verify_checksums(leaves, data)
    again = rebuilt(leaves, data, target)
    assert all(map(np.array_equal, again, tree))


def test_every_byte_is_covered_by_a_checksum():
    leaves, data, _ = taken({"a": jnp.ones(3), "b": np.zeros((0, 2)), "c": jax.random.key(1)})
    for position in range(len(data)):
        data[position] ^= 1
        with pytest.raises(DamagedCheckpoint, match=r"differ at [ac]$"):
            host_snapshot.verify_checksums(leaves, data)
        data[position] ^= 1
    host_snapshot.verify_checksums(leaves, data)


def test_a_used_buffer_has_the_same_bytes_as_a_fresh_one():
    tree = {"a": jnp.ones(3), "b": jnp.arange(5, dtype=jnp.int8)}
    leaves, fresh, _ = taken(tree)
    again, data, _ = taken(tree, np.full(4096, 255, np.uint8))
    assert again == leaves
    assert np.array_equal(data, fresh)


def test_one_thread_and_two_copy_the_same():
    tree = [jnp.arange(n, dtype=jnp.float32) for n in (2**21, 3, 2**21 + 5)]
    leaves, data, target = taken(tree)
    assert data.nbytes >= two_threads._TWO_THREADS
    for array, again in zip(tree, rebuilt(leaves, data, target), strict=True):
        assert jnp.array_equal(array, again)


@pytest.mark.parametrize("shift", [0, 16, 32])
def test_rebuilt_arrays_do_not_refer_to_the_buffer_and_can_be_donated(shift):
    tree = {"jax": jnp.ones(1000), "numpy": np.ones(1000)}
    leaves, data, target = taken(tree)
    room = np.empty(data.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + shift
    moved = room[start : start + data.nbytes]
    moved[:] = data
    again = jax.block_until_ready(rebuilt(leaves, moved, target))
    moved[:] = 255
    assert np.array_equal(again["numpy"], tree["numpy"])
    address = again["jax"].unsafe_buffer_pointer()
    more = jax.jit(lambda x: x + 1, donate_argnums=0)(again["jax"])
    assert more.unsafe_buffer_pointer() == address
    assert jnp.array_equal(more, tree["jax"] + 1)


def test_uncommitted_and_committed_arrays_stay_so():
    device = jax.devices()[0]
    tree = {"free": jnp.ones(2), "bound": jax.device_put(jnp.ones(2), device)}
    leaves, data, target = taken(tree)
    again = rebuilt(leaves, data, target)
    assert (again["free"].committed, again["bound"].committed) == (False, True)


def test_the_array_of_the_last_copy_is_neither_copied_nor_hashed_again(monkeypatch):
    hashed, digest = [], host_snapshot.xxhash.xxh3_64_hexdigest

    def count(content):
        hashed.append(len(content))
        return digest(content)

    monkeypatch.setattr(host_snapshot.xxhash, "xxh3_64_hexdigest", count)
    copied, buffer, base = CopiedArrays(), np.empty(0, np.uint8), jnp.arange(2.0)

    def copy(tree):
        nonlocal buffer
        hashed.clear()
        leaves, buffer = host_snapshot.copy_to_host({"": flatten_section("", tree)}, buffer, copied)
        checked = host_snapshot.add_checksums(leaves[""], buffer)
        copied.learn_checksums(checked)
        found = list(hashed)
        host_snapshot.verify_checksums(checked, buffer)
        return len(found)

    host = np.ones(2)
    assert copy({"base": base, "host": host, "w": jnp.ones(2)}) == 3
    host[:] = 2  # numpy arrays may change
    assert copy({"base": base, "host": host, "w": jnp.ones(2) * 2}) == 2
    assert buffer[:8].view(np.float32).tolist() == [0, 1]
    assert copy({"a": jnp.ones(2), "base": base}) == 2  # it lies elsewhere
    assert buffer[64:72].view(np.float32).tolist() == [0, 1]
    assert copy({"a": jnp.ones(2), "base": jnp.zeros(2)}) == 2
    assert buffer[64:72].view(np.float32).tolist() == [0, 0]
    assert copy({"a": base, "b": base, "c": base}) == 3  # the buffer grew
