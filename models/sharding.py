"""How the bundled transformers are split over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable

from jax.sharding import Mesh, PartitionSpec

SpecFunction = Callable[[tuple[int, ...], Mesh], PartitionSpec]
"""`(shape, mesh) -> PartitionSpec`."""

LAYOUTS = {
    r"(query|key|value|gate|up|head)/(kernel|lora_[ab])$": ("data", "model"),
    r"(out|down)/(kernel|lora_[ab])$": ("model", "data"),
    r"embed/embedding$": ("model", "data"),
}
"""The axes of the last two dimensions, (in, out) of a kernel: by columns before a nonlinearity and
by rows after it, so that the devices of `model` exchange once there."""

SPLITS = {"fsdp": {"data"}, "tensor": {"model"}, "fsdp+tensor": {"data", "model"}}


def transformer_rules(split: str) -> list[tuple[str, SpecFunction]]:
    """Return the rules by which `trainer.spread` splits `models.transformer` or `captioner`.

    A dimension that its axis does not divide stays whole. Adapters of `models.lora` are split as
    the kernels beside them, and their base as without adapters. A mesh without such an axis is
    refused by `trainer.spread`.

    Args:
        split: `fsdp`, kernels over the axis `data`; `tensor`, heads and hidden units over the axis
            `model`, whose size divides the number of heads; `fsdp+tensor`, both.

    Raises:
        ValueError: another split.

    Source: Shoeybi et al., "Megatron-LM", section 3 (2019), for `tensor`; Rajbhandari et al.,
    "ZeRO", section 5 (2019), for `fsdp`.

    >>> [pattern for pattern, _ in transformer_rules("fsdp")][1]
    '^(params|model_state/base)/.*(out|down)/(kernel|lora_[ab])$'
    """
    if split not in SPLITS:
        raise ValueError(f"transformer_rules takes one of {', '.join(SPLITS)}; got {split!r}")
    return [
        (
            f"^(params|model_state/base)/.*{pattern}",
            _choose(tuple(a if a in SPLITS[split] else None for a in axes)),
        )
        for pattern, axes in LAYOUTS.items()
    ]


def _choose(axes: tuple[str | None, ...]) -> SpecFunction:
    def choose(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        last = (
            axis if axis and length % mesh.shape.get(axis, 1) == 0 else None
            for axis, length in zip(axes, shape[-2:], strict=True)
        )
        return PartitionSpec(*[None] * (len(shape) - 2), *last)

    return choose
