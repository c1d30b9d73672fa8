"""The settings of proximal policy optimization."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of `ppo`, `rollout` and `update`.

    Raises:
        ValueError: a setting is out of range.

    >>> PPOConfig(envs=16, steps=64).gae_lambda
    0.95
    """

    envs: int = 8
    """Environments that run at once; on the host, as many as were made."""
    steps: int = 128
    """Steps of each environment in a rollout."""
    epochs: int = 4
    """Passes over the experience of a rollout."""
    minibatches: int = 4
    """Minibatches of a pass: of transitions, or, for a recurrent policy, of whole environments,
    each with its steps in order."""
    discount: float = 0.99
    """Weight of a reward one step later, in [0, 1]."""
    gae_lambda: float = 0.95
    """Between advantages of one step (0) and of the whole return (1)."""
    target_kl: float | None = None
    """If the loss's `approx_kl` of a minibatch is above it, the rest of the update is skipped;
    None: never."""
    clip_norm: float | None = 0.5
    """Norm to which larger gradients are scaled; None: they are not clipped."""
    normalize_observations: bool = False
    """Normalize observations to mean 0 and variance 1, by the statistics of those seen so far."""
    normalize_rewards: bool = False
    """Divide rewards by the standard deviation of their discounted sums so far."""

    def __post_init__(self) -> None:
        for name in ("envs", "steps", "epochs", "minibatches"):
            count = getattr(self, name)
            if not isinstance(count, int) or count < 1:
                raise ValueError(
                    f"PPOConfig: {name} must be at least 1, a whole number; got {count!r}"
                )
        for name in ("discount", "gae_lambda"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(f"PPOConfig: {name} must be in [0, 1]; got {share}")
        for name in ("target_kl", "clip_norm"):
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise ValueError(f"PPOConfig: {name} must be above 0, or None; got {bound}")

    def check_minibatches(self, *, recurrent: bool) -> None:
        """Raise ValueError unless the experience divides into minibatches of one size.

        If the policy is recurrent, environments stay whole.
        """
        count, units = self.envs, "environments, whole as the policy is recurrent,"
        if not recurrent:
            count *= self.steps
            units = f"transitions ({self.envs} envs of {self.steps} steps)"
        if count % self.minibatches:
            raise ValueError(
                f"PPOConfig: minibatches must divide the experience: {count} {units} do not make "
                f"{self.minibatches} minibatches of one size"
            )


def count_minibatches(envs: int, steps: int, batch_size: int) -> int:
    """Return the number of minibatches of `batch_size` transitions in a rollout.

    Raises:
        ValueError: the rollout does not divide into minibatches of this size.

    >>> count_minibatches(envs=16, steps=64, batch_size=256)
    4
    """
    transitions = envs * steps
    if batch_size < 1 or transitions % batch_size or not transitions:
        raise ValueError(
            f"batch_size must divide a rollout into minibatches: {transitions} transitions ({envs} "
            f"envs of {steps} steps) do not make minibatches of {batch_size}"
        )
    return transitions // batch_size
