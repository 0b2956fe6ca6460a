"""How every agent learns: an iteration, from rollout to metrics. What an agent is made of is in ``agent.py``."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Self, TypeVar

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents.common.advantages import shape_scores
from rlhf_gym.agents.common.agent import TokenAgent
from rlhf_gym.agents.common.callbacks import end_iteration, iteration_callbacks
from rlhf_gym.agents.common.collect import Scoring, SteppingCollector, kl_now
from rlhf_gym.agents.common.episode_source import Order
from rlhf_gym.agents.common.forward import fill_log_probs, fill_reference, fill_values
from rlhf_gym.agents.common.kl import kl_estimate, sequence_kl_loss, weighted_kl_estimate
from rlhf_gym.agents.common.losses import Clipped
from rlhf_gym.agents.common.metrics import (
    MINIBATCH_METRICS,
    PhaseSeconds,
    check_rollout,
    means,
    quantiles,
    ratio_metrics,
    response_kl,
    rollout_metrics,
)
from rlhf_gym.agents.common.minibatch import Terms, accumulate_gradient
from rlhf_gym.agents.common.mismatch import importance_weights, mismatch_metrics
from rlhf_gym.agents.common.optimizer_step import clipped_step
from rlhf_gym.agents.common.policy_losses import policy_loss
from rlhf_gym.agents.common.rollout import Episode, Rollout, flat
from rlhf_gym.agents.common.setup import timesteps_to_learn
from rlhf_gym.agents.common.shares import check_agreement, check_weights, fill_tables, finish_scores, sum_tables
from rlhf_gym.agents.common.slots import rules_of, slots_of
from rlhf_gym.agents.common.turn_credit import per_turn
from rlhf_gym.errors import ConfigError, NotFiniteError, TrainingStopped

T = TypeVar("T")
KL_AT_END = "objective/kl_at_end"


class TokenAlgorithm(TokenAgent):
    """Base of the agents: :meth:`iterate` is an iteration; a subclass defines :meth:`prepare` (advantages) and :meth:`losses`.

    Args:
        policy: as of :class:`~rlhf_gym.agents.common.agent.TokenAgent`, like the others.
        env: the environment.
        learning_rate: a setting.
        settings: the fields of the class's ``Settings``.
    """

    def learn(
        self,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        iterations: int | None = None,
    ) -> Self:
        """Train until at least ``total_timesteps`` response tokens have been generated; see stable-baselines3's ``learn``.

        Two things differ from SB3's loop. An iteration's metrics are written after it has learned, so that a row holds the
        metrics of one iteration, and the last iteration has a row. Schedules see the progress at the start of the rollout, so
        that the first iteration learns at the full rate, and none at a negative rate.

        Args:
            total_timesteps: response tokens; may be None with ``iterations``.
            callback: stable-baselines3's; an :class:`~rlhf_gym.agents.common.callbacks.IterationCallback` is called after every
                iteration, too.
            log_interval: iterations between two rows of the logger.
            tb_log_name: the run's name in TensorBoard.
            reset_num_timesteps: False goes on counting.
            progress_bar: show a progress bar.
            iterations: train until the agent has done this many iterations in all; progress is then counted in iterations.

        Raises:
            ConfigError: there is no environment, or timesteps and iterations are both missing or out of range.
            TrainingError: a loss, a gradient or a reward is NaN or infinite.
        """
        if self.env is None:
            raise ConfigError("there is no environment to learn in: set_env(env), or load(path, env=env)")
        if rules_of(self.env) is None:
            self._last_obs = None  # nobody knows who has moved it since: SB3 resets it
        if not self.ranks.is_main:  # rank 0 writes, and calls the callbacks
            callback, progress_bar = None, False
            self.set_logger(Logger(None, []))
        total_timesteps, hook = self._setup_learn(
            timesteps_to_learn(
                total_timesteps, iterations, done=self.iteration,
                most_per_iteration=self.n_episodes * self.policy.limits.max_new_tokens,
            ),
            callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar,
        )  # fmt: skip
        plan = {
            "the number of environments": self.n_envs,
            "iterations done": self.iteration,
            "timesteps": total_timesteps,
        }
        check_agreement(self.ranks, self.policy, self.settings, plan | {"iterations": iterations})
        self._shard_weights()
        started = dict(locals())
        self._lead(lambda: hook.on_training_start(started, globals()))
        self.stopped, rows = None, 0
        while (progress := self._progress(total_timesteps, iterations)) < 1:
            self._current_progress_remaining = 1 - progress
            try:
                goes_on = self.iterate(hook)
            except NotFiniteError as error:
                self._lead(partial(self._tell_divergence, hook, error))
                raise
            if not goes_on:
                break
            if self._progress(total_timesteps, iterations) >= 1:
                self._check_last_update()
            rows += 1
            write = log_interval is not None and rows % log_interval == 0
            goes_on, self.stopped = self._lead(partial(self._report, hook, write))
            if self.stopped is not None:
                warnings.warn(self.stopped, TrainingStopped, stacklevel=2)
            if self.stopped is not None or not goes_on:
                break
        if self._check_last_update():  # a callback has ended training
            warnings.warn(str(self.stopped), TrainingStopped, stacklevel=2)
        # The KL at the end is measured after the last row was written.
        if log_interval is not None and KL_AT_END in self.logger.name_to_value:
            self.dump_logs(self.iteration)
        self._lead(hook.on_training_end)
        return self

    def _lead(self, work: Callable[[], T]) -> T:
        """Rank 0's result of work with callbacks, which may save the agent: of weights in parts, with the other ranks' help."""
        return self.ranks.lead(work, self.whole_state if self.shards is not None else None)

    def _tell_divergence(self, hook: BaseCallback, error: NotFiniteError) -> None:
        for one in iteration_callbacks(hook):
            one.on_divergence(self, error)

    def _report(self, hook: BaseCallback, write: bool) -> tuple[bool, str | None]:
        """Write an iteration's row, and call the callbacks at its end; returns their answer, and why training has stopped."""
        for one in iteration_callbacks(hook):
            one.before_logging(self)
        if write:
            self.dump_logs(self.iteration)
        return end_iteration(hook, self), self.stopped

    def _progress(self, total_timesteps: int, iterations: int | None) -> float:
        """The part of training that is done: from 0 to 1, where it ends, or a little above."""
        return self.num_timesteps / total_timesteps if iterations is None else self.iteration / iterations

    def iterate(self, callback: BaseCallback) -> bool:
        """One iteration: collect, score, reference, advantages, epochs of minibatches, metrics.

        Args:
            callback: stable-baselines3's.

        Returns:
            False if the callback stopped training; the agent does not learn from the rollout then.
        """
        self._begin_iteration()
        rollout = self._collect(callback)  # responses, their scores and the reference's log-probabilities
        if rollout is None:
            return False
        may_learn = self._keep_within_kl_limit(rollout) and len(rollout.episodes) > 0
        self._update_learning_rate(self.policy.optimizer)
        if may_learn:
            with self.seconds.phase("learning"):
                self._fill_advantages(rollout)
                self._note_outcomes(rollout)
                with self._reference_let_go():
                    for rows in self._minibatches(rollout):
                        self.updating = rows
                        if not self.update(rollout, rows):
                            break
                self.updating = None
                self.after_learning(rollout)
        self._learned_from = rollout if may_learn else None
        self._end_iteration()
        self.log(rollout)
        return True

    def _begin_iteration(self) -> None:
        self._rollout_start = None
        self._rollout_start = self.state()  # a checkpoint from within the rollout goes back here
        self.seconds, self.minibatch_metrics, self.updating = PhaseSeconds(), {}, None
        self.where = f"iteration {self.iteration + 1}, rollout"

    def _end_iteration(self) -> None:
        self.policy.forget()
        self.iteration += 1
        check_weights(self.ranks, self.policy, f"iteration {self.iteration}")
        self._rollout_start = None

    # ------------------------------------------------------------------------------------------------ the rollout

    @property
    def _vec_env(self) -> VecEnv:
        assert self.env is not None
        return self.env

    def _collect(self, callback: BaseCallback) -> Rollout | None:
        """Generate and score episodes, with the reference's log-probabilities; None if the callback stopped training."""
        rollout: Rollout | None = None
        while rollout is None or self.needs_more(rollout):
            self._lead(callback.on_rollout_start)
            with self.seconds.phase("generation"):
                with Scoring(self._vec_env) as scoring:  # slow rewards score while generation and the reference go on
                    part = Rollout.of(self.generate(scoring))
                    self.complete(part)
                    finish_scores(self.ranks, scoring, part)
                if scoring.waited is not None:
                    self.seconds["reward"] += scoring.waited
                    self.seconds["scoring"] += scoring.seconds or 0.0
            scored = self.measured(part.scored(self.group_size))
            self.rollout = rollout = scored if rollout is None else Rollout.joined([rollout, scored])
            goes_on, self.num_timesteps = self._lead(partial(self._count_steps, part, scored, callback))
            if not goes_on:
                return None
        return rollout

    def generate(self, scoring: Scoring) -> list[Episode]:
        """Generate ``n_episodes`` whole episodes.

        Args:
            scoring: takes responses, and has them scored while others are generated.
        """
        assert self.seed is not None
        env = self._vec_env
        order = Order(
            self.seed,
            self.episode_count,
            self.n_episodes // env.num_envs,
            self.group_size,
            self.greedy_slots,
            self.iteration,
        )
        return self.source.episodes(env, self.policy, order, scoring, self.ranks, self.seconds, self._stepped)

    def _stepped(self, first: int, per_slot: int) -> list[Episode]:
        """Generate episodes by stepping the environment, on from where it stands."""
        self._stepping = self._stepping or self.stepping_collector(self._vec_env)
        self._stepping.observation = self._last_obs
        episodes = self._stepping.collect(first, per_slot)
        self._last_obs = self._stepping.observation
        return episodes

    def stepping_collector(self, env: VecEnv) -> SteppingCollector:
        """The collector for environments that must be stepped."""
        assert self.seed is not None
        return SteppingCollector(env, self.policy, self.seed, self.group_size, greedy=self.greedy_slots)

    @property
    def greedy_slots(self) -> frozenset[int]:
        """The slots that take the most probable tokens."""
        return frozenset(range(0, self._vec_env.num_envs, self.group_size)) if self.greedy_first else frozenset()

    def measured(self, rollout: Rollout) -> Rollout:
        """The scored episodes that metrics and learning are about: all of them by default.

        Args:
            rollout: scored, whole groups.
        """
        return rollout

    def complete(self, rollout: Rollout) -> None:
        """Compute the reference's log-probabilities, and the values that generation did not give: neither depends on scores."""
        reference = self.reference
        with self.seconds.phase("reference"):
            if reference is not None:
                tables = ("reference_log_probs", "own_reference_log_probs")
                self.fill(rollout, tables, lambda part, tokens: fill_reference(self.policy, reference, part, tokens))
            if self.old_log_probs == "recompute":
                self._recompute(rollout)
            if self.policy.value_trunk is not None or (self.policy.values_from_trunk and not self._generates_values):
                self.fill(rollout, ("values",), lambda part, tokens: fill_values(self.policy, part, tokens))

    @property
    def _generates_values(self) -> bool:
        """True where no pass has to compute the values after generation."""
        return self.source.gives_values

    def fill(self, rollout: Rollout, names: Sequence[str], work: Callable[[Rollout, int], None]) -> None:
        """Fill in tables of a rollout within memory; ranks share the episodes out.

        Args:
            rollout: the episodes.
            names: of the tables.
            work: takes a rollout and the tokens per pass, and fills the tables in from the rollout's episodes alone.
        """
        fill_tables(self.ranks, rollout, names, lambda part: self.within_memory(lambda tokens: work(part, tokens)))

    def _recompute(self, rollout: Rollout) -> None:
        """Take the old log-probabilities from the pass that learns, and weigh tokens for the mismatch if wanted."""
        drawn, mask = rollout.log_probs, rollout.mask
        self.fill(rollout, ("log_probs",), lambda part, tokens: fill_log_probs(self.policy, part, tokens))
        rollout.importance = importance_weights(
            rollout.log_probs, drawn, mask, self.importance_sampling, self.importance_cap
        )
        distances = ratio_metrics(rollout.log_probs[mask], drawn[mask])
        amounts = (float(distances[name]) / int(mask.sum()) for name in ("difference", "ratio", "squared ratio"))
        self.record(**mismatch_metrics(*amounts))

    def needs_more(self, rollout: Rollout) -> bool:
        """True where further episodes must be collected before learning begins; False by default."""
        return False

    def _count_steps(self, rollout: Rollout, scored: Rollout, callback: BaseCallback) -> tuple[bool, int]:
        """Count the tokens, and tell the callback of them; False if it stopped training, and the tokens so far."""
        self.episode_count += len(rollout.episodes)
        infos = [episode.info for episode in rollout.episodes if not episode.skipped]
        self._update_info_buffer(infos, np.ones(len(infos), dtype=np.bool_))
        for n_steps, step in enumerate(self._counter.steps(rollout)):
            self.num_timesteps += self._vec_env.num_envs
            callback.update_locals({"self": self, "env": self._vec_env, "callback": callback, "n_steps": n_steps})
            callback.update_locals({**vars(step), "clipped_actions": step.actions})
            if not callback.on_step():
                return False, self.num_timesteps
        callback.update_locals({"rollout": scored})
        callback.on_rollout_end()
        return True, self.num_timesteps

    # ------------------------------------------------------------------------------------------------ learning from it

    def _keep_within_kl_limit(self, rollout: Rollout) -> bool:
        """Restore the last weights within ``kl_limit`` if this rollout is beyond it; returns False then."""
        if self.kl_guard.nats is None:
            return True
        kl = response_kl(rollout)
        with self._weights_apart():  # a copy of this rank's parts is enough
            if self.kl_guard.exceeded(kl):
                self.stopped = self.kl_guard.restore(self.policy, kl, f"iteration {self.iteration + 1}")
                return False
            if rollout.episodes:
                self.kl_guard.remember(self.policy)
        return True

    def _check_last_update(self) -> bool:
        """With a ``kl_limit``, measure the policy that training ends with; True if it had to be given good weights back."""
        rollout, self._learned_from = self._learned_from, None
        if rollout is None or self.kl_guard.nats is None:
            return False
        seed, reference, first = self.seed, self.reference, self.episode_count
        assert seed is not None
        assert reference is not None
        kl = self.ranks.from_main(
            lambda: kl_now(self.policy, reference, rollout, self._vec_env, seed, first, self.within_memory)
        )
        self.logger.record(KL_AT_END, kl)
        if not self.kl_guard.exceeded(kl):
            return False
        with self._weights_apart():
            self.stopped = self.kl_guard.restore_after_last_update(self.policy, kl, f"iteration {self.iteration}")
        self.policy.forget()
        return True

    @property
    def warming_up(self) -> bool:
        """True in iterations in which the policy does not learn yet."""
        return False

    def _fill_advantages(self, rollout: Rollout) -> None:
        """Call :meth:`prepare`, and refuse NaN and infinity in the rollout before and after it."""
        check_rollout(rollout, self.where)
        if not self.warming_up:
            self.entropy_controller.begin(float(-rollout.log_probs[rollout.mask].mean()))
        self.prepare(rollout)
        check_rollout(rollout, self.where)

    def _note_outcomes(self, rollout: Rollout) -> None:
        """Tell an environment that draws prompts by weights how the responses to them have done."""
        slots = slots_of(self._vec_env)
        if slots.draws_by_weights:
            tell = self.ranks.each if slots.on_every_rank else self.ranks.from_main
            tell(lambda: slots.note_outcomes(rollout))

    @abstractmethod
    def prepare(self, rollout: Rollout) -> None:
        """Fill ``rollout.advantages`` (and ``returns``) from its rewards and log-probabilities."""

    def scores(self, rollout: Rollout) -> Tensor:
        """The environment's rewards, clipped and penalised as the settings say, token by token: float32 ``[B, R]``."""
        return shape_scores(
            rollout, clip=self.clip_scores, missing_eos_penalty=self.missing_eos_penalty,
            missing_eos_score=self.missing_eos_score,
        )  # fmt: skip

    def shaped_rewards(self, rollout: Rollout) -> Tensor:
        """Scores, and the KL penalty where it is part of the reward, token by token: float32 ``[B, R]``."""
        rewards = self.scores(rollout)
        penalty = torch.zeros_like(rewards)
        if self.kl_in == "reward" and rollout.has_reference:
            kl = kl_estimate(rollout.log_probs, rollout.reference_log_probs, self.kl_estimator)
            penalty = self.kl_controller.coef * kl * rollout.mask
        rewards = rewards - penalty
        self.logger.record("objective/rlhf_reward", rewards.sum(1).mean().item())
        self.logger.record("objective/non_score_reward", -penalty.sum(1).mean().item())
        self.logger.record("objective/kl_coef", self.kl_controller.coef)
        return rewards

    def discount(self, rollout: Rollout, factor: float) -> float | Tensor:
        """``gamma`` or ``gae_lambda`` as ``discount_per`` says: one number, or float32 ``[B, R]``, one after each token.

        Args:
            rollout: the episodes.
            factor: the setting.
        """
        return factor if self.discount_per == "token" else per_turn(rollout, factor)

    def _minibatches(self, rollout: Rollout) -> Iterator[list[int]]:
        """The minibatches of all epochs, each as the rows of its episodes."""
        for epoch in range(self.n_epochs):
            for index, rows in enumerate(rollout.minibatches(self.batch_size, self._update_rng)):
                self.where = f"iteration {self.iteration + 1}, epoch {epoch + 1}, minibatch {index + 1}"
                yield rows
            self._n_updates += 1  # SB3 counts epochs

    def update(self, rollout: Rollout, rows: list[int]) -> bool:
        """One optimizer step on one minibatch.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the minibatch's episodes.

        Returns:
            False ends learning from this rollout.
        """
        own = self.ranks.share(rows, rollout.totals)
        found = self.gradient(
            lambda tokens: accumulate_gradient(
                self.policy, rollout, rows, self.losses, self.coefficient, aggregation=self.aggregation,
                tokens_per_batch=tokens, entropy=self.entropy_controller.bonus > 0, where=self.where,
                scale=self.scaler.scale, own=own,
            )
        )  # fmt: skip
        table = sum_tables([sums for sums, _ in found]) | quantiles("ratio", torch.cat([ratios for _, ratios in found]))
        if not self.minibatch_metrics:  # before the first step, the ratios are the mismatch
            self.record(**mismatch_metrics(table["difference"], table["ratio"], table["squared ratio"]))
        self.record(**{name: sign * table[key] for name, (sign, key) in MINIBATCH_METRICS.items() if key in table})
        self.record(**{name: value for name, value in table.items() if name.startswith("ratio/")})
        stop = self.target_kl is not None and table["k3"] > 1.5 * self.target_kl
        skip = table["ratio"] > self.max_ratio
        self.record(**{"policy/skipped_updates": float(stop or skip)})
        if stop or skip:
            self.policy.optimizer.zero_grad(set_to_none=True)
            return not stop
        self.step_optimizer()
        return True

    def gradient(self, work: Callable[[int], T]) -> list[T]:
        """Do work that adds a gradient to the weights, within memory; the gradients of all ranks are added up.

        Args:
            work: takes the tokens per pass, and adds the gradient of this rank's share of a minibatch.

        Returns:
            The results of every rank.

        Raises:
            TrainingError: a loss is NaN or infinite, on any rank.
        """
        found = self.ranks.gather(lambda: self.within_memory(work))
        if self.shards is None:
            self.ranks.sum_gradients(list(self.policy.parameters()))
        else:
            self.shards.reduce_gradients()
        return found

    def within_memory(self, work: Callable[[int], T]) -> T:
        """Do work with ``tokens_per_batch`` tokens at a time; where a GPU's memory runs out, with half as many from then on.

        Args:
            work: takes the number of tokens. It begins without gradients, and begins anew after it ran out of memory.

        Raises:
            torch.OutOfMemoryError: one sequence alone takes too much.
        """
        while True:
            try:
                return work(self.tokens_per_batch)
            except torch.OutOfMemoryError:
                if self.tokens_per_batch <= self.policy.limits.max_new_tokens:
                    raise
            # Out of the handler, which holds on to the tensors of the failed pass.
            self.policy.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self.tokens_per_batch //= 2
            warnings.warn(
                f"{self.where}: memory ran out; going on with tokens_per_batch={self.tokens_per_batch}. The result is the "
                "same, but for rounding", stacklevel=2,
            )  # fmt: skip

    @abstractmethod
    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """A micro-batch's losses and metrics.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the micro-batch's episodes, whole.
            log_probs: ``[N]``, of their response tokens under the policy now, row after row.
            values: ``[N]``, likewise; None without a value head.

        Returns:
            Losses by name, ``[N]`` each, one of them ``"policy"``; and metrics by name, summed over tokens.
        """

    def coefficient(self, loss: str) -> float:
        """The weight of a loss in the total."""
        return {"policy": 1.0, "entropy": self.entropy_controller.bonus, "kl": self.kl_controller.coef}[loss]

    def kl_loss(self, rollout: Rollout, rows: list[int], log_probs: Tensor) -> Terms:
        """The KL loss by its name, ``[N]``; empty where the KL is part of the reward, or there is no reference.

        Args:
            rollout: the episodes.
            rows: the micro-batch's episodes.
            log_probs: ``[N]``, of their response tokens under the policy now.
        """
        if self.kl_in != "loss" or not rollout.has_reference:
            return {}
        reference = self.flat(rollout.reference_log_probs, rows)
        old = self.flat(rollout.log_probs, rows) if self.kl_importance else None
        if self.kl_gradient == "sequence":
            return {"kl": sequence_kl_loss(log_probs, reference, [rollout.lengths[i] for i in rows], old)}
        if old is None:
            return {"kl": kl_estimate(log_probs, reference, self.kl_estimator)}
        return {"kl": weighted_kl_estimate(log_probs, reference, old, self.kl_estimator)}

    def ratio_loss(self, rollout: Rollout, rows: list[int], log_probs: Tensor) -> Clipped:
        """The policy loss that ``policy_loss`` names, ``[N]``.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the micro-batch's episodes, whole.
            log_probs: ``[N]``, of their response tokens under the policy now.
        """
        return policy_loss(
            self.policy_loss, log_probs, self.flat(rollout.log_probs, rows), self.flat(rollout.advantages, rows),
            torch.tensor([rollout.lengths[i] for i in rows]).to(self.device, non_blocking=True),
            clip_low=0.0 if self.clip_range is None else self.now(self.clip_range), clip_high=self.clip_range_high,
            dual_clip=self.dual_clip, temperatures=(self.sapo_temperature, self.sapo_temperature_negative),
        )  # fmt: skip

    def step_optimizer(self) -> None:
        """Clip the gradient, refuse NaN and infinity in it, and step."""
        known = any(name.startswith("update_norm/") for name in self.minibatch_metrics)  # once an iteration
        with self._weights_apart():
            metrics = clipped_step(
                self.policy, self.scaler, max_norm=self.max_grad_norm, value_max_norm=self.value_max_grad_norm,
                where=self.where, measure_update=not known,
            )  # fmt: skip
        self.record(**metrics)

    def _weights_apart(self) -> AbstractContextManager[None]:
        """With weights kept in parts, the parts as the policy's parameters for a while, which its optimizer steps."""
        return nullcontext() if self.shards is None else self.shards.apart()

    def _reference_let_go(self) -> AbstractContextManager[None]:
        """With weights kept in parts, only this rank's part of the reference for a while."""
        if self.reference_shards is None or self.settings.learns_with_reference(vars(self.settings)):
            return nullcontext()
        return self.reference_shards.apart()

    def after_learning(self, rollout: Rollout) -> None:
        """Adapt the KL coefficient to the KL measured in this rollout."""
        self.kl_controller.update(response_kl(rollout), len(rollout.episodes))

    def now(self, value: float | Schedule) -> float:
        """A setting's value in this iteration: a schedule is a function of the remaining progress."""
        return value(self._current_progress_remaining) if callable(value) else value

    def flat(self, table: Tensor, rows: list[int]) -> Tensor:
        """A rollout table's entries at the response tokens of some rows, on the policy's device.

        Args:
            table: ``[B, R]``, one of the last rollout's.
            rows: of the table.

        Returns:
            ``[N]``, row after row.
        """
        assert self.rollout is not None
        return flat(table, rows, self.rollout.mask).to(self.device, non_blocking=True)

    # ------------------------------------------------------------------------------------------------ metrics

    def record(self, **metrics: Tensor | float) -> None:
        """Keep metrics of a minibatch; the mean over the iteration's minibatches is logged under each name."""
        for name, value in metrics.items():
            self.minibatch_metrics.setdefault(name, []).append(float(value))

    def log(self, rollout: Rollout) -> None:
        """Hand the iteration's metrics to stable-baselines3's logger, under the names of the field's dashboards."""
        metrics = rollout_metrics(rollout, self.policy.limits.eos_ids) | means(self.minibatch_metrics)
        metrics |= self.seconds.metrics(sum(rollout.lengths))
        metrics |= {"episode": self.episode_count, "lr": self.policy.optimizer.param_groups[0]["lr"]}
        clips = {"train/clip_range": self.clip_range, "train/clip_range_vf": self.clip_range_vf}
        metrics |= {name: self.now(clip) for name, clip in clips.items() if clip is not None}
        if self.kl_guard.nats is not None:
            metrics["train/kl_back_offs"] = self.kl_guard.back_offs
        metrics |= self.source.metrics(self.seconds.total)
        if self.ent_target is not None:
            metrics["train/ent_coef"] = self.entropy_controller.bonus
        for name, value in metrics.items():
            self.logger.record(name, value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    @property
    def reward_share(self) -> float | None:
        """Share of the last iteration's time that was spent waiting for rewards, 0 to 1.

        None before the first iteration, and in environments that do not measure it: all but :class:`TokenVecEnv`, wrapped or
        not.
        """
        return self.seconds.reward_share
