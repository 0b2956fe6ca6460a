"""Stage 4: an agent tunes the policy against the proxy, with checkpoints from which it goes on exactly."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from rlhf_gym.agents import PolicyGradient
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.errors import TrainingStopped
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora, adapted, load_adapter, save_adapter
from rlhf_gym.loop.agent_catalogue import find_agent
from rlhf_gym.loop.completions import SampleCompletions
from rlhf_gym.loop.context import RunContext, needs_targets, target_pairs
from rlhf_gym.loop.metrics_table import MetricsTable, make_logger
from rlhf_gym.loop.progress import Bar
from rlhf_gym.loop.reward_models import Refits
from rlhf_gym.loop.run_directory import read_json, whole_folder, write_json
from rlhf_gym.loop.train_reward import ProxyAndGold

# The line of figures of an iteration: metrics.csv's column, its word on the line, its format.
FIGURES = (
    ("objective/scores", "proxy", "+z.2f"), ("gold", "gold", "+z.2f"), ("objective/kl", "KL", "z.2f"),
    ("objective/entropy", "entropy", ".1f"), ("response_length", "length", ".1f"), ("loss/value_avg", "value loss", ".3f"),
    ("policy/clipfrac_avg", "clipped", ".1%"),
)  # fmt: skip

ADAPTER_FOLDER, REWARD_MODEL_FOLDER = "adapter", "reward_model"
SECONDS_FILE = "agent_seconds.json"  # what a round's iterations took, by phase: for the report


class LearningRate:
    """A learning rate by iterations done: stable-baselines3 counts timesteps, whose total nobody knows beforehand here.

    Args:
        start: at the first iteration.
        iterations: of the round.
        schedule: ``"linear"`` falls towards 0, ``"constant"`` stays.
    """

    def __init__(self, start: float, iterations: int, schedule: str) -> None:
        self.start = start
        self.iterations = iterations
        self.schedule = schedule
        self.done = 0

    def __call__(self, _progress_remaining: float) -> float:
        """The rate of the iteration to come."""
        return self.start if self.schedule == "constant" else self.start * (1 - self.done / self.iterations)


def train(context: RunContext, number: int) -> None:
    """Write ``round-N/agent.json``, ``policy/``, rows of ``metrics.csv``, and ``agent.zip`` every few iterations.

    KL is measured from the model as it was given, in every round: what is reported is how far it has moved altogether.

    Raises:
        TrainingError: a loss or a gradient is not finite.
    """
    settings = context.config.agent
    table = MetricsTable(context.run.metrics_file)
    rate = LearningRate(
        settings.settings["learning_rate"], settings.iterations, settings.settings["learning_rate_decay"]
    )
    reward = ProxyAndGold(context.proxy(number), {"gold": context.gold, **context.task.metrics})
    refits = Refits(context, number, reward)
    agent = make_agent(context, number, table, reward, rate)
    title = type(agent).__name__
    write_json(
        context.run.round(number) / "agent.json",
        {"class": title, "learning_rate": rate.start, **agent.settings.as_json()},
    )
    logger = make_logger(context.run, context.config, table)
    agent.set_logger(logger)
    try:
        with context.progress.stage(f"round {number} {title}", settings.iterations) as bar:
            shown = SampleCompletions(context, number, agent.iteration, logger)
            _iterate(context, number, agent, table, rate, bar, shown, refits)
    finally:
        logger.close()
    with whole_folder(context.run.round(number) / "policy") as folder:
        agent.policy.language_model.save(folder)
    if agent.policy.language_model.adapter is not None:
        with whole_folder(context.run.round(number) / ADAPTER_FOLDER) as folder:
            save_adapter(agent.policy.language_model, folder)


def _iterate(
    context: RunContext, number: int, agent: PolicyGradient, table: MetricsTable, rate: LearningRate, bar: Bar,
    shown: SampleCompletions, refits: Refits,
) -> None:  # fmt: skip
    settings = context.config.agent
    checkpoint = context.run.round(number) / "agent.zip"
    bar.update(agent.iteration)
    while agent.iteration < settings.iterations and agent.stopped is None:
        table.where = (number, agent.iteration + 1)
        rate.done = agent.iteration
        # learn() goes on until at least one more timestep is done: that is one iteration.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainingStopped)  # said below
            agent.learn(1, reset_num_timesteps=False)
        bar.update(agent.iteration)
        line = iteration_line(table.rows[-1], type(agent).__name__, settings.iterations, agent.reward_share)
        context.progress.say(line)
        if agent.stopped is not None:
            context.progress.say(agent.stopped)
        shown.after(agent, last=agent.iteration == settings.iterations or agent.stopped is not None)
        if agent.iteration % settings.checkpoint_every == 0 or agent.iteration == settings.iterations:
            agent.save(checkpoint)
            write_json(checkpoint.with_name(SECONDS_FILE), table.seconds)
        if agent.iteration < settings.iterations:
            refits.look(agent.iteration)


def make_agent(
    context: RunContext, number: int, table: MetricsTable, reward: ProxyAndGold, rate: LearningRate | None = None
) -> PolicyGradient:
    """The agent at the beginning of a round, or as the round's latest checkpoint has it."""
    settings = context.config.agent
    env = make_sb3_env(settings.environments, tokenizer=context.reference.tokenizer, task=context.task, reward=reward)
    make: Any = find_agent(settings.name)
    given = {"data": target_pairs(context.task, settings.target_column)} if needs_targets(settings) else {}
    checkpoint = context.run.round(number) / "agent.zip"
    if checkpoint.exists():
        base = {"language_model": context.reference} if context.config.model.lora else {}
        resumed: PolicyGradient = make.load(
            checkpoint, env=env, device=str(context.reference.device), reference=context.reference, learning_rate=rate,
            **base, **given,
        )  # fmt: skip
        table.keep_until(number, resumed.iteration)
        table.seconds = read_json(checkpoint.with_name(SECONDS_FILE)) or {}
        return resumed
    sampling = {name: getattr(context.sampling, name) for name in ("temperature", "top_k", "top_p")}
    options = {**settings.settings, **given}
    if rate is not None:
        options |= {"learning_rate": rate, "learning_rate_decay": "constant"}
    options |= {name: value for name, value in sampling.items() if name in make.Settings.names()}
    if settings.value_start == "reward_model":
        options["value_start"] = context.run.round(number) / REWARD_MODEL_FOLDER
    agent: PolicyGradient = make(
        env=env, language_model=_trainable(context, number), reference=context.reference,
        seed=context.seed(number, "train"), device=str(context.reference.device), **options,
    )  # fmt: skip
    table.keep_until(number, 0)
    agent.num_timesteps = table.timesteps()  # timesteps count on from round to round
    return agent


def _trainable(context: RunContext, number: int) -> LanguageModel:
    """The model that the round begins with, as a copy that may be trained; or its adapter on the run's base."""
    if context.config.model.lora:
        if number == 1:
            return adapted(context.reference, Lora.of(context.config.model.lora), seed=context.seed(number, "train"))
        return load_adapter(context.reference, context.run.round(number - 1) / ADAPTER_FOLDER)
    policy = context.policy(number - 1)
    model = policy.frozen_copy() if policy is context.reference else policy
    model.model.requires_grad_(True)
    return model


def iteration_line(row: Mapping[str, str], title: str, iterations: int, reward_share: float | None = None) -> str:
    """One line of figures of an iteration.

    Args:
        row: its row of the table.
        title: the agent's class.
        iterations: of the round.
        reward_share: share of the iteration's time spent waiting for rewards, which the table does not hold: it has no clock.
    """
    figures = [f"{word} {float(row[key]):{form}}" for key, word, form in FIGURES if row.get(key)]
    for key in row:  # a constraint's price, and whether it is held
        for ending in ("price", "slack"):
            if key.startswith("reward/") and key.endswith(f"_{ending}") and row[key]:
                name = key.removeprefix("reward/").removeprefix("constrained_")
                figures.append(f"{name} {float(row[key]):{'.2f' if ending == 'price' else '+z.2f'}}")
    if left_out := float(row.get("reward/left_out") or 0):
        figures.append(f"left out {left_out:.0f}, whose reward failed")
    if reward_share is not None:
        figures.append(f"rewards {reward_share:.1%} of the time")
    number = f"{int(row['iteration']):>{len(str(iterations))}}/{iterations}"
    return f"round {row['round']} {title} {number}  {'  '.join(figures)}"
