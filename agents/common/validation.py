"""Evaluation while an agent learns: validation prompts every few iterations, the best checkpoint, an early end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.agents.common.callbacks import IterationCallback
from rlhf_gym.agents.common.slots import reward_of, rules_of
from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.lm.sampling import Sampling
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import score
from rlhf_gym.rewards.token_values import IDS, wants_token_ids
from rlhf_gym.tasks.prompt_ids import prompt_ids
from rlhf_gym.tasks.samples import Prompt, columns_of
from rlhf_gym.text import distinct_2


class Validation(IterationCallback):
    """Answers validation prompts every few iterations, logs the metrics, and keeps the best checkpoint.

    Every prompt is answered once, with the same random numbers each time and none of training's: with it, an agent learns what
    it learns without it. Logged with the iteration's other metrics: ``validation/scores`` and its standard error
    ``validation/scores_se``, the mean of each of the reward's terms as ``validation/TERM``, ``validation/kl`` (nats per
    response, from the reference's own distribution, where the agent holds a reference), ``validation/response_length``,
    ``validation/ended_rate``, ``validation/distinct_2``, and ``validation/skipped``, prompts whose reward failed and may be
    skipped.

    Args:
        prompts: prompts that are neither trained on nor those of a final test.
        reward: scores the responses; None takes that of the agent's environment.
        every: iterations from one evaluation to the next.
        metric: the metric to choose by, without ``validation/``.
        best: the file that gets the checkpoint of the highest ``metric`` so far; None keeps none.
        history: a file of JSON lines that gets the metrics of each evaluation; one that is there is gone on with.
        stop_at: training ends once ``metric`` has reached this.
        patience: training ends once so many evaluations in a row were not better than the best; None never ends it.
        greedy: take the most probable tokens instead of sampling as in training.
        batch_size: responses generated at once.
        seed: of the responses.

    Attributes:
        evaluations: the metrics of each evaluation, with its ``iteration``.

    Raises:
        ConfigError: no prompts, or a number below 1.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt | str],
        *,
        reward: Callable[..., Any] | None = None,
        every: int = 10,
        metric: str = "scores",
        best: str | os.PathLike[str] | None = None,
        history: str | os.PathLike[str] | None = None,
        stop_at: float | None = None,
        patience: int | None = None,
        greedy: bool = False,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not prompts:
            raise ConfigError("Validation needs at least one prompt that is not trained on")
        if every < 1 or batch_size < 1 or (patience is not None and patience < 1):
            raise ConfigError(
                f"every, patience and batch_size must be at least 1, got {every}, {patience} and {batch_size}"
            )
        self.prompts = [Prompt(p) if isinstance(p, str) else p for p in prompts]
        self.reward, self.every, self.metric, self.stop_at, self.patience = reward, every, metric, stop_at, patience
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
        if self.metric not in metrics:
            raise ConfigError(f"there is no validation metric {self.metric!r}; there are {', '.join(metrics)}")
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
        policy = agent.policy
        model, reference = policy.language_model, agent.reference
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
        values = scored.values[kept]
        metrics = {name: float(term[kept].mean()) for name, term in scored.terms.items()}
        metrics |= {
            "scores": float(values.mean()),
            "scores_se": float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan,
            "response_length": float(np.mean([len(answer) for answer in answers])),
            "ended_rate": float(np.mean([g.ended for g in generations])),
            "distinct_2": distinct_2(responses),
            "skipped": float((~kept).sum()),
        }
        if reference is not None:  # an agent that does not use one has none in memory
            ours, theirs = (
                response_log_probs(one, ids, answers, sampling, policy.limits, tokens_per_batch=agent.tokens_per_batch)
                for one, sampling in ((model, agent.sampling), (reference, Sampling(agent.sampling.temperature)))
            )
            metrics["kl"] = float(np.mean([float((a - b).double().sum()) for a, b in zip(ours, theirs, strict=True)]))
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def _write_history(self) -> None:
        if self.history is None:
            return
        self.history.parent.mkdir(parents=True, exist_ok=True)
        partial = self.history.with_name(f".{self.history.name}.tmp")
        partial.write_text("".join(json.dumps(one) + "\n" for one in self.evaluations), encoding="utf-8")
        os.replace(partial, self.history)
