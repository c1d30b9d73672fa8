"""Reinforcement learning: a program of two phases, a rollout and an update."""

from trainer.rl import distillation, distributions, environments, policies, returns
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
    "Experience",
    "PPOConfig",
    "count_minibatches",
    "distillation",
    "distributions",
    "environments",
    "evaluation_of",
    "lessons",
    "load_replay",
    "policies",
    "ppo",
    "ppo_loss",
    "returns",
    "rollout",
    "update",
]
