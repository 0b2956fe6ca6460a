"""Seconds of a rollout of conversations whose user takes its time, in rounds, one way after the other.

python benchmarks/speed/slow_users.py [--slots 16] [--episodes 32] [--turns 4] [--tokens 24] [--wait 50] [--rounds 5]
[--threads 1]

The user takes ``--wait`` milliseconds for each reply. "one by one": its slots wait in a row (``slow=False``); "beside":
other slots are decoded while some wait (``slow=True``); "at once": the same conversations with a user that takes no time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import gymnasium as gym
import torch

from rlhf_gym.agents import PPO
from rlhf_gym.agents.common.collect_turns import collect_conversations
from rlhf_gym.envs import wrap_text_env
from rlhf_gym.envs.turn_spaces import AnyText

FIRST, REPLY = "this film is about a singer and a student", "and the music"


class User(gym.Env[str, str]):
    """Says the same words after every turn, after a while.

    Args:
        wait: seconds.
    """

    observation_space = AnyText(200)
    action_space = AnyText(2000)

    def __init__(self, wait: float) -> None:
        self.wait = wait

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin at once."""
        return FIRST, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Go on for ever: the limit of turns ends the episode."""
        time.sleep(self.wait)
        return REPLY, 0.0, False, False, {}


def main() -> None:
    """Measure, and print medians with the range of the rounds' ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = (
        ("slots", 16),
        ("episodes", 32),
        ("turns", 4),
        ("tokens", 24),
        ("wait", 50),
        ("rounds", 5),
        ("threads", 1),
    )
    for name, default in numbers:
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    if given.episodes % given.slots:
        parser.error(f"--episodes ({given.episodes}) must be a multiple of --slots ({given.slots})")
    torch.set_num_threads(given.threads)
    ways: dict[str, tuple[float, bool]] = {
        "one by one": (given.wait / 1000, False),
        "beside": (given.wait / 1000, True),
        "at once": (0.0, False),
    }
    envs = {
        name: wrap_text_env(
            lambda wait=wait: User(wait), given.slots, max_new_tokens=given.tokens, max_turns=given.turns,  # type: ignore[misc]
            max_context=256, slow=slow,
        )
        for name, (wait, slow) in ways.items()
    }  # fmt: skip
    agent = PPO(env=envs["at once"], language_model="embedded", n_episodes=given.episodes, device="cpu")

    def seconds(name: str) -> tuple[float, list[list[int]]]:
        start = time.perf_counter()
        episodes = collect_conversations(envs[name], agent.policy, 0, 0, given.episodes // given.slots)
        return time.perf_counter() - start, [episode.response_ids for episode in episodes]

    seconds("at once")  # warm-up
    found: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, list[list[int]]] = {}
    for _ in range(given.rounds):
        for name in ways:
            spent, said[name] = seconds(name)
            found[name].append(spent)
    same = sum(a == b == c for a, b, c in zip(*said.values(), strict=True))
    tokens = sum(map(len, said["at once"]))
    print(f"{given.episodes} conversations of {given.turns} turns in {given.slots} slots, {tokens} tokens, a user of")
    print(
        f"{given.wait} ms, {given.threads} threads, medians of {given.rounds} rounds; {same} are the same in all ways"
    )
    for name, times in found.items():
        ratios = sorted(a / b for a, b in zip(found["one by one"], times, strict=True))
        median = statistics.median(times)
        faster = f"{statistics.median(ratios):.1f} times as fast as one by one [{ratios[0]:.1f}, {ratios[-1]:.1f}]"
        print(f"{name:12} {median:7.2f} s {tokens / median:7.0f} tokens/s   {faster}")


if __name__ == "__main__":
    main()
