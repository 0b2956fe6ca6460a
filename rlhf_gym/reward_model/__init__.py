"""Reward models: networks fitted to preferences, and used as rewards."""

from rlhf_gym.reward_model.batches import split_by_prompt
from rlhf_gym.reward_model.evaluation import CalibrationBin, FitResult, calibration, evaluate
from rlhf_gym.reward_model.fit import FitConfig, fit
from rlhf_gym.reward_model.losses import bradley_terry_loss
from rlhf_gym.reward_model.model import RewardModel

__all__ = [
    "CalibrationBin",
    "FitConfig",
    "FitResult",
    "RewardModel",
    "bradley_terry_loss",
    "calibration",
    "evaluate",
    "fit",
    "split_by_prompt",
]
