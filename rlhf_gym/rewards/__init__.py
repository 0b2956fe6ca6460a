"""Rewards: anything that scores samples, and how rewards are made of rewards."""

from rlhf_gym.rewards.base import Reward, ScoredBatch, reward_name, score

__all__ = ["Reward", "ScoredBatch", "reward_name", "score"]
