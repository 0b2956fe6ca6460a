"""Tools: three policies in the calculator's environment, over five seeds; prints the mean reward and its standard error.

`python examples/calculator_tool.py [EPISODES]`: random texts, the embedded language model as it is (it has never seen a tool),
and the reference, which copies the expression into a call and the result into an answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from rlhf_gym.envs import ToolVectorEnv
from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits

Policy = Callable[[ToolVectorEnv, tuple[str, ...], int], list[str]]
SLOTS = 16


def random_texts(env: ToolVectorEnv, observations: tuple[str, ...], seed: int) -> list[str]:
    """Printable characters."""
    env.single_action_space.seed(seed)
    return [env.single_action_space.sample() for _ in observations]


class Untrained:
    """The embedded language model, sampled at temperature 1."""

    def __init__(self) -> None:
        self.model = LanguageModel.load("embedded")

    def __call__(self, env: ToolVectorEnv, observations: tuple[str, ...], seed: int) -> list[str]:
        """Its continuations of the conversations; of long ones it sees the end."""
        tokenizer, limit = self.model.tokenizer, env.task.max_new_tokens
        room = self.model.context_length - limit
        prompts = [tokenizer.encode_prompt(text)[-room:] for text in observations]
        limits = Limits.of(tokenizer, max_new_tokens=limit)
        return [written.text for written in generate(self.model, prompts, limits, seed=seed)]


def reference(env: ToolVectorEnv, observations: tuple[str, ...], seed: int) -> list[str]:
    """Calls the calculator with the question's expression, and says its result."""
    texts = []
    for slot in env.envs:
        last = slot.messages[-1]
        question = last["content"].removeprefix("What is ").removesuffix("?")
        texts.append(last["content"] if last["role"] == "tool" else f"<calculator>{question}</calculator>")
    return texts


def mean_reward(policy: Policy, episodes: int, seed: int) -> float:
    """The mean reward of episodes from one seed."""
    env = ToolVectorEnv(SLOTS, "calculation", autoreset_mode="same_step")
    observations, _ = env.reset(seed=seed)
    rewards: list[float] = []
    step = 0
    while len(rewards) < episodes:
        step += 1
        observations, earned, ended, _, _ = env.step(policy(env, observations, 1000 * seed + step))
        rewards += earned[ended].tolist()
    return float(np.mean(rewards[:episodes]))


if __name__ == "__main__":
    episodes = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    policies: dict[str, Policy] = {"random": random_texts, "untrained": Untrained(), "reference": reference}
    for name, policy in policies.items():
        found = [mean_reward(policy, episodes, seed) for seed in range(5)]
        error = np.std(found, ddof=1) / len(found) ** 0.5
        print(f"{name:10} {np.mean(found):.3f} ± {error:.3f}")
