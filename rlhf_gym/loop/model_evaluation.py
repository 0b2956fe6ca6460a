"""The evaluation of a model by itself: mean reward, pass@k, and the win rate against another model, each with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.agents.common.collect_turns import collect_conversations
from rlhf_gym.envs.talk_scoring import EnvironmentReward, Played, score_conversations
from rlhf_gym.envs.text_vec_env import make_conversation_env
from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback.exchange.transcripts import read_turns
from rlhf_gym.lm.decoding import Generation, generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.loop.compared_answers import Comparison, ScoredAnswers, scored
from rlhf_gym.loop.config import RaterConfig, TaskConfig
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.context import given_argument
from rlhf_gym.loop.conversations import talking_policy
from rlhf_gym.loop.given_data import DATA_TASK, data_task
from rlhf_gym.loop.intervals import standard_error, wilson_interval
from rlhf_gym.loop.rater_catalogue import PEOPLE, check_rater
from rlhf_gym.loop.read_given import read_given
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.run_task import gold_of, task_of
from rlhf_gym.rewards import load_reward
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import TermReward, as_term, reward_name
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.prompt_files import prompts_from_file
from rlhf_gym.tasks.prompt_ids import prompt_ids
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.too_long import OnTooLong, TooLong, check_conversation_fits, fit_task
from rlhf_gym.text import distinct_2

BATCH = 64
"""Responses generated at once."""


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """What to measure.

    Attributes:
        task: the task; None takes the run's own, and ``sentiment`` for a model.
        prompts: file of prompts, all of which are used; None takes the task's held-out prompts.
        reward: what measures responses; None takes the task's own.
        number: responses to each prompt.
        pass_at: the values of k, each at most ``number``.
        threshold: the reward from which on a response passes.
        against: the other model, or a run; None compares with nothing.
        rater: who compares the two; None compares rewards.
        limit: prompts, at most.
        max_new_tokens: longest response; None takes the task's.
        temperature: None takes the run's, or 1.
        seed: seed of the responses, the same for both models.
        device: device of the models.
        on_too_long: what is done with prompts that exceed the model's context; None takes the run's, or refuses them.
    """

    task: str | None = None
    prompts: str | None = None
    reward: str | None = None
    number: int = 1
    pass_at: tuple[int, ...] = ()
    threshold: float = 1.0
    against: str | None = None
    rater: str | None = None
    limit: int = 200
    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int = 0
    device: str = "auto"
    on_too_long: OnTooLong | None = None

    def __post_init__(self) -> None:
        for name, low in (("number", 1), ("limit", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if wrong := [k for k in self.pass_at if not 1 <= k <= self.number]:
            raise ConfigError(
                f"pass@{wrong[0]} cannot be estimated from {self.number} responses: k must lie in 1..number (-n)"
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"the longest response (--tokens) must be at least 1, got {self.max_new_tokens}")
        if self.rater is not None and self.against is None:
            raise ConfigError(f"the rater {self.rater!r} compares two models: give the other one, --against")
        if self.rater in PEOPLE:
            raise ConfigError(
                f"{self.rater} is people, whom `rlhf-gym label` asks; --rater takes a judge, a function or a preset"
            )


@dataclass(frozen=True)
class Measured:
    """A mean with its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def mean(cls, values: NDArray[np.float64]) -> Measured:
        """The mean of independent values ``[n]``, plus or minus 1.96 standard errors."""
        half = 1.96 * standard_error(values)
        return cls(float(values.mean()), float(values.mean() - half), float(values.mean() + half))

    @classmethod
    def share(cls, values: NDArray[np.float64]) -> Measured:
        """The mean of shares ``[n]`` in [0, 1], one for each prompt, with Wilson's interval.

        It is too wide rather than too narrow: the variance of shares is at most that of a coin.
        """
        return cls(float(values.mean()), *wilson_interval(float(values.sum()), len(values)))


@dataclass(frozen=True)
class ModelEvaluation:
    """A model's responses to a task's prompts, and what they are worth.

    Attributes:
        model: its name.
        task: the task's name.
        n_prompts: prompts that were measured.
        skipped: prompts left out because the reward failed on a response.
        number: responses to each prompt.
        reward: mean reward; None where the task has none.
        pass_at: pass@k by k.
        win_rate: against the other model, ties counted half; None where there is none.
        against: the other model's name; empty where there is none.
        ties: comparisons without a winner.
        length: mean response length, tokens.
        ended: share of responses that ended before the length limit.
        distinct_2: share of distinct word pairs among all.
        too_long: prompts that exceed the model's context, and what was done with them, in words.
        responses: a row for each prompt, with all responses and their rewards.
    """

    model: str
    task: str
    n_prompts: int
    skipped: int
    number: int
    reward: Measured | None
    pass_at: dict[int, Measured]
    win_rate: Measured | None
    against: str
    ties: int
    length: float
    ended: float
    distinct_2: float
    too_long: list[str]
    responses: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            f.name: vars(value) if isinstance(value := getattr(self, f.name), Measured) else value for f in fields(self)
        } | {"pass_at": {str(k): vars(value) for k, value in self.pass_at.items()}}

    def as_text(self) -> str:
        """The evaluation as plain text."""
        lines = [f"{self.model} on task {self.task}: {self.n_prompts} prompts, {self.number} responses to each"]
        lines += self.too_long
        if self.skipped:
            lines.append(f"{self.skipped} prompts left out: the reward failed there")
        if self.reward is not None:
            lines.append(
                f"reward           {self.reward.value:+.3f}  [{self.reward.low:+.3f}, {self.reward.high:+.3f}]"
            )
        lines += [f"{f'pass@{k}':<16} {_percent(value)}" for k, value in self.pass_at.items()]
        if self.win_rate is not None:
            lines.append(
                f"win rate         {_percent(self.win_rate)}  against {self.against}; {self.ties} ties count half"
            )
        lines += [
            f"length           {self.length:.1f} tokens, {self.ended:.1%} ended before the limit",
            f"distinct pairs   {self.distinct_2:.1%} of all word pairs",
            "[intervals: 95%, over prompts]",
        ]
        return "\n".join(lines)


def evaluate_model(model: str, settings: EvalSettings) -> ModelEvaluation:
    """Have a model respond to a task's prompts, and measure the responses.

    Args:
        model: a run's directory (its last policy), or a model's name or folder.
        settings: what to measure.

    Raises:
        ConfigError: there is no such task, reward, rater or run; or something that is asked for needs a reward.
        ModelError: there is no such model, or prompts are too long for it.
        RewardError: the reward fails on a response to every prompt.
    """
    config = _task_config(model, settings)
    policy = load_run_or_model(model, settings.device)
    task, too_long = _task(model, config, policy, settings)
    if task.conversation is not None:
        return _evaluate_conversations(model, policy, task, settings)
    gold = gold_of(config, task) if config.reward is not None or task.reward is not None else None
    needs = "pass@k" if settings.pass_at else "the win rate (without a --rater)"
    if gold is None and (settings.pass_at or (settings.against is not None and settings.rater is None)):
        raise ConfigError(f"{needs} needs a reward, and task {task.name!r} has none: give --reward")
    rater = _rater(settings)
    prompts = list(task.held_out[: settings.limit])
    ours, theirs = _responses(model, policy, prompts, task, settings), None
    if settings.against is not None:
        other = load_run_or_model(settings.against, settings.device)
        theirs = scored(gold, prompts, _responses(settings.against, other, prompts, task, settings))
    found = Comparison(prompts, scored(gold, prompts, ours), theirs, gold, rater)
    return _measured(model, task, settings, found, too_long)


def _measured(
    model: str, task: Task, settings: EvalSettings, found: Comparison, too_long: Sequence[TooLong]
) -> ModelEvaluation:
    """What responses and their rewards say of a model, and of it against another one."""
    kept, scores, wins = found.kept, found.ours.rewards, found.wins(settings.seed)
    passed = None if scores is None else (scores[kept] >= settings.threshold).sum(axis=1)
    every = [g for row in found.ours.responses for g in row]
    return ModelEvaluation(
        model=model, task=task.name, n_prompts=int(kept.sum()), skipped=int((~kept).sum()), number=settings.number,
        reward=None if scores is None else Measured.mean(scores[kept].mean(axis=1)),
        pass_at={} if passed is None else {
            k: Measured.share(np.array([pass_at_k(settings.number, int(c), k) for c in passed])) for k in settings.pass_at
        },
        win_rate=None if wins is None else Measured.share((1 + wins).mean(axis=1) / 2),
        against=settings.against or "", ties=0 if wins is None else int((wins == 0).sum()),
        length=float(np.mean([len(g.ids) for g in every])), ended=float(np.mean([g.ended for g in every])),
        distinct_2=distinct_2([_own_words(task, g.text) for g in every]), too_long=list(map(str, too_long)),
        responses=found.rows(),
    )  # fmt: skip


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The probability that one of ``k`` responses is right, without bias: ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021).

    Args:
        n: responses that were generated.
        correct: those that were right.
        k: responses to draw, at most ``n``.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def load_run_or_model(name: str, device: str = "auto") -> LanguageModel:
    """Load the last policy of a run, or a model.

    Args:
        name: a run's directory, or a model's name or folder.
        device: device of the weights.

    Raises:
        ConfigError: no round of the run is trained yet.
        ModelError: there is no such model.
    """
    run = RunDirectory(name)
    if not run.config_file.exists():
        return LanguageModel.load(name, device=device)
    config, rounds = run.config(), run.finished_rounds()
    if not rounds:
        raise ConfigError(f"no round of {name} is trained yet")
    return LanguageModel.load(
        str(run.policy(rounds[-1])), device=device, dtype=config.model.dtype,
        trust_remote_code=config.model.trust_remote_code,
    )  # fmt: skip


def _task_config(model: str, settings: EvalSettings) -> TaskConfig:
    run = RunDirectory(model)
    config = build({}).task
    if run.config_file.exists():
        own = run.config().task
        if settings.task is None and (own.name != DATA_TASK or settings.prompts is None):
            config = own
    if settings.task is not None:
        config = replace(build({}).task, name=settings.task)
    if settings.reward is not None:
        config = replace(config, reward=settings.reward)
    if settings.on_too_long is not None:
        config = replace(config, on_too_long=settings.on_too_long)
    return config if settings.max_new_tokens is None else replace(config, max_new_tokens=settings.max_new_tokens)


def _task(name: str, config: TaskConfig, model: LanguageModel, settings: EvalSettings) -> tuple[Task, list[TooLong]]:
    """The task, whose held-out prompts leave room for a response; of a run on data, the prompts that it held out."""
    if config.name == DATA_TASK:
        agent = RunDirectory(name).config().agent
        argument = given_argument(agent)
        assert argument is not None
        task, _, found = data_task(config, read_given(agent, argument, config.held_out_fraction), model)
    else:
        task = task_of(config)
        held_out = task.held_out if settings.prompts is None else prompts_from_file(settings.prompts)
        task, found = fit_task(replace(task, prompts=held_out, held_out=()), model, config.on_too_long)
        return replace(task, held_out=task.prompts), found
    return task, [one for one in found if one.what.startswith("held-out")]


def _responses(
    name: str, model: LanguageModel, prompts: Sequence[Prompt], task: Task, settings: EvalSettings
) -> list[list[Generation]]:
    """The responses to each prompt; both models draw with the same random numbers."""
    sampling = _sampling(name, settings)
    limits = Limits.of(model.tokenizer, task.min_new_tokens, task.max_new_tokens)
    ids = [prompt_ids(p, model.tokenizer) for p in prompts]
    for one in ids:
        model.check_fits(len(one), task.max_new_tokens)
    repeated = [one for one in ids for _ in range(settings.number)]
    flat = generate(model, repeated, limits, sampling=sampling, stop=task.stop, seed=settings.seed, batch_size=BATCH)
    return [flat[i : i + settings.number] for i in range(0, len(flat), settings.number)]


def _sampling(name: str, settings: EvalSettings) -> Sampling:
    run = RunDirectory(name)
    if not run.config_file.exists():
        return Sampling(1.0 if settings.temperature is None else settings.temperature)
    own = run.config().sampling
    return Sampling(own.temperature if settings.temperature is None else settings.temperature, own.top_k, own.top_p)


def _rater(settings: EvalSettings) -> RaterConfig | None:
    if settings.rater is None:
        return None
    rater = RaterConfig(name=settings.rater, query_type="pair")
    check_rater(rater)
    return rater


def _evaluate_conversations(name: str, policy: LanguageModel, task: Task, settings: EvalSettings) -> ModelEvaluation:
    """Have a model play a task's conversations; the reward is what the environment pays in all, or one of whole conversations.

    Args:
        name: the model's name.
        policy: the model.
        task: a conversation.
        settings: what to measure; ``limit`` is the number of openings.

    Raises:
        ConfigError: prompts are given, which the environment has.
    """
    if settings.prompts is not None:
        raise ConfigError(f"task {task.name!r} is a conversation, whose environment gives prompts: leave --prompts out")
    rater = _rater(settings)
    reward = None if settings.reward is None else as_term(load_reward(settings.reward))
    prompts, ours = _played(name, policy, task, settings, reward)
    theirs = None
    if settings.against is not None:
        model = load_run_or_model(settings.against, settings.device)
        _, theirs = _played(settings.against, model, task, settings, reward)
    known = {
        (str(prompt.columns["opening"]), generation.text): float(value) if np.isfinite(value) else None
        for answers in (ours, theirs)
        if answers is not None and answers.rewards is not None
        for prompt, row, values in zip(prompts, answers.responses, answers.rewards, strict=True)
        for generation, value in zip(row, values, strict=True)
    }
    found = Comparison(
        prompts, ours, theirs, EnvironmentReward(known, None if reward is None else reward_name(reward)), rater
    )
    return _measured(name, task, settings, found, [])


def _played(
    name: str, model: LanguageModel, task: Task, settings: EvalSettings, reward: TermReward | None
) -> tuple[list[Prompt], ScoredAnswers]:
    """Openings, and the conversations from each with what the environment paid for them, or the reward."""
    number = settings.number
    slots = number * math.gcd(settings.limit, max(1, BATCH // number))
    talks = make_conversation_env(slots, task=task, tokenizer=model.tokenizer)
    check_conversation_fits(task, model)
    policy = talking_policy(talks, model, _sampling(name, settings))
    per_slot = settings.limit * number // slots
    episodes = collect_conversations(talks, policy, settings.seed, 0, per_slot, group_size=number)
    played = [Played.of(episode.info) for episode in episodes]
    flat = [
        Generation(ids=e.response_ids, log_probs=e.log_probs, values=[], ended=e.ended, text=one.response)
        for e, one in zip(episodes, played, strict=True)
    ]
    paid = np.array([math.nan if one.reward is None else one.reward for one in played])
    if reward is not None:
        with frozen(reward):
            scored, _ = score_conversations(reward, played)
        paid = np.where(scored.kept, scored.values, math.nan)
    openings = [
        replace(one.prompt, columns={**one.prompt.columns, "opening": str(i)}) for i, one in enumerate(played[::number])
    ]
    return openings, ScoredAnswers(
        [flat[i : i + number] for i in range(0, len(flat), number)], paid.reshape(-1, number)
    )


def _own_words(task: Task, text: str) -> str:
    """A response; of a conversation what the policy says in it."""
    if task.conversation is None:
        return text
    return "\n".join(m["content"] for m in read_turns(text) if m["role"] == "assistant")


def _percent(value: Measured) -> str:
    return f"{value.value:.1%}  [{value.low:.1%}, {value.high:.1%}]"
