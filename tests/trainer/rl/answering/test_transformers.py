"""Group relative policy optimization of transformers: with caches, adapters and small floats."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
import trainer
from trainer.rl import GRPOConfig, grpo
from trainer.rl.answering.answers import compute_log_probs

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PROMPTS = ["a", "fedcb"]  # one is padded
CONFIG = GRPOConfig(prompts=2, group_size=4, length=4, stop=(0, 1, 7), temperature=0.8, top_k=6)


@pytest.fixture(scope="module")
def decoder():
    """A transformer of one layer that just fits a prompt and an answer."""
    return models.transformer(vocabulary=8, context=9, layers=1, heads=2, width=8)


@pytest.fixture(scope="module")
def trained(decoder):
    """Parameters far from uniform."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    params, _ = jax.jit(lambda key: decoder.init(key, tokens))(jax.random.key(0))
    return jax.tree.map(lambda x: 2 * x, params)


def _long(examples, tokens, lengths):
    return lengths.astype(jnp.float32)


def _adapted(decoder, params):
    """The decoder with adapters beside a frozen base in bfloat16."""
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    return models.lora(decoder, base, rank=2)


def _probabilities(decoder, trained, tokenizer, config):
    """An agent, its state and answers, and their log-probabilities as the update sees them."""
    network = models.pretrained(decoder, trained)
    agent = grpo(network, tokenizer, PROMPTS, _long, optax.sgd(0.1), config)
    state = agent.init(jax.random.key(0))
    chex.assert_trees_all_equal(state.params, trained)
    _, answers, _ = agent.rollout.execute(state, None, donate=False)
    found = jax.jit(lambda *given: compute_log_probs(decoder, *given, config))(
        state.params, state.model_state, answers
    )
    there = np.arange(4) < np.asarray(answers.lengths)[:, None]
    assert not there.all()  # some stopped early
    return agent, state, answers, answers.log_probs[there], found[there]


def test_sampling_and_learning_agree_on_probabilities(decoder, trained, tokenizer):
    found = _probabilities(decoder, trained, tokenizer, CONFIG)
    agent, state, answers, sampled, learned = found
    np.testing.assert_allclose(learned, sampled, atol=1e-4)
    _, _, measured = agent.update.execute(state, answers, donate=False)
    values, _, _ = measured.read()
    assert values["update/kl"] == pytest.approx(0, abs=1e-6)
    assert values["update/approx_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.soak  # the law above, in bfloat16
def test_small_floats_agree_as_far_as_they_can(decoder, trained, tokenizer):
    config = dataclasses.replace(CONFIG, precision="bfloat16")
    _, state, answers, sampled, learned = _probabilities(decoder, trained, tokenizer, config)
    np.testing.assert_allclose(learned, sampled, atol=5e-2)
    exact = jax.jit(lambda *given: compute_log_probs(decoder, *given, CONFIG))(
        state.params, state.model_state, answers
    )
    there = answers.log_probs != 0
    assert not np.allclose(exact[there], sampled, atol=1e-4)


def test_adapters_learn_beside_a_base_that_is_there_once(decoder, trained, tokenizer):
    network = _adapted(decoder, trained)
    config = dataclasses.replace(CONFIG, epochs=2)
    agent = grpo(network, tokenizer, PROMPTS, _long, optax.adam(0.05), config)
    start = agent.init(jax.random.key(0))
    chex.assert_trees_all_equal_shapes(start.carry["reference"]["params"], start.params)
    base = sum(leaf.size for leaf in jax.tree.leaves(start.model_state))
    assert sum(leaf.size for leaf in jax.tree.leaves(start.params)) < base
    state, history = trainer.fit(start, agent.program, epochs=6)
    chex.assert_trees_all_equal(state.model_state, start.model_state)
    chex.assert_trees_all_equal(state.carry["reference"]["params"], start.params)
    assert history[-1]["sample/reward"] > history[0]["sample/reward"] + 0.2
    assert history[-1]["update/kl"] > 0.01


def test_a_prompt_and_an_answer_that_exceed_the_context_are_refused(decoder, tokenizer):
    """Also where only positions are limited, and inputs with segments may be longer."""
    with pytest.raises(ValueError, match="a text of 11 tokens exceeds the network's context of 9"):
        grpo(decoder, tokenizer, ["abcdefg"], _long, optax.sgd(0.1), CONFIG)
