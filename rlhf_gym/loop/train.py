"""Stage 4: an agent trains the policy against the proxy, with checkpoints from which it goes on exactly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from rlhf_gym.agents import SaveDivergence, TokenAlgorithm, Validation
from rlhf_gym.agents.common.launch import process_ranks
from rlhf_gym.agents.common.rollout_workers import workers_in
from rlhf_gym.envs import TextVecEnv, TokenVecEnv, make_sb3_env
from rlhf_gym.errors import TextsTooLong, TrainingStopped
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora, adapted, load_adapter, save_adapter
from rlhf_gym.loop.after_iteration import CHECKPOINT, SECONDS_FILE, Checkpoints, ProgressLines, Refits, RunCompletions
from rlhf_gym.loop.agent_catalogue import find_agent
from rlhf_gym.loop.config import AgentConfig
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.conversations import talks_of
from rlhf_gym.loop.fresh_labels import FreshLabels
from rlhf_gym.loop.metrics_table import MetricsTable, make_logger
from rlhf_gym.loop.summary import held_out_line
from rlhf_gym.loop.train_reward import ProxyAndGold
from rlhf_gym.loop.whole_files import read_json, whole_folder, write_json

HELD_OUT_FILE = "held_out.json"
"""The last measurement on given rows that were held out."""
BEST = "best.zip"
"""The checkpoint of a round's best evaluation during training."""
VALIDATION_FILE = "validation.jsonl"
TRAINING_FILE = "training.json"
"""How a round's training ended: the reason if it was early, and the iteration whose policy the round ends with."""


def train(context: RunContext, number: int) -> None:
    """Write ``round-N/agent.json`` and ``policy/``, rows of ``metrics.csv``, and ``agent.zip`` every few iterations.

    With ``evaluation.every``, also ``validation.jsonl`` and ``best.zip``; how training ended is in ``training.json``. A batch
    at which it diverges is written as ``divergence-ITERATION.zip``.

    Of several processes, rank 0 writes all of this; the others only learn.

    In every round, KL is measured from the model as it was given: the metrics report the KL of all rounds together.

    Args:
        context: the run.
        number: the round, from 1.

    Raises:
        TrainingError: a loss or a gradient is NaN or infinite.
    """
    ranks = process_ranks()
    if not ranks.is_main:
        _learn_along(context, number)
        return
    folder, settings = context.run.round(number), context.config.agent
    table = MetricsTable(context.run.metrics_file)
    context.restore_reward_state(number - 1)
    reward = ProxyAndGold(context.proxy(number), {"gold": context.gold, **context.task.metrics})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextsTooLong)  # the run has said it at its start
        agent = ranks.each(lambda: make_agent(context, number, table, reward))
    ranks.from_main(lambda: agent.num_timesteps)  # the others count on from there
    title = type(agent).__name__
    write_json(folder / "agent.json", {"class": title, **agent.settings.as_json()})
    logger = make_logger(context.run, context.config, table)
    agent.set_logger(logger)
    validation = make_validation(context, number, reward)
    try:
        with context.progress.stage(f"round {number} {title}", _steps(settings)) as bar, warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainingStopped)  # ProgressLines says it
            bar.update(agent.iteration)
            after_iteration: list[BaseCallback] = [
                SaveDivergence(folder), *([] if validation is None else [validation]),
                ProgressLines(context, number, table, bar), RunCompletions(context, number, agent.iteration, logger),
                Checkpoints(context, number, table), Refits(context, number, reward),
            ]  # fmt: skip
            _learn(settings, agent, after_iteration)
    finally:
        logger.close()
        agent.close()
    ranks.from_main(lambda: _keep(context, number, agent, validation))


def _keep(context: RunContext, number: int, agent: TokenAlgorithm, validation: Validation | None) -> None:
    """Write what a round's training has led to.

    Args:
        context: the run.
        number: the round, from 1.
        agent: has been trained.
        validation: has evaluated it meanwhile; None where the configuration wants none.
    """
    folder = context.run.round(number)
    context.save_reward_state(number)
    chosen, best = agent, None
    if validation is not None:
        validation.go_on_after(agent.iteration)
        best = validation.best_evaluation
    if best is not None and context.config.evaluation.final == "best":
        chosen = _load(context, folder / BEST, None)
    model = chosen.policy.acting_model
    _measure_held_out(context, number, chosen)
    write_json(folder / TRAINING_FILE, {
        "iterations": agent.iteration, "stopped": agent.stopped, "final": context.config.evaluation.final,
        "policy_of": chosen.iteration, "metric": context.config.evaluation.metric, "best": best,
    })  # fmt: skip
    with whole_folder(context.run.policy(number)) as target:
        model.save(target)
    if model.adapter is not None:
        with whole_folder(context.run.adapter(number)) as target:
            save_adapter(model, target)


def _learn(settings: AgentConfig, agent: TokenAlgorithm, callbacks: list[BaseCallback] | None = None) -> None:
    """Train until the round's iterations or tokens are done.

    Args:
        settings: of the run's agent.
        agent: may have been trained before, or have ended training (its checkpoint is then of a policy that ``kl_limit``
            stopped).
        callbacks: called while it learns.
    """
    if agent.stopped is None and not settings.is_done(agent.iteration, agent.num_timesteps):
        agent.learn(
            None if settings.tokens is None else settings.tokens - agent.num_timesteps,
            callback=callbacks, reset_num_timesteps=False,
            iterations=settings.iterations if settings.tokens is None else None,
        )  # fmt: skip


def _learn_along(context: RunContext, number: int) -> None:
    """Train as one of the other ranks, which write nothing.

    Args:
        context: the run.
        number: the round, from 1.
    """
    ranks = process_ranks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rank 0 has the same ones
        agent = ranks.each(lambda: make_agent(context, number, None, ProxyAndGold(context.proxy(number), {})))
        agent.num_timesteps = ranks.from_main(lambda: agent.num_timesteps)
        _learn(context.config.agent, agent)
    ranks.from_main(lambda: None)  # rank 0 writes


def _steps(settings: AgentConfig) -> int:
    """The iterations of a round's bar; 0 where only tokens are known."""
    return settings.iterations if settings.tokens is None else 0


def make_validation(context: RunContext, number: int, reward: ProxyAndGold) -> Validation | None:
    """The callback that evaluates during a round's training; None where the configuration wants none.

    Args:
        context: the run.
        number: the round, from 1.
        reward: the reward that the agent is trained against, with the gold reward and the task's metrics.
    """
    wanted, folder, size = context.config.evaluation, context.run.round(number), context.config.sampling.batch_size
    if wanted.every is None:
        return None
    where: dict[str, Any] = {"prompts": context.validation, "reward": reward, "seed": context.seed(0, "evaluate")}
    if context.task.conversation is not None:  # told apart by their seeds: these are not the last evaluation's
        talks = talks_of(context, math.gcd(wanted.validation_prompts, size), reward)
        where = {"env": talks, "episodes": wanted.validation_prompts, "seed": context.seed(0, "sample")}
    return Validation(
        **where, every=wanted.every, metric=wanted.metric, best=folder / BEST, history=folder / VALIDATION_FILE,
        stop_at=wanted.stop_at, patience=wanted.patience, batch_size=size,
        stop_above=wanted.stop_above, measure=FreshLabels(context, number, reward) if wanted.fresh_labels else None,
    )  # fmt: skip


def _measure_held_out(context: RunContext, number: int, agent: Any) -> None:
    """Write ``round-N/held_out.json``: what the agent says of given rows whose prompts it has not learned from."""
    if context.given is None or not context.given.held_out or not hasattr(agent, "measure"):
        return
    rows = context.given.held_out
    measured = {"n": len(rows), **agent.measure(rows)}
    if context.given.argument == "data":
        measured["reference_loss"] = agent.measure(rows, context.reference)["loss"]
    write_json(context.run.round(number) / HELD_OUT_FILE, measured)
    context.progress.say(f"round {number} held out: {held_out_line(measured)}")


def make_agent(context: RunContext, number: int, table: MetricsTable | None, reward: ProxyAndGold) -> TokenAlgorithm:
    """Make the agent of a round, or load it from the round's latest checkpoint.

    Args:
        context: the run.
        number: the round, from 1.
        table: ``metrics.csv``; rows of later iterations are dropped, because they are written again. None for a process that
            writes nothing.
        reward: the reward that the agent is trained against.
    """
    config = context.config.agent
    env: TokenVecEnv | TextVecEnv
    order: dict[str, Any] = {
        "prompt_order": context.config.task.prompt_order, "difficulty_every": context.config.task.difficulty_every,
    }  # fmt: skip
    if context.task.conversation is not None:
        # Without a reward model the environment pays turn by turn.
        whole = reward if context.config.reward_model.enabled else None
        env = talks_of(context, config.environments, whole, **order)
    else:
        env = make_sb3_env(
            config.environments, tokenizer=context.reference.tokenizer, task=context.task, reward=reward, **order,
        )  # fmt: skip
    cls: Any = find_agent(config.name)
    device, checkpoint = str(context.reference.device), context.run.round(number) / CHECKPOINT
    given = _given(context)
    if checkpoint.exists():
        resumed = _load(context, checkpoint, env, workers_in(config.settings))
        if table is not None:
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
    if table is not None:
        table.keep_until(number, 0)
        agent.num_timesteps = table.timesteps()  # timesteps count on from round to round
    return agent


def _given(context: RunContext) -> dict[str, Any]:
    """The arguments of the agent that are no settings of a run."""
    config = context.config.agent
    needed = find_agent(config.name).Settings.needs_reference(config.settings)
    given: dict[str, Any] = {"reference": context.teacher or context.reference} if needed else {}
    if context.given is not None:
        given[context.given.argument] = context.given.train
        if "on_too_long" in find_agent(config.name).Settings.names():
            given["on_too_long"] = context.config.task.on_too_long
    return given


def _load(
    context: RunContext,
    checkpoint: Path,
    env: TokenVecEnv | TextVecEnv | None,
    changes: Mapping[str, Any] | None = None,
) -> TokenAlgorithm:
    """An agent from one of the run's checkpoints.

    Args:
        context: the run.
        checkpoint: the file.
        env: to go on in; None for none.
        changes: settings that may have changed since.
    """
    base = context.reference if context.config.model.lora else None
    cls, device = find_agent(context.config.agent.name), str(context.reference.device)
    return cls.load(checkpoint, env=env, device=device, language_model=base, **_given(context), **(changes or {}))


def _trainable(context: RunContext, number: int) -> LanguageModel:
    """The model that the round starts from, as a copy to train; with ``model.lora``, an adapter on the reference."""
    if context.config.model.lora:
        if number == 1:
            return adapted(context.reference, Lora.of(context.config.model.lora), seed=context.seed(number, "train"))
        return load_adapter(context.reference, context.run.adapter(number - 1))
    policy = context.policy(number - 1)
    model = policy.frozen_copy() if policy is context.reference else policy
    model.unfreeze()
    return model
