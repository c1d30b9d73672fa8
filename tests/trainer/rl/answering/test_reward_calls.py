"""Rewards of the host on several processes: each scores groups of its own."""

import json
import threading
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairs import Pair

from trainer.rl import GRPOConfig, HostReward
from trainer.rl.answering import reward_calls
from trainer.rl.answering.answers import Answers
from trainer.rl.answering.prompt_tables import make_inputs, tabulate_prompts
from trainer.rl.answering.reward_calls import Scorer

PROMPTS = ["a", "b", "c", "d"]
ASKED = np.array([0, 0, 1, 1, 2, 2, 3])  # the last group has one answer


def _score(prompts, answers, examples):
    return [ord(prompt) + len(answer) / 8 for prompt, answer in zip(prompts, answers, strict=True)]


def _make_scorer(tokenizer, function, **settings):
    table = tabulate_prompts(tokenizer, PROMPTS, "grpo")
    config = GRPOConfig(prompts=4, group_size=2, length=3, stop=(0,))
    count = len(ASKED)
    answers = Answers(
        make_inputs(table.arrays, jnp.asarray(ASKED)),
        example=jnp.asarray(ASKED),
        lesson=jnp.zeros(count, jnp.int32),
        tokens=jnp.ones((count, 3), jnp.int32),
        log_probs=jnp.zeros((count, 3)),
        lengths=jnp.array([1, 2, 3, 1, 2, 3, 1]),
        reward=jnp.zeros(count),
    )
    return Scorer(HostReward(function, **settings), tokenizer, table, config), answers


def _run_processes(monkeypatch, count, call):
    """Call a function in threads that each are a process; return their results or exceptions."""
    together, messages, results = threading.Barrier(count, timeout=30), {}, {}

    def exchange(what, words, failure=None):
        messages[jax.process_index()] = failure or words
        together.wait()
        if failures := [m for m in messages.values() if isinstance(m, Exception)]:
            raise failure or RuntimeError(f"elsewhere: {failures[0]}")
        return np.stack([messages[process] for process in range(count)])

    def run(process):
        try:
            results[process] = call()
        except RuntimeError as error:
            results[process] = error

    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(jax, "process_index", lambda: int(threading.current_thread().name))
    monkeypatch.setattr(reward_calls, "exchange_words", exchange)
    threads = [threading.Thread(target=run, args=(n,), name=str(n)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[process] for process in range(count)]


@pytest.mark.parametrize("processes", [1, 2, 3, 6])  # of six, two have no group
def test_all_processes_have_all_rewards_and_each_group_is_scored_once(
    processes, tokenizer, monkeypatch
):
    calls = Counter()

    def reward(prompts, answers, examples):
        calls[prompts[0]] += 1
        if prompts[0] == "c":
            raise RuntimeError("no judge")
        return _score(prompts, answers, examples)

    scorer, answers = _make_scorer(tokenizer, reward, on_failure="zero")
    found = _run_processes(monkeypatch, processes, lambda: scorer.score_together(answers))
    for rewards, failed in found:
        assert rewards.tolist() == [97.125, 97.25, 98.375, 98.125, 0, 0, 100.125]
        assert failed.tolist() == [False] * 4 + [True] * 2 + [False]
        assert rewards.dtype == np.float32
    assert calls == Counter(PROMPTS)


def test_a_reward_that_fails_on_one_process_fails_on_all(tokenizer, monkeypatch):
    def reward(prompts, answers, examples):
        if prompts[0] == "b":
            raise RuntimeError("no judge")
        return _score(prompts, answers, examples)

    scorer, answers = _make_scorer(tokenizer, reward)
    found = _run_processes(monkeypatch, 2, lambda: scorer.score_together(answers))
    assert [str(error) for error in found] == ["elsewhere: no judge", "no judge"]


CHILD = """
import json, sys
import jax

rank, count, port = map(int, sys.argv[2:5])
jax.config.update("jax_num_cpu_devices", 2 // count)
jax.config.update("jax_disable_most_optimizations", True)
import trainer
if count > 1:
    trainer.distributed(f"127.0.0.1:{port}", count, rank)
import optax
import hooks, models
from trainer import rl

class Letters:
    def encode(self, text):
        return [".abcdefg".index(letter) for letter in text]

    def decode(self, ids):
        return "".join(".abcdefg"[number] for number in ids)

asked = []
def judge(prompts, answers, examples):
    asked.append(prompts[0])
    return [("a" in answer) + 0.1 * example["bonus"] for answer, example in zip(answers, examples)]

network = models.transformer(vocabulary=8, context=8, layers=1, heads=2, width=8)
config = rl.GRPOConfig(prompts=3, group_size=4, length=3, stop=(0,))
prompts = [{"prompt": text, "bonus": n} for n, text in enumerate(["a", "bc", "def"])]
agent = rl.grpo(network, Letters(), prompts, rl.HostReward(judge), optax.adam(1e-2), config)
state = trainer.spread(agent.init(jax.random.key(0)), trainer.mesh(data=2))
val = rl.evaluation_of_answers(network, Letters(), ["a", "b", "c"], rl.HostReward(
    lambda prompts, answers, examples: [float(len(answer)) for answer in answers]
), config)
asked.clear()
state, history = trainer.fit(state, agent.program, epochs=3, hooks=hooks.evaluate(val))
rewards = [[epoch["sample/reward"], epoch["val/reward"]] for epoch in history]
print(json.dumps({
    "calls": len(asked),
    "rewards": rewards,
    "state": trainer.fingerprint(trainer.gather(state)),
}))
"""


@pytest.mark.soak  # the test above holds the law without the start of processes
def test_two_processes_sample_and_score_as_one(tmp_path):
    said = {}
    for count in (1, 2):
        with Pair(CHILD, tmp_path, count=count) as pair:
            ends = pair.ended()
            assert [status for status, _ in ends] == [0] * count, pair.read_errors()
            said[count] = [json.loads(line) for _, line in ends]
    ((one,), (first, second)) = said[1], said[2]
    assert (one["calls"], first["calls"], second["calls"]) == (9, 6, 3)
    assert first["state"] == second["state"]
    assert first["rewards"] == second["rewards"]
    np.testing.assert_allclose(first["rewards"], one["rewards"], atol=1e-6)
