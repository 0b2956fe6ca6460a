"""The export of a run's policy: a plain transformers folder with a model card that is filled in from the run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.action_values import FILE as ACTION_VALUES_FILE
from rlhf_gym.loop.config import Config
from rlhf_gym.loop.config_values import to_yaml
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.summary import held_out_line
from rlhf_gym.loop.whole_files import read_json, whole_folder, write_text
from rlhf_gym.version import __version__

CARD_FILE = "README.md"


def export_policy(run_dir: Path | str, to: Path | str, *, round_number: int | None = None) -> Path:
    """Write a run's tuned policy to a folder that transformers loads, with a model card.

    Args:
        run_dir: the run's directory.
        to: the folder; it must not exist, or be empty.
        round_number: the round; None takes the last trained one.

    Returns:
        The folder.

    Raises:
        ConfigError: there is no run, no such round, or the folder is occupied.
        ModelError: the policy is missing.
    """
    run, to = RunDirectory(run_dir), Path(to)
    config, rounds = run.config(), run.finished_rounds()
    if not rounds:
        raise ConfigError(f"no round of {run.path} is trained yet: there is no policy to export")
    number = rounds[-1] if round_number is None else round_number
    if number not in rounds:
        raise ConfigError(f"{run.path} has no trained round {number}; expected one of {', '.join(map(str, rounds))}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} is there already: nothing is written over it; give another --to")
    policy = run.policy(number)
    if not policy.is_dir():
        raise ModelError(f"the policy of round {number} is missing: expected {policy}")
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.exists():
        to.rmdir()
    with whole_folder(to) as target:
        shutil.copytree(policy, target, dirs_exist_ok=True)
        write_text(target / CARD_FILE, model_card(run, config, number))
    return to


def model_card(run: RunDirectory, config: Config, number: int) -> str:
    """A model card in Markdown: base model, task, feedback, algorithm with its settings, evaluation.

    Addresses (of rewards and raters) are left out: they may hold secrets.

    Args:
        run: the run's directory.
        config: its configuration.
        number: the round whose policy is described.
    """
    agent = read_json(run.path / f"round-{number}" / "agent.json") or {}
    evaluation = read_json(run.path / f"round-{number}" / "evaluation.json")
    base = config.model.name
    hub = not Path(base).exists() and base != "embedded"
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    front += [f"base_model: {to_yaml(base)}"] * hub
    front += [
        "tags:",
        "- rlhf",
        "- rlhf-gym",
        f"- {config.agent.name}" if ":" not in config.agent.name else "- custom",
        "---",
    ]
    rows = {
        "base model": Path(base).name if Path(base).exists() else base,  # a path says where things lie on this machine
        "task": _public(config.task.name), "algorithm": agent.get("class", _public(config.agent.name)),
        "round": f"{number} of {config.run.rounds}", "seed": config.run.seed, "iterations": config.agent.iterations,
    }  # fmt: skip
    if config.task.reward is not None:
        rows["gold reward"] = _public(config.task.reward)
    if config.reward_model.enabled:
        rows["rater"] = _public(config.rater.name)
        if fitted := read_json(run.path / f"round-{number}" / "reward_model.json"):
            rows["reward model"] = (
                f"accuracy {fitted['accuracy']:.1%} on {fitted['n_validation']} held-out comparisons, fitted on "
                f"{fitted['n_train']}"
            )
    if config.model.lora:
        rows["LoRA"] = ", ".join(f"{key} {value}" for key, value in config.model.lora.items())
    if config.model.quantization is not None:
        rows["quantization of the base"] = config.model.quantization
    settings = {name: agent.get(name, value) for name, value in config.agent.settings.items()}  # as used
    lines = [
        *front, "", f"# {Path(base).name}, tuned with {rows['algorithm']}", "",
        f"A language model fine-tuned with rlhf-gym {__version__}.", "",
        "## Training", "", *_table("", "", rows), "",
        "Settings of the algorithm:", "", *_table("setting", "value", dict(sorted(settings.items()))), "",
        "## Evaluation", "", *_evaluation(evaluation, read_json(run.path / f"round-{number}" / "held_out.json")), "",
        "## Use", "", *_use(with_action_values=(run.policy(number) / ACTION_VALUES_FILE).is_file()), "",
        "## Limits", "",
        "The numbers above were measured on the prompts of this run alone. A policy that is optimised against a reward "
        "finds what the reward overlooks: read responses before you use it. The licence is that of the base model and of "
        "the data; this card does not know it.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _use(*, with_action_values: bool) -> list[str]:
    if with_action_values:
        return [
            f"The policy draws from the model's logits shifted by the Q values in `{ACTION_VALUES_FILE}`, which rlhf-gym "
            "reads and transformers does not: by itself the model does as the data did that it learned from.", "",
            "```python", "from rlhf_gym.lm.decoding import generate", "from rlhf_gym.lm.language_model import LanguageModel",
            "from rlhf_gym.lm.sampling import Limits", "", 'model = LanguageModel.load("PATH")',
            'prompt = model.tokenizer.encode_prompt("PROMPT")',
            "print(generate(model, [prompt], Limits.of(model.tokenizer))[0].text)", "```",
        ]  # fmt: skip
    return [
        "```python", "from transformers import pipeline", "",
        'print(pipeline("text-generation", model="PATH")("PROMPT")[0]["generated_text"])', "```",
    ]  # fmt: skip


def _evaluation(metrics: Mapping[str, Any] | None, held_out: Mapping[str, Any] | None) -> list[str]:
    lines = [f"Given responses that were held out: {held_out_line(held_out)}.", ""] if held_out else []
    if metrics is None:
        return [*lines, "This round was not evaluated."]
    names = {
        "gold": "gold reward",
        "proxy": "proxy reward",
        "length": "response length (tokens)",
        "perplexity": "perplexity",
    }
    lines += [f"On {metrics['n']} held-out prompts:", "", "| | base model | this model |", "| --- | --- | --- |"]
    for key, title in names.items():
        before, after = metrics.get(f"{key}_before"), metrics.get(f"{key}_after")
        if before is not None and after is not None:
            lines.append(f"| {title} | {before:.2f} | {after:.2f} |")
    lines.append("")
    if metrics.get("win_rate") is not None:
        lines.append(
            f"Win rate over the base model by the gold reward: {metrics['win_rate']:.1%} (95% interval "
            f"{metrics['win_rate_low']:.1%} to {metrics['win_rate_high']:.1%}). "
        )
    return [*lines, f"KL from the base model: {metrics['kl']:.2f} nats per response."]


def _table(left: str, right: str, rows: Mapping[str, Any]) -> list[str]:
    cells = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return [f"| {left} | {right} |", "| --- | --- |", *cells]


def _public(name: str) -> str:
    """A name without the address in it."""
    return f"{name.partition(':')[0]} (a service)" if "://" in name else name
