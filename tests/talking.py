"""Small text environments to talk with, for tests."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from tiny_models import LetterTokenizer, tiny_language_model

from rlhf_gym.envs import wrap_text_env
from rlhf_gym.envs.text_vec_env import TextVecEnv
from rlhf_gym.envs.turn_spaces import AnyText

PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


class Letters(gym.Env[str, str]):
    """Says a few random letters each turn, none at times; pays a point for each "a", and ends at random."""

    observation_space = AnyText(100)
    action_space = AnyText(200)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.heard: list[str] = []
        return self._say(1), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.heard.append(action)
        line, end = self._say(0), self.np_random.random()
        return line, float(action.count("a")), end < 0.15, end > 0.9, {"reward_terms": {"a": action.count("a")}}

    def _say(self, least: int) -> str:
        return "".join(self.np_random.choice(list("xyz"), self.np_random.integers(least, 5)))


class Script(gym.Env[str, str]):
    """Says the letters of its script one by one; a turn is worth the number of letters said."""

    def __init__(self, lines: tuple[str, ...] = ("x", "y", "z"), last: str = "terminated") -> None:
        self.observation_space, self.action_space = Letters.observation_space, Letters.action_space
        self.lines, self.last, self.told = lines, last, list[str]()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.told = []
        return self.lines[0], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.told.append(action)
        turn = len(self.told)
        over = turn == len(self.lines)
        line = "" if over else self.lines[turn]
        return line, float(turn), over and self.last == "terminated", over and self.last == "truncated", {}


def letters_talk(num_envs: int = 8, env: Any = Letters, **options: Any) -> TextVecEnv:
    tokenizer = options.pop("tokenizer", None) or LetterTokenizer()
    defaults: dict[str, Any] = {"template": PLAIN, "max_new_tokens": 4, "max_turns": 5, "max_context": 60}
    return wrap_text_env(env, num_envs, tokenizer=tokenizer, **(defaults | options))


def talker(kind_of_agent: Any, env: Any = None, **options: Any) -> Any:
    model = options.pop("language_model", None) or tiny_language_model()
    defaults: dict[str, Any] = {"seed": 0, "learning_rate": 3e-3, "n_episodes": 16, "batch_size": 8, "device": "cpu"}
    env = letters_talk() if env is None else env
    return kind_of_agent("LMPolicy", env, language_model=model, **(defaults | options))
