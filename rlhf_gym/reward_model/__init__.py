"""Reward models: networks fitted to preferences, and used as rewards."""

from rlhf_gym.feedback.calibration import CalibrationBin, calibration, expected_ece
from rlhf_gym.reward_model.batches import split_by_prompt
from rlhf_gym.reward_model.evaluation import FitResult, evaluate
from rlhf_gym.reward_model.features import Features
from rlhf_gym.reward_model.fit import fit
from rlhf_gym.reward_model.fit_config import FitConfig
from rlhf_gym.reward_model.losses import bradley_terry_loss
from rlhf_gym.reward_model.model import RewardModel
from rlhf_gym.reward_model.ratings import Rating, ratings_of
from rlhf_gym.reward_model.readout import Readout

__all__ = [
    "CalibrationBin",
    "Features",
    "FitConfig",
    "FitResult",
    "Rating",
    "Readout",
    "RewardModel",
    "bradley_terry_loss",
    "calibration",
    "evaluate",
    "expected_ece",
    "fit",
    "ratings_of",
    "split_by_prompt",
]
