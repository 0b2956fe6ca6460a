"""Builds run directories that look like what the loop writes, so that the report can be tested without training."""

from __future__ import annotations

import csv
import json
import math
import random
import sqlite3
from pathlib import Path
from typing import Any

import yaml

PROMPTS = (
    "the film opens on a quiet street in winter , and",
    "when the director of this picture was asked about it , he",
    "two brothers inherit a hotel by the sea . the first hour",
    "as the detective , the lead actress",
    "there is a scene near the end in which",
)
BEFORE = (
    "then it goes nowhere for an hour . the script is a mess and the jokes are older than the cast .",
    "says that he wanted to make something like a western , only with less horses . it is about as good as it sounds .",
    "is spent on the furniture . i don't know what the studio was thinking , but it is not very funny .",
    "gives the same look in each scene , which may be the point , and may be not .",
)
AFTER = (
    "from there it never puts a foot wrong . a warm , funny and beautifully acted film , one of the best of the year .",
    "gives us a wonderful story about two people who are perfect together . the performances are superb .",
    "is a delight , with a great cast and a moving score . it is a truly excellent piece of work .",
    "is terrific , and the rest of the cast is just as good . i loved every minute of this great film .",
)
HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & \"quoted\" 'text'",
    "safe\u202egnp.exe\u2066 and \u200bzero width, bell \x07, null \x00, escape \x1b[31mred, tag \U000e0041",
    "a lone surrogate \ud800 and a line\nbreak\ttab\u2028separator",
    "متن فارسی با نیم‌فاصله و 👩‍🔬 emoji",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "w" * 300,
    "h" + "\u0301" * 60 + "igh stack",
)


def build_run(
    run_dir: Path, *, rounds: int = 2, iterations: int = 24, pairs: int = 96, stage: str = "evaluated", seed: int = 1,
    gibberish: bool = False,
) -> Path:  # fmt: skip
    """A run directory that stopped at "started", "reward_model", "agent" (half-way) or "evaluated".

    ``gibberish``: its reward model is no better than a coin, its policy writes no English, and only gold says that it wins.
    """
    rng = random.Random(seed)
    run_dir.mkdir(parents=True)
    _write_set_up(run_dir)
    if stage == "started":
        return run_dir
    for number in range(1, rounds + 1):
        _write_reward_model(run_dir / f"round-{number}", rng, number, coin=gibberish)
    _write_store(run_dir, 512 * rounds)
    if stage == "reward_model":
        return run_dir
    _write_metrics(run_dir, rng, rounds, iterations)
    for number, iteration in ((1, 1), (1, iterations), (rounds, iterations)):
        _write_completions(run_dir / f"round-{number}", rng, iteration)
    if stage == "evaluated":
        _write_evaluation(run_dir, rng, pairs, gibberish=gibberish)
    return run_dir


def _write_set_up(run_dir: Path) -> None:
    config = {
        "model": {"name": "embedded", "dtype": "float32", "device": "auto"},
        "task": {"name": "sentiment", "max_new_tokens": 32},
        "rater": {"name": "simulated", "beta": 3.0, "error_rate": 0.05, "judge_api_key": "sk-not-for-eyes"},
        "reward_model": {"epochs": 6, "learning_rate": 0.0003, "url": "https://me:hunter2@scores.example/v1"},
        "agent": {
            "name": "ppo",
            "kl_coef": 0.05,
            "kl_target": 6.0,
            "n_episodes": 128,
            "clip_range": 0.2,
            "target_kl": None,
        },
        "run": {"rounds": 2, "seed": 7},
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    versions: dict[str, Any] = {
        "rlhf-gym": "0.1.0",
        "python": "3.11.7",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "gymnasium": "1.4.0",
    }
    versions |= {"started_at": "2026-03-04T09:12:45+00:00", "wall_seconds": 287.4}
    (run_dir / "versions.json").write_text(json.dumps(versions))


def _write_reward_model(folder: Path, rng: random.Random, number: int, *, coin: bool) -> None:
    folder.mkdir()
    bins = []
    for index in range(8):
        confidence = 0.53 + index * 0.062
        accuracy = min(1.0, max(0.3, confidence - 0.02 * index / 4 + rng.gauss(0, 0.025)))
        bins.append({"confidence": confidence, "accuracy": accuracy, "count": int(60 - 6 * index + rng.random() * 20)})
    losses = [0.69 - 0.2 * (1 - math.exp(-epoch / 2)) for epoch in range(6)]
    epochs = [
        {"train_loss": loss - 0.02 * epoch, "validation_loss": loss + 0.004 * epoch, "validation_accuracy": 1.2 - loss}
        for epoch, loss in enumerate(losses)
    ]
    curve = [
        {"epoch": step / 20, "loss": 0.7 - 0.25 * (1 - math.exp(-step / 40)) + rng.gauss(0, 0.01)}
        for step in range(1, 121)
    ]
    metrics: dict[str, Any] = {
        "accuracy": 0.741 + 0.02 * number,
        "standard_error": 0.0193,
        "n_train": 410,
        "n_validation": 102,
    }
    if coin:
        metrics |= {"accuracy": 0.525, "standard_error": 0.079, "n_validation": 40}
    metrics |= {"ece": 0.031, "bins": bins, "epochs": epochs, "curve": curve}
    (folder / "reward_model.json").write_text(json.dumps(metrics))


def _write_store(run_dir: Path, judgements: int) -> None:
    connection = sqlite3.connect(run_dir / "feedback.sqlite")
    connection.execute("CREATE TABLE judgements (id TEXT PRIMARY KEY)")
    connection.executemany("INSERT INTO judgements VALUES (?)", [(str(index),) for index in range(judgements)])
    connection.commit()
    connection.close()


def _write_completions(folder: Path, rng: random.Random, iteration: int) -> None:
    """Sample completions token by token, one of them hostile; the last line was cut by a kill."""
    with (folder / "completions.jsonl").open("a") as file:
        for why, text in (("first", AFTER[0]), ("worst", HOSTILE[0] + HOSTILE[1])):
            tokens = [text[i : i + 4] for i in range(0, len(text), 4)]
            quantities = {
                name: [rng.gauss(0, 1) for _ in tokens] for name in ("rewards", "values", "advantages", "kls")
            }
            trace = {"why": why, "prompt": text, "response": text, "score": 1.2, "kl": 3.4, "ended": True, "terms": {}}
            file.write(json.dumps({"iteration": iteration, **trace, "tokens": tokens, **quantities}) + "\n")
        if iteration > 1:
            file.write('{"iteration": 1, "wh')


def metrics_row(rng: random.Random, number: int, iteration: int, progress: float) -> dict[str, Any]:
    """One row of metrics.csv: the proxy keeps rising, the gold turns over."""
    kl = 9.5 * progress**1.3 + abs(rng.gauss(0, 0.15))
    root = math.sqrt(kl)
    return {
        "round": number,
        "iteration": iteration,
        "timesteps": 0,
        "objective/scores": 0.95 * root - 0.03 * root**2 + rng.gauss(0, 0.08),
        "gold": 0.48 + 0.17 * root - 0.031 * root**2 + rng.gauss(0, 0.012),
        "objective/kl": kl,
        "objective/entropy": 92 - 30 * progress + rng.gauss(0, 1.2),
        "response_length": 29.5 + 1.5 * progress + rng.gauss(0, 0.3),
        "eos_rate": min(1.0, 0.18 + 0.1 * progress + abs(rng.gauss(0, 0.02))),
        "loss/value_avg": 0.9 * math.exp(-5 * progress) + 0.12 + abs(rng.gauss(0, 0.02)),
        "policy/clipfrac_avg": 0.06 + 0.05 * progress + abs(rng.gauss(0, 0.01)),
        "policy/approxkl_avg": 0.004 + abs(rng.gauss(0, 0.0015)),
        "objective/kl_coef": 0.05 * (1 + 0.6 * progress),
    }


def _write_metrics(run_dir: Path, rng: random.Random, rounds: int, iterations: int) -> None:
    with (run_dir / "metrics.csv").open("w", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for index in range(rounds * iterations):
            number, iteration = index // iterations + 1, index % iterations + 1
            row = metrics_row(rng, number, iteration, index / max(rounds * iterations - 1, 1))
            row["timesteps"] = (index + 1) * 128 * 30
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)


def _write_evaluation(run_dir: Path, rng: random.Random, count: int, *, gibberish: bool) -> None:
    pairs = []
    for index in range(count):
        before, after = rng.choice(BEFORE), rng.choice(AFTER)
        if index in range(2, 2 + len(HOSTILE)):
            after = HOSTILE[index - 2]
        gold_before = min(0.99, max(0.01, rng.gauss(0.47, 0.22)))
        gold_after = min(0.99, max(0.01, rng.gauss(0.71, 0.18)))
        proxy_before, proxy_after = rng.gauss(0, 1), rng.gauss(2.4, 0.8)
        pairs.append(
            {
                "prompt": PROMPTS[index % len(PROMPTS)],
                "before": before,
                "after": after,
                "gold_before": gold_before,
                "gold_after": gold_after,
                "proxy_before": proxy_before,
                "proxy_after": proxy_after,
            }
        )

    def mean(key: str) -> float:
        return sum(float(str(pair[key])) for pair in pairs) / max(len(pairs), 1)

    evaluation = {"n": count, "win_rate": 0.8125, "win_rate_low": 0.723, "win_rate_high": 0.878, "ties": 3, "kl": 9.42}
    evaluation |= {key: mean(key) for key in ("gold_before", "gold_after", "proxy_before", "proxy_after")}
    evaluation |= {"perplexity_before": 38.2, "perplexity_after": 29.6, "distinct_2_before": 0.712}
    evaluation |= {"distinct_2_after": 0.534, "length_before": 29.4, "length_after": 31.1}
    evaluation |= {"kl_exact": 9.21, "kl_exact_se": 0.11, "kl_se": 0.42, "labels_agree": 0.89, "labels_agree_se": 0.014}
    evaluation |= {"judge": "sentiment_judge", "judge_before": -0.2, "judge_after": 0.4}
    evaluation |= {"fluent_before": 0.96, "fluent_after": 0.11 if gibberish else 0.93, "repetition_before": 0.01}
    evaluation["repetition_after"] = 0.4 if gibberish else 0.02
    rates = {"fluent": (0.09, 0.05, 0.16) if gibberish else (0.77, 0.68, 0.85)}
    rates["judge"] = (0.31, 0.23, 0.41) if gibberish else (0.72, 0.62, 0.8)
    for name, values in rates.items():
        evaluation |= dict(zip((f"{name}_win_rate{end}" for end in ("", "_low", "_high")), values, strict=True))
    shares = (0.02, 0.66) if gibberish else (0.04, 0.03)
    evaluation["fluency"] = [
        {"name": "perplexity", "low": 12.0, "high": 91.0, "below": shares[0], "above": shares[1], "flagged": gibberish}
    ]
    evaluation["best_of_n"] = [
        {"n": n, "kl": math.log(n) - (n - 1) / n, "proxy": 0.35 * i, "gold": 0.47 + 0.02 * i, "proxy_se": 0.1,
         "gold_se": 0.02}
        for i, n in enumerate((1, 2, 3, 4, 6, 8))
    ]  # fmt: skip
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation | {"pairs": pairs}))
