"""A run's results on one screen, read from the run's directory alone."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_gym.loop.config_file import Settings
from rlhf_gym.loop.intervals import wilson_interval
from rlhf_gym.loop.report.run_data import ending, read_run
from rlhf_gym.loop.report.trust import doubts
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.sections import keys
from rlhf_gym.loop.whole_files import read_json
from rlhf_gym.text import visible

WIDTH = 100
PAIRS = 5
"""Prompts that are shown with both responses."""


def summary(run_dir: Path | str) -> str:
    """Write a run's results as plain text.

    Args:
        run_dir: the run's directory, finished or not.

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
        measured = read_json(run.path / f"round-{number}" / "held_out.json")
        if measured:
            lines.append(f"held out {number:>8}   {held_out_line(measured)}")
    metrics = read_json(run.evaluation_file)
    if metrics is None:
        return "\n".join([*lines, "not evaluated yet"]) + "\n"
    between = " / " if "turns_before" in metrics else " "
    lines += ["", *_table(metrics), "", *_pairs(metrics["pairs"], seed, between)]
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

    lines = [f"held-out prompts: {metrics['n']}   {'reference':>9}{'tuned':>10}"]
    if "gold_before" in metrics:
        lines += [row("gold reward", "gold", "+.2f"), row("proxy reward", "proxy", "+.2f")]
    lines += [
        row("response length", "length", ".1f", "tokens"),
        row("perplexity", "perplexity", ".1f", "per token, under the reference"),
        row("distinct word pairs", "distinct_2", ".1%"),
    ]
    if "win_rate" in metrics:
        ties = f", {metrics['ties']} ties count half" if metrics["ties"] else ""
        lines.append(
            f"win rate of tuned over reference by gold: {metrics['win_rate']:.1%} "
            f"[{metrics['win_rate_low']:.1%}, {metrics['win_rate_high']:.1%}] (95% interval{ties})"
        )
    words = {"fluent_win_rate": "if a response has to be fluent to win", "judge_win_rate": f"by {metrics['judge']}"}
    lines += [
        f"  {by}: {metrics[key]:.1%} [{metrics[f'{key}_low']:.1%}, {metrics[f'{key}_high']:.1%}]"
        for key, by in words.items()
        if key in metrics
    ]
    error = "" if metrics["kl_exact_se"] is None else f" ± {metrics['kl_exact_se']:.2f}"
    return [*lines, f"KL to the reference: {metrics['kl_exact']:.2f}{error} nats per response"]


def held_out_line(measured: Mapping[str, Any]) -> str:
    """What an agent said of given rows that were held out, in words.

    >>> held_out_line({"n": 20, "loss": 1.5, "reference_loss": 2.0})
    'cross-entropy 1.500 nats per token (reference 2.000), of 20 responses'
    """
    if "reference_loss" in measured:
        loss, reference = measured["loss"], measured["reference_loss"]
        return f"cross-entropy {loss:.3f} nats per token (reference {reference:.3f}), of {measured['n']} responses"
    n, text = measured["n"], f"loss {measured['loss']:.3f}"
    if (accuracy := measured.get("rewards/accuracies")) is not None:
        low, high = wilson_interval(accuracy * n, n)
        return f"{text}, prefers the chosen response in {accuracy:.1%} [{low:.1%}, {high:.1%}] of {n} pairs"
    return f"{text}, of {n} rows"


def _pairs(pairs: list[Mapping[str, Any]], seed: int, between: str) -> list[str]:
    """Some pairs; between the lines of a response stands a space, between the turns of a conversation a stroke."""
    lines = []
    for pair in random.Random(seed).sample(pairs, min(PAIRS, len(pairs))):
        lines.append(textwrap.shorten(visible(pair["prompt"]), WIDTH, placeholder=" ..."))
        for word, when in (("reference", "before"), ("tuned", "after")):
            text = textwrap.shorten(between.join(visible(pair[when]).split("\n")), 2 * WIDTH - 50, placeholder=" ...")
            scored = f"{_number(pair[f'gold_{when}'], '+.2f')}  " if f"gold_{when}" in pair else ""
            lead = f"  {word:<10}{scored}"
            lines += textwrap.wrap(text or "(nothing)", WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
