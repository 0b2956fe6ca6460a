"""A run's results on one screen, read from the run's directory alone."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_gym.loop.config_file import Settings
from rlhf_gym.loop.report.run_data import ending, read_run
from rlhf_gym.loop.report.trust import doubts
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.sections import keys
from rlhf_gym.loop.whole_files import read_json
from rlhf_gym.text import visible

WIDTH = 100


def summary(run_dir: Path | str, *, pairs: int = 5) -> str:
    """Write a run's results as plain text.

    Args:
        run_dir: the run's directory, finished or not.
        pairs: prompts to show with both responses, drawn at random by the run's seed.

    Raises:
        ConfigError: there is no run in the directory, or one of its files is not as the run wrote it.
    """
    run = RunDirectory(run_dir)
    settings = run.settings()
    seed = _setting(settings, "run", "seed")
    lines = [
        f"{run.path}: task {_setting(settings, 'task', 'name')}, model {_setting(settings, 'model', 'name')}, seed {seed}",
        f"{len(run.finished_rounds())} of {_setting(settings, 'run', 'rounds')} rounds trained, "
        f"{_duration(run.seconds())} of work",
    ]
    lines += [found["in_words"] for found in read_json(run.too_long_file) or []]
    for number in run.finished_rounds():
        if sentence := ending(number, read_json(run.path / f"round-{number}" / "training.json") or {}):
            lines.append(sentence)
        fitted = read_json(run.path / f"round-{number}" / "reward_model.json")
        if fitted:
            lines.append(
                f"reward model {number:>4}   accuracy {fitted['accuracy']:.1%} on {fitted['n_validation']} held-out "
                f"comparisons, fitted on {fitted['n_train']}"
            )
    metrics = read_json(run.evaluation_file)
    if metrics is None:
        return "\n".join([*lines, "not evaluated yet"]) + "\n"
    lines += ["", *_table(metrics), "", *_pairs(metrics["pairs"], pairs, seed)]
    lines += [line for doubt in doubts(read_run(run.path)) for line in textwrap.wrap(f"! {doubt}", WIDTH)]
    if (run.path / "report.html").exists():
        lines.append(f"report: {run.path / 'report.html'}")
    return "\n".join(lines).rstrip() + "\n"


def _setting(settings: Settings, section: str, name: str) -> Any:
    return settings.get(section, {}).get(name, keys(section)[name].default)


def _table(metrics: Mapping[str, Any]) -> list[str]:
    def row(name: str, key: str, form: str, note: str = "") -> str:
        before, after = (_number(metrics[f"{key}_{when}"], form) for when in ("before", "after"))
        return f"{name:<24}{before:>10}{after:>10}   {note}".rstrip()

    ties = f", {metrics['ties']} ties count half" if metrics["ties"] else ""
    return [
        f"held-out prompts: {metrics['n']}   {'reference':>9}{'tuned':>10}",
        row("gold reward", "gold", "+.2f"),
        row("proxy reward", "proxy", "+.2f"),
        row("response length", "length", ".1f", "tokens"),
        row("perplexity", "perplexity", ".1f", "per token, under the reference"),
        row("distinct word pairs", "distinct_2", ".1%"),
        f"win rate of tuned over reference by gold: {metrics['win_rate']:.1%} "
        f"[{metrics['win_rate_low']:.1%}, {metrics['win_rate_high']:.1%}] (95% interval{ties})",
        *_other_win_rates(metrics),
        f"KL to the reference: {metrics['kl_exact']:.2f} ± {metrics['kl_exact_se'] or 0.0:.2f} nats per response",
    ]


def _other_win_rates(metrics: Mapping[str, Any]) -> list[str]:
    words = {"fluent_win_rate": "if a response has to be fluent to win", "judge_win_rate": f"by {metrics['judge']}"}
    return [
        f"  {by}: {metrics[key]:.1%} [{metrics[f'{key}_low']:.1%}, {metrics[f'{key}_high']:.1%}]"
        for key, by in words.items()
        if key in metrics
    ]


def _pairs(pairs: list[Mapping[str, Any]], number: int, seed: int) -> list[str]:
    lines = []
    for pair in random.Random(seed).sample(pairs, min(number, len(pairs))):
        lines.append(textwrap.shorten(visible(pair["prompt"]), WIDTH, placeholder=" ..."))
        for word, when in (("reference", "before"), ("tuned", "after")):
            text = textwrap.shorten(" ".join(visible(pair[when]).split()), 2 * WIDTH - 50, placeholder=" ...")
            lead = f"  {word:<10}{_number(pair[f'gold_{when}'], '+.2f')}  "
            lines += textwrap.wrap(text or "(nothing)", WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
