"""Praise in as few words as possible: a constraint on sentiment with a learned Lagrange multiplier.

    python examples/constrained_reward.py [iterations]

The embedded model continues prompt prefixes of film reviews. Every word costs a tenth of a point, and the mean sentiment is
held at +3 (log-odds of praise) or more; the multiplier finds the exchange rate between the two. Two minutes on one core.
"""

from __future__ import annotations

import sys

from rlhf_gym.agents import PPO, IterationCallback, TokenAlgorithm
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.rewards import Constrained, load_reward, term

LEVEL = 3.0
COLUMNS = {
    "words": "words",
    "sentiment": "sentiment",
    "constrained_slack": "slack",
    "constrained_multiplier": "multiplier",
}


class PrintRows(IterationCallback):
    """Prints the means of the reward's terms over each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def on_iteration_end(self, agent: TokenAlgorithm) -> bool:
        """Print a row; True goes on."""
        assert agent.rollout is not None
        terms = [episode.info["reward_terms"] for episode in agent.rollout.episodes]
        row = {name: sum(float(of_one[name]) for of_one in terms) / len(terms) for name in COLUMNS}
        self.rows.append(row)
        print(f"{agent.iteration:>9}" + "".join(f"{row[name]:>+12.2f}" for name in COLUMNS), flush=True)
        return True


def main(iterations: int = 80) -> list[dict[str, float]]:
    """Train for a number of iterations and print a row for each; returns the rows."""
    brevity = -0.1 * term(load_reward("length"), "words")
    reward = Constrained(brevity, load_reward("sentiment"), level=LEVEL, rate=0.0005, damping=0.5)
    env = make_sb3_env(64, task="sentiment", reward=reward, seed=0)
    agent = PPO(env=env, learning_rate=2e-4, kl_coef=0.02, seed=0)
    print(f"{'iteration':>9}" + "".join(f"{name:>12}" for name in COLUMNS.values()))
    rows = PrintRows()
    agent.learn(iterations=iterations, callback=rows)
    return rows.rows


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
