"""Plain Orbax restores the arrays of a checkpoint, by their paths and bit for bit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from trainer.checkpoints import Checkpoints
from trainer.checkpoints.arrays.leaves import Leaf, Piece
from trainer.checkpoints.arrays.orbax_index import _EXTENSIONS, build_orbax_index
from trainer.state import TrainState


class Pair(NamedTuple):
    left: Any
    right: Any


CARRY = {
    "bfloat16": jnp.array([1.5, -0.0, jnp.inf], jnp.bfloat16),
    "int4": jnp.array([-8, 7], jnp.int4),
    "float8": jnp.array([0.5, 2], jnp.float8_e4m3fn),
    "bool": jnp.array([[True], [False]]),
    "int64": np.array([2**63 - 1, -1]),
    "big endian": np.arange(3, dtype=">i4"),
    "scalar": jnp.float16(3),
    "empty": np.zeros((0, 3), np.float32),
    "list": [jnp.arange(6.0).reshape(2, 3), {"a": jnp.ones(2, jnp.complex64)}],
    "pair": Pair(jnp.int8(1), jnp.zeros((1, 0))),
    "keys": jax.random.split(jax.random.key(1, impl="rbg"), 3),
    "é 漢": jnp.ones(1),
}
LEFT_OUT = {
    "text": np.array(["a", "bcd"]),
    "time": np.array(["2026-01-01"], "datetime64[D]"),
    "number": 3,
    "line\n": np.ones(1),
    "\ud800": np.ones(1),
}


def make(epoch=1, **more):
    params = {"w": jnp.arange(5.0) + epoch}
    state = TrainState.create(params=params, rng=jax.random.key(epoch))
    return state.replace(epoch=jnp.int32(epoch), carry={**CARRY, **more})


def save(directory, *states, **options):
    with Checkpoints(directory, **options) as checkpoints:
        for state in states:
            checkpoints.save(state)
    return directory / "checkpoints"


def get_data(x):
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def assert_same(got, wanted):
    wanted = get_data(wanted)
    wanted = wanted.astype(wanted.dtype.newbyteorder("="))  # Orbax returns the machine's own
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    assert np.asarray(got).tobytes() == wanted.tobytes()


def write_index(folder, written):
    for name, content in build_orbax_index(written).items():
        (folder / name).write_bytes(content)


def restore_standard(folder):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder)


def restore_pytree(folder):
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(folder)


@pytest.mark.parametrize("restore", [restore_standard, restore_pytree])
def test_plain_orbax_restores_every_array_by_its_path(tmp_path, restore):
    state = make(7)
    found = restore(save(tmp_path, state) / "7" / "arrays")
    assert_same(found["params"]["w"], state.params["w"])
    assert_same(found["rng"], state.rng)
    assert_same(found["epoch"], state.epoch)
    carry = found["carry"]
    assert carry.keys() == CARRY.keys()
    for name in CARRY.keys() - {"list", "pair"}:
        assert_same(carry[name], CARRY[name])
    assert_same(carry["list"]["0"], CARRY["list"][0])
    assert_same(carry["list"]["1"]["a"], CARRY["list"][1]["a"])
    assert_same(carry["pair"]["left"], CARRY["pair"].left)
    assert_same(carry["pair"]["right"], CARRY["pair"].right)


def test_what_orbax_cannot_hold_is_left_out_and_the_rest_is_there(tmp_path):
    found = restore_standard(save(tmp_path, make(1, **LEFT_OUT)) / "1" / "arrays")
    assert found["carry"].keys() == CARRY.keys()


def test_paths_that_orbax_would_take_for_one_are_restored_under_the_whole_path(tmp_path):
    odd = {name: np.full(2, n) for n, name in enumerate(["a.b", "a/b", "c", "c/d"])}
    found = restore_standard(save(tmp_path, make(1, **odd)) / "1" / "arrays")
    assert {"carry/a.b", "carry/a/b", "carry/c"} <= found.keys()
    for name in ("a.b", "a/b", "c"):
        assert_same(found[f"carry/{name}"], odd[name])
    assert_same(found["carry"]["c"]["d"], odd["c/d"])


def test_every_dtype_that_is_written_by_name_is_read(tmp_path):
    names = sorted(_EXTENSIONS)
    data = {name: np.array([0, 1, 0.5], getattr(ml_dtypes, name)) for name in names}
    leaves = [
        Leaf(x, x, (3,), 1 + (x == "bfloat16"), (Piece(64 * n),)) for n, x in enumerate(names)
    ]
    content = b"".join(data[x].tobytes().ljust(64, b"\0") for x in names)
    (tmp_path / "process_0").write_bytes(content)
    write_index(tmp_path, {"process_0": leaves})
    found = restore_standard(tmp_path)
    for name in names:
        assert_same(found[name], data[name])


def test_a_manager_of_orbax_restores_the_newest_step(tmp_path):
    folder = save(tmp_path, make(3), make(4))
    with ocp.CheckpointManager(folder, item_names=("arrays",)) as manager:
        assert manager.latest_step() == 4
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore())
        assert_same(manager.restore(4, args=args).arrays["params"]["w"], make(4).params["w"])


def test_every_checkpoint_that_retention_keeps_is_restored(tmp_path):
    folder = save(tmp_path, *map(make, range(1, 5)), keep=2)
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["3", "4"]
    for epoch in (3, 4):
        found = restore_standard(folder / str(epoch) / "arrays")
        assert_same(found["params"]["w"], make(epoch).params["w"])


WHOLE = np.arange(48, dtype=ml_dtypes.bfloat16).reshape(8, 6)


def write_split(folder, boxes):
    """Write an array in boxes, by turns into the files of two processes."""
    written, contents = {}, {}
    for number in (0, 1):
        pieces, data = [], bytearray()
        for box in boxes[number::2]:
            pieces.append(Piece(len(data), box))
            data += WHOLE[tuple(slice(*side) for side in box)].tobytes()
            data += bytes(-len(data) % 64)
        written[f"process_{number}"] = [Leaf("w", "bfloat16", (8, 6), 2, tuple(pieces))]
        contents[f"process_{number}"] = bytes(data)
    written["process_0"].append(Leaf("n", "uint8", (2,), 1, (Piece(0),)))
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write_index(folder, written)
    return restore_standard(folder)


@pytest.mark.parametrize(("rows", "columns"), [(2, 6), (4, 3), (8, 2), (1, 1)])
def test_an_array_split_over_processes_is_restored_whole(tmp_path, rows, columns):
    boxes = [
        ((i, i + rows), (j, j + columns)) for i in range(0, 8, rows) for j in range(0, 6, columns)
    ]
    assert_same(write_split(tmp_path, boxes)["w"], WHOLE)


@pytest.mark.parametrize(
    "boxes",
    [
        [((0, 5), (0, 6)), ((5, 8), (0, 6))],
        [((0, 4), (0, 6)), ((4, 8), (0, 3)), ((4, 8), (3, 6))],
        [((0, 4), (0, 6))],
    ],
    ids=["uneven", "not a grid", "incomplete"],
)
def test_an_array_whose_pieces_make_up_no_grid_is_left_out(tmp_path, boxes):
    assert write_split(tmp_path, boxes).keys() == {"n"}


def test_an_array_split_over_processes_is_restored_onto_any_mesh(tmp_path):
    write_split(tmp_path, [((i, i + 2), (0, 6)) for i in range(0, 8, 2)])
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    target = {
        "w": jax.ShapeDtypeStruct(
            (8, 6), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("data", "model"))
        ),
        "n": jax.ShapeDtypeStruct((2,), jnp.uint8, sharding=NamedSharding(mesh, PartitionSpec())),
    }
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path, target)
    assert found["w"].sharding == target["w"].sharding
    assert_same(found["w"], WHOLE)
