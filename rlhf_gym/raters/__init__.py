"""Raters: they answer queries, simulated or as people, behind the same two calls."""

from rlhf_gym.raters.asking import ask
from rlhf_gym.raters.base import Rater, RaterError, RaterStoppedError, Ticket
from rlhf_gym.raters.behaviour import Behaviour
from rlhf_gym.raters.function import FunctionRater, as_rater
from rlhf_gym.raters.simulated import SimulatedRater

__all__ = [
    "Behaviour",
    "FunctionRater",
    "Rater",
    "RaterError",
    "RaterStoppedError",
    "SimulatedRater",
    "Ticket",
    "as_rater",
    "ask",
]
