"""Praise in as few words as possible: a constraint on sentiment with a learned Lagrange multiplier.

    python examples/constrained_reward.py [iterations]

The embedded model continues prompt prefixes of film reviews. Every word costs a tenth of a point, and the mean sentiment is
held at +3 (log-odds of praise) or more; the multiplier finds the exchange rate between the two. Two minutes on one core.
"""

from __future__ import annotations

import sys
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from rlhf_gym.agents import PPO
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.rewards import Constrained, load_reward, term

LEVEL = 3.0
COLUMNS = {
    "words": "words",
    "sentiment": "sentiment",
    "constrained_slack": "slack",
    "constrained_multiplier": "multiplier",
}


class PrintRows(BaseCallback):
    """Prints the means of the reward's terms over each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        terms: list[dict[str, Any]] = [e.info["reward_terms"] for e in self.model.rollout.episodes]  # type: ignore[attr-defined]
        row = {name: sum(float(t[name]) for t in terms) / len(terms) for name in COLUMNS}
        self.rows.append(row)
        print(f"{len(self.rows):>9}" + "".join(f"{row[name]:>+12.2f}" for name in COLUMNS), flush=True)


def main(iterations: int = 80) -> list[dict[str, float]]:
    """Train for so many iterations and print a row for each; returns the rows."""
    brevity = -0.1 * term(load_reward("length"), "words")
    reward = Constrained(brevity, load_reward("sentiment"), level=LEVEL, rate=0.0005, damping=0.5)
    env = make_sb3_env(64, task="sentiment", reward=reward, seed=0)
    agent = PPO(env=env, learning_rate=2e-4, kl_coef=0.02, seed=0)
    print(f"{'iteration':>9}" + "".join(f"{name:>12}" for name in COLUMNS.values()))
    rows = PrintRows()
    for _ in range(iterations):
        agent.learn(1, rows, reset_num_timesteps=False)
    return rows.rows


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
