"""Learn to add: imitate demonstrations that forget carries, then learn from a reward.

After the demonstrations most answers are wrong, as most demonstrations are. The reward, 1 for a
right sum, then teaches the carries, with lessons by number of digits. Run it again to resume.
A worker beside it samples with the parameters of each of its checkpoints, and writes the answers.

python examples/arithmetic.py                                # in one process
python examples/arithmetic.py --follow runs/arithmetic       # in another beside it
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hooks
import models
import trainer
from trainer import configuration, data, losses, rl
from trainer.configuration import Optimizer, Schedule
from trainer.host.atomic_files import atomic_replace

CHARACTERS = ".0123456789+="
"""The vocabulary; the first ends an answer, and pads it."""

PROMPT, ANSWER = len("99+99="), len("198.")

LESSONS = {"one_digit": range(10), "two_digits": range(10, 100)}
"""Both summands of a lesson's sums."""

HELD_OUT, EXAMINED = 0.2, 400
"""Share of the sums that are never trained on, and how many of a lesson's are examined."""


@dataclass(frozen=True)
class Config(trainer.TrainingConfig):
    run: Path = Path("runs/arithmetic")
    epochs: int = 200
    """Samplings at most, each with an update."""
    imitation_epochs: int = 24
    """Passes over the demonstrations."""
    forgotten: float = 0.7
    """Share of the demonstrations that forget all carries."""
    prompts: int = 128
    group_size: int = 8
    layers: int = 2
    width: int = 64
    optimizer: Optimizer = Optimizer("adam", learning_rate=1e-3, clip_norm=1.0)
    schedule: Schedule = Schedule("cosine", decay_to=0.02)
    follow: Path | None = None
    """Directory of a run to sample beside: once with each of its checkpoints, without training."""
    timeout: float = 300.0
    """Seconds to wait for a checkpoint; the first comes after the demonstrations."""


class Characters:
    """The tokenizer: a character is a token."""

    def encode(self, text: str) -> list[int]:
        return [CHARACTERS.index(character) for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(CHARACTERS[token] for token in tokens)


def split_sums(summands: range) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of a lesson to train on, and those that are held out, [pair, 2] each."""
    pairs = np.array([(a, b) for a in summands for b in summands])
    pairs = np.random.default_rng(0).permutation(pairs)
    border = int(HELD_OUT * len(pairs))
    return pairs[border:], pairs[:border][:EXAMINED]


def write_prompts(pairs: np.ndarray) -> list[dict]:
    """Return prompts with the right answer, padded, as the reward compares it."""
    return [
        {"prompt": f"{a}+{b}=", "answer": Characters().encode(f"{a + b}.".ljust(ANSWER, "."))}
        for a, b in pairs.tolist()
    ]


def compare(examples, tokens, lengths):
    """Return 1 for a right sum, and 0 for a wrong one."""
    return jnp.all(tokens == examples["answer"], axis=1).astype(jnp.float32)


def forget_carries(a: int, b: int) -> int:
    """Add two numbers digit by digit, without carries."""
    return sum(10**place * ((a // 10**place + b // 10**place) % 10) for place in range(2))


def write_demonstrations(pairs: np.ndarray, forgotten: float, seed: int) -> data.Arrays:
    """Return sums with their answers, of which a share is wrong; only answers are trained on."""
    forgets = np.random.default_rng(seed).random(len(pairs)) < forgotten
    tokens = np.zeros((len(pairs), PROMPT + ANSWER), np.int32)
    segments, mask = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    for row, (a, b) in enumerate(pairs.tolist()):
        start = len(prompt := f"{a}+{b}=")
        text = f"{prompt}{forget_carries(a, b) if forgets[row] else a + b}."
        tokens[row, : len(text)] = Characters().encode(text)
        segments[row, : len(text)] = 1
        mask[row, start : len(text)] = True
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    inputs = {"tokens": tokens, "segments": segments, "positions": positions}
    arrays = {"inputs": {name: array[:, :-1] for name, array in inputs.items()}}
    return data.Arrays({**arrays, "labels": tokens[:, 1:], "mask": mask[:, 1:]}, batch_size=256)


def imitate(config: Config, network: models.Decoder, pairs: dict, val: trainer.Phase):
    """Return the state after training on demonstrations, each lesson about as often."""
    shown = np.concatenate([np.repeat(pairs["one_digit"], 40, axis=0)] + [pairs["two_digits"]] * 4)
    source = write_demonstrations(shown, config.forgotten, config.seed)
    rate = optax.cosine_decay_schedule(3e-3, config.imitation_epochs * len(source), 0.05)
    task = trainer.supervised(network, losses.language_modeling, optax.adamw(rate), clip_norm=1.0)
    settings = replace(config, run=config.run / "imitation", epochs=config.imitation_epochs)
    state, _ = trainer.fit(
        task.init(jax.random.key(config.seed), source.example),
        trainer.training(task.step, source),
        epochs=config.imitation_epochs,
        hooks=hooks.chain(hooks.evaluate(val), hooks.build_hooks(settings, given={"val": val})),
    )
    return state


def sample_beside(config: Config, agent: rl.Agent) -> None:
    """Sample with each checkpoint of the run that is followed, until no more come."""
    config = replace(config, run=config.run / "worker")
    state, _ = trainer.fit(
        agent.init(jax.random.key(config.seed)),
        agent.rollout,
        epochs=config.epochs,
        hooks=hooks.chain(
            hooks.follow_checkpoints(
                config.follow, carry=("lessons",), wait=True, timeout=config.timeout
            ),
            write_answers(config.run / "answers"),
            hooks.build_hooks(config),
        ),
    )
    followed = state.hook_state["follow_checkpoints"]["epoch"]
    print(f"{int(state.epoch)} samplings, the last one with epoch {followed} of {config.follow}")
    print("fingerprint", trainer.fingerprint(state))


def write_answers(folder: Path) -> hooks.Hook:
    """Write the answers of each sampling to `<folder>/<epoch followed>.jsonl`, with rewards.

    A file appears whole; a sampling that is repeated after an interrupt replaces its file.
    """

    def write(state: trainer.TrainState, metrics: trainer.Metrics) -> trainer.TrainState:
        answers, decode, lines = jax.device_get(metrics.output), Characters().decode, []
        for row, reward in enumerate(answers.reward.tolist()):
            prompt = answers.prompt["tokens"][row][answers.prompt["segments"][row] > 0]
            answer = answers.tokens[row, : answers.lengths[row]]
            lines.append({"prompt": decode(prompt), "answer": decode(answer), "reward": reward})
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{state.hook_state['follow_checkpoints']['epoch']:06}.jsonl"
        with atomic_replace(file) as beside:
            beside.write_text("\n".join(map(json.dumps, lines)))
        return state

    return hooks.on("sample", hooks.observe(write))


def main(config: Config) -> None:
    sums = {name: split_sums(summands) for name, summands in LESSONS.items()}
    prompts = {name: write_prompts(pairs) for name, (pairs, _) in sums.items()}
    held_out = {name: write_prompts(pairs) for name, (_, pairs) in sums.items()}
    network = models.transformer(
        vocabulary=len(CHARACTERS),
        context=PROMPT + ANSWER,
        layers=config.layers,
        heads=4,
        width=config.width,
    )
    settings = rl.GRPOConfig(
        prompts=config.prompts,
        group_size=config.group_size,
        length=ANSWER,
        stop=(0,),
        minibatches=4,
        kl_coefficient=0.0,  # the start is what shall be left
        clip_norm=config.optimizer.clip_norm,
    )
    shared = Characters(), prompts, compare
    if config.follow is not None:
        sample_beside(config, rl.grpo(network, *shared, optax.identity(), settings))
        return
    val = rl.evaluation_of_answers(network, Characters(), held_out, compare, settings)

    start = imitate(config, network, {name: pairs for name, (pairs, _) in sums.items()}, val)
    before = trainer.evaluate(start, val)["val/reward"]
    agent = rl.grpo(
        models.pretrained(network, start.params),
        *shared,
        configuration.optimizer(config, config.epochs * settings.minibatches),
        settings,
    )
    curriculum = hooks.thresholds({"one_digit": 0.9}, graduated_weight=0.5)
    state, _ = trainer.fit(
        agent.init(jax.random.key(config.seed)),
        agent.program,
        epochs=config.epochs,
        hooks=hooks.chain(
            hooks.adapt_curriculum(tuple(LESSONS), curriculum, metric="sample/reward"),
            hooks.every(10, hooks.evaluate(val)),
            hooks.stop_on_nan(),
            hooks.build_hooks(config, given={"val": val}),
        ),
    )
    after = trainer.evaluate(state, val)["val/reward"]
    print(f"held-out sums: {before:.3f} right by imitation, {after:.3f} by the reward")
    print("fingerprint", trainer.fingerprint(state))


if __name__ == "__main__":
    trainer.cache_compilations("runs/compiled")  # the next start compiles nothing
    main(trainer.parse_config(Config, description=__doc__))
