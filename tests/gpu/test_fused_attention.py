"""Attention, by the fused kernel where the device has one, against float32 written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.language.attention_kernels import attend, has_kernel
from models.language.visibility import Visibility

TOLERANCES = {"bfloat16": 2e-2, "float16": 5e-3}
"""Of the norm of the error over the norm of the result: a few roundings of 8 and of 11 bits."""

SIZES = {"cpu": (2, 24, 2), "gpu": (4, 1000, 12)}
"""Batch, time and heads; the time is no multiple of the kernel's blocks."""


CAUSAL = Visibility()


def plain(query, key, value, visibility=None):
    """Compute attention in float32, as the equation says it."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision="highest")
    scores /= query.shape[-1] ** 0.5
    if visibility is not None:
        seen = visibility.compute_mask((0, scores.shape[2]), scores.shape[3])
        scores = jnp.where(seen[:, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision="highest")


def draw(platform, dtype, size, *, positions=None):
    """Draw queries, keys, values, and weights of the result, which make a scalar of it."""
    batch, time, heads = SIZES[platform]
    lengths = time, positions or time, positions or time, time
    keys = jax.random.split(jax.random.key(0), 4)
    return [
        jax.random.normal(key, (batch, length, heads, size), dtype)
        for key, length in zip(keys, lengths, strict=True)
    ]


def measure_error(found, expected):
    found, expected = (np.asarray(x, np.float32) for x in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("seen", ["earlier", "segment", "all"])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_values_and_gradients_equal_those_of_plain_attention(platform, dtype, seen, size):
    *inputs, weights = draw(platform, dtype, size)
    batch, time, _ = SIZES[platform]
    segments = jnp.broadcast_to(jnp.arange(time) // 10, (batch, time))
    visible = {"earlier": CAUSAL, "segment": Visibility(None, segments, segments), "all": None}

    def evaluate(function):
        def weigh(*inputs):
            outputs = function(*inputs, visible[seen])
            return jnp.sum(outputs.astype(jnp.float32) * weights.astype(jnp.float32)), outputs

        (_, outputs), grads = jax.jit(jax.value_and_grad(weigh, (0, 1, 2), has_aux=True))(*inputs)
        return outputs, *grads

    found, expected = evaluate(attend), evaluate(plain)
    assert {x.dtype.name for x in found} == {dtype}
    errors = [measure_error(*pair) for pair in zip(found, expected, strict=True)]
    assert max(errors) < TOLERANCES[dtype], dict(
        zip(("values", "query", "key", "value"), errors, strict=True)
    )


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_another_length_of_keys_equals_plain_attention(platform, dtype):
    *inputs, _ = draw(platform, dtype, 64, positions=37)
    found = jax.jit(attend)(*inputs)
    expected = jax.jit(plain)(*inputs)
    assert measure_error(found, expected) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", [*TOLERANCES, "float32"])
def test_the_kernel_runs_where_the_device_has_it(platform, dtype):
    *inputs, _ = draw(platform, dtype, 64)
    program = jax.jit(lambda *inputs: attend(*inputs, CAUSAL)).lower(*inputs).compile()
    device = jax.devices()[0]
    expected = has_kernel(device, jnp.dtype(dtype), 64)
    assert ("fmha" in program.as_text()) == expected
    if platform == "gpu" and float(device.compute_capability) >= 8:
        assert expected == (dtype != "float32")


def test_the_kernel_stores_no_scores(gpu):
    if not has_kernel(gpu, jnp.dtype("bfloat16"), 64):
        pytest.skip(f"needs a kernel for attention: {gpu.device_kind} has none")
    batch, time, heads = 2, 4096, 8
    shape = jax.ShapeDtypeStruct((batch, time, heads, 64), jnp.bfloat16)

    def weigh(*inputs):
        return attend(*inputs, CAUSAL).astype(jnp.float32).sum()

    program = jax.jit(jax.grad(weigh, (0, 1, 2))).lower(shape, shape, shape).compile()
    scores = 2 * batch * heads * time**2
    assert program.memory_analysis().temp_size_in_bytes < scores / 2
