"""Low-rank adapters: few parameters that are trained beside frozen ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from models.argument_checks import require_fit, require_size
from models.fine_tuning.adapted_layers import adapt_layers
from models.fine_tuning.adapter_targets import find_kernels, select_layers
from models.language.decoding import Decoder, LoRAConfig
from models.network import PyTree, named_key

BASE = "base"
"""Name of the frozen parameters in the model state."""

A, B = "lora_a", "lora_b"
"""Names of the factors of an adapter."""


def lora(
    network: Decoder,
    params: PyTree,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = ("attention", "mlp"),
) -> Decoder:
    """Return a decoder that trains low-rank adapters of some layers, and nothing else.

    A layer computes `x @ kernel + (x @ a) @ b * (alpha / rank)`. Its `params`, which the optimizer
    updates, are the adapters alone: `lora_a` `[in, rank]`, uniform within `1 / sqrt(in)`, and
    `lora_b` `[rank, out]`, 0, float32 both, so that training starts from the given network. The
    given parameters are in the model state, under `base`: they never change, no gradient of theirs
    is computed, and they may be bfloat16. Nothing is copied.

    Args:
        network: from `transformer`, `captioner` or `from_huggingface`.
        params: its parameters.
        rank: of each adapter.
        alpha: strength of the adapters, above 0.
        targets: layers that get an adapter, by what stands between two slashes of their paths:
            `attention`; a layer, such as `query`, `value`, `up`; or a regular expression,
            `blocks/[01]/.*`. `mlp` means `up`, `down` and `gate`. The head gets none.

    Returns:
        A decoder of the same outputs, with cache and sampling.

    Raises:
        TypeError: the network is no such decoder, or the rank no whole number.
        ValueError: a target matches nothing, or is no regular expression; the rank exceeds a
            dimension; `alpha` is out of range; from `init`, the parameters do not fit the network.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1 (2021); the
    initial values are those of PEFT.

    >>> import models
    >>> network = models.transformer(vocabulary=5, context=8, layers=1, heads=2, width=8)
    >>> tokens = jnp.array([[0, 1, 2, 3]])
    >>> params, _ = jax.jit(network.init)(jax.random.key(0), tokens)
    >>> adapted = lora(network, params, rank=2, targets=("query", "value"))
    >>> adapters, model_state = adapted.init(jax.random.key(1), tokens)
    >>> jax.tree.map(jnp.shape, adapters["blocks"]["0"]["attention"]["query"])
    {'lora_a': (8, 2), 'lora_b': (2, 8)}
    >>> model_state["base"]["norm"]["scale"] is params["norm"]["scale"]
    True
    """
    adapt = getattr(network, "adapt", None)
    if adapt is None:
        raise TypeError(
            "lora adapts a decoder of models.transformer, captioner or from_huggingface; got "
            f"{network!r:.100}"
        )
    if network.lora is not None:
        raise TypeError("lora adapts a network without adapters; this one has some already")
    require_size("lora", "rank", rank)
    if not 0 < alpha < math.inf:
        raise ValueError(f"lora: alpha must be above 0 and finite; got {alpha}")
    kernels = find_kernels(params)
    layers = select_layers(targets, kernels)
    if narrow := {name: kernels[name] for name in layers if rank > min(kernels[name][-2:])}:
        name, shape = next(iter(narrow.items()))
        raise ValueError(
            f"lora: rank must be at most the smaller dimension of each kernel; got {rank}, and "
            f"{name}/kernel is {list(shape[-2:])}: take a smaller rank, or leave such layers out"
        )
    config = LoRAConfig(rank, alpha, layers)
    adapted: Decoder = adapt(functools.partial(adapt_layers, config=config))

    def init(key: jax.Array, example: PyTree) -> tuple[PyTree, PyTree]:
        wanted, _ = jax.eval_shape(network.init, key, example)
        require_fit("lora params", wanted, params, remedy="pass the parameters of this network")
        adapters: dict[str, Any] = {}
        for name in layers:
            *lead, inputs, outputs = kernels[name]
            bound = 1 / math.sqrt(inputs)
            drawn = named_key(key, f"lora/{name}")
            a = jax.random.uniform(drawn, (*lead, inputs, rank), jnp.float32, -bound, bound)
            b = jnp.zeros((*lead, rank, outputs), jnp.float32)
            _insert(adapters, name.split("/"), {A: a, B: b})
        return adapters, {BASE: params}

    def apply(
        adapters: PyTree,
        model_state: PyTree,
        inputs: PyTree,
        *,
        key: jax.Array | None,
        train: bool,
    ) -> tuple[PyTree, PyTree]:
        whole = _join(model_state[BASE], adapters)
        return adapted.apply(whole, {}, inputs, key=key, train=train)[0], model_state

    def joined(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(adapters: PyTree, model_state: PyTree, /, *rest: Any, **settings: Any) -> Any:
            return function(_join(model_state[BASE], adapters), {}, *rest, **settings)

        return call

    return adapted._replace(
        init=init,
        apply=apply,
        init_cache=joined(adapted.init_cache),
        decode_step=joined(adapted.decode_step),
        sample=joined(adapted.sample),
        lora=config,
    )


def merge_lora(network: Decoder, params: PyTree, model_state: PyTree) -> PyTree:
    """Return parameters of the network without adapters that compute the same.

    A merged kernel is `kernel + a @ b * (alpha / rank)`, computed in float32, in the dtype of the
    kernel; the other arrays are those of the base.

    Args:
        network: from `lora`.
        params: its adapters, such as `state.params`.
        model_state: with the base, such as `state.model_state`.

    Raises:
        TypeError: the network is not one of `lora`.

    >>> import models
    >>> network = models.transformer(vocabulary=5, context=8, layers=1, heads=2, width=8)
    >>> tokens = jnp.array([[0, 1, 2, 3]])
    >>> params, _ = jax.jit(network.init)(jax.random.key(0), tokens)
    >>> adapted = lora(network, params)
    >>> merged = merge_lora(adapted, *adapted.init(jax.random.key(1), tokens))
    >>> bool((merged["blocks"]["0"]["up"]["kernel"] == params["blocks"]["0"]["up"]["kernel"]).all())
    True
    """
    config = getattr(network, "lora", None)
    if config is None:
        raise TypeError(f"merge_lora takes a network of models.lora; got {network!r:.100}")

    def merge(base: Any, adapters: Any) -> Any:
        if A in adapters:
            return {**base, "kernel": _merge_kernel(base["kernel"], adapters, config.scale)}
        return {**base, **{name: merge(base[name], part) for name, part in adapters.items()}}

    return merge(model_state[BASE], params)


def _merge_kernel(kernel: jax.Array, adapter: Mapping[str, Any], scale: float) -> jax.Array:
    a, b = (adapter[name].astype(jnp.float32) for name in (A, B))
    change = jnp.matmul(a, b, precision="highest") * scale
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)


def _join(base: Any, adapters: Any) -> Any:
    """Return nested dicts with the entries of both."""
    both = {name: _join(base[name], adapters[name]) for name in base.keys() & adapters.keys()}
    return {**base, **adapters, **both}


def _insert(tree: dict[str, Any], path: Sequence[str], leaf: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf
