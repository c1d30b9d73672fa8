"""The bytes of a checkpoint's arrays, written and read through Orbax."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath  # type: ignore[import-untyped]

from trainer.checkpoints import array_files
from trainer.checkpoints.manifest import DamagedCheckpoint
from trainer.host.atomic_files import check_free_space

_TWO_FILES = 2**25
"""Bytes above which two files are written, each on its own thread.

With more files (Orbax would write up to 128 at a time) their threads slow training down: beside 25
files a step of 35 ms took up to 139, beside two up to 60. One file alone is read at a quarter of
the speed.
"""


class ArrayStorage:
    """Writes and reads the bytes of a checkpoint as one array, whose parts the manifest names.

    With one array per leaf, 10 MB in 16 leaves take Orbax 60 CPU-ms, 2 to 3 for each leaf; as one
    array they take 15, which slow training down when XLA keeps all cores busy. `CheckpointManager`
    adds 20, saves no older number, replaces none, and lists broken checkpoints as complete.
    """

    def __init__(self) -> None:
        types = ocp.type_handlers
        registry = types.create_type_handler_registry(
            (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)),
            # Not used, but Orbax warns if it is missing.
            (jax.Array, types.ArrayHandler(array_metadata_store=None)),
        )
        self._orbax = ocp.PyTreeCheckpointHandler(
            use_ocdbt=False, use_compression=False, type_handler_registry=registry
        )

    def write(self, path: Path, data: np.ndarray) -> None:
        """Write bytes into a new directory, durably.

        Args:
            path: of the directory, which is complete only when this returns.
            data: uint8 [bytes], an even number of them.

        Raises:
            OSError: there is not enough space, or the disk fails.
            RuntimeError: this version of Orbax writes files that this library cannot read.
        """
        path.mkdir()
        half = data.nbytes // 2 if data.nbytes > _TWO_FILES else None
        file = path / array_files.LEAVES / "0"
        # Checked first, since Orbax reports a full disk by a hundred lines of tracebacks.
        check_free_space(file, data.nbytes, largest=half)
        options = {array_files.LEAVES: ocp.SaveArgs(chunk_byte_size=half)}
        try:
            self._orbax.save(
                epath.Path(path),
                args=ocp.args.PyTreeSave({array_files.LEAVES: data}, save_args=options),
            )
        except Exception:
            check_free_space(file, data.nbytes, largest=half)  # it ran out while this was written
            raise
        try:
            array_files.check_array_files(path, data.nbytes)
        except DamagedCheckpoint as damage:
            raise RuntimeError(
                f"orbax-checkpoint {ocp.__version__} wrote files that could not be read back "
                f"({damage}): install 0.12.8, and report it"
            ) from damage

    def read(self, path: Path, size: int) -> np.ndarray:
        """Read the bytes. The caller verifies checksums: Orbax does not notice wrong bytes.

        Returns:
            uint8 [bytes].

        Raises:
            DamagedCheckpoint: they cannot be read, for any of Orbax's many reasons.
            MemoryError: they take more memory than the machine has free.
        """
        options = {array_files.LEAVES: ocp.RestoreArgs(restore_type=np.ndarray)}
        try:
            array_files.check_array_files(path, size)
            if size > (memory := array_files.get_free_memory()):
                raise MemoryError(
                    f"the arrays in {path} take {size:,} bytes and this machine has {memory:,} "
                    "free: restore where there is more memory, or move the checkpoint away"
                )
            tree = self._orbax.restore(
                epath.Path(path), args=ocp.args.PyTreeRestore(restore_args=options)
            )
            return tree[array_files.LEAVES].view(np.uint8)
        except (DamagedCheckpoint, MemoryError):
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise DamagedCheckpoint(
                f"its arrays cannot be read ({type(error).__name__}: {reason})"
            ) from error
