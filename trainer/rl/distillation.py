"""Distillation: a teacher restored from a run, and a loss towards its outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from trainer.checkpoints.load import read_part
from trainer.losses.loss import LossFunction
from trainer.rl import distributions
from trainer.rl.environments.environment import Environment, example
from trainer.rl.normalization import init_statistics
from trainer.rl.policies import PolicyWeights, check_policy, init_weights

STATISTICS = "carry/normalization/observations"
"""Path of the statistics in a checkpoint whose run normalized its observations."""


class Teacher(NamedTuple):
    """A policy to learn from; it does not change."""

    network: Any
    """A network as for `policies.forward`, of any architecture."""
    weights: PolicyWeights
    """Its weights, with the statistics of its observations if its run normalized them."""


def restore_teacher(
    network: Any,
    directory: str | os.PathLike[str],
    env: Environment,
    *,
    best: str | None = None,
    mode: str | None = None,
) -> Teacher:
    """Restore a teacher from the directory of the run that trained it.

    Its optimizer, environments and hook states are not read, so it may have been trained in any
    way; only its network must be the same.

    Args:
        network: of the teacher, which may differ from the student's.
        directory: of its run, as for `save_checkpoints`; nothing in it is changed.
        env: the student's environment.
        best: take the checkpoint with the best score of this name, such as `val/return`; None takes
            the newest intact one.
        mode: `min` if a smaller score is better, `max` if a larger is; None decides by its name.

    Raises:
        FileNotFoundError: there is no checkpoint.
        DamagedCheckpoint: no checkpoint is intact.
        ValueError: its actions or its observations are not those of the environment; the network is
            not that of the run (the error lists every path); or no checkpoint has the score.

    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> from trainer import Checkpoints, TrainState
    >>> from trainer.rl.environments import cartpole
    >>> def apply(params, model_state, observation, *, key, train):
    ...     logits = observation @ params["w"]
    ...     return {"logits": logits, "value": logits[:, 0]}, model_state
    >>> network = SimpleNamespace(init=lambda key, x: ({"w": jnp.zeros((4, 2))}, {}), apply=apply)
    >>> state = TrainState.create(params={"w": jnp.ones((4, 2))}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
    ...     checkpoints.save(state)
    ...     restore_teacher(network, run, cartpole()).weights.params["w"][0]
    Array([1., 1.], dtype=float32)
    """
    check_policy(network, env, who="the teacher")
    shapes = jax.eval_shape(lambda key: init_weights(network, env, key), jax.random.key(0))
    params, model_state, _ = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    statistics = init_statistics(example(env.observation_space))
    wanted = {"params": params, "model_state": model_state, STATISTICS: statistics}
    try:
        found, _ = read_part(directory, wanted, optional=[STATISTICS], best=best, mode=mode)
    except ValueError as error:
        raise ValueError(
            f"the teacher cannot be restored for {env.name!r}, whose observations are "
            f"{env.observation_space}: {error}"
        ) from error
    weights = PolicyWeights(found["params"], found["model_state"], found.get(STATISTICS))
    return Teacher(network, weights)


def kickstart(*, value_coefficient: float = 0.0) -> LossFunction:
    """Build the loss of a policy's distance from its teacher, per example.

    It is KL(teacher || student) of the actions, plus half the squared distance of the values times
    `value_coefficient`: leave that 0 unless the teacher was trained on the same rewards, scaled
    alike. With `losses.total` it is one term of several, annealed to zero:

        losses.total(ppo_loss(), (kickstart(), optax.linear_schedule(1.0, 0.0, 2000)))

    Returns:
        A loss of a policy's outputs `[batch, ...]` and a batch whose `teacher` holds the teacher's
        outputs for the same observations. It reports `loss` and `kl_to_teacher`, in nats,
        `[batch]`.

    Raises:
        ValueError: the coefficient is negative; in training, the batch has no `teacher`.

    Source: S. Schmitt et al., Kickstarting Deep Reinforcement Learning, 2018, section 3.1 (the
    cross entropy there has the same gradient).

    >>> student = {"logits": jnp.zeros((1, 2)), "value": jnp.array([1.0])}
    >>> sure = {"logits": jnp.array([[99.0, 0.0]]), "value": jnp.array([3.0])}
    >>> values = kickstart(value_coefficient=0.5)(student, {"teacher": sure})
    >>> {name: round(float(value[0]), 4) for name, value in values.items()}  # log 2; + 0.5 * 2
    {'loss': 1.6931, 'kl_to_teacher': 0.6931}
    """
    if not value_coefficient >= 0:
        raise ValueError(f"value_coefficient must not be negative; got {value_coefficient}")

    def kickstart(outputs: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        if "teacher" not in batch:
            raise ValueError(
                "kickstart reads batch['teacher'], a teacher's outputs for the observations; there "
                f"is: {', '.join(sorted(batch))}. Use ppo(..., teacher=restore_teacher(...))"
            )
        teacher = batch["teacher"]
        kl = loss = distributions.kl(teacher, outputs)
        if value_coefficient:
            loss = kl + value_coefficient * 0.5 * (outputs["value"] - teacher["value"]) ** 2
        return {"loss": loss, "kl_to_teacher": kl}

    return kickstart
