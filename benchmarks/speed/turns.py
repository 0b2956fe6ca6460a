"""Tokens per second in conversations against single responses of as many tokens, in pairs, one after the other.

python benchmarks/speed/turns.py [--slots 16] [--tokens 48] [--turns 4] [--pairs 7] [--threads 1]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch

from rlhf_gym.agents import PPO
from rlhf_gym.agents.common.collect import Scoring, decode_episodes
from rlhf_gym.agents.common.collect_turns import collect_conversations
from rlhf_gym.envs import make_sb3_env, wrap_text_env
from rlhf_gym.envs.turn_spaces import AnyText
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt

FIRST, REPLY = "this film is about a singer and a student", "and the music"


class Listener(gym.Env[str, str]):
    """Says the same words after every turn."""

    observation_space = AnyText(200)
    action_space = AnyText(2000)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin with the prompt of the single responses."""
        return FIRST, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Go on for ever: the limit of turns ends the episode."""
        return REPLY, 0.0, False, False, {}


def tokens_per_second(generate: Callable[[], list[Any]]) -> float:
    """The policy's own tokens per second of one call."""
    start = time.perf_counter()
    episodes = generate()
    return sum(len(episode.response_ids) for episode in episodes) / (time.perf_counter() - start)


def main() -> None:
    """Measure, and print medians with the range of the pairs' ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("slots", 16), ("tokens", 48), ("turns", 4), ("pairs", 7), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if given.tokens % given.turns:
        parser.error(f"--tokens ({given.tokens}) must be a multiple of --turns ({given.turns})")
    torch.set_num_threads(given.threads)
    each = given.tokens // given.turns
    task = Task(
        "single", [Prompt(FIRST)], reward=lambda prompts, responses: [0.0] * len(prompts),
        max_new_tokens=given.tokens, min_new_tokens=given.tokens,
    )  # fmt: skip
    single = make_sb3_env(given.slots, task=task, tokenizer="embedded")
    talks = wrap_text_env(
        Listener, given.slots, max_new_tokens=each, min_new_tokens=each, max_turns=given.turns, max_context=256
    )
    agents = [PPO(env=env, language_model="embedded", n_episodes=given.slots, device="cpu") for env in (single, talks)]

    def decode() -> list[Any]:
        with Scoring(single) as scoring:
            return decode_episodes(single, agents[0].policy, 0, 0, 1, scoring)

    def talk() -> list[Any]:
        return collect_conversations(talks, agents[1].policy, 0, 0, 1)

    decode(), talk()  # warm-up
    pairs = [(tokens_per_second(decode), tokens_per_second(talk)) for _ in range(given.pairs)]
    alone, turns = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = sorted(b / a for a, b in pairs)
    print(f"{given.slots} slots, {given.tokens} tokens each, {given.threads} threads, medians of {given.pairs} pairs")
    print(f"single responses       {alone:8.0f} tokens/s")
    print(f"{given.turns} turns of {each} tokens   {turns:8.0f} tokens/s")
    print(f"ratio                  {statistics.median(ratios):8.2f}   [{ratios[0]:.2f}, {ratios[-1]:.2f}]")


if __name__ == "__main__":
    main()
