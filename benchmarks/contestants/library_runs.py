"""This library.

Usual: `fit`, an epoch or an iteration of PPO at a time. Fastest: the same in five epochs of
`trainer.repeated`, each as many passes as it takes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _ppo_settings import EPSILON, RATE, Settings

import models
import trainer
from contestants.workloads import TEXT
from trainer import data, losses


def usual(workload):
    """Train with `fit`."""
    start, program, finish = build(workload)

    def run(epochs):
        state, _ = trainer.fit(start, program, epochs=epochs)
        jax.block_until_ready(state)
        return finish(state)

    return run


def repeated(workload):
    """Train with `fit`, a fifth of the epochs in each dispatch."""
    start, program, finish = build(workload)

    @functools.cache
    def get_phase(passes):
        return trainer.repeated(program, passes)

    def run(epochs):
        passes = max(epochs // 5, 1)
        state, _ = trainer.fit(start, get_phase(passes), epochs=max(epochs // passes, 1))
        jax.block_until_ready(state)
        return finish(state)

    return run


def build(workload):
    """Return (initial state, program, function of the state that gives figures to report)."""
    if isinstance(workload, Settings):
        agent = build_agent(workload)
        return agent.init(jax.random.key(0)), agent.program, lambda state: None
    source = data.Arrays(workload.arrays, workload.batch_size)
    is_text = workload.network == TEXT
    loss = losses.language_modeling if is_text else losses.classification
    task = trainer.supervised(
        build_network(workload),
        loss,
        build_optimizer(workload.optimizer),
        clip_norm=workload.optimizer.clip_norm,
    )

    def finish(state):
        if workload.held_out is None:
            return None
        held_out = data.Arrays(workload.held_out, workload.batch_size)
        scores = trainer.evaluate(state, trainer.evaluation(task.measure, held_out))
        return {"held-out loss": scores["val/loss"]}

    start = task.init(jax.random.key(0), source.example)
    return start, trainer.training(task.step, source), finish


def build_network(workload):
    """Build the network."""
    if workload.network == TEXT:
        return models.transformer(**workload.size._asdict())
    return models.mlp(classes=10) if workload.network == "MLP" else models.cnn(classes=10)


def build_optimizer(settings):
    """Build AdamW."""
    rates = np.asarray(settings.rate)
    rate = (lambda step: jnp.asarray(rates)[step]) if rates.ndim else settings.rate
    return optax.adamw(rate, b2=settings.beta2, eps=settings.epsilon, weight_decay=settings.decay)


def build_agent(settings, rate=RATE):
    """Build PPO; `rate` is a float or a schedule over updates."""
    from trainer import rl
    from trainer.rl import environments

    return rl.ppo(
        models.actor_critic(actions=2, hidden=(settings.hidden, settings.hidden)),
        environments.cartpole(),
        optax.adam(rate, eps=EPSILON),
        rl.PPOConfig(
            envs=settings.envs,
            steps=settings.steps,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            discount=settings.discount,
            gae_lambda=settings.gae_lambda,
            clip_norm=settings.clip_norm,
        ),
        loss=rl.ppo_loss(
            clip=settings.clip,
            value_coefficient=settings.value_coefficient,
            entropy_coefficient=settings.entropy_coefficient,
        ),
    )
