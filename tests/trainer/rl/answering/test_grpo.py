"""Group relative policy optimization: the program under the laws, and what it refuses."""

import dataclasses
import math
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers
from jax.sharding import PartitionSpec

import hooks
import trainer
from trainer import data
from trainer.rl import GRPOConfig, HostReward, evaluation_of_answers, grpo
from trainer.rl.answering.answers import compute_log_probs

pytestmark = pytest.mark.usefixtures("compiled_quickly")

PROMPTS = {"early": ["a", "ca"], "late": [{"prompt": "d"}, {"prompt": "acd"}]}
CONFIG = GRPOConfig(
    prompts=4, group_size=8, length=3, stop=(0,), epochs=2, minibatches=2, kl_coefficient=0.01
)


def _judge(prompts, answers, examples):
    """The same reward as `says_next`, of texts."""
    following = [chr(ord(prompt[-1]) + 1) for prompt in prompts]
    pairs = zip(answers, following, strict=True)
    return [0.5 * (answer[:1] == right) + 0.5 * (answer == right) for answer, right in pairs]


@pytest.fixture(scope="module")
def agents(network, tokenizer, reward):
    """Agents with rewards on the device and on the host, compiled once."""
    rewards = {"device": reward, "host": HostReward(_judge, threads=2)}
    return {
        kind: grpo(network, tokenizer, PROMPTS, function, optax.adam(0.1), CONFIG)
        for kind, function in rewards.items()
    }


KINDS = ("device", "host")


def _adapt():
    strategy = hooks.thresholds({"early": 0.5}, window=1)
    return hooks.adapt_curriculum(tuple(PROMPTS), strategy, metric="sample/reward")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_a_curriculum_learns_and_resumes_bit_for_bit(kind, agents, tmp_path):
    agent, start = agents[kind], agents[kind].init(jax.random.key(0))
    whole, history = trainer.fit(start, agent.program, epochs=20, hooks=_adapt())
    for epochs in (1, 7, 20):
        saved = hooks.chain(_adapt(), hooks.save_checkpoints(tmp_path, max_cost=None))
        parts, _ = trainer.fit(start, agent.program, epochs=epochs, hooks=saved)
    assert trainer.fingerprint(parts) == trainer.fingerprint(whole)
    assert int(whole.step) == 20 * 2 * 2
    assert "sample/reward/late" not in history[0]  # the lesson is not open yet
    assert history[0]["sample/reward/early"] == history[0]["sample/reward"] < 0.3
    assert history[-1]["sample/reward"] > 0.7
    assert history[-1]["sample/reward/late"] > 0.5
    assert history[-1]["update/kl"] > 0.1
    assert all(math.isfinite(value) for epoch in history for value in epoch.values())
    chex.assert_trees_all_equal(whole.carry["reference"]["params"], start.params)


def test_both_kinds_of_reward_train_alike(agents):
    runs = {}
    for kind, agent in agents.items():
        runs[kind] = trainer.fit(agent.init(jax.random.key(0)), agent.program, epochs=2)
    (device, measured), (host, also) = runs["device"], runs["host"]
    chex.assert_trees_all_close(device.params, host.params, rtol=1e-6)
    for name in ("sample/reward", "sample/length", "sample/no_signal", "sample/unfinished"):
        assert measured[-1][name] == pytest.approx(also[-1][name])
    assert also[-1]["sample/failed"] == 0.0


def test_hooks_see_the_answers_with_right_rewards_and_probabilities(agents, network, reward):
    seen = []

    @hooks.observe
    def look(state, metrics):
        seen.append((jax.device_get(metrics.output), dict(metrics)))
        return state

    agent = agents["device"]
    start = agent.init(jax.random.key(3))
    trainer.fit(start, agent.program, epochs=1, hooks=hooks.on("sample", look))
    ((answers, metrics),) = seen
    assert answers.tokens.shape == (32, 3)
    assert (answers.example.reshape(4, 8) == answers.example[::8, None]).all()
    assert (answers.lesson == answers.example // 2).all()
    expected = reward({"prompt": answers.prompt["tokens"]}, answers.tokens, answers.lengths)
    chex.assert_trees_all_close(answers.reward, np.asarray(expected))
    assert metrics["sample/reward"] == pytest.approx(answers.reward.mean())
    assert metrics["sample/length"] == pytest.approx(answers.lengths.mean())
    groups = answers.reward.reshape(4, 8)
    equal = (groups.min(axis=1) == groups.max(axis=1)).mean()
    assert metrics["sample/no_signal"] == pytest.approx(equal)
    stopped = [row[n - 1] == 0 for row, n in zip(answers.tokens, answers.lengths, strict=True)]
    assert metrics["sample/unfinished"] == pytest.approx(1 - np.mean(stopped))
    entropy = -answers.log_probs.sum() / answers.lengths.sum()
    assert metrics["sample/entropy"] == pytest.approx(entropy, rel=1e-5)


def test_the_first_minibatch_has_the_probabilities_of_the_sampling(network, tokenizer, reward):
    config = dataclasses.replace(CONFIG, temperature=0.7)
    agent = grpo(network, tokenizer, PROMPTS, reward, optax.adam(0.1), config)
    state = agent.init(jax.random.key(1))
    state, answers, _ = agent.rollout.execute(state, None, donate=False)
    answers = answers._replace(reward=jnp.arange(32.0) % 5)
    _, _, measured = agent.update.execute(state, answers, donate=False)
    values, traces, taken = measured.read()
    assert traces["update/approx_kl"][0] == pytest.approx(0.0, abs=1e-6)
    assert traces["update/kl"][0] == pytest.approx(0.0, abs=1e-6)
    assert traces["update/approx_kl"][-1] > 1e-5
    assert taken == 4
    assert {"update/clip_fraction", "update/grad_norm", "update/clipped"} <= values.keys()


def test_in_bfloat16_the_model_state_is_cast_as_the_parameters_are(network, tokenizer, reward):
    config = dataclasses.replace(CONFIG, precision="bfloat16")
    agent = grpo(network, tokenizer, ["ab"], reward, optax.sgd(1.0), config)
    given, found = jnp.linspace(0.1, 0.3, 8), []
    for bias in (given, given.astype(jnp.bfloat16).astype(jnp.float32)):
        state = agent.init(jax.random.key(1)).replace(model_state={"bias": bias})
        after, answers, _ = agent.rollout.execute(state, None, donate=False)
        chances = compute_log_probs(network, state.params, state.model_state, answers, config)
        found.append((answers.log_probs, chances))
        assert after.model_state["bias"].dtype == jnp.float32
    chex.assert_trees_all_equal(*found)


def test_one_minibatch_is_a_step_along_the_policy_gradient(network, tokenizer, reward):
    """At ratio 1 the gradient of the loss is that of -advantage * log-probability."""
    config = dataclasses.replace(
        CONFIG, epochs=1, minibatches=1, kl_coefficient=0.0, clip_norm=None, average="token"
    )
    agent = grpo(network, tokenizer, ["ab", "cd"], reward, optax.sgd(1.0), config)
    state = agent.init(jax.random.key(2))
    assert state.carry == {}  # no reference, no lessons
    _, answers, _ = agent.rollout.execute(state, None, donate=False)
    answers = answers._replace(reward=jnp.arange(32.0) % 5)
    groups = answers.reward.reshape(4, 8)
    advantage = ((groups - groups.mean(1, keepdims=True)) / groups.std(1, ddof=1)[:, None]).ravel()

    def objective(pairs):
        last = jnp.concatenate([answers.prompt["tokens"][:, -1:], answers.tokens[:, :-1]], axis=1)
        chances = jax.nn.log_softmax(pairs[last])
        chosen = jnp.take_along_axis(chances, answers.tokens[..., None], axis=-1)[..., 0]
        there = jnp.arange(3) < answers.lengths[:, None]
        return -(chosen * advantage[:, None] * there).sum() / there.sum()

    expected = state.params["pairs"] - jax.grad(objective)(state.params["pairs"])
    after, _, _ = agent.update.execute(state, answers, donate=False)
    chex.assert_trees_all_close(after.params["pairs"], expected, atol=1e-5)


def test_an_evaluation_answers_every_prompt_once(network, tokenizer, reward, agents):
    table = jnp.zeros((8, 8)).at[1, 2].set(9.0).at[2, 0].set(9.0).at[5, 6].set(9.0).at[6, 1].set(9)
    state = agents["device"].init(jax.random.key(0)).replace(params={"pairs": table})
    prompts = {"x": ["a"] * 40 + ["b"], "y": ["e"] * 9}  # more than are answered at once
    exams = [
        evaluation_of_answers(network, tokenizer, prompts, one, CONFIG, name=name)
        for one, name in ((reward, "val"), (HostReward(_judge), "host"))
    ]
    scores = [trainer.evaluate(state, exam) for exam in exams]
    # "a" gets "b.", right; "b" gets ".", wrong; "e" gets "fab", half right and cut off.
    assert scores[0] == pytest.approx(
        {
            "val/reward": (40 + 9 / 2) / 50,
            "val/reward/x": 40 / 41,
            "val/reward/y": 0.5,
            "val/length": (40 * 2 + 1 + 9 * 3) / 50,
            "val/unfinished": 9 / 50,
        }
    )
    assert scores[1].pop("host/failed") == 0.0
    assert [*scores[1].values()] == pytest.approx([*scores[0].values()])


def test_a_state_on_a_mesh_trains_as_on_one_device(agents):
    agent, start = agents["device"], agents["device"].init(jax.random.key(0))
    alone, measured = trainer.fit(start, agent.program, epochs=2)
    rule = "^params/pairs$", PartitionSpec("data")
    split = trainer.spread(start, trainer.mesh(data=8), rules=[rule])
    assert split.carry["reference"]["params"]["pairs"].sharding.spec == PartitionSpec("data")
    together, also = trainer.fit(split, agent.program, epochs=2)
    chex.assert_trees_all_close(together.params, alone.params, atol=1e-5)
    for name in ("sample/reward", "update/kl", "update/loss"):
        assert also[-1][name] == pytest.approx(measured[-1][name], abs=1e-5)
    _, scored = trainer.fit(split, agents["host"].rollout, epochs=1)
    assert scored[0]["sample/reward"] == pytest.approx(also[0]["sample/reward"])


def test_a_worker_samples_with_the_parameters_of_another_run(agents, tmp_path):
    agent = agents["device"]
    saved = hooks.save_checkpoints(tmp_path, max_cost=None)
    learned, _ = trainer.fit(agent.init(jax.random.key(0)), agent.program, epochs=12, hooks=saved)
    follow = hooks.follow_checkpoints(tmp_path, carry=("lessons",))
    worker, history = trainer.fit(
        agent.init(jax.random.key(1)), agent.rollout, epochs=1, hooks=follow
    )
    chex.assert_trees_all_equal(worker.params, learned.params)
    assert history[0]["sample/reward"] > 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_overlap_changes_no_bit(kind, agents):
    agent, start = agents[kind], agents[kind].init(jax.random.key(0))
    whole, _ = trainer.fit(start, agent.program, epochs=4)
    ahead, _ = trainer.fit(start, agent.program, epochs=4, overlap=True)
    assert trainer.fingerprint(ahead) == trainer.fingerprint(whole)


@pytest.mark.soak  # a program like any other
def test_populations_and_repeated_programs(network, tokenizer, reward):
    """Members learn as runs alone, two passes of one epoch as two epochs."""
    config = GRPOConfig(prompts=2, group_size=2, length=2, stop=(0,))
    agent = grpo(network, tokenizer, ["ab", "c"], reward, optax.sgd(10.0), config)
    state = agent.init(jax.random.key(0))
    alone, measured = trainer.fit(state, agent.program, epochs=2)
    many, history = trainer.fit(
        trainer.stack_states([state, agent.init(jax.random.key(1))]),
        trainer.repeated(trainer.population(agent.program, 2), 2),
        epochs=1,
    )
    chex.assert_trees_all_close(trainer.member(many, 0).params, alone.params, atol=1e-5)
    values = history[0]["sample/reward"].values
    mean = (measured[0]["sample/reward"] + measured[1]["sample/reward"]) / 2
    assert values[0] == pytest.approx(mean)


def test_messages_are_asked_by_the_template_and_answers_end_where_the_tokenizer_says(network):
    """The decoder of the tokenizer drops the space that a text begins with, as Llama's does."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE({x: n for n, x in enumerate(".▁bcdefg")}, []))
    made.add_special_tokens(["."])
    replacing, stripping = (
        tokenizers.decoders.Replace("▁", " "),
        tokenizers.decoders.Strip(" ", 1, 0),
    )
    made.decoder = tokenizers.decoders.Sequence([replacing, tokenizers.decoders.Fuse(), stripping])
    template = (
        "{% for m in messages %}{{ m.content }}.{% endfor %}{{ 'g' if add_generation_prompt }}"
    )
    seen = []

    def reward(*group):
        seen.append(group)
        return [0.0] * len(group[0])

    asked = [{"prompt": [{"role": "user", "content": "bc"}], "sum": 5}]
    tokenizer = data.open_tokenizer(made, template=template)
    config = GRPOConfig(prompts=1, group_size=2, length=3)
    agent = grpo(network, tokenizer, asked, HostReward(reward), optax.sgd(1.0), config)
    # After g comes a space, then d, then the end.
    table = jnp.zeros((8, 8)).at[7, 1].set(99.0).at[1, 4].set(99.0).at[4, 0].set(99.0)
    state = agent.init(jax.random.key(0)).replace(params={"pairs": table})
    state, history = trainer.fit(state, agent.rollout, epochs=1)
    assert seen[-1] == (["bc.g"] * 2, [" d"] * 2, [{"sum": 5}] * 2)
    assert history[0]["sample/length"] == 3
    assert history[0]["sample/unfinished"] == 0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda examples, tokens, lengths: jnp.ones(3), r"\[answer\] = \[8\]; got shape \[3\]"),
        (lambda examples, tokens, lengths: 1.0, "got float"),
        (lambda examples, tokens, lengths: jnp.log(lengths - 1.0) - 1, "a finite number for each"),
        (
            lambda examples, tokens: tokens[:, 0],
            r"must be a function \(examples, tokens, lengths\)",
        ),
        (lambda examples, tokens, lengths: examples["sum"], "'sum'"),
        (HostReward(lambda *group: [float("nan")] * 8), "got nan for the answer"),
        (HostReward(lambda *group: [1.0]), r"\[8\]; got shape \[1\]"),
    ],
)
def test_a_reward_that_does_not_fit_is_refused_before_training(function, said, network, tokenizer):
    with pytest.raises((TypeError, ValueError, KeyError), match=said):
        grpo(network, tokenizer, PROMPTS, function, optax.adam(0.1), CONFIG)


def test_a_reward_that_becomes_nan_ends_the_run(network, tokenizer):
    def reward(examples, tokens, lengths):
        long = (examples["prompt"] > 0).all(axis=1)
        return jnp.where(long, jnp.nan, 0.0)

    agent = grpo(network, tokenizer, ["a", "abcd"], reward, optax.adam(0.1), CONFIG)
    with pytest.raises(ValueError, match="an answer to the prompt 'abcd' is not finite"):
        trainer.fit(agent.init(jax.random.key(0)), agent.program, epochs=3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": ["abcdefgabcdefg"]}, "17 tokens are more than the limit of 16"),
        ({"prompts": ["ah"]}, "tokens of prompts must be between 0 and 7"),
        ({"config": dataclasses.replace(CONFIG, stop=(8,))}, "stop must be between 0 and 7"),
        ({"config": {"group_size": 8}}, r"takes a GRPOConfig\(...\); got a dict"),
        ({"tokenizer": SimpleNamespace(encode=len)}, "has no decode"),
        ({"sample": None}, "samples answers from a decoder"),
        ({"optimizer": optax.adam}, "needs an optimizer"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, said, network, tokenizer, reward):
    network = SimpleNamespace(**{**vars(network), "sample": change.get("sample", network.sample)})
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        grpo(
            network,
            change.get("tokenizer", tokenizer),
            change.get("prompts", PROMPTS),
            reward,
            change.get("optimizer", optax.adam(0.1)),
            change.get("config", CONFIG),
        )
    if "limit" in said:
        assert (
            "grpo continues prompt 0, the longest, of 14 tokens, with up to 3"
            in caught.value.__notes__[-1]
        )


def test_an_update_needs_a_sampling_and_a_reference(agents):
    agent = agents["device"]
    start = agent.init(jax.random.key(0))
    with pytest.raises(TypeError, match="'update' learns from the Answers .* got NoneType"):
        trainer.fit(start, agent.update, epochs=1)
    with pytest.raises(ValueError, match="needs the reference's parameters"):
        trainer.fit(start.replace(carry={"lessons": jnp.ones(2)}), agent.program, epochs=1)
    with pytest.raises(ValueError, match=r"draws lessons by state\.carry\['lessons'\]"):
        trainer.fit(start.replace(carry={}), agent.program, epochs=1)
