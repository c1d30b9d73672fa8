"""Reinforcement learning: two phases, a rollout and an update, in the loop that trains all else."""

from trainer.rl import distillation, distributions, environments, policies, returns
from trainer.rl.curriculum import lessons
from trainer.rl.policy_evaluation import evaluation_of
from trainer.rl.ppo import Agent, ppo, ppo_loss
from trainer.rl.ppo_update import minibatches_of, update
from trainer.rl.replay_files import load_replay
from trainer.rl.rollouts import Experience, rollout

__all__ = [
    "Agent",
    "Experience",
    "distillation",
    "distributions",
    "environments",
    "evaluation_of",
    "lessons",
    "load_replay",
    "minibatches_of",
    "policies",
    "ppo",
    "ppo_loss",
    "returns",
    "rollout",
    "update",
]
