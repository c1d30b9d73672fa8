"""Ways of writing the arrays of a checkpoint: this library's, Orbax's, and TensorStore's alone.

A saver has `save(state, number)`, which returns when the checkpoint is durable and the one before
is removed, `read(state, number)`, which returns the parameters, and `close()`. All processes of a
run call it at once.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.experimental import multihost_utils

import trainer

OURS = "this library"
STANDARD, PLAIN = "Orbax, OCDBT (StandardSave)", "Orbax, OCDBT, uncompressed"
FILES, PLAIN_FILES = "Orbax, zarr files", "Orbax, zarr files, uncompressed"
BARE, BARE_FILES = "Orbax, OCDBT, no array metadata", "Orbax, zarr files, no array metadata"
STORE_FILES, STORE_OCDBT = "TensorStore, zarr files at once", "TensorStore, OCDBT, a transaction"


class Ours:
    """`Checkpoints`, as `save_checkpoints` uses it."""

    def __init__(self, folder):
        self._checkpoints = trainer.Checkpoints(folder, keep=1)

    def save(self, state, number):
        self._checkpoints.save(state.replace(epoch=state.epoch * 0 + number))
        self._checkpoints.wait()

    def read(self, state, number):
        return self._checkpoints.restore(state, epoch=number).state.params

    def close(self):
        self._checkpoints.close()


class Orbax:
    """An asynchronous checkpointer of Orbax, as its `CheckpointManager` uses it."""

    def __init__(self, folder, handler, arguments):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, (self._save, self._restore) = folder, arguments
        self._checkpointer = ocp.AsyncCheckpointer(handler)

    def save(self, state, number):
        self._checkpointer.save(self._folder / str(number), args=self._save(state.params))
        self._checkpointer.wait_until_finished()
        remove_previous(self._folder, number)

    def read(self, state, number):
        return self._checkpointer.restore(
            self._folder / str(number), args=self._restore(state.params)
        )

    def close(self):
        self._checkpointer.close()


def standard(folder):
    """Return Orbax's default."""
    arguments = ocp.args.StandardSave, ocp.args.StandardRestore
    return Orbax(folder, ocp.StandardCheckpointHandler(), arguments)


def pytree(folder, *, array_metadata=True, **options):
    """Return Orbax with options."""
    if not array_metadata:
        options["type_handler_registry"] = ocp.type_handlers.create_type_handler_registry(
            (jax.Array, ocp.type_handlers.ArrayHandler(array_metadata_store=None))
        )

    def restore(target):
        places = ocp.checkpoint_utils.construct_restore_args(target)
        return ocp.args.PyTreeRestore(target, restore_args=places)

    handler = ocp.PyTreeCheckpointHandler(**options)
    return Orbax(folder, handler, (ocp.args.PyTreeSave, restore))


class TensorStores:
    """TensorStore alone: uncompressed zarr arrays, all writes begun before any is waited for."""

    def __init__(self, folder, *, use_ocdbt):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._use_ocdbt = folder, use_ocdbt
        self._context = ts.Context()  # so that arrays share one database

    def save(self, state, number):
        barrier(f"begin {number}")
        transaction = ts.Transaction() if self._use_ocdbt else None
        opened = [
            (array, ts.open(self._spec(number, name), open=True, create=True, dtype=array.dtype,
                            shape=array.shape, transaction=transaction, context=self._context,
                            chunk_layout=ts.ChunkLayout(chunk_shape=shard_shape(array))))
            for name, array in state.params.items()
        ]  # fmt: skip
        writes = [
            store.result()[shard.index].write(shard.data)
            for array, store in opened
            for shard in array.addressable_shards
        ]
        for write in writes:
            write.result()
        if transaction is not None:
            transaction.commit_sync()
        barrier(f"end {number}")
        remove_previous(self._folder, number)

    def read(self, state, number):
        stores = {
            name: ts.open(self._spec(number, name), context=self._context).result()
            for name in state.params
        }
        return {
            name: jax.make_array_from_callback(
                array.shape, array.sharding, lambda index, x=stores[name]: x[index].read().result()
            )
            for name, array in state.params.items()
        }

    def close(self):
        pass

    def _spec(self, number, name):
        folder = self._folder / str(number)
        place = {"driver": "file", "path": f"{folder if self._use_ocdbt else folder / name}/"}
        if self._use_ocdbt:
            place = {"driver": "ocdbt", "base": place, "path": f"{name}/"}
        return {"driver": "zarr", "kvstore": place, "metadata": {"compressor": None}}


def shard_shape(array):
    return array.sharding.shard_shape(array.shape)


def barrier(name):
    """Wait for the other process, if there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def remove_previous(folder, number):
    """Remove the checkpoint before, on the main process."""
    if jax.process_index() == 0:
        shutil.rmtree(folder / str(number - 1), ignore_errors=True)


SAVERS = {
    OURS: Ours,
    STANDARD: standard,
    PLAIN: lambda folder: pytree(folder, use_compression=False),
    BARE: lambda folder: pytree(folder, array_metadata=False),
    FILES: lambda folder: pytree(folder, use_ocdbt=False),
    PLAIN_FILES: lambda folder: pytree(folder, use_ocdbt=False, use_compression=False),
    BARE_FILES: lambda folder: pytree(folder, use_ocdbt=False, array_metadata=False),
    STORE_FILES: lambda folder: TensorStores(folder, use_ocdbt=False),
    STORE_OCDBT: lambda folder: TensorStores(folder, use_ocdbt=True),
}


def state_of(megabytes, leaves, count):
    """Build a state of random numbers, split over processes if there are several."""
    rows = max(2, 2 * round(megabytes * 1e6 / leaves / 4096 / 2))

    def make():
        keys = jax.random.split(jax.random.key(0), leaves)
        params = {f"layer_{n}": jax.random.uniform(key, (rows, 1024)) for n, key in enumerate(keys)}
        return trainer.TrainState.create(params=params, rng=jax.random.key(0))

    return trainer.spread(make, rules=[("^params/", trainer.fsdp())]) if count > 1 else make()


def check(found, state):
    """Raise RuntimeError if parameters were not read as they were written."""
    for name, array in state.params.items():
        equal = jax.jit(lambda a, b: jnp.array_equal(a, b))(found[name], array)
        if not bool(equal):
            raise RuntimeError(f"{name} was not read as it was written")


def save_json(file, content):
    Path(file).write_text(json.dumps(content))
