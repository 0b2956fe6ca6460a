"""rlhf-gym: reinforcement learning from human feedback as a first-class Gymnasium problem.

Importing the package registers its environments with Gymnasium (``gym.make("rlhf_gym/Sentiment-v0")``) and loads nothing
heavy.
"""

from rlhf_gym.envs.registration import register_all
from rlhf_gym.version import __version__

register_all()

__all__ = ["__version__"]
