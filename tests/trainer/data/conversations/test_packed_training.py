"""Training on packed rows is training on the same conversations one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from trainer import data, losses
from trainer.data.conversations.row_packing import pack_rows
from trainer.data.conversations.segment_rows import place_segments
from trainer.data.conversations.token_encoding import EncodedText

from .conftest import CHATML, talk

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LENGTH, VOCABULARY = 48, 260
DECODER = models.transformer(vocabulary=VOCABULARY, context=LENGTH, layers=1, heads=2, width=8)


@pytest.fixture(scope="module")
def params():
    """Drawn on the host, which compiles nothing; so large that the attention is not even."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    shapes, _ = jax.eval_shape(DECODER.init, jax.random.key(0), tokens)
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), shapes)


@jax.jit
def sum_loss(params, batch):
    """The sum of the loss over the tokens that are trained on, and their number."""
    logits, _ = DECODER.apply(params, {}, batch["inputs"], key=None, train=True)
    means, weights = losses.language_modeling(logits, batch)["loss"]
    return (means * weights).sum(), weights.sum()


compute_gradients = jax.jit(jax.value_and_grad(sum_loss, has_aux=True))


def test_the_gradient_of_packed_rows_is_that_of_the_conversations_one_by_one(
    lines, tokenizer, params
):
    examples = [{"text": "to be or not"[:n]} for n in (3, 12, 5, 9, 7, 2, 11)]
    examples.append({"prompt": "a" * 46, "completion": "ab"})
    examples.append({"messages": talk("a" * 60, "b")})  # cut, without a token to train on
    settings = {"batch_size": 1, "length": LENGTH, "template": CHATML}
    packed, single = (
        data.chat(lines(*examples), tokenizer, pack=pack, **settings) for pack in (True, False)
    )
    assert packed.size == 3
    assert single.size == len(examples)
    assert packed.counts == single.counts
    totals = []
    for source in (packed, single):
        found = [compute_gradients(params, batch) for batch in source]
        totals.append(jax.tree.map(lambda *leaves: sum(leaves), *found))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    ((loss, count), grads), ((expected_loss, expected_count), expected) = totals
    assert int(count) == int(expected_count) == packed.counts.trained
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert jnp.linalg.norm(one - other) <= 1e-5 * jnp.linalg.norm(other)


@given(
    st.lists(st.integers(2, LENGTH + 1), min_size=1, max_size=8), st.integers(0, 2**16), st.data()
)
def test_no_segment_sees_another(params, sizes, seed, drawn):
    random = np.random.default_rng(seed)
    texts = [EncodedText(random.integers(0, VOCABULARY, n), np.ones(n, bool)) for n in sizes]
    rows = place_segments(texts, pack_rows([n - 1 for n in sizes], LENGTH), LENGTH)
    row = rows.read(np.array([drawn.draw(st.integers(0, len(rows) - 1))]))["inputs"]
    segment = drawn.draw(st.integers(1, int(row["segments"].max())))
    here = row["segments"] == segment
    other = np.where(here, row["tokens"], random.integers(0, VOCABULARY, here.shape))
    before, after = (
        compute_logits(params, {**row, "tokens": one}) for one in (row["tokens"], other)
    )
    np.testing.assert_array_equal(before[here], after[here])


@jax.jit
def compute_logits(params, inputs):
    return DECODER.apply(params, {}, inputs, key=None, train=False)[0]


@jax.jit
@jax.grad
def differentiate_loss(logits, batch):
    means, weights = losses.language_modeling(logits, batch)["loss"]
    return (means * weights).sum()


@given(st.lists(st.booleans(), min_size=LENGTH + 1, max_size=LENGTH + 1), st.integers(0, 2**16))
def test_only_tokens_that_are_trained_on_are_in_the_loss(trained, seed):
    random = np.random.default_rng(seed)
    text = EncodedText(random.integers(0, VOCABULARY, LENGTH + 1), np.array(trained))
    batch = place_segments([text], [[0]], LENGTH).read(np.array([0]))
    logits = random.normal(size=(1, LENGTH, VOCABULARY)).astype(np.float32)
    grads = np.asarray(differentiate_loss(logits, batch))
    assert (grads.any(-1) == batch["mask"]).all()
