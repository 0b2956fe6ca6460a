"""Stage 4: an agent trains the policy against the proxy, with checkpoints from which it goes on exactly."""

from __future__ import annotations

import warnings
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from rlhf_gym.agents import TokenAlgorithm
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.errors import TrainingStopped
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora, adapted, load_adapter, save_adapter
from rlhf_gym.loop.after_iteration import CHECKPOINT, SECONDS_FILE, Checkpoints, ProgressLines, Refits, RunCompletions
from rlhf_gym.loop.agent_catalogue import find_agent
from rlhf_gym.loop.context import RunContext, given_argument
from rlhf_gym.loop.metrics_table import MetricsTable, make_logger
from rlhf_gym.loop.summary import held_out_line
from rlhf_gym.loop.train_reward import ProxyAndGold
from rlhf_gym.loop.whole_files import read_json, whole_folder, write_json

ADAPTER_FOLDER = "adapter"
HELD_OUT_FILE = "held_out.json"
"""The last measurement on given rows that were held out."""


def train(context: RunContext, number: int) -> None:
    """Write ``round-N/agent.json`` and ``policy/``, rows of ``metrics.csv``, and ``agent.zip`` every few iterations.

    In every round, KL is measured from the model as it was given: the metrics report the KL of all rounds together.

    Args:
        context: the run.
        number: the round, from 1.

    Raises:
        TrainingError: a loss or a gradient is NaN or infinite.
    """
    folder, iterations = context.run.round(number), context.config.agent.iterations
    table = MetricsTable(context.run.metrics_file)
    context.restore_reward_state(number - 1)
    reward = ProxyAndGold(context.proxy(number), {"gold": context.gold, **context.task.metrics})
    agent = make_agent(context, number, table, reward)
    title = type(agent).__name__
    write_json(folder / "agent.json", {"class": title, **agent.settings.as_json()})
    logger = make_logger(context.run, context.config, table)
    agent.set_logger(logger)
    try:
        with context.progress.stage(f"round {number} {title}", iterations) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainingStopped)  # ProgressLines says it
            bar.update(agent.iteration)
            after_iteration: list[BaseCallback] = [
                ProgressLines(context, number, table, bar), RunCompletions(context, number, agent.iteration, logger),
                Checkpoints(context, number, table), Refits(context, number, reward),
            ]  # fmt: skip
            if agent.stopped is None:  # else the checkpoint is of a policy that kl_limit has stopped
                agent.learn(iterations=iterations, callback=after_iteration, reset_num_timesteps=False)
    finally:
        logger.close()
    _measure_held_out(context, number, agent)
    context.save_reward_state(number)
    with whole_folder(context.run.policy(number)) as target:
        agent.policy.language_model.save(target)
    if agent.policy.language_model.adapter is not None:
        with whole_folder(folder / ADAPTER_FOLDER) as target:
            save_adapter(agent.policy.language_model, target)


def _measure_held_out(context: RunContext, number: int, agent: Any) -> None:
    """Write ``round-N/held_out.json``: what the agent says of given rows whose prompts it has not learned from."""
    argument = given_argument(context.config.agent)
    if context.given is None or argument is None or not context.given.held_out or not hasattr(agent, "measure"):
        return
    rows = context.given.for_agent(context.given.held_out, argument)
    measured = {"n": len(rows), **agent.measure(rows)}
    write_json(context.run.round(number) / HELD_OUT_FILE, measured)
    context.progress.say(f"round {number} held out: {held_out_line(measured)}")


def make_agent(context: RunContext, number: int, table: MetricsTable, reward: ProxyAndGold) -> TokenAlgorithm:
    """Make the agent of a round, or load it from the round's latest checkpoint.

    Args:
        context: the run.
        number: the round, from 1.
        table: ``metrics.csv``; rows of later iterations are dropped, because they are written again.
        reward: the reward that the agent is trained against.
    """
    config = context.config.agent
    env = make_sb3_env(config.environments, tokenizer=context.reference.tokenizer, task=context.task, reward=reward)
    cls: Any = find_agent(config.name)
    device, checkpoint = str(context.reference.device), context.run.round(number) / CHECKPOINT
    given: dict[str, Any] = {"reference": context.reference, **context.given_to_agent}
    if checkpoint.exists():
        base = {"language_model": context.reference} if context.config.model.lora else {}
        resumed: TokenAlgorithm = cls.load(checkpoint, env=env, device=device, **base, **given)
        table.keep_until(number, resumed.iteration)
        table.seconds = read_json(checkpoint.with_name(SECONDS_FILE)) or {}
        return resumed
    if config.value_start == "reward_model":
        given["value_start"] = context.run.reward_model(number)
    sampling = {name: getattr(context.sampling, name) for name in ("temperature", "top_k", "top_p")}
    given |= {name: value for name, value in sampling.items() if name in cls.Settings.names()}
    agent: TokenAlgorithm = cls(
        env=env, language_model=_trainable(context, number), seed=context.seed(number, "train"), device=device, **given,
        **config.settings,
    )  # fmt: skip
    table.keep_until(number, 0)
    agent.num_timesteps = table.timesteps()  # timesteps count on from round to round
    return agent


def _trainable(context: RunContext, number: int) -> LanguageModel:
    """The model that the round starts from, as a copy to train; with ``model.lora``, an adapter on the reference."""
    if context.config.model.lora:
        if number == 1:
            return adapted(context.reference, Lora.of(context.config.model.lora), seed=context.seed(number, "train"))
        return load_adapter(context.reference, context.run.round(number - 1) / ADAPTER_FOLDER)
    policy = context.policy(number - 1)
    model = policy.frozen_copy() if policy is context.reference else policy
    model.unfreeze()
    return model
