"""One run: an algorithm on a task with a seed, and its results."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from settings import ALGORITHMS, SETTINGS, Options, Setting
from stable_baselines3.common.logger import KVWriter, Logger
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_gym.envs import make_sb3_env
from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.rewards import score
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import columns_of

SMOOTHED = 3  # iterations whose mean has to reach the level
EVALUATED = 256  # responses of the evaluation


class Curve(KVWriter):
    """Keeps scores, KL and tokens of the iterations, one after the other."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.kl: list[float] = []
        self.tokens: list[int] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        """Keep an iteration's values."""
        if "objective/scores" in key_values:
            self.scores.append(float(key_values["objective/scores"]))
            self.kl.append(float(key_values["objective/kl"]))
            self.tokens.append(step)


def train(name: str, setting: str, seed: int, options: Options) -> dict[str, Any]:
    """Train an algorithm and evaluate it.

    Args:
        name: the algorithm's.
        setting: the task's.
        seed: of the network, the environment and the sampling.
        options: the settings that the search tries or has chosen.

    Returns:
        ``reward`` (mean over 256 sampled responses to held-out prompts), ``kl`` (nats a response, mean of the last three
        iterations), ``tokens_to_level`` (None if the level was not reached), ``seconds`` of CPU time, and ``scores``, the mean
        reward of every iteration.
    """
    torch.set_num_threads(1)
    algorithm, chosen = ALGORITHMS[name], SETTINGS[setting]
    task = chosen.load_task()
    model = load_model(chosen, task, seed)
    env = make_sb3_env(chosen.episodes, task=task, tokenizer=model.tokenizer, seed=seed)
    # RAFT has no KL coefficient.
    kl_coef = {"kl_coef": chosen.kl_coef} if "kl_coef" in algorithm.kind.Settings.names() else {}
    agent = algorithm.kind(
        "LMPolicy",
        env,
        language_model=model,
        reference=model,
        seed=seed,
        device="cpu",
        **(algorithm.options | kl_coef | options),
    )
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
        "reward": evaluate(agent, chosen, seed),
        "kl": float(np.mean(curve.kl[-SMOOTHED:])),
        "tokens_to_level": curve.tokens[int(reached[0]) + SMOOTHED - 1] if len(reached) else None,
        "seconds": round(seconds, 2),
        "scores": [round(value, 4) for value in curve.scores],
    }


def load_model(setting: Setting, task: Task, seed: int) -> LanguageModel:
    """The policy before training: the embedded model, or a network with random weights, other ones for each seed."""
    if not setting.untrained:
        return LanguageModel.load("embedded", device="cpu")
    assert task.tokenizer is not None
    torch.manual_seed(seed)
    size = task.tokenizer.vocab_size
    network = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    )
    return LanguageModel(network, task.tokenizer, "untrained")


def evaluate(agent: Any, setting: Setting, seed: int) -> float:
    """Mean reward of sampled responses to held-out prompts, or to the training prompts if the task holds none out."""
    task, model = setting.load_task(), agent.policy.language_model
    pool = task.held_out or task.prompts
    prompts = [pool[i % len(pool)] for i in range(EVALUATED)]
    limits = Limits(model.tokenizer.eos_id, (model.tokenizer.pad_id,), task.min_new_tokens, task.max_new_tokens)
    generated = generate(
        model, [model.tokenizer.encode_prompt(p.text) for p in prompts], limits, seed=1_000_000 + seed, stop=task.stop
    )
    texts = [task.cut(model.tokenizer.decode(g.ids)) for g in generated]
    assert task.reward is not None
    return float(score(task.reward, [p.text for p in prompts], texts, columns_of(prompts)).values.mean())
