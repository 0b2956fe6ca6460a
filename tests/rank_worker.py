"""One of several processes that learn together, for tests: `python rank_worker.py FOLDER CASE...` in a launcher's environment.

Each case is a function below; rank 0 leaves what it has learned in ``FOLDER/CASE.pt``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ppo_setups import Rows, letters_env, weights
from stable_baselines3.common.logger import Logger
from tiny_models import tiny_language_model
from toy_tasks import count_a, letter_task

from rlhf_gym import agents
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.rewards import RunningStandardise

ITERATIONS = 3


def agent_of(name: str, **options: Any) -> Any:
    """An agent with a tiny model over letters; settings that it does not have are left out."""
    kind: Any = getattr(agents, name)
    given = {"learning_rate": 1e-2, "kl_coef": 0.05, "batch_size": 8, "n_episodes": 32, "lora": None} | options
    env = given.pop("env", None) or letters_env()
    return kind(
        "LMPolicy", env, language_model=tiny_language_model(scale=4.0), seed=3, device="cpu",
        **{key: value for key, value in given.items() if key in kind.Settings.names()},
    )  # fmt: skip


def learned(agent: Any, iterations: int = ITERATIONS) -> dict[str, Any]:
    """Train, and return everything that must not depend on the number of processes."""
    rows = Rows()
    agent.set_logger(Logger(None, [rows]))
    agent.learn(iterations=iterations, reset_num_timesteps=False)
    numbers = [{name: float(value) for name, value in row.items() if not name.startswith("time/")} for row in rows.rows]
    episodes = [(e.prompt_ids, e.response_ids, e.rewards) for e in agent.rollout.episodes]
    return {"rows": numbers, "episodes": episodes, "weights": weights(agent), "timesteps": agent.num_timesteps}


def adaptive_env() -> Any:
    """Prompts in epochs, and a reward whose scale is learned from the scores so far."""
    task = letter_task(RunningStandardise(count_a), limit=8)
    return make_sb3_env(16, task=task, tokenizer=letters_env(1).env.episodes.tokenizer, prompt_order="epochs")


def ppo(folder: Path) -> dict[str, Any]:
    """PPO with an adaptive reward and KL coefficient, a separate value network, early stops and a limit of the KL."""
    return learned(
        agent_of(
            "PPO", env=adaptive_env(), kl_target=0.1, kl_horizon=100, value_network="separate", target_kl=0.02, kl_limit=5.0,
            value_warmup=1, whiten_rewards=True, ent_coef=0.01,
        )
    )  # fmt: skip


def grpo(folder: Path) -> dict[str, Any]:
    """GRPO with dynamic sampling, which leaves minibatches of uneven sizes."""
    return learned(agent_of("GRPO", group_size=4, dynamic_sampling=True, max_resamples=1, kl_coef=0.1))


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {"ppo": ppo, "grpo": grpo}

if __name__ == "__main__":
    target = Path(sys.argv[1])
    for case in sys.argv[2:]:
        found = CASES[case](target)
        from rlhf_gym.agents.common.ranks import process_ranks

        if process_ranks().is_main:
            torch.save(found, target / f"{case}.pt")
