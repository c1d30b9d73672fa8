"""Distillation: a teacher restored from a run, and a loss that draws a policy towards it."""

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
"""Where a run that normalises its observations keeps their statistics."""


class Teacher(NamedTuple):
    """A policy to learn from; it stays as it is."""

    network: Any
    """As of `policies.forward`; of any architecture."""
    weights: PolicyWeights
    """With the statistics by which it saw its observations, if its run had them."""


def restore_teacher(
    network: Any,
    directory: str | os.PathLike[str],
    env: Environment,
    *,
    best: str | None = None,
    mode: str | None = None,
) -> Teacher:
    """Restore a teacher from the directory of the run that trained it.

    Its optimizer, its environments and what hooks remembered are left there, so that it may have
    been trained in any way; only its network must be given as it was.

    Args:
        network: of the teacher, which may be another than the student's.
        directory: of its run, as `save_checkpoints` was given it; nothing in it is changed.
        env: that the student is to act in.
        best: take the commit with the best score of this name, such as `val/return`; None takes the
            newest intact one.
        mode: `min` if a smaller score is better, `max` if a larger is; None goes by its name.

    Raises:
        FileNotFoundError: there is no commit.
        DamagedCheckpoint: no commit is intact.
        ValueError: its actions or its observations are not those of the environment, or the network
            is not that of the run: every path is listed; or no commit has the score.

    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> from trainer import Checkpoints, TrainState
    >>> from trainer.rl.environments import cartpole
    >>> def look(params, model_state, observation, *, key, train):
    ...     logits = observation @ params["w"]
    ...     return {"logits": logits, "value": logits[:, 0]}, model_state
    >>> network = SimpleNamespace(init=lambda key, x: ({"w": jnp.zeros((4, 2))}, {}), apply=look)
    >>> state = TrainState.create(params={"w": jnp.ones((4, 2))}, rng=jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
    ...     checkpoints.save(state)
    ...     restore_teacher(network, run, cartpole()).weights.params["w"][0]
    Array([1., 1.], dtype=float32)
    """
    check_policy(network, env, who="the teacher")
    shapes = jax.eval_shape(lambda key: init_weights(network, env, key), jax.random.key(0))
    params, model_state, _ = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    wanted = {
        "params": params,
        "model_state": model_state,
        STATISTICS: init_statistics(example(env.observation_space)),
    }
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
    """Make the loss that draws a policy towards its teacher's, per example.

    It is KL(teacher || student) of the actions, and half the squared distance of the values, where
    that has a coefficient: leave it 0 unless the teacher was trained on the same rewards, scaled
    alike. With `losses.total` it is one term beside others, annealed to zero:

        losses.total(ppo_loss(), (kickstart(), optax.linear_schedule(1.0, 0.0, 2000)))

    Args:
        value_coefficient: of the distance of the values.

    Returns:
        A loss of a policy's outputs `[batch, ...]` and a batch whose `restore_teacher` is what the
        teacher gives for the same observations. It reports `loss` and `kl_to_teacher`, in nats,
        `[batch]`.

    Raises:
        ValueError: the coefficient is negative; in training, the batch has no `restore_teacher`.

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
                "kickstart reads batch['teacher'], what a teacher makes of the observations; "
                f"there is: {', '.join(sorted(batch))}. Give ppo(..., teacher=teacher(...))"
            )
        taught = batch["teacher"]
        apart = loss = distributions.kl(taught, outputs)
        if value_coefficient:
            loss = apart + value_coefficient * 0.5 * (outputs["value"] - taught["value"]) ** 2
        return {"loss": loss, "kl_to_teacher": apart}

    return kickstart
