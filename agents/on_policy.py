"""What every on-policy agent over tokens shares when it learns: the reference, minibatches, guards, figures.

A new algorithm is an advantage estimator and a loss: subclass :class:`TokenOnPolicyAlgorithm` and write
:meth:`~TokenOnPolicyAlgorithm.prepare` and :meth:`~TokenOnPolicyAlgorithm.update`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rlhf_gym.agents.common.algorithm import TokenAlgorithm
from rlhf_gym.agents.common.metrics import check_finite, rollout_metrics
from rlhf_gym.agents.common.rollout import Episode, Rollout, flat, pad, unpack_masks
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import token_log_probs
from rlhf_gym.lm.sequences import (
    SequenceBatch,
    batches_by_length,
    pack_sequences,
    response_positions,
)


class TokenOnPolicyAlgorithm(TokenAlgorithm):
    """Base of the on-policy agents. See :class:`~rlhf_gym.agents.ppo.PPO` for the arguments."""

    def train(self) -> None:
        """Learn from the rollout: prepare advantages, then epochs of minibatches of whole sequences."""
        self._update_learning_rate(self.policy.optimizer)
        rollout = self.rollout
        assert rollout is not None
        where = f"iteration {self.iteration + 1}, rollout"
        started = time.perf_counter()
        check_finite(
            {
                "the environment's rewards are": rollout.rewards,
                "log-probabilities are": rollout.log_probs,
                "values are": rollout.values,
                "the reference's log-probabilities are": rollout.reference_log_probs,
            },
            where,
        )
        self.prepare(rollout)
        check_finite({"advantages are": rollout.advantages, "returns are": rollout.returns}, where)
        self._statistics: dict[str, list[float]] = {}
        for epoch in range(self.n_epochs):
            minibatches = enumerate(rollout.minibatches(self.batch_size, self._update_rng))
            self._where = f"iteration {self.iteration + 1}, epoch {epoch + 1}"
            if not all(self._learn_from(rollout, index, rows) for index, rows in minibatches):
                break
            self._n_updates += 1  # SB3 counts epochs
        self.policy.forget()
        self.after_learning(rollout)
        self._seconds["learning"] = time.perf_counter() - started
        self.finish(rollout)

    def finish(self, rollout: Rollout) -> None:
        """Count the iteration, and hand its figures to the logger."""
        self.iteration += 1
        self._rollout_start = None
        self._log(rollout)

    def _learn_from(self, rollout: Rollout, index: int, rows: list[int]) -> bool:
        self.where = f"{self._where}, minibatch {index + 1}"
        return self.update(rollout, rows)

    def after_learning(self, rollout: Rollout) -> None:
        """Adapt what adapts from rollout to rollout; nothing by default."""

    @abstractmethod
    def prepare(self, rollout: Rollout) -> None:
        """Fill ``rollout.advantages`` (and ``returns``) from its rewards and log-probabilities."""

    @abstractmethod
    def update(self, rollout: Rollout, rows: list[int]) -> bool:
        """Take one optimizer step on a minibatch of sequences; False ends learning from this rollout."""

    def complete(self, rollout: Rollout) -> None:
        """Fill in the reference's log-probabilities, and the values where they come from a network of their own."""
        self._fill_reference(rollout)
        if self.policy.value_trunk is not None:
            self._fill_separate_values(rollout)

    def _fill_reference(self, rollout: Rollout) -> None:
        rollout.reference_log_probs = self.teacher_forced(rollout, self.reference)

    def teacher_forced(self, rollout: Rollout, model: LanguageModel) -> Tensor:
        """A model's log-probabilities of the rollout's tokens, ``[B, R]``, under the same sampling, limits and masks."""
        logs: list[Tensor] = [torch.zeros(0)] * len(rollout.episodes)
        with torch.no_grad():
            for rows in batches_by_length(rollout.totals, self.tokens_per_batch):
                values, _ = self._chosen(model, [rollout.episodes[i] for i in rows])
                for i, row in zip(rows, torch.split(values, [rollout.lengths[i] for i in rows]), strict=True):
                    logs[i] = row.cpu()
        return pad(rollout.mask, logs)

    def _fill_separate_values(self, rollout: Rollout) -> None:
        assert self.policy.value_trunk is not None
        values: list[Tensor] = [torch.zeros(0)] * len(rollout.episodes)
        with torch.no_grad():
            for rows in batches_by_length(rollout.totals, self.tokens_per_batch):
                episodes = [rollout.episodes[i] for i in rows]
                flat_values = self.policy.values(self.policy.value_trunk.response_states(self._pack(episodes)))
                for i, row in zip(rows, torch.split(flat_values, [rollout.lengths[i] for i in rows]), strict=True):
                    values[i] = row.cpu()
        rollout.values = pad(rollout.mask, values)

    def _pack(self, episodes: list[Episode]) -> SequenceBatch:
        pad_id = self.policy.language_model.tokenizer.pad_id
        prompts, responses = [e.prompt_ids for e in episodes], [e.response_ids for e in episodes]
        return pack_sequences(prompts, responses, pad_id, device=self.device)

    def _chosen(
        self, model: LanguageModel, episodes: list[Episode], *, entropy: bool = False, hidden: Tensor | None = None,
        batch: SequenceBatch | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        batch = self._pack(episodes) if batch is None else batch
        hidden = model.response_states(batch) if hidden is None else hidden
        allowed = unpack_masks(episodes, model.vocab_size)
        return token_log_probs(
            model, hidden, batch.responses[batch.response_mask], response_positions(batch), self.sampling,
            self.policy.limits, allowed=None if allowed is None else allowed.to(self.device), entropy=entropy,
        )  # fmt: skip

    def forward_minibatch(
        self, rollout: Rollout, rows: list[int], *, entropy: bool = False
    ) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor | None]]:
        """Run a minibatch through the policy in micro-batches of like length.

        Args:
            rollout: the episodes.
            rows: the minibatch's.
            entropy: compute entropies exactly, at the price of a pass over the vocabulary; else the samples' estimate,
                which has no gradient.

        Yields:
            The micro-batch's rows, and flat over its response tokens: new log-probabilities, entropies, and values (None
            without a value head).
        """
        for group in batches_by_length([rollout.totals[i] for i in rows], self.tokens_per_batch):
            micro = [rows[g] for g in group]
            episodes = [rollout.episodes[i] for i in micro]
            batch = self._pack(episodes)
            hidden = self.policy.language_model.response_states(batch)
            logs, entropies = self._chosen(
                self.policy.language_model, episodes, entropy=entropy, hidden=hidden, batch=batch
            )
            values = None
            if self.policy.value_trunk is not None:
                values = self.policy.values(self.policy.value_trunk.response_states(batch))
            elif self.policy.value_head is not None:
                values = self.policy.values(hidden)
            yield micro, logs, -logs.detach() if entropies is None else entropies, values

    def step_optimizer(self) -> None:
        """Clip the gradient, refuse one that is not finite, and step."""
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        check_finite({"the gradient is": norm}, self.where)
        self.policy.optimizer.step()
        self.policy.optimizer.zero_grad(set_to_none=True)
        self.note(**{"train/grad_norm": norm})

    def note(self, **statistics: Tensor | float) -> None:
        """Keep figures of a minibatch; the iteration's mean is logged under each name."""
        for name, value in statistics.items():
            self._statistics.setdefault(name, []).append(float(value))

    def _log(self, rollout: Rollout) -> None:
        """Hand the iteration's figures to stable-baselines3's logger, under the names of the field's dashboards."""
        log = self.logger.record
        for name, value in rollout_metrics(rollout, self.policy.limits.eos_id).items():
            log(name, value)
        for name, values in self._statistics.items():
            log(name, float(np.mean(values)))
        if ratios := self._statistics.get("val/ratio"):
            log("val/ratio_var", float(np.var(ratios, ddof=1)) if len(ratios) > 1 else 0.0)
        log("episode", self.episode_count)
        log("lr", self.policy.optimizer.param_groups[0]["lr"])
        log("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, seconds in self._seconds.items():
            log(f"time/{name}_seconds", seconds)
        if self._scoring_seconds is not None and (share := self.reward_share) is not None:
            log("time/scoring_seconds", self._scoring_seconds)
            log("time/reward_share", share)
        log("time/tokens_per_second", sum(rollout.lengths) / sum(self._seconds.values()))

    def flat(self, table: Tensor, rows: list[int]) -> Tensor:
        """A rollout table's entries at the response tokens of some rows, on the policy's device: ``[N]``."""
        assert self.rollout is not None
        return flat(table, rows, self.rollout.mask).to(self.device)
