"""Training in a text environment of one's own: any ``gymnasium.Env`` whose observations and actions are texts.

``python examples/own_text_env.py`` trains for a thousand tokens, ``python examples/own_text_env.py 100000`` for that many.
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym

from rlhf_gym.agents import PPO
from rlhf_gym.envs import wrap_text_env


class Cheer(gym.Env[str, str]):
    """Says what it saw, and is to be answered with an exclamation mark; worth a point a turn, for three turns."""

    observation_space = gym.spaces.Text(64)
    action_space = gym.spaces.Text(256)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a conversation.

        Args:
            seed: not needed: nothing is drawn.
            options: not used.
        """
        super().reset(seed=seed)
        self.turn = 0
        return "the film", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Hear the policy's turn, and name the next topic."""
        self.turn += 1
        topic = ("the music", "the ending", "")[self.turn - 1]
        return topic, float("!" in action), self.turn == 3, False, {}


def main(tokens: int) -> None:
    """Train, and show a conversation.

    Args:
        tokens: of the policy's, to train for at least.
    """
    env = wrap_text_env(Cheer, 16, tokenizer="embedded", max_new_tokens=8)
    agent = PPO(env=env, language_model="embedded", learning_rate=3e-4, kl_coef=0.01, seed=0)
    agent.learn(tokens)
    assert agent.rollout is not None
    episode = agent.rollout.episodes[0]
    for message in episode.info["messages"]:
        print(f"{message['role']:>9}: {message['content']}")
    print(f"   reward: {episode.score}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
