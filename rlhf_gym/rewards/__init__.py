"""Rewards: anything that scores samples, and combinations of rewards."""

from rlhf_gym.rewards.adaptive import (
    Constrained,
    RunningStandardise,
    Scheduled,
    frozen,
    restore_reward,
    reward_state,
)
from rlhf_gym.rewards.base import Reward, ScoredBatch, reward_name, score
from rlhf_gym.rewards.cached import CachedReward
from rlhf_gym.rewards.combine import Combination, Gate, PerWord, Product, Sum, term
from rlhf_gym.rewards.ensemble import Ensemble, Minimum
from rlhf_gym.rewards.on_error import FillOnError, SkipOnError
from rlhf_gym.rewards.spec import load_reward

__all__ = [
    "CachedReward",
    "Combination",
    "Constrained",
    "Ensemble",
    "FillOnError",
    "Gate",
    "Minimum",
    "PerWord",
    "Product",
    "Reward",
    "RunningStandardise",
    "Scheduled",
    "ScoredBatch",
    "SkipOnError",
    "Sum",
    "frozen",
    "load_reward",
    "restore_reward",
    "reward_name",
    "reward_state",
    "score",
    "term",
]
