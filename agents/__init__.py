"""The agents: algorithms of stable-baselines3's form over token actions."""

from rlhf_gym.agents.policy import LMPolicy
from rlhf_gym.agents.ppo import PPO

__all__ = ["PPO", "LMPolicy"]
