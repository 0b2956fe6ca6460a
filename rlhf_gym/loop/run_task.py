"""The task of a run: the configured task with the configuration's prompts and limits, its gold reward, its target texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from rlhf_gym.envs.talk_prompts import TalkPrompts
from rlhf_gym.envs.talk_scoring import EnvironmentReward
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.lm.chat_template import Messages, messages_before
from rlhf_gym.loop.agent_catalogue import find_agent
from rlhf_gym.loop.config import Config, TaskConfig
from rlhf_gym.rewards.base import Reward
from rlhf_gym.rewards.on_error import on_error
from rlhf_gym.rewards.service.limits import limit_parts
from rlhf_gym.rewards.spec import load_reward
from rlhf_gym.tasks import Task, load_task
from rlhf_gym.tasks.prompt_files import prompts_from_file
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.text import shorten

NO_JUDGE = "none"
"""The value of ``evaluation.judge`` that turns a task's own judge off."""


def task_of(config: TaskConfig) -> Task:
    """Load the configured task, with the configuration's prompts and limits in the place of its own.

    Raises:
        TaskError: there is no such task, it has no prompts, none to hold out, or some that are trained on, too.
    """
    task = load_task(config.name, **config.options)
    if config.prompts is not None:
        prompts = prompts_from_file(config.prompts, column=config.prompt_column)
        if config.held_out is None:
            train, held_out = split_prompts(prompts, config.held_out_fraction, config.prompts)
            task = replace(task, prompts=train, held_out=held_out)
        else:
            task = replace(task, prompts=prompts)
    if config.held_out is not None:
        task = replace(task, held_out=prompts_from_file(config.held_out, column=config.prompt_column))
    if not task.held_out:
        raise TaskError(
            f"task {task.name!r} has no held-out prompts to evaluate on; give some: --set task.held_out=FILE"
        )
    shared = {p.text for p in task.prompts} & {p.text for p in task.held_out}
    if shared and (config.prompts is not None or config.held_out is not None):
        raise TaskError(
            f"{len(shared)} of the {len({p.text for p in task.held_out})} held-out prompts are among those to train on (one is "
            f"{shorten(min(shared))}), so that the evaluation would not be of unseen prompts: take them out of task.prompts or "
            "task.held_out, or leave task.held_out out to have a share of task.prompts held out"
        )
    if config.max_new_tokens is not None:
        low = min(task.min_new_tokens, config.max_new_tokens)
        task = replace(task, max_new_tokens=config.max_new_tokens, min_new_tokens=low)
    if config.min_new_tokens is not None:
        task = replace(task, min_new_tokens=config.min_new_tokens)
    return task if config.stop is None else replace(task, stop=config.stop)


def check_conversation(config: Config, task: Task) -> None:
    """Refuse settings that a task that is a conversation cannot have.

    Args:
        config: the run's configuration.
        task: its task.

    Raises:
        ConfigError: it asks for something that a conversation has not, or for an order of prompts that its environment has not.
    """
    if task.conversation is None:
        return
    agent = find_agent(config.agent.name)
    given = {
        "task.reward": config.task.reward is not None, "task.prompts": config.task.prompts is not None,
        "task.held_out": config.task.held_out is not None, "rater.query_type=edit": config.rater.query_type == "edit",
        "rater.select=fresh": config.rater.labels is not None and config.rater.select == "fresh",
        "agent.value_start=reward_model": config.agent.value_start == "reward_model",
        "evaluation.fresh_labels": config.evaluation.fresh_labels > 0,
        f"agent.name={config.agent.name}": not agent.in_conversations,
    }  # fmt: skip
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise ConfigError(
            f"task {task.name!r} is a conversation, whose environment gives prompts and rewards: it does not go with "
            f"{', '.join(wrong)}"
        )
    if config.task.prompt_order != "epochs":  # refused before any work, where the environment has no such prompts
        env = task.conversation.environment()
        TalkPrompts.of(env, config.task.prompt_order, config.task.difficulty_every)
        env.close()


def gold_of(config: TaskConfig, task: Task) -> Reward:
    """Load the gold reward, with its time limit, and with what to do where it fails.

    Args:
        config: the configuration of the task.
        task: the task, whose own reward is the gold reward where the configuration names none.

    Raises:
        TaskError: neither has a reward.
        ConfigError: there is no such reward.
    """
    if task.conversation is not None:
        return EnvironmentReward()
    gold = load_reward(config.reward) if config.reward is not None else task.reward
    if gold is None:
        raise TaskError(f"task {task.name!r} has no reward of its own; give one: --reward path/file.py:function")
    if config.time_limit is not None:
        gold = limit_parts(gold, config.time_limit)
    return on_error(gold, config.on_error)


def judge_of(config: Config, task: Task) -> Reward | None:
    """Load the second judge of the evaluation, with the gold reward's time limit and what to do where it fails; None for none.

    Args:
        config: the run's configuration.
        task: the task, whose own judge is taken where the configuration names none and the gold reward is the task's own.

    Raises:
        ConfigError: there is no such reward.
    """
    if config.evaluation.judge is None:
        judge = task.judge if config.task.reward is None else None
    else:
        judge = None if config.evaluation.judge == NO_JUDGE else load_reward(config.evaluation.judge)
    if judge is None:
        return None
    if config.task.time_limit is not None:
        judge = limit_parts(judge, config.task.time_limit)
    return on_error(judge, config.task.on_error)


def target_pairs(task: Task, column: str) -> list[tuple[str | Messages, str]]:
    """The task's prompts with the responses to learn, for supervised fine-tuning.

    Args:
        task: the run's task.
        column: the prompts' column that holds the response.

    Raises:
        TaskError: a prompt has no text in that column.
    """
    for prompt in task.prompts:
        if not isinstance(prompt.columns.get(column), str):
            known = ", ".join(prompt.columns) or "none"
            raise TaskError(
                f"the prompt {shorten(prompt.text)} of task {task.name!r} has no text in column {column!r} to learn from (its "
                f"columns: {known}); give agent.target_column, or prompts with such a column: --prompts FILE"
            )
    return [
        (messages_before(prompt.columns.get("messages"), text=prompt.text) or prompt.text, prompt.columns[column])
        for prompt in task.prompts
    ]


def with_validation(task: Task, number: int) -> tuple[Task, list[Prompt]]:
    """Take validation prompts from those to train on; no text stays in both parts.

    Args:
        task: the run's task.
        number: validation prompts; at most half of the different texts are taken.

    Returns:
        The task without them, and the validation prompts, each text once.
    """
    texts = len({p.text for p in task.prompts})
    train, taken = split_prompts(task.prompts, min(number / texts, 0.5), f"task {task.name!r}")
    return replace(task, prompts=train), list({p.text: p for p in taken}.values())


def split_prompts(prompts: Sequence[Prompt], fraction: float, source: str) -> tuple[list[Prompt], list[Prompt]]:
    """Split prompts into those to train on and those to hold out, by a hash of the text.

    The order of the prompts makes no difference, and no text is in both parts.

    Args:
        prompts: at least two different texts.
        fraction: share of the different texts to hold out, in (0, 1); each part gets at least one.
        source: the prompts' file, for the error message.

    Raises:
        TaskError: all prompts are one and the same text.
    """
    texts = sorted({p.text for p in prompts}, key=lambda text: hashlib.sha256(text.encode()).digest())
    if len(texts) < 2:
        raise TaskError(
            f"{source} holds one prompt only; expected at least two, one to train on and one held out to evaluate on (or give "
            "held-out prompts in a file of their own: --set task.held_out=FILE)"
        )
    held = set(texts[: min(max(1, round(fraction * len(texts))), len(texts) - 1)])
    return [p for p in prompts if p.text not in held], [p for p in prompts if p.text in held]
