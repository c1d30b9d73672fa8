"""What an observer on the main process sees of an array that is split over processes."""

from __future__ import annotations

from typing import Any, NoReturn

import jax
import numpy as np

_OPERATORS = """
    array reduce_ex bool int float complex index len iter getitem contains
    add radd sub rsub mul rmul matmul rmatmul truediv rtruediv floordiv rfloordiv mod rmod
    divmod rdivmod pow rpow and rand or ror xor rxor lshift rlshift rshift rrshift
    neg pos abs invert round trunc floor ceil lt le gt ge eq ne
"""


class SplitArray:
    """Stands for an array split over processes: its shape can be read, not its values.

    Computing with the array on one process would wait for the others for ever. Every use of this
    raises RuntimeError at once: which observer reads which leaf, and the remedy.
    """

    __slots__ = ("_hook", "_path", "dtype", "shape", "sharding")

    def __init__(self, leaf: jax.Array, path: str, hook: str) -> None:
        self._path, self._hook = path, hook
        self.shape, self.dtype, self.sharding = leaf.shape, leaf.dtype, leaf.sharding

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape))

    def __repr__(self) -> str:
        return f"SplitArray({self._path}: {self.dtype}{list(self.shape)})"

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__jax_array__":  # a protocol that Python asks for
            raise AttributeError(name)
        _refuse(self)


def _refuse(self: SplitArray, *arguments: Any, **options: Any) -> NoReturn:
    """Raise RuntimeError instead of a value."""
    field = self._path.partition("/")[0]
    raise RuntimeError(
        f"observer {self._hook!r} reads {self._path}, {self.dtype}{list(self.shape)}, which is "
        f"split over {jax.process_count()} processes, and observers run on the main process alone: "
        f'let it be gathered, hooks.observe(hook, gather="{field}"), or make it a control hook, '
        f"which runs on all, and call trainer.gather(state.{field}) there"
    )


for _name in _OPERATORS.split():
    setattr(SplitArray, f"__{_name}__", _refuse)
