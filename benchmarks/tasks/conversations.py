"""Rewards of conversations: a random policy's, an untrained and a trained model's, and the best there is; learning curves.

    python benchmarks/tasks/conversations.py book_table                     # five seeds
    python benchmarks/tasks/conversations.py guess_number --iterations 80
    python benchmarks/tasks/conversations.py calculator --iterations 15 --curves docs/images
    python benchmarks/tasks/conversations.py textarena --iterations 30 --curves docs/images

The model is a GPT-2 of two layers and width 64 with random weights and the embedded model's tokenizer. PPO trains it with
64 conversations an iteration. Where chance would hardly ever find a reward (the calculator, TextArena's Tower of Hanoi), it
first learns a few dialogues of a scripted policy's by cross-entropy. Prints a line for each seed, and a row for the task's
page: mean and standard error over seeds; ``--curves`` writes a learning curve for each, mean and 95% interval (Student's t)
over seeds.
"""

from __future__ import annotations

import argparse
import string
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import KVWriter, Logger
from tower_of_hanoi import GAME, PEGS, InShort, Player, any_move, legal_move, solver
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_gym.agents import GRPO, PPO
from rlhf_gym.bench.curves import mean_curve
from rlhf_gym.bench.plots import standalone
from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.envs import TextArenaEnv, ToolEnv, make_conversation_env, wrap_text_env
from rlhf_gym.envs.text_vec_env import TextVecEnv
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.tokenizer import Tokenizer, load_tokenizer
from rlhf_gym.loop.report.svg import Chart, padded, spread
from rlhf_gym.tasks.book_table import BOOK, BOOKED, QUESTION, SLOTS
from rlhf_gym.tasks.guess_number import fewest_guesses
from rlhf_gym.tasks.symbol_tokenizer import SymbolTokenizer

EPISODES = 64
SHARED: dict[str, Any] = {"n_epochs": 4, "batch_size": 32, "kl_coef": 0.0}
LAST = 5  # iterations whose mean is reported
DIGITS = tuple("0123456789")
CHARACTERS = SymbolTokenizer(string.printable)
"""The calculator's tokenizer: numbers are copied digit by digit."""


def random_word(words: tuple[str, ...]) -> Player:
    """A policy that says any of the words, each as often."""
    return lambda observation, rng: words[int(rng.integers(len(words)))]


def random_call(observation: str, rng: np.random.Generator) -> str:
    """Digits and signs, in a call or not, for the calculator's environment."""
    text = "".join(rng.choice([*DIGITS, "+", "-", "*"], size=int(rng.integers(1, 8))).tolist())
    return f"<c>{text}</c>" if rng.random() < 0.5 else text


def call_and_copy(observation: str, rng: np.random.Generator) -> str:
    """The calculator's reference policy: the question's expression in a call, then the result."""
    last = observation.rpartition("\n")[2]
    return f"<c>{last[len('What is ') : -1]}</c>" if last.endswith("?") else last


def calculator(num_envs: int) -> TextVecEnv:
    """Sums, differences and products of two numbers below 100, in the environment with a calculator."""
    options = {"digits": 2, "num_prompts": 4096}
    return wrap_text_env(
        lambda: ToolEnv(
            "calculation", tools={"calculator": {"name": "c"}}, task_options=options, instructions=False, max_turns=3
        ),
        num_envs, tokenizer=CHARACTERS, template="lines", max_new_tokens=20, max_turns=3, max_context=160,
    )  # fmt: skip


def textarena(num_envs: int) -> TextVecEnv:
    """TextArena's Tower of Hanoi: the policy reads the board before each move, and writes two letters."""
    return wrap_text_env(
        lambda: InShort(TextArenaEnv(GAME)), num_envs, tokenizer=CHARACTERS, template="lines", chat=False,
        vocabulary=tuple(PEGS), min_new_tokens=2, max_new_tokens=2, max_turns=20, max_context=24,
    )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A conversation and how it is learned.

    Attributes:
        make: makes the environment.
        by_chance: the random policy.
        best: the best mean reward.
        settings: the agent's.
        agent: the algorithm.
        tokenizer: the policy's.
        warm_start: updates of the cross-entropy of a teacher's dialogues before.
        teacher: the teacher.
        others: further policies to compare with, by name.
    """

    make: Callable[[int], TextVecEnv]
    by_chance: Player
    best: float
    settings: dict[str, Any]
    agent: type[PPO | GRPO] = PPO
    tokenizer: Tokenizer = field(default_factory=lambda: load_tokenizer(str(EMBEDDED_LM)))
    warm_start: int = 0
    teacher: Player | None = None
    others: dict[str, Player] = field(default_factory=dict)


TASKS = {
    "guess_number": Measured(
        lambda n: make_conversation_env(n, task="guess_number"), random_word(DIGITS), fewest_guesses(10, 5),
        {"learning_rate": 1.5e-3, "ent_coef": 0.03},
    ),
    "book_table": Measured(  # asking for what is missing (half of it, on average) and booking
        lambda n: make_conversation_env(n, task="book_table"), random_word((*SLOTS, BOOK)),
        BOOKED + QUESTION * len(SLOTS) / 2, {"learning_rate": 3e-3, "ent_coef": 0.01, "learning_rate_decay": "linear"},
    ),
    "calculator": Measured(
        calculator, random_call, 1.0, {"learning_rate": 4e-4, "group_size": 8, "n_epochs": 2}, GRPO, CHARACTERS, 250,
        call_and_copy,
    ),
    "textarena": Measured(
        textarena, any_move, 1.0,
        {"learning_rate": 1e-3, "learning_rate_decay": "linear", "ent_coef": 0.01, "n_epochs": 2, "discount_per": "turn",
         "gamma": 0.97},
        PPO, CHARACTERS, 100, solver(0.6), {"legal moves at random": legal_move},
    ),
}  # fmt: skip


class Scores(KVWriter):
    """The mean score of every iteration."""

    def __init__(self) -> None:
        self.all: list[float] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        """Keep a row's score."""
        self.all.append(float(key_values["objective/scores"]))


def tiny_model(tokenizer: Tokenizer, seed: int) -> LanguageModel:
    """A GPT-2 of two layers with random weights."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=256, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return LanguageModel(GPT2LMHeadModel(config), tokenizer, "tiny-gpt2")


def played(env: TextVecEnv, policy: Player, episodes: int) -> tuple[float, list[tuple[list[int], list[bool]]]]:
    """The mean reward of a policy of texts, and the sequences it would have read: ids, and which of them are the policy's."""
    talk, rng, total, rows = env.talks[0], np.random.default_rng(0), 0.0, []
    tokenizer = env.rules.tokenizer
    for episode in range(episodes):
        ids = list(talk.begin(seed=1_000_000 + episode))
        own, end = [False] * len(ids), ""
        while not end:
            turn = tokenizer.encode(policy("\n".join(m["content"] for m in talk.messages), rng))
            if len(turn) < env.rules.limits.max_new_tokens:
                turn.append(tokenizer.eos_id)
            reply = talk.answer(turn)
            ids, own = [*ids, *turn], [*own, *[True] * len(turn)]
            if reply.fresh or reply.end:
                rows.append((ids, own))
                ids, own = [], []
            ids, own = [*ids, *reply.context], [*own, *[False] * len(reply.context)]
            end = reply.end
        total += talk.total
    return total / episodes, rows


def warm_start(model: LanguageModel, rows: list[tuple[list[int], list[bool]]], updates: int, seed: int) -> None:
    """The cross-entropy of the teacher's tokens, with AdamW, 64 dialogues an update."""
    rng = np.random.default_rng(seed)
    network = model.model.train()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(updates):
        chosen = [rows[i] for i in rng.integers(len(rows), size=EPISODES)]
        longest = max(len(ids) for ids, _ in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, (tokens, own) in enumerate(chosen):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, : len(tokens)] = torch.where(torch.tensor(own), torch.tensor(tokens), -100)
        optimizer.zero_grad()
        logits = network(ids).logits[:, :-1].flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()).backward()
        optimizer.step()
    network.eval()


def untrained_reward(task: Measured, seed: int) -> float:
    """The mean reward of 64 conversations of the model with random weights."""
    agent = PPO(
        env=task.make(EPISODES), language_model=tiny_model(task.tokenizer, seed), seed=seed, device="cpu", **SHARED
    )
    agent.set_logger(Logger(None, [scores := Scores()]))
    agent.learn(iterations=1)
    return scores.all[0]


def learned(task: Measured, model: LanguageModel, seed: int, iterations: int) -> list[float]:
    """The mean score of every iteration."""
    agent = task.agent(
        env=task.make(EPISODES), language_model=model, seed=seed, device="cpu", **(SHARED | task.settings)
    )
    agent.set_logger(Logger(None, [scores := Scores()]))
    agent.learn(iterations=iterations)
    return scores.all


def curve_picture(name: str, curves: list[list[float]], task: Measured, by_chance: float) -> str:
    """A learning curve as an SVG file's text: mean and 95% interval over seeds, and the best and the random policy's reward."""
    last = len(curves[0])
    mean = mean_curve([[(i + 1, score) for i, score in enumerate(curve)] for curve in curves], points=last)
    low, high = padded([by_chance, task.best, *(e.value for _, e in mean)])
    chart = Chart(560, 300, (0, last), (low, high), (14, 64, 44, 52))
    chart.axes("iterations of 64 conversations", y_label="mean reward of an episode")
    upper = [(x, min(high, e.value if e.high is None else e.high)) for x, e in mean]
    chart.band(upper, [(x, max(low, e.value if e.low is None else e.low)) for x, e in mean], "area c0")
    chart.line([(x, e.value) for x, e in mean], "c0")
    levels = {"trained": mean[-1][1].value, "best": task.best, "random": by_chance}
    places = spread([chart.y(level) for level in levels.values()], 14)
    for number, ((words, level), place) in enumerate(zip(levels.items(), places, strict=True)):
        if number:
            chart.segment((chart.left, chart.y(level)), (chart.right, chart.y(level)), f"rule c{number}")
        chart.text((chart.right + 6, place + 4), words, f"end c{number}")
    return standalone(
        chart.render(f"Learning curve of {name}", f"{len(curves)} seeds; the best policy's and a random one's reward.")
    )


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(TASKS), help=f"of {', '.join(TASKS)}; default all")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--iterations", type=int, default=60, help="iterations of 64 conversations")
    parser.add_argument("--curves", type=Path, help="folder for learning curves, SVG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.tasks:
        task = TASKS[name]
        by_chance, _ = played(task.make(1), task.by_chance, 10_000)
        for who, policy in task.others.items():
            print(f"{name}: {who} {played(task.make(1), policy, 500)[0]:.2f}", flush=True)
        warm = None
        if task.teacher:
            taught = tiny_model(task.tokenizer, 0)
            reward, rows = played(task.make(1), task.teacher, 1024)
            print(f"{name}: the warm start's teacher {reward:.2f}", flush=True)
            warm_start(taught, rows, task.warm_start, 0)
            warm = {key: value.clone() for key, value in taught.model.state_dict().items()}
        untrained, curves = [], []
        for seed in range(options.seeds):
            began = time.process_time()
            untrained.append(untrained_reward(task, seed))
            model = tiny_model(task.tokenizer, seed)
            if warm is not None:
                model.model.load_state_dict(warm)
            curves.append(learned(task, model, seed, options.iterations))
            spent = time.process_time() - began
            curve = " ".join(f"{score:.2f}" for score in curves[-1][::10])
            print(
                f"{name} seed {seed}: {np.mean(curves[-1][-LAST:]):.2f} after {spent:.0f} CPU seconds; untrained "
                f"{untrained[-1]:.2f}; every tenth iteration: {curve}",
                flush=True,
            )
        trained = [float(np.mean(curve[-LAST:])) for curve in curves]
        error = np.std(trained, ddof=1) / len(trained) ** 0.5 if len(trained) > 1 else float("nan")
        started = f"| {np.mean([c[0] for c in curves]):.2f} " if task.warm_start else ""
        print(
            f"| {by_chance:.2f} | {np.mean(untrained):.2f} {started}| {np.mean(trained):.2f} ± {error:.2f} "
            f"| {task.best:.2f} |",
            flush=True,
        )
        if options.curves:
            options.curves.mkdir(parents=True, exist_ok=True)
            (options.curves / f"{name}-curve.svg").write_text(curve_picture(name, curves, task, by_chance))


if __name__ == "__main__":
    main()
