"""Decoding token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(1)
SETTINGS = {"vocabulary": 11, "context": 12, "layers": 2, "heads": 2, "width": 8}
TOKENS = jax.random.randint(KEY, (2, 7), 0, 11)
DECODER = models.transformer(**SETTINGS)
PARAMS, _ = jax.jit(DECODER.init)(jax.random.key(0), TOKENS)


@pytest.mark.parametrize(("scan", "cuts"), [(False, [1, 2, 3, 6]), (True, [4])])
def test_reading_piece_by_piece_computes_the_logits_of_the_whole(scan, cuts):
    decoder = models.transformer(**SETTINGS, scan=scan)

    @jax.jit
    def both(params):
        whole, _ = decoder.apply(params, {}, TOKENS, key=None, train=False)
        cache = decoder.init_cache(params, {}, TOKENS, 9)  # more room than there are tokens
        pieces = []
        for piece in jnp.split(TOKENS, cuts, axis=1):
            outputs, cache = decoder.decode_step(params, {}, cache, piece)
            pieces.append(outputs)
        return whole, jnp.concatenate(pieces, axis=1)

    params = PARAMS
    if scan:
        blocks = [PARAMS["blocks"][str(i)] for i in range(2)]
        params = PARAMS | {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
    whole, pieces = both(params)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-5)


def test_the_cache_is_arrays_of_fixed_shapes_in_the_dtype_of_the_parameters():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    for params, dtype in ((PARAMS, "float32"), (low, "bfloat16")):
        before = jax.eval_shape(lambda p: DECODER.init_cache(p, {}, TOKENS, 9), params)
        _, after = jax.eval_shape(DECODER.decode_step, params, {}, before, TOKENS)
        assert before == after
        assert {leaf.dtype.name for leaf in jax.tree.leaves(before)} == {dtype, "int32"}


def test_past_the_length_of_the_cache_logits_are_nan():
    def read(params):
        cache = DECODER.init_cache(params, {}, TOKENS, 8)
        _, cache = DECODER.decode_step(params, {}, cache, TOKENS)
        return DECODER.decode_step(params, {}, cache, TOKENS[:, :3])[0]

    outputs = jax.jit(read)(PARAMS)
    np.testing.assert_array_equal(jnp.isnan(outputs).all((0, 2)), [True, True, True])
