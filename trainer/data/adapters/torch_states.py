"""States of loaders of PyTorch as JSON data: equal states are equal texts."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from trainer.checks.arguments import describe_value

TENSOR, BYTES, TUPLE, PAIRS = "tensor", "bytes", "tuple", "pairs"


def to_json(state: Any) -> Any:
    """Return a state of tensors, bytes and plain data as JSON data.

    Raises:
        TypeError: it holds something else.

    >>> state = {"yielded": 3, "order": (1, None), "random": b"12"}
    >>> from_json(to_json(state)) == state
    True
    """
    if state is None or isinstance(state, bool | int | float | str):
        return state
    if isinstance(state, bytes):
        return {BYTES: base64.b64encode(state).decode()}
    if isinstance(state, list):
        return [to_json(part) for part in state]
    if isinstance(state, tuple):
        return {TUPLE: [to_json(part) for part in state]}
    if isinstance(state, dict):
        return {PAIRS: [[to_json(key), to_json(value)] for key, value in state.items()]}
    if hasattr(state, "detach"):
        array = np.asarray(state.detach())
        return {TENSOR: [array.dtype.str, list(array.shape), to_json(array.tobytes())]}
    raise TypeError(
        "the state_dict of a loader must hold numbers, texts, bytes and tensors, to be kept in a "
        f"checkpoint; got {describe_value(state)}: let state_dict of the dataset or sampler return "
        "such"
    )


def from_json(data: Any) -> Any:
    """Return the state that `to_json` wrote."""
    if isinstance(data, list):
        return [from_json(part) for part in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind == BYTES:
        return base64.b64decode(content)
    if kind == TUPLE:
        return tuple(from_json(part) for part in content)
    if kind == PAIRS:
        return {from_json(key): from_json(value) for key, value in content}
    import torch

    dtype, shape, raw = content
    array = np.frombuffer(from_json(raw), np.dtype(dtype)).reshape(shape)
    return torch.from_numpy(array.copy())
