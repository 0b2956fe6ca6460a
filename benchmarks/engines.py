"""PPO with responses from one engine and from another: tokens per second, mismatch, rewards.

    python benchmarks/engines.py --model FOLDER --engine vllm:http://127.0.0.1:8000 --engine builtin

The reward counts the letter "e", so that it needs nothing and is learned within a few iterations. Engines draw noise of their
own, so that the runs of a seed are not pairs: scores are compared between all runs of one engine and all runs of another.
"""

from __future__ import annotations

import argparse
import statistics

from scipy.stats import ttest_ind

from rlhf_gym.agents import PPO
from rlhf_gym.agents.common.callbacks import IterationCallback
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt

PROMPTS = [
    "Write about the sea.", "Tell me about bread.", "What is a river?", "Describe a winter morning.", "Why do birds sing?",
    "Write about a garden.", "What makes a good friend?", "Tell me about the moon.",
]  # fmt: skip


def letters(prompts: list[str], responses: list[str], **_: object) -> list[float]:
    """The share of the letter "e" among a response's characters, in percent."""
    return [100 * response.count("e") / max(1, len(response)) for response in responses]


class Measure(IterationCallback):
    """Keeps what is to be printed of every iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def before_logging(self, agent: PPO) -> None:
        """Keep the iteration's metrics."""
        known = agent.logger.name_to_value
        names = (
            "objective/scores",
            "mismatch/log_prob_difference",
            "mismatch/effective_sample_size",
            "time/generation_seconds",
        )
        self.rows.append({name: float(known[name]) for name in names} | {
            "tokens": float(sum(agent.rollout.lengths)) if agent.rollout else 0.0,
            "weights": float(known.get("time/weights_seconds", 0.0)),
        })  # fmt: skip


def measure(options: argparse.Namespace, engine: str, seed: int) -> list[dict[str, float]]:
    """Train, and return a row an iteration.

    Args:
        options: of the command line.
        engine: the engine's name.
        seed: of the run.
    """
    model = LanguageModel.load(options.model)
    task = Task(
        name="letters", prompts=[Prompt(p) for p in PROMPTS], held_out=[Prompt(PROMPTS[0])], reward=letters,
        max_new_tokens=options.tokens,
    )  # fmt: skip
    env = make_sb3_env(options.episodes, task=task, tokenizer=model.tokenizer)
    agent = PPO(
        env=env, language_model=model, engine=engine, n_episodes=options.episodes,
        batch_size=options.batch_size or options.episodes, learning_rate=options.learning_rate, kl_coef=0.02, n_epochs=1,
        tokens_per_batch=1024, seed=seed,
    )  # fmt: skip
    rows = Measure()
    agent.learn(iterations=options.iterations, callback=rows)
    if agent.rollout_engine is not None:
        agent.rollout_engine.engine.close()
    return rows.rows


def compare(scores: dict[str, list[list[float]]]) -> None:
    """Print the learning curves of all engines, and the differences of their means in the second half.

    Args:
        scores: by engine, of each run, of each of its iterations.
    """
    print("\nmean score of all seeds (standard deviation), by iteration:")
    for engine, runs in scores.items():
        points = [f"{statistics.mean(at):.2f} ({statistics.stdev(at):.2f})" for at in zip(*runs, strict=True)]
        print(f"{engine}: {', '.join(points)}")
    halves = {
        engine: [statistics.mean(run[len(run) // 2 :]) for run in runs] for engine, runs in scores.items()
    }  # fmt: skip
    print("\nmean score of the second half:")
    for engine, means in halves.items():
        print(f"{engine}: {statistics.mean(means):.2f}, seeds {', '.join(f'{mean:.2f}' for mean in means)}")
    first, *others = halves
    for other in others:
        found = ttest_ind(halves[other], halves[first], equal_var=False)
        low, high = found.confidence_interval(0.95)
        print(f"{other} - {first}: {low:.2f} to {high:.2f} (95%, Welch), p = {found.pvalue:.2f}")


def main() -> None:
    """Measure every engine with every seed, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or name of the model")
    parser.add_argument("--engine", action="append", required=True, help="an engine; can be given several times")
    parser.add_argument("--episodes", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each response, at most")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--batch-size", type=int, help="episodes of each optimizer step; all of an iteration by default"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    options = parser.parse_args()
    names = (
        "engine",
        "seed",
        "tokens/s",
        "seconds a weight transfer",
        "mismatch, nats a token",
        "effective sample",
        "scores",
    )
    print(f"| {' | '.join(names)} |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    curves: dict[str, list[list[float]]] = {engine: [] for engine in options.engine}
    for seed in range(options.seeds):
        for engine in options.engine:
            rows = measure(options, engine, seed)
            later = rows[1:] or rows  # the first iteration also compiles, probes and compares
            rate = sum(r["tokens"] for r in later) / sum(r["time/generation_seconds"] for r in later)
            weights = statistics.mean(r["weights"] for r in later)
            mismatch = max(r["mismatch/log_prob_difference"] for r in rows)
            sample = min(r["mismatch/effective_sample_size"] for r in rows)
            curves[engine].append([r["objective/scores"] for r in rows])
            scores = ", ".join(f"{score:.2f}" for score in curves[engine][-1])
            print(
                f"| {engine} | {seed} | {rate:.0f} | {weights:.2f} | {mismatch:.1e} | {sample:.4f} | {scores} |",
                flush=True,
            )
    if options.seeds > 1:
        compare(curves)


if __name__ == "__main__":
    main()
