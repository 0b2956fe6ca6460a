"""The objects that every stage of a run uses: task, gold reward, reference model; loaded and checked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch

from rlhf_gym.agents.common.rollout_engine import connect_engine
from rlhf_gym.agents.common.rollout_workers import connect_workers
from rlhf_gym.agents.common.setup import check_vocabulary
from rlhf_gym.envs.prompt_weights import checked_difficulties
from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora, load_adapter, require_peft, target_layers
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.loop.agent_catalogue import GIVEN, find_agent
from rlhf_gym.loop.config import AgentConfig, Config, ModelConfig
from rlhf_gym.loop.given_data import DATA_TASK, EncodedData, GivenData, Unscored, data_task
from rlhf_gym.loop.metrics_table import check_loggers
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rater_catalogue import check_rater
from rlhf_gym.loop.read_given import read_given
from rlhf_gym.loop.reward_ensemble import together
from rlhf_gym.loop.run_directory import STAGES, RunDirectory
from rlhf_gym.loop.run_task import check_conversation, gold_of, judge_of, target_pairs, task_of, with_validation
from rlhf_gym.loop.whole_files import read_json, write_json
from rlhf_gym.raters import Rater
from rlhf_gym.reward_model import RewardModel
from rlhf_gym.rewards.adaptive import restore_reward, reward_state
from rlhf_gym.rewards.base import Reward
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.prompt_ids import prompt_ids
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.too_long import TooLong, fit_task

REWARD_STATE = "reward_state.json"
"""The states of rewards that learn, after a round's training."""


class PeoplePage(Protocol):
    """A page on which people answer a run's queries; :class:`rlhf_gym.web.run_page.RunPage` is one."""

    def check(self, config: Config) -> None:
        """Check, before any work starts, that the page can be served.

        Raises:
            ConfigError: it cannot be served with this configuration.
        """

    def serve(self, config: Config, run: RunDirectory, say: Callable[[str], None]) -> AbstractContextManager[Rater]:
        """Serve the page while the context is open, which gives the rater who stands for the people.

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
        gold: the gold reward: what the simulated rater prefers by, and what the evaluation measures.
        reference: the language model as it was given, frozen.
        people: the rater who stands for the people on the run's rating page; None if the run serves no page.
        given: what an agent learns from that does not generate, encoded; None for an agent that generates.
        too_long: the texts that exceed the model's context or a limit, and what was done with them.
        validation: prompts of the evaluation during training, which are neither trained on nor held out.
        judge: a second reward, independent of the gold one, by which the evaluation reports a win rate, too; None for none.
        teacher: the model that the agent's KL penalty is measured from, in the place of the reference; None for none.
    """

    config: Config
    run: RunDirectory
    progress: Progress
    task: Task
    gold: Reward
    reference: LanguageModel
    people: Rater | None = None
    given: EncodedData | None = None
    too_long: list[TooLong] = field(default_factory=list)
    validation: tuple[Prompt, ...] = ()
    judge: Reward | None = None
    teacher: LanguageModel | None = None

    @classmethod
    def of(
        cls,
        config: Config,
        run: RunDirectory,
        progress: Progress,
        *,
        task: Task | None = None,
        given: GivenData | None = None,
    ) -> RunContext:
        """Load what the configuration names, and check that it fits together before any work starts.

        Args:
            config: the resolved configuration.
            run: the run's directory.
            progress: shows the user what goes on.
            task: the configuration's task, where it is loaded already; None loads it.
            given: the rows of ``agent.data``, where they are read already; None reads them.

        Raises:
            RlhfGymError: something that the configuration names does not exist, or does not fit.
        """
        if config.run.threads is not None:
            torch.set_num_threads(config.run.threads)
        argument, reference = given_argument(config.agent), None
        if argument is not None and config.agent.data is not None and given is None:
            given = read_given(config.agent, argument, config.task.held_out_fraction)
        too_long: list[TooLong] = []
        if config.task.name == DATA_TASK:
            if given is None:
                raise ConfigError(
                    "task data has the prompts of agent.data: give agent.data, to an agent that has that setting"
                )
            reference = load_reference(config)
            task, given, too_long = data_task(config.task, given, reference)
        elif task is None:
            task = task_of(config.task)
        check_conversation(config, task)
        if config.task.prompt_order == "difficulty" and task.conversation is None:
            checked_difficulties([prompt.columns.get("difficulty") for prompt in task.prompts])
        gold, judge = _gold(config, task), judge_of(config, task)
        check_loggers(config.log)
        connect_engine(config.agent.settings)
        connect_workers(config.agent.settings, (task, gold))
        if config.reward_model.enabled:
            check_rater(config.rater)
        if argument == "data" and given is None:
            target_pairs(task, config.agent.target_column)
        elif argument is not None and given is None:
            raise ConfigError(
                f"agent {config.agent.name} learns from stored {argument}: give agent.data, a run, store or file"
            )
        if reference is None:
            reference = load_reference(config)
            task, too_long = fit_task(task, reference, config.task.on_too_long)
            if given is not None:
                given, found = given.fitting(reference, task.max_new_tokens, config.task.on_too_long)
                too_long += found
        teacher = load_teacher(config, reference)
        validation: list[Prompt] = []
        if config.evaluation.every is not None and task.conversation is None:
            task, validation = with_validation(task, config.evaluation.validation_prompts)
        context = cls(
            config, run, progress, task, gold, reference, too_long=too_long, validation=tuple(validation), judge=judge,
            teacher=teacher,
        )  # fmt: skip
        if argument is not None:
            context = context._with_given(argument, given)
        for one in context.too_long:
            progress.say(str(one))
        if task.conversation is not None:
            progress.say(
                f"task {task.name} is a conversation: "
                + (
                    "raters compare whole conversations, and their reward model scores whole ones (without it, "
                    "reward_model.enabled=false, the environment's rewards are learned from, turn by turn)"
                    if config.reward_model.enabled
                    else "its environment gives the rewards, turn by turn, so that no rater is asked"
                )
            )
        return context

    def _with_given(self, argument: str, given: GivenData | None) -> RunContext:
        """Encode what the agent learns from, check its settings with it, and say what it is.

        Raises:
            ConfigError: settings that contradict one another, or do not go with the responses.
        """
        config = self.config.agent
        train: Sequence[Any]
        held_out: Sequence[Any] = ()
        if given is None:
            train = target_pairs(self.task, config.target_column)
        else:
            given = given.without({prompt.text for prompt in self.validation})
            train, held_out = (given.for_agent(rows, argument) for rows in (given.train, given.held_out))
            self.progress.say(str(given))
        encoded, found = EncodedData.of(
            argument, train, held_out, self.reference, self.limits, self.config.task.on_too_long
        )
        cls = find_agent(config.name)
        cls.Settings.of({**config.settings, argument: encoded.train}, cls.__name__, num_envs=config.environments)
        return replace(self, given=encoded, too_long=[*self.too_long, *found])

    @property
    def has_gold(self) -> bool:
        """True if there is a gold reward to measure responses with."""
        return not isinstance(self.gold, Unscored)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The ids that the model starts a response to this prompt from."""
        return prompt_ids(prompt, self.reference.tokenizer)

    @cached_property
    def sampling(self) -> Sampling:
        """Temperature, top-k and top-p of candidates, rollouts and evaluation."""
        settings = self.config.sampling
        return Sampling(settings.temperature, settings.top_k, settings.top_p)

    @cached_property
    def limits(self) -> Limits:
        """Length limits and suppressed tokens, the same as the environment's."""
        return Limits.of(self.reference.tokenizer, self.task.min_new_tokens, self.task.max_new_tokens)

    def seed(self, round_number: int, stage: str) -> int:
        """The seed of one stage, derived from the run's seed, the round and the stage: their random streams are independent.

        Args:
            round_number: the round, from 1; 0 for a seed that is the same in every round.
            stage: one of :data:`~rlhf_gym.loop.run_directory.STAGES`.
        """
        key = (self.config.run.seed, round_number, STAGES.index(stage))
        return int(np.random.SeedSequence(key).generate_state(1)[0])

    def policy(self, round_number: int) -> LanguageModel:
        """The language model at the end of a round; that of round 0 is the reference.

        Raises:
            ModelError: the policy of that round is missing.
        """
        if round_number == 0:
            return self.reference
        return load_policy(self.config, self.run, round_number, like=self.reference)

    def save_reward_state(self, round_number: int) -> None:
        """Write the states that the gold reward and the task's metrics have after a round's training; no file without any."""
        if states := reward_state(self._scored_by):
            write_json(self.run.round(round_number) / REWARD_STATE, states)

    def restore_reward_state(self, round_number: int) -> None:
        """Set the rewards to their states after a round's training, whatever this process has scored.

        Raises:
            ConfigError: the states are another reward's.
        """
        if round_number and (states := read_json(self.run.round(round_number) / REWARD_STATE)):
            restore_reward(self._scored_by, states)

    @property
    def _scored_by(self) -> SimpleNamespace:
        """The rewards that live as long as the run; a reward model has no state."""
        return SimpleNamespace(parts=(self.gold, *self.task.metrics.values()))

    def proxy(self, round_number: int) -> Reward:
        """The reward that the agent is trained against in a round: its reward model, or the gold reward without one."""
        if not self.config.reward_model.enabled:
            return self.gold
        device, tokenizer = str(self.reference.device), self.reference.tokenizer
        return together(
            self.config.reward_model, self.run.reward_model(round_number),
            lambda folder: RewardModel.load(folder, device=device, tokenizer=tokenizer),
        )  # fmt: skip


def _gold(config: Config, task: Task) -> Reward:
    """The gold reward; one that refuses to score where the task ``data`` is given none.

    Raises:
        ConfigError: something is to be measured, and there is no reward.
    """
    if config.task.name != DATA_TASK or config.task.reward is not None:
        return gold_of(config.task, task)
    if config.reward_model.enabled:
        raise ConfigError(
            "task data has no reward for a rater to prefer by: give --reward, or reward_model.enabled=false"
        )
    if config.evaluation.every is not None:
        raise ConfigError(
            "task data has no reward to measure by during training: give --reward, or leave out evaluation.every"
        )
    return Unscored()


def load_reference(config: Config) -> LanguageModel:
    """Load the language model as it was given, frozen.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        ConfigError: the model does not go with a reward model or with an adapter that are asked for.
    """
    settings = config.model
    lora = Lora.of(settings.lora) if settings.lora else None
    if lora is not None:
        require_peft()
    reference = _load_frozen(settings, settings.name, revision=settings.revision)
    if reference.encoder_decoder and config.reward_model.enabled:
        raise ConfigError(
            f"{settings.name!r} is an encoder-decoder model, on which no reward model is fitted here: train it against the "
            "task's reward, with reward_model.enabled=false (and --reward ... for another one)"
        )
    if lora is not None:
        target_layers(reference, lora.targets)
    return reference


def load_teacher(config: Config, reference: LanguageModel) -> LanguageModel | None:
    """Load the teacher of on-policy distillation, frozen; None where the configuration names none.

    Args:
        config: the run's configuration.
        reference: the model to train, as it was given.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        ConfigError: it has another vocabulary than the model to train.
    """
    name = config.agent.teacher
    if name is None:
        return None
    teacher = _load_frozen(config.model, name)
    check_vocabulary(reference, teacher, "teacher")
    return teacher


def _load_frozen(settings: ModelConfig, name: str, *, revision: str | None = None) -> LanguageModel:
    return LanguageModel.load(
        name, device=settings.device, dtype=settings.dtype, quantization=settings.quantization, revision=revision,
        trust_remote_code=settings.trust_remote_code, allow_pickle=settings.allow_pickle,
        chat_template=settings.chat_template,
    ).frozen_copy()  # fmt: skip


def load_policy(config: Config, run: RunDirectory, round_number: int, like: LanguageModel) -> LanguageModel:
    """Load the policy that a round has tuned.

    Args:
        config: the run's configuration.
        run: the run's directory.
        round_number: the round, from 1.
        like: the reference, whose device and tokenizer the policy gets.

    Raises:
        ModelError: the policy of that round is missing.
    """
    folder = run.policy(round_number)
    if not folder.is_dir():
        raise ModelError(f"the policy of round {round_number} is missing: expected {folder}")
    if config.model.quantization is not None:  # the folder's weights are whole, and would take eight times the memory
        return load_adapter(like, run.adapter(round_number))
    return LanguageModel.load(
        str(folder), device=str(like.device), dtype=config.model.dtype, tokenizer=like.tokenizer,
        trust_remote_code=config.model.trust_remote_code,
    )  # fmt: skip


def given_argument(config: AgentConfig) -> str | None:
    """The argument of an agent that learns from given responses, such as SFT's ``data``; None for one that generates."""
    names = find_agent(config.name).Settings.names()
    return next((name for name in GIVEN if name in names), None)
