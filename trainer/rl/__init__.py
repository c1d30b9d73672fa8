"""Reinforcement learning: a program of two phases, a rollout and an update."""

from trainer.rl import distillation, distributions, environments, policies, returns
from trainer.rl.answering.answers import Answers
from trainer.rl.answering.grpo import evaluation_of_answers, grpo
from trainer.rl.answering.grpo_config import GRPOConfig
from trainer.rl.answering.grpo_loss import grpo_loss
from trainer.rl.answering.host_rewards import HostReward
from trainer.rl.curriculum import lessons
from trainer.rl.experience import Experience
from trainer.rl.policy_evaluation import evaluation_of
from trainer.rl.ppo import Agent, ppo
from trainer.rl.ppo_config import PPOConfig, count_minibatches
from trainer.rl.ppo_loss import ppo_loss
from trainer.rl.ppo_update import update
from trainer.rl.replays.replay_files import load_replay
from trainer.rl.rollouts import rollout

__all__ = [
    "Agent",
    "Answers",
    "Experience",
    "GRPOConfig",
    "HostReward",
    "PPOConfig",
    "count_minibatches",
    "distillation",
    "distributions",
    "environments",
    "evaluation_of",
    "evaluation_of_answers",
    "grpo",
    "grpo_loss",
    "lessons",
    "load_replay",
    "policies",
    "ppo",
    "ppo_loss",
    "returns",
    "rollout",
    "update",
]
