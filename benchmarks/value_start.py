"""Compares starts of a separate value network: PPO against one reward model, each start with the same seeds.

    rlhf-gym run --out runs/one --set agent.iterations=1             # fits a reward model
    python benchmarks/value_start.py runs/one/round-1/reward_model --seeds 0 1 2 3 4

Starts: ``policy``, the policy's weights; ``trunk``, the reward model's trunk; ``head``, the reward model's trunk and head,
normalisation included. The table has the explained variance of the first, the middle and the last iteration, and the mean
reward by the reward model over the last three.
"""

from __future__ import annotations

import argparse
from statistics import mean
from typing import Any

import torch
from stable_baselines3.common.logger import KVWriter, Logger

from rlhf_gym.agents import PPO
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.reward_model import RewardModel

STARTS = ("policy", "trunk", "head")


class Rows(KVWriter):
    """Keeps every row that is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Keep a row."""
        self.rows.append(dict(key_values))


def train(start: str, folder: str, seed: int, iterations: int, episodes: int) -> list[dict[str, Any]]:
    """Train with a start and a seed; returns the metrics of each iteration."""
    reward_model = RewardModel.load(folder, device="cpu")
    options = {"max_new_tokens": 12}
    env = make_sb3_env(episodes, seed=seed, task="sentiment", task_options=options, reward=reward_model)
    agent = PPO(
        env=env, language_model="embedded", value_network="separate", seed=seed, device="cpu",
        value_start=None if start == "policy" else reward_model,
    )  # fmt: skip
    head = agent.policy.value_head
    if start == "head" and head is not None:
        with torch.no_grad():
            head.linear.weight.copy_(reward_model.head.weight * reward_model.gain)
            head.linear.bias.copy_(reward_model.head.bias * reward_model.gain + reward_model.bias)
    rows = Rows()
    agent.set_logger(Logger(None, [rows]))
    for _ in range(iterations):
        agent.learn(1, reset_num_timesteps=False)
    return rows.rows


def main() -> None:
    """Train with every seed and start, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reward_model", help="folder of a reward model fitted on the embedded model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--episodes", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| seed | start | explained variance, first | middle | last | proxy reward |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for seed in options.seeds:
        for start in STARTS:
            rows = train(start, options.reward_model, seed, options.iterations, options.episodes)
            shares = [row["train/explained_variance"] for row in rows]
            cells = (shares[0], shares[len(shares) // 2], shares[-1], mean(r["objective/scores"] for r in rows[-3:]))
            print(f"| {seed} | {start} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
