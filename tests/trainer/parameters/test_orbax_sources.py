"""Parameters from checkpoints that Orbax wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from trainer import Checkpoints, TrainState, load_params
from trainer.checkpoints.arrays.damage import DamagedCheckpoint

PARAMS = {"layers": [{"kernel": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)}], "b": jnp.ones(3)}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def save_standard(folder, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "tree", tree)
    return folder / "tree"


def save_pytree(folder, tree, **options):
    with ocp.PyTreeCheckpointer(**options) as checkpointer:
        checkpointer.save(folder / "tree", {**tree, "note": "text", "count": 3})
    return folder / "tree"


def save_without_ocdbt(folder, tree):
    return save_pytree(folder, tree, use_ocdbt=False)


def save_step(folder, tree):
    with ocp.CheckpointManager(folder / "steps") as manager:
        manager.save(5, args=ocp.args.StandardSave(tree))
    return folder / "steps" / "5"


def save_item(folder, tree):
    with ocp.CheckpointManager(folder / "steps") as manager:
        manager.save(5, args=ocp.args.Composite(state=ocp.args.StandardSave({"params": tree})))
    return folder / "steps" / "5"


def save_ours(folder, tree):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(TrainState.create(params=tree, rng=jax.random.key(0)))
    return folder / "checkpoints" / "0" / "arrays"


SAVERS = [save_standard, save_pytree, save_without_ocdbt, save_step, save_item]


def assert_loaded(found, wanted=PARAMS):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (type(a), a.dtype) == (type(b), b.dtype)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("save", SAVERS)
def test_parameters_are_loaded_from_what_orbax_saved(tmp_path, save):
    assert_loaded(load_params(save(tmp_path, PARAMS), ZEROS))


def test_parts_and_renamed_paths_are_loaded(tmp_path):
    tree = {"params": {"old": {"w": jnp.ones(2)}}, "model_state": {"mean": jnp.full(2, 3.0)}}
    source = save_standard(tmp_path, tree)
    new = {"body": {"w": jnp.zeros(2)}}
    assert load_params(source, new, rename={"^old/": "body/"})["body"]["w"].tolist() == [1, 1]
    state = load_params(source, {"mean": jnp.zeros(2)}, part="model_state")
    assert state["mean"].tolist() == [3, 3]


def test_all_that_does_not_fit_is_in_one_error(tmp_path):
    wanted = {"layers": [{"kernel": jnp.zeros((3, 3))}], "c": jnp.zeros(3)}
    with pytest.raises(ValueError, match=r"(?s)c: saved nothing.*layers/0/kernel: saved bfloat16"):
        load_params(save_standard(tmp_path, PARAMS), wanted)


def test_a_part_that_is_missing_and_a_choice_among_checkpoints_are_refused(tmp_path):
    source = save_standard(tmp_path, PARAMS)
    with pytest.raises(ValueError, match="has no model_state; there is: b, layers"):
        load_params(source, ZEROS, part="model_state")
    with pytest.raises(ValueError, match="is one checkpoint of Orbax"):
        load_params(source, ZEROS, best="loss")


# A read that fails late finds the event loop of Orbax closed, which TensorStore's thread reports.
LATE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@LATE
@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("_METADATA", content) for content in (b"", b"\xff{")),
        *(("layers.0.kernel/.zarray", content) for content in (None, b"", b"\xff{")),
        *(("layers.0.kernel/0.0", content) for content in (None, b"", b"\xff{")),
    ],
)
def test_what_orbax_cannot_read_is_an_error(tmp_path, file, content):
    one = {"layers": PARAMS["layers"]}
    source = save_without_ocdbt(tmp_path, one)
    (source / file).unlink() if content is None else (source / file).write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match="cannot be read as a checkpoint of Orbax"):
        load_params(source, one)


@LATE
def test_a_database_that_is_cut_is_an_error(tmp_path):
    one = {"layers": PARAMS["layers"]}
    source = save_standard(tmp_path, one)
    file = source / "manifest.ocdbt"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DamagedCheckpoint, match="cannot be read as a checkpoint of Orbax"):
        load_params(source, one)


def test_arrays_of_this_library_are_read_with_their_checksums_or_not_at_all(tmp_path):
    tree = {"w": np.ones(4, np.float32)}
    arrays = save_ours(tmp_path, tree)
    with pytest.raises(ValueError, match="give the directory of the run"):
        load_params(arrays, tree)
    assert np.array_equal(load_params(tmp_path, tree)["w"], tree["w"])
