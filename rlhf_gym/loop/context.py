"""The objects that every stage of a run uses: task, gold reward, reference model; loaded and checked once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from rlhf_gym.errors import ConfigError, ModelError, TaskError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora, require_peft, target_layers
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.loop.agent_catalogue import find_agent
from rlhf_gym.loop.config import AgentConfig, Config, TaskConfig
from rlhf_gym.loop.metrics_table import check_loggers
from rlhf_gym.loop.plugins import check_rater
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.run_directory import STAGES, RunDirectory
from rlhf_gym.raters import Rater
from rlhf_gym.reward_model import RewardModel
from rlhf_gym.rewards.base import Reward
from rlhf_gym.rewards.on_error import on_error
from rlhf_gym.rewards.service.limits import limit_parts
from rlhf_gym.rewards.spec import load_reward
from rlhf_gym.tasks import Task, load_task
from rlhf_gym.tasks.prompt_files import prompts_from_file
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.text import shorten


class PeoplePage(Protocol):
    """A page on which people answer a run's queries; :class:`rlhf_gym.web.run_page.RunPage` is one."""

    def check(self, config: Config) -> None:
        """Refuse, before any work starts, a configuration with which the page cannot be served."""

    def serve(self, config: Config, run: RunDirectory, say: Callable[[str], None]) -> AbstractContextManager[Rater]:
        """Serve the page while the context is open; entering it gives the rater who stands for the people.

        Args:
            config: the run's configuration.
            run: the run's directory, which holds the store.
            say: prints one line to the user.
        """


@dataclass(frozen=True)
class RunContext:
    """The objects that all stages of a run share.

    Attributes:
        config: the resolved configuration.
        run: its directory.
        progress: shows the user what goes on.
        task: prompts to train on, prompts held out, limits.
        gold: the reward that stands for what people want.
        reference: the language model as it was given, frozen.
        people: the rater who stands for the people on the run's rating page; None where it serves none.
    """

    config: Config
    run: RunDirectory
    progress: Progress
    task: Task
    gold: Reward
    reference: LanguageModel
    people: Rater | None = None

    @classmethod
    def of(cls, config: Config, run: RunDirectory, progress: Progress) -> RunContext:
        """Load what the configuration names, and check that it fits together before any work starts.

        Args:
            config: the resolved configuration.
            run: the run's directory.
            progress: shows the user what goes on.

        Raises:
            RlhfGymError: something named does not exist, or does not fit.
        """
        if config.run.threads is not None:
            torch.set_num_threads(config.run.threads)
        task = task_of(config.task)
        gold = load_reward(config.task.reward) if config.task.reward is not None else task.reward
        if gold is None:
            raise TaskError(f"task {task.name!r} has no reward of its own; give one: --reward path/file.py:function")
        if config.task.time_limit is not None:
            gold = limit_parts(gold, config.task.time_limit)
        gold = on_error(gold, config.task.on_error)
        check_loggers(config.log.to)
        if config.reward_model.enabled:
            check_rater(config.rater)
        if needs_targets(config.agent):
            target_pairs(task, config.agent.target_column)
        settings = config.model
        lora = Lora.of(settings.lora) if settings.lora else None
        if lora is not None:
            require_peft()
        try:
            torch.device("cpu" if settings.device == "auto" else settings.device)
        except RuntimeError:
            raise ConfigError(
                f"model.device must be cpu, cuda, cuda:1, mps, ... or auto; got {settings.device!r}"
            ) from None
        reference = LanguageModel.load(
            settings.name, device=settings.device, dtype=settings.dtype, revision=settings.revision,
            trust_remote_code=settings.trust_remote_code, allow_pickle=settings.allow_pickle,
        ).frozen_copy()  # fmt: skip
        if reference.encoder_decoder and config.reward_model.enabled:
            raise ConfigError(
                f"{settings.name!r} is an encoder-decoder model, on which no reward model is fitted here: train it against the "
                "task's reward, with reward_model.enabled=false (and --reward ... for another one)"
            )
        if lora is not None:
            target_layers(reference, lora.targets)
        context = cls(config, run, progress, task, gold, reference)
        context.check_prompts([*task.prompts, *task.held_out])
        return context

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Check that every prompt leaves room for a response in the model's context.

        Raises:
            TaskError: a prompt is too long; the message names it.
        """
        room = self.reference.context_length - self.task.max_new_tokens
        for prompt in prompts:
            length = len(self.reference.tokenizer.encode_prompt(prompt.text))
            if length > room:
                raise TaskError(
                    f"the prompt {shorten(prompt.text)} has {length} tokens; with responses of up to "
                    f"{self.task.max_new_tokens} tokens, {self.reference.name!r} (context of "
                    f"{self.reference.context_length}) takes prompts of at most {max(room, 0)}. Shorten it, leave it out, or "
                    "lower task.max_new_tokens"
                )

    @cached_property
    def sampling(self) -> Sampling:
        """Temperature, top-k and top-p of candidates, rollouts and evaluation."""
        settings = self.config.sampling
        return Sampling(settings.temperature, settings.top_k, settings.top_p)

    @cached_property
    def limits(self) -> Limits:
        """Length limits and suppressed tokens, the same as the environment's."""
        tokenizer = self.reference.tokenizer
        task = self.task
        return Limits(tokenizer.eos_id, (tokenizer.pad_id,), task.min_new_tokens, task.max_new_tokens)

    def seed(self, round_number: int, stage: str) -> int:
        """The seed of one stage.

        It is derived from the run's seed, the round and the stage: the random streams of different stages, rounds and runs
        are independent.

        Args:
            round_number: the round, from 1; 0 for what is the same in every round.
            stage: one of :data:`~rlhf_gym.loop.run_directory.STAGES`.
        """
        key = (self.config.run.seed, round_number, STAGES.index(stage))
        return int(np.random.SeedSequence(key).generate_state(1)[0])

    def policy(self, round_number: int) -> LanguageModel:
        """The language model at the end of a round; that of round 0 is the reference.

        Raises:
            ModelError: that round's policy is not there.
        """
        if round_number == 0:
            return self.reference
        settings = self.config.model
        folder = self.run.round(round_number) / "policy"
        if not folder.is_dir():
            raise ModelError(f"the policy of round {round_number} is missing: expected {folder}")
        return LanguageModel.load(
            str(folder), device=str(self.reference.device), dtype=settings.dtype, tokenizer=self.reference.tokenizer,
            trust_remote_code=settings.trust_remote_code,
        )  # fmt: skip

    def proxy(self, round_number: int) -> Reward:
        """The reward that the agent is trained against in a round: its reward model, or the gold reward without one."""
        if not self.config.reward_model.enabled:
            return self.gold
        folder = self.run.round(round_number) / "reward_model"
        return RewardModel.load(folder, device=str(self.reference.device), tokenizer=self.reference.tokenizer)


def needs_targets(config: AgentConfig) -> bool:
    """True for an agent that learns from given responses, such as SFT."""
    return "data" in find_agent(config.name).Settings.names()


def target_pairs(task: Task, column: str) -> list[tuple[str, str]]:
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
    return [(prompt.text, prompt.columns[column]) for prompt in task.prompts]


def task_of(config: TaskConfig) -> Task:
    """The configured task, with the configuration's prompts and limits where it gives some.

    Raises:
        TaskError: no such task, no prompts, or none to hold out.
    """
    task = load_task(config.name, **config.options)
    if config.prompts is not None:
        prompts = prompts_from_file(config.prompts, column=config.prompt_column)
        if config.held_out is None:
            train, held_out = split(prompts, config.held_out_fraction, config.prompts)
            task = replace(task, prompts=train, held_out=held_out)
        else:
            task = replace(task, prompts=prompts)
    if config.held_out is not None:
        task = replace(task, held_out=prompts_from_file(config.held_out, column=config.prompt_column))
    if not task.held_out:
        raise TaskError(f"task {task.name!r} holds no prompts out to evaluate on; give some: --set task.held_out=FILE")
    if config.max_new_tokens is not None:
        low = min(task.min_new_tokens, config.max_new_tokens)
        task = replace(task, max_new_tokens=config.max_new_tokens, min_new_tokens=low)
    if config.min_new_tokens is not None:
        task = replace(task, min_new_tokens=config.min_new_tokens)
    return task if config.stop is None else replace(task, stop=config.stop)


def split(prompts: Sequence[Prompt], fraction: float, source: str) -> tuple[list[Prompt], list[Prompt]]:
    """Split prompts into those to train on and those to hold out, by a hash of the text.

    The split does not depend on the order of the prompts, and no text is in both parts.

    Args:
        prompts: at least two different texts.
        fraction: share of the different texts to hold out, in (0, 1); at least one text is held out and at least one is not.
        source: the prompts' file, for the error message.

    Raises:
        TaskError: all prompts are one and the same text.
    """
    texts = sorted({p.text for p in prompts}, key=lambda text: hashlib.sha256(text.encode()).digest())
    if len(texts) < 2:
        raise TaskError(
            f"{source} holds one prompt only; expected at least two, one to train on and one held out to evaluate on (or "
            "give the latter in a file of its own: --set task.held_out=FILE)"
        )
    held = set(texts[: min(max(1, round(fraction * len(texts))), len(texts) - 1)])
    return [p for p in prompts if p.text not in held], [p for p in prompts if p.text in held]
