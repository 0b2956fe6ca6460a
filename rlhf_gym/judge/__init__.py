"""A language model as a judge, through any OpenAI-compatible endpoint: as a reward, and as a rater."""

from rlhf_gym.judge.client import ChatClient, Usage
from rlhf_gym.judge.judge import Judge, Opinion
from rlhf_gym.judge.rater import JudgeRater
from rlhf_gym.judge.reward import JudgeReward

__all__ = ["ChatClient", "Judge", "JudgeRater", "JudgeReward", "Opinion", "Usage"]
