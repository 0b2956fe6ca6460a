"""Evaluation while an agent learns: validation prompts every few iterations, the best checkpoint, an early end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.agents.common.callbacks import IterationCallback
from rlhf_gym.agents.common.collect_turns import collect_conversations
from rlhf_gym.agents.common.forward import fill_reference
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.slots import reward_of, rules_of
from rlhf_gym.envs.text_vec_env import TextVecEnv
from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.response_kl import response_log_ratios
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import Scores, score
from rlhf_gym.rewards.token_values import IDS, wants_token_ids
from rlhf_gym.tasks.prompt_ids import prompt_ids
from rlhf_gym.tasks.samples import Prompt, columns_of
from rlhf_gym.text import distinct_2


class Validation(IterationCallback):
    """Answers validation prompts every few iterations, logs the metrics, and keeps the best checkpoint.

    Every prompt is answered once, with the same random numbers each time and none of training's: with it, an agent learns what
    it learns without it. With ``env``, conversations are played in the place of prompts. Logged with the iteration's other
    metrics: ``validation/scores`` and its standard error ``validation/scores_se``, the mean of each of the reward's terms as
    ``validation/TERM``, ``validation/kl`` (nats per response, from the reference's own distribution, where the agent holds a
    reference), ``validation/response_length``, ``validation/ended_rate``, ``validation/distinct_2``, of conversations
    ``validation/turns`` (the policy's), and ``validation/skipped``, those whose reward failed and may be skipped.

    Args:
        prompts: prompts that are neither trained on nor those of a final test.
        reward: scores the responses; None takes that of the agent's environment.
        env: conversations (:func:`~rlhf_gym.envs.wrap_text_env`) other than the agent's own; they are scored as it says.
        episodes: with ``env``: conversations to play, a multiple of its number of environments.
        every: iterations from one evaluation to the next.
        metric: the metric to choose by, without ``validation/``.
        best: the file that gets the checkpoint of the highest ``metric`` so far; None keeps none.
        history: a file of JSON lines that gets the metrics of each evaluation; one that is there is gone on with.
        stop_at: training ends once ``metric`` has reached this.
        patience: training ends once so many evaluations in a row were not better than the best; None never ends it.
        stop_above: training ends once one of these metrics (without ``validation/``) exceeds its value, e.g. ``{"kl": 20.0}``.
        measure: further metrics of the responses to the prompts, in order; called at each evaluation.
        greedy: take the most probable tokens instead of sampling as in training.
        batch_size: responses generated at once.
        seed: of the responses.

    Attributes:
        evaluations: the metrics of each evaluation, with its ``iteration``.

    Raises:
        ConfigError: neither prompts nor an environment, or both; a number below 1; settings that conversations do not have.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt | str] = (),
        *,
        reward: Callable[..., Any] | None = None,
        env: TextVecEnv | None = None,
        episodes: int = 64,
        every: int = 10,
        metric: str = "scores",
        best: str | os.PathLike[str] | None = None,
        history: str | os.PathLike[str] | None = None,
        stop_at: float | None = None,
        patience: int | None = None,
        stop_above: Mapping[str, float] | None = None,
        measure: Callable[[Sequence[str]], Mapping[str, float]] | None = None,
        greedy: bool = False,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not prompts and env is None:
            raise ConfigError("Validation needs at least one prompt that is not trained on, or an env of conversations")
        if env is not None and (prompts or reward is not None or greedy):
            raise ConfigError(
                "Validation(env=...) plays conversations, which need no prompts, are scored by the environment "
                "(wrap_text_env(reward=...)) and are sampled: leave prompts, reward and greedy out"
            )
        if env is not None and (episodes < 1 or episodes % env.num_envs):
            raise ConfigError(f"episodes ({episodes}) must be a multiple of the env's num_envs ({env.num_envs})")
        if every < 1 or batch_size < 1 or (patience is not None and patience < 1):
            raise ConfigError(
                f"every, patience and batch_size must be at least 1, got {every}, {patience} and {batch_size}"
            )
        self.prompts = [Prompt(p) if isinstance(p, str) else p for p in prompts]
        self.env, self.episodes = env, episodes
        self.reward, self.every, self.metric, self.stop_at, self.patience = reward, every, metric, stop_at, patience
        self.stop_above, self.measure = dict(stop_above or {}), measure
        self.best = None if best is None else Path(best)
        self.history = None if history is None else Path(history)
        self.greedy, self.batch_size, self.seed = greedy, batch_size, seed
        self.evaluations: list[dict[str, float]] = []

    def _on_training_start(self) -> None:
        agent: Any = self.model
        self.go_on_after(agent.iteration)

    def go_on_after(self, iteration: int) -> None:
        """Drop evaluations of later iterations: a killed process may have left some, which are made again."""
        if self.history is not None and self.history.exists():
            self.evaluations = [json.loads(line) for line in self.history.read_text(encoding="utf-8").splitlines()]
        self.evaluations = [one for one in self.evaluations if one["iteration"] <= iteration]
        self._write_history()

    def before_logging(self, agent: Any) -> None:
        """Evaluate if it is due, and log the metrics.

        Args:
            agent: the agent that learns.

        Raises:
            RewardError: the reward failed on every prompt.
            ConfigError: there is no such metric as ``metric``.
        """
        if agent.iteration % self.every:
            return
        metrics = self.evaluate(agent)
        for name in (self.metric, *self.stop_above):
            # The fresh labels of one evaluation may all be skipped: then there is nothing to stop by.
            if name not in metrics and not (name.startswith("label_") and self.measure is not None):
                raise ConfigError(f"there is no validation metric {name!r}; there are {', '.join(metrics)}")
        for name, value in metrics.items():
            agent.logger.record(f"validation/{name}", value)
        before = self.best_evaluation
        self.evaluations.append({"iteration": agent.iteration, **metrics})
        is_best = before is None or metrics[self.metric] > before[self.metric]
        if is_best and self.best is not None:
            agent.save(self.best)
        self._write_history()
        if agent.stopped is None:
            agent.stopped = self._reason_to_stop(agent.iteration)

    @property
    def best_evaluation(self) -> dict[str, float] | None:
        """The evaluation with the highest ``metric``, the first of equal ones; None before the first."""
        return max(self.evaluations, key=lambda one: one[self.metric], default=None)

    def _reason_to_stop(self, iteration: int) -> str | None:
        best, last = self.best_evaluation, self.evaluations[-1]
        assert best is not None
        if self.stop_at is not None and last[self.metric] >= self.stop_at:
            return (
                f"iteration {iteration}: validation/{self.metric} is {last[self.metric]:.4g}, which reaches "
                f"{self.stop_at:g}; training ends"
            )
        for name, limit in self.stop_above.items():
            if last.get(name, -math.inf) > limit:
                return (
                    f"iteration {iteration}: validation/{name} is {last[name]:.4g}, above {limit:g} (stop_above); "
                    "training ends"
                )
        since = len(self.evaluations) - 1 - self.evaluations.index(best)
        if self.patience is not None and since >= self.patience:
            return (
                f"iteration {iteration}: validation/{self.metric} has not been better than {best[self.metric]:.4g} of "
                f"iteration {best['iteration']} in {since} evaluations; training ends"
            )
        return None

    def evaluate(self, agent: Any) -> dict[str, float]:
        """The metrics of the agent's policy as it is, but for those that are NaN, such as the standard error of one score.

        Args:
            agent: the agent.

        Raises:
            RewardError: the reward failed on every prompt.
        """
        if self.env is not None:
            return self._played(agent, self.env)
        policy = agent.policy
        model, reference = policy.acting_model, agent.reference
        ids = [prompt_ids(p, model.tokenizer) for p in self.prompts]
        rules = rules_of(agent.get_env())
        reward = self.reward or reward_of(agent.get_env())
        if reward is None:
            raise ConfigError(
                "the agent's environment has no reward of its own to validate with: Validation(reward=...)"
            )
        generations = generate(
            model, ids, policy.limits, sampling=agent.sampling, seed=self.seed, greedy=self.greedy,
            stop=rules.stop if rules else (), batch_size=self.batch_size,
        )  # fmt: skip
        texts, responses = [p.text for p in self.prompts], [g.text for g in generations]
        answers, columns = [g.ids for g in generations], columns_of(self.prompts)
        if wants_token_ids(reward):
            columns[IDS] = answers
        with frozen(reward):
            scored = score(reward, texts, responses, columns, may_skip=True)
        kept = scored.kept
        if not kept.any():
            raise RewardError(f"the reward failed on every one of the {len(texts)} validation prompts")
        metrics = {name: float(term[kept].mean()) for name, term in scored.terms.items()}
        metrics |= _of_scores(scored.values[kept])
        metrics |= {
            "response_length": float(np.mean([len(answer) for answer in answers])),
            "ended_rate": float(np.mean([g.ended for g in generations])),
            "distinct_2": distinct_2(responses),
            "skipped": float((~kept).sum()),
        }
        if reference is not None:  # an agent that does not use one has none in memory
            kls = response_log_ratios(
                model, reference, ids, answers, agent.sampling, policy.limits, tokens_per_batch=agent.tokens_per_batch
            )
            metrics["kl"] = float(kls.mean())
        if self.measure is not None:
            metrics |= self.measure(responses)
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def _played(self, agent: Any, env: TextVecEnv) -> dict[str, float]:
        """The metrics of conversations, each with a seed of its own that is the same every time."""
        with frozen(env.reward):
            per_slot = self.episodes // env.num_envs
            rollout = Rollout.of(collect_conversations(env, agent.policy, self.seed, 0, per_slot))
        kept = [episode for episode in rollout.episodes if not episode.skipped]
        if not kept:
            raise RewardError(f"the reward failed in every one of the {self.episodes} validation conversations")
        names = dict.fromkeys(name for episode in kept for name in episode.info.get("reward_terms", {}))
        metrics = {
            name: float(np.mean([episode.info["reward_terms"].get(name, 0.0) for episode in kept])) for name in names
        }
        metrics |= _of_scores(np.array([episode.score for episode in kept]))
        metrics |= {
            "response_length": float(np.mean(rollout.lengths)),
            "ended_rate": float(np.mean([episode.ended for episode in rollout.episodes])),
            "turns": float(np.mean([len(episode.turns) for episode in rollout.episodes])),
            "distinct_2": distinct_2([str(episode.info["response"]) for episode in rollout.episodes]),
            "skipped": float(self.episodes - len(kept)),
        }
        if agent.reference is not None:
            fill_reference(agent.policy, agent.reference, rollout, agent.tokens_per_batch)
            metrics["kl"] = float(rollout.kl.double().sum(1).mean())
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def _write_history(self) -> None:
        if self.history is None:
            return
        self.history.parent.mkdir(parents=True, exist_ok=True)
        partial = self.history.with_name(f".{self.history.name}.tmp")
        partial.write_text("".join(json.dumps(one) + "\n" for one in self.evaluations), encoding="utf-8")
        os.replace(partial, self.history)


def _of_scores(values: Scores) -> dict[str, float]:
    """The mean of scores ``[n]`` and its standard error, NaN for one score."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return {"scores": float(values.mean()), "scores_se": error}
