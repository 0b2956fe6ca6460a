"""Rewards of the catalogue's conversations: a random policy's, an untrained and a trained model's, and the best there is.

    python benchmarks/tasks/conversations.py book_table                     # five seeds
    python benchmarks/tasks/conversations.py guess_number --iterations 80

The model is a GPT-2 of two layers and width 64 with random weights and the embedded model's tokenizer. PPO trains it with
64 conversations an iteration. Prints a line for each seed, and a row for the task's page: mean and standard error over seeds.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import KVWriter, Logger
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_gym.agents import PPO
from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.envs import make_conversation_env
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.tokenizer import load_tokenizer
from rlhf_gym.tasks import Conversation, load_task
from rlhf_gym.tasks.book_table import BOOK, BOOKED, QUESTION, SLOTS
from rlhf_gym.tasks.guess_number import fewest_guesses

WORDS = {"guess_number": tuple("0123456789"), "book_table": (*SLOTS, BOOK)}
BEST = {"guess_number": fewest_guesses(10, 5), "book_table": BOOKED + QUESTION * len(SLOTS) / 2}
"""The mean reward of the best policy: bisection; asking for what is missing (half of it, on average) and booking."""
SHARED: dict[str, Any] = {"n_epochs": 4, "batch_size": 32, "kl_coef": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "guess_number": {**SHARED, "learning_rate": 1.5e-3, "ent_coef": 0.03},
    "book_table": {**SHARED, "learning_rate": 3e-3, "ent_coef": 0.01},
}
EPISODES = 64
LAST = 5  # iterations whose mean is reported


class Scores(KVWriter):
    """The mean score of every iteration."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        """Keep a row's score."""
        self.all.append(float(key_values["objective/scores"]))


def tiny_model(seed: int) -> LanguageModel:
    """A GPT-2 of two layers with random weights."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(str(EMBEDDED_LM))
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=256, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return LanguageModel(GPT2LMHeadModel(config), tokenizer, "tiny-gpt2")


def random_reward(talk: Conversation, words: tuple[str, ...], episodes: int = 20000) -> float:
    """The mean reward of a policy that says any of the words, each as often."""
    env, rng = talk.environment(), np.random.default_rng(0)
    total = 0.0
    for episode in range(episodes):
        env.reset(seed=episode)
        done = False
        while not done:
            _, reward, done, cut, _ = env.step(words[int(rng.integers(len(words)))])
            total, done = total + float(reward), done or cut
    return total / episodes


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(BEST), help=f"of {', '.join(BEST)}; default both")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--iterations", type=int, default=60, help="iterations of 64 conversations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.tasks:
        talk = load_task(name).conversation
        assert talk is not None
        trained, untrained = [], []
        for seed in range(options.seeds):
            began, scores = time.process_time(), Scores()
            env = make_conversation_env(EPISODES, task=name)
            agent = PPO(env=env, language_model=tiny_model(seed), seed=seed, device="cpu", **SETTINGS[name])
            agent.set_logger(Logger(None, [scores]))
            agent.learn(iterations=options.iterations)
            untrained.append(scores.all[0])
            trained.append(float(np.mean(scores.all[-LAST:])))
            spent = time.process_time() - began
            curve = " ".join(f"{score:.2f}" for score in scores.all[::10])
            print(
                f"{name} seed {seed}: {trained[-1]:.2f} after {spent:.0f} CPU seconds; every tenth: {curve}", flush=True
            )
        error = np.std(trained, ddof=1) / len(trained) ** 0.5 if len(trained) > 1 else float("nan")
        print(
            f"| {random_reward(talk, WORDS[name]):.2f} | {np.mean(untrained):.2f} | {np.mean(trained):.2f} ± {error:.2f} "
            f"| {BEST[name]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
