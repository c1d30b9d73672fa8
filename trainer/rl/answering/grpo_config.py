"""The settings of group relative policy optimization."""

from __future__ import annotations

import dataclasses
import math

from trainer.checks.arguments import describe_value, require_integer, require_number
from trainer.checks.suggestions import suggest_and_list
from trainer.supervised.precision import require_known

AVERAGES = ("answer", "token", "constant")
"""How the losses of tokens become one: see `GRPOConfig.average`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Settings of `grpo`; the defaults are those of the first paper.

    Dr. GRPO is `normalize_std=False, average="constant", kl_coefficient=0.0`; DAPO's loss is
    `clip_high=0.28, average="token", kl_coefficient=0.0`.

    Raises:
        TypeError, ValueError: a setting is out of range.

    Source: Z. Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open
    Language Models, 2024, section 4.1; Z. Liu et al., Understanding R1-Zero-Like Training: A
    Critical Perspective (Dr. GRPO), 2025, section 3.2; Q. Yu et al., DAPO: An Open-Source LLM
    Reinforcement Learning System at Scale, 2025, sections 3.1 and 3.3.

    >>> GRPOConfig(prompts=4, group_size=8, length=16).answers
    32
    """

    prompts: int = 8
    """Prompts of a sampling."""
    group_size: int = 8
    """Answers to each prompt, at least 2: their rewards are compared."""
    length: int = 64
    """Tokens of an answer at most."""
    temperature: float = 1.0
    """Divides the logits, in sampling as in the update; above 0."""
    top_k: int | None = None
    """Number of likeliest tokens to draw from; None: all. Probabilities stay those of all."""
    top_p: float | None = None
    """Share of the probability to draw from, by the likeliest tokens; None: all."""
    stop: tuple[int, ...] | None = None
    """Tokens that end an answer, which keeps them; None: those that the tokenizer names."""
    epochs: int = 1
    """Passes over the answers of a sampling."""
    minibatches: int = 1
    """Minibatches of a pass, of whole answers."""
    clip: float = 0.2
    """Relative decrease of a token's probability beyond which the objective is flat."""
    clip_high: float | None = None
    """Relative increase beyond which it is flat; None: `clip`."""
    kl_coefficient: float = 0.04
    """Weight of the divergence from the reference, in nats per token; at 0 none is kept."""
    normalize_std: bool = True
    """Divide the advantages of a group by the standard deviation of its rewards."""
    average: str = "answer"
    """What the losses of tokens are averaged over: those of an `answer`, then the answers; every
    `token` of the minibatch alike; or the sum over an answer, divided by the `constant` `length`,
    then the answers."""
    clip_norm: float | None = 1.0
    """Norm to which larger gradients are scaled; None: they are not clipped."""
    precision: str = "float32"
    """What the network computes in, as for `supervised`: float32 or bfloat16."""

    def __post_init__(self) -> None:
        for name in ("prompts", "length", "epochs", "minibatches"):
            require_integer(f"GRPOConfig: {name}", getattr(self, name), 1)
        if require_integer("GRPOConfig: group_size", self.group_size, 1) < 2:
            raise ValueError(
                "GRPOConfig: group_size must be at least 2: an answer is compared with the others "
                "to the same prompt, and alone its advantage is always 0; got 1"
            )
        if self.answers % self.minibatches:
            raise ValueError(
                f"GRPOConfig: minibatches must divide the answers: {self.answers} answers "
                f"({self.prompts} prompts, {self.group_size} each) do not make {self.minibatches} "
                "minibatches of one size"
            )
        self._check_sampling()
        self._check_objective()

    def _check_sampling(self) -> None:
        temperature = require_number("GRPOConfig: temperature", self.temperature)
        if not 0 < temperature < math.inf:
            raise ValueError(
                "GRPOConfig: temperature must be above 0, and finite, so that the answers of a "
                f"group differ; got {temperature}"
            )
        if self.top_k is not None:
            require_integer("GRPOConfig: top_k", self.top_k, 1)
        if self.top_p is not None and not 0 < require_number("GRPOConfig: top_p", self.top_p) <= 1:
            raise ValueError(f"GRPOConfig: top_p must be in (0, 1], or None; got {self.top_p}")
        if not isinstance(self.stop, tuple | None):
            raise TypeError(
                "GRPOConfig: stop must be a tuple of token ids, such as (tokenizer.token_to_id("
                f"'<|im_end|>'),), or None for what the tokenizer names; got "
                f"{describe_value(self.stop)}"
            )
        for token in self.stop or ():
            require_integer("GRPOConfig: a token of stop", token, 0)

    def _check_objective(self) -> None:
        for name in ("clip", "clip_high", "clip_norm"):
            bound = getattr(self, name)
            required = name == "clip"
            if (bound is not None or required) and not require_number(name, bound) > 0:
                remedy = "" if required else ", or None"
                raise ValueError(f"GRPOConfig: {name} must be above 0{remedy}; got {bound}")
        if not 0 <= require_number("GRPOConfig: kl_coefficient", self.kl_coefficient) < math.inf:
            raise ValueError(
                f"GRPOConfig: kl_coefficient must be 0 or more; got {self.kl_coefficient}"
            )
        if self.average not in AVERAGES:
            raise ValueError(
                f"GRPOConfig: average must be one of {', '.join(AVERAGES)}; got {self.average!r}"
                f"{suggest_and_list(self.average, AVERAGES)}"
            )
        require_known(self.precision)
        if self.precision == "float16":
            raise ValueError(
                "GRPOConfig: precision must be float32 or bfloat16: float16 needs a loss scale, "
                "which only supervised keeps"
            )

    @property
    def answers(self) -> int:
        """Answers of a sampling."""
        return self.prompts * self.group_size
