"""One run: an algorithm on a task with a seed, and what is kept of it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from settings import ALGORITHMS, SETTINGS, Options, Setting
from stable_baselines3.common.logger import KVWriter, Logger

from rlhf_gym.envs import make_sb3_env
from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.rewards import score

SMOOTHED = 3  # iterations whose mean has to reach the level
EVALUATED = 256  # responses


class Curve(KVWriter):
    """An iteration's figures, one after the other."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.kl: list[float] = []
        self.tokens: list[int] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        """Keep what an iteration logs."""
        if "objective/scores" in key_values:
            self.scores.append(float(key_values["objective/scores"]))
            self.kl.append(float(key_values["objective/kl"]))
            self.tokens.append(step)


def train(name: str, setting: str, seed: int, options: Options) -> dict[str, Any]:
    """Train an algorithm and judge it.

    Args:
        name: the algorithm's.
        setting: the task's.
        seed: of the network, the environment and the noise.
        options: what the search chose.

    Returns:
        ``reward`` (mean over 256 sampled responses to held-out prompts), ``kl`` (nats a response, mean of the last three
        iterations), ``tokens_to_level`` (None where the level was not reached), ``seconds``, and the curve.
    """
    torch.set_num_threads(1)
    algorithm, chosen = ALGORITHMS[name], SETTINGS[setting]
    task = chosen.load_task()
    model = chosen.load_model(task, seed)
    env = make_sb3_env(chosen.episodes, task=task, tokenizer=model.tokenizer, seed=seed)
    given: Options = {"kl_coef": chosen.kl_coef} | options
    agent = algorithm.kind(
        "LMPolicy", env, language_model=model, seed=seed, device="cpu",
        **{key: value for key, value in (algorithm.options | given).items() if key in algorithm.kind.Settings.names()},
    )  # fmt: skip
    curve = Curve()
    agent.set_logger(Logger(None, [curve]))
    began = time.process_time()
    agent.learn(chosen.tokens)
    seconds = time.process_time() - began
    smoothed = np.convolve(curve.scores, np.ones(SMOOTHED) / SMOOTHED, mode="valid")
    reached = np.flatnonzero(smoothed >= chosen.level)
    return {
        "algorithm": name,
        "task": setting,
        "seed": seed,
        "options": options,
        "reward": judged(agent, chosen, seed),
        "kl": float(np.mean(curve.kl[-SMOOTHED:])),
        "tokens_to_level": curve.tokens[int(reached[0]) + SMOOTHED - 1] if len(reached) else None,
        "seconds": round(seconds, 2),
        "scores": [round(value, 4) for value in curve.scores],
    }


def judged(agent: Any, setting: Setting, seed: int) -> float:
    """Mean reward of sampled responses to prompts that were not trained on (where the task holds some out)."""
    task, model = setting.load_task(), agent.policy.language_model
    kept = task.held_out or task.prompts
    prompts = [kept[i % len(kept)] for i in range(EVALUATED)]
    limits = Limits(
        model.tokenizer.eos_id, (model.tokenizer.pad_id,), task.min_response_tokens, task.max_response_tokens
    )
    written = generate(
        model, [model.tokenizer.encode_prompt(p.text) for p in prompts], limits, seed=1_000_000 + seed, stop=task.stop
    )
    texts = [task.cut(model.tokenizer.decode(g.ids)) for g in written]
    names = {name for p in prompts for name in p.columns}
    columns = {name: [p.columns.get(name) for p in prompts] for name in names}
    assert task.reward is not None
    return float(score(task.reward, [p.text for p in prompts], texts, columns).values.mean())
