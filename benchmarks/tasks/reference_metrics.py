"""Rewards and metrics of the embedded model, as it is shipped, on each task of the catalogue, for the tasks' pages.

    python benchmarks/tasks/reference_metrics.py            # all tasks
    python benchmarks/tasks/reference_metrics.py words      # one
    python benchmarks/tasks/reference_metrics.py format --train 85000    # also after training by PPO for that many tokens

Samples one response to each of the first held-out prompts and rewrites the table between the markers ``<!-- reference metrics
-->`` and ``<!-- end -->`` of ``docs/environments/<task>.md``. Deterministic: the same weights give the same table.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.logger import KVWriter, Logger

from rlhf_gym.agents import PPO
from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.lm.decoding import Generation, generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.rewards import score
from rlhf_gym.rewards.builtin.perplexity import Perplexity
from rlhf_gym.tasks import Task, load_task
from rlhf_gym.tasks.samples import Prompt, columns_of

DOCS = Path(__file__).resolve().parents[2] / "docs" / "environments"
TASKS = ("sentiment", "words", "length", "format", "detox", "stars")
EPISODES = 128  # an iteration
SETTINGS: dict[str, Any] = {"learning_rate": 5e-4, "n_epochs": 4, "kl_coef": 0.003}
BEGIN, END = "<!-- reference metrics -->", "<!-- end -->"


def main() -> None:
    """Measure, print, and rewrite the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=TASKS, help=f"of {', '.join(TASKS)}; default all")
    parser.add_argument(
        "--samples", type=int, default=200, help="held-out prompts to answer (all, where there are fewer)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    parser.add_argument("--train", type=int, default=0, metavar="TOKENS", help="train by PPO too, and add a column")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages")
    options = parser.parse_args()
    unknown = set(options.tasks) - set(TASKS)
    if unknown:
        parser.error(f"no such task: {', '.join(sorted(unknown))}; expected some of {', '.join(TASKS)}")
    model = LanguageModel.load("embedded", device="cpu")
    for name in options.tasks:
        table = metrics_table(model, load_task(name), options.samples, options.seed, options.train)
        print(f"{name}\n{table}\n")
        rewrite(options.docs / f"{name}.md", table)


def metrics_table(model: LanguageModel, task: Task, samples: int, seed: int, tokens: int = 0) -> str:
    """The table of a task: a row for the reward, for each of its terms and for each metric.

    Args:
        model: the embedded model as it is shipped.
        task: the task.
        samples: most prompts to answer.
        seed: of the sampling, and of training.
        tokens: tokens of PPO training for one more column; 0 leaves it out.
    """
    prompts = list(task.held_out)[:samples]
    generated = {
        "sampled": answer(model, task, prompts, seed=seed),
        "greedy": answer(model, task, prompts, greedy=True),
    }
    head = (
        f"{len(prompts)} held-out prompts, one response each, by the embedded model as it is shipped (weights "
        f"`{weights_id()}`): mean ± standard error. Sampled at temperature 1, seed {seed}."
    )
    if tokens:
        tuned, kl = train(task, tokens, seed)
        generated["sampled after PPO"] = answer(tuned, task, prompts, seed=seed)
        head += (
            f" Last column: after {tokens:,} tokens of PPO on the training prompts ({EPISODES} episodes an iteration, "
            f"{', '.join(f'`{key}={value}`' for key, value in SETTINGS.items())}), {kl:.0f} nats a response from there."
        )
    lines = [head, "", f"| | {' | '.join(generated)} |", "| --- |" + " --- |" * len(generated)]
    columns = [measured(model, task, prompts, responses) for responses in generated.values()]
    lines += [f"| {row} | {' | '.join(cell(column[row]) for column in columns)} |" for row in columns[0]]
    return "\n".join(lines)


def train(task: Task, tokens: int, seed: int) -> tuple[LanguageModel, float]:
    """Tune the embedded model by PPO; returns it, and its KL from the reference in the last iteration, nats a response."""
    env = make_sb3_env(EPISODES, task=task, seed=seed)
    agent = PPO("LMPolicy", env, language_model=LanguageModel.load("embedded", device="cpu"), seed=seed, **SETTINGS)
    last = Last()
    agent.set_logger(Logger(None, [last]))
    agent.learn(tokens)
    return agent.policy.language_model, float(last.values["objective/kl"])


class Last(KVWriter):
    """Keeps the metrics of the last iteration."""

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        """Keep an iteration's metrics."""
        self.values = dict(key_values)


def answer(
    model: LanguageModel, task: Task, prompts: list[Prompt], *, seed: int = 0, greedy: bool = False
) -> list[Generation]:
    """Generate one response to each prompt."""
    tokenizer = model.tokenizer
    limits = Limits(tokenizer.eos_id, (tokenizer.pad_id,), task.min_new_tokens, task.max_new_tokens)
    ids = [tokenizer.encode_prompt(prompt.text) for prompt in prompts]
    return generate(model, ids, limits, seed=seed, greedy=greedy, stop=task.stop)


def measured(
    model: LanguageModel, task: Task, prompts: list[Prompt], generated: list[Generation]
) -> dict[str, NDArray[np.float64]]:
    """The table's rows by name, each with one value for each response."""
    texts = [prompt.text for prompt in prompts]
    responses = [response.text for response in generated]
    columns = columns_of(prompts)
    assert task.reward is not None
    scored = score(task.reward, texts, responses, columns)
    rows = {"reward": scored.values}
    if len(scored.terms) > 1:
        rows |= {f"- {name}": values for name, values in scored.terms.items() if not name.endswith("_weighted")}
    metrics: dict[str, Callable[..., Any]] = {"perplexity": Perplexity(model)}
    metrics = {**task.metrics, **metrics}
    rows |= {name: score(metric, texts, responses, columns, name=name).values for name, metric in metrics.items()}
    rows["tokens"] = np.array([float(len(response.ids)) for response in generated])
    rows["ended before the limit"] = np.array([float(response.ended) for response in generated])
    return rows


def cell(values: NDArray[np.float64]) -> str:
    """Mean and standard error, with as many digits as the error allows."""
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    digits = 3 if error < 0.01 else 2 if error < 0.1 else 1
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def weights_id() -> str:
    """The first digits of the weights' SHA-256: they tell a table of these weights from one of others."""
    return hashlib.sha256((EMBEDDED_LM / "model.safetensors").read_bytes()).hexdigest()[:12]


def rewrite(page: Path, table: str) -> None:
    """Put the table between the markers of a page."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"{page}: expected one line {BEGIN!r} and, after it, one line {END!r}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
