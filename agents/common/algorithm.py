"""The one class between stable-baselines3's ``OnPolicyAlgorithm`` and the agents: an iteration, from rollout to metrics."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents.common.advantages import shape_scores
from rlhf_gym.agents.common.callbacks import StepCounter, end_iteration, iteration_callbacks
from rlhf_gym.agents.common.checkpoint import check_whole, custom_settings, load_agent, save_agent
from rlhf_gym.agents.common.collect import Scoring, SteppingCollector, decode_episodes, kl_now
from rlhf_gym.agents.common.collect_turns import collect_conversations, text_env_inside
from rlhf_gym.agents.common.entropy import EntropyController
from rlhf_gym.agents.common.forward import fill_log_probs, fill_reference, fill_values
from rlhf_gym.agents.common.kl import (
    Action,
    Estimator,
    KLController,
    KLLimit,
    kl_controller,
    kl_estimate,
    sequence_kl_loss,
    weighted_kl_estimate,
)
from rlhf_gym.agents.common.losses import Aggregation, Clipped
from rlhf_gym.agents.common.metrics import (
    MINIBATCH_METRICS,
    PhaseSeconds,
    check_finite,
    check_rollout,
    means,
    quantiles,
    ratio_metrics,
    response_kl,
    rollout_metrics,
)
from rlhf_gym.agents.common.minibatch import Terms, accumulate_gradient
from rlhf_gym.agents.common.mismatch import Correction, importance_weights, mismatch_metrics
from rlhf_gym.agents.common.norms import gradient_norms, layer_groups, update_norms
from rlhf_gym.agents.common.optimizer import clip_gradients, make_optimizer, rate_at
from rlhf_gym.agents.common.policy import LMPolicy, ValueNetwork
from rlhf_gym.agents.common.policy_losses import PolicyLoss, policy_loss
from rlhf_gym.agents.common.ranks import check_divides, process_ranks
from rlhf_gym.agents.common.rollout import Episode, Rollout, flat
from rlhf_gym.agents.common.rollout_engine import engine_of
from rlhf_gym.agents.common.rollout_workers import RolloutWorkers, workers_of
from rlhf_gym.agents.common.settings import SIZES, UNSET, AgentSettings, signature_of
from rlhf_gym.agents.common.setup import (
    check_env,
    check_observations,
    learning_model,
    limits_of,
    load_models,
    made_env,
    policy_class,
    sb3_arguments,
    sizes,
    slots_of,
    timesteps_to_learn,
    usable_device,
)
from rlhf_gym.agents.common.shares import check_agreement, check_weights, fill_tables, finish_scores, sum_tables
from rlhf_gym.agents.common.slots import draws_by_weights, group_slots, rules_of, seed_slots, token_env_inside
from rlhf_gym.agents.common.training_state import restore_training, training_state
from rlhf_gym.agents.common.turn_credit import per_turn
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.errors import ConfigError, NotFiniteError, TrainingStopped
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora
from rlhf_gym.lm.sampling import Limits, Sampling, greedily
from rlhf_gym.lm.tokenizer import AnyTokenizer

T = TypeVar("T")
KL_AT_END = "objective/kl_at_end"


class TokenAlgorithm(OnPolicyAlgorithm):
    """Base of the agents: :meth:`iterate` is an iteration; a subclass defines :meth:`prepare` (advantages) and :meth:`losses`.

    Args:
        policy: ``"LMPolicy"``, or a subclass of :class:`~rlhf_gym.agents.common.policy.LMPolicy`.
        env: a :class:`~rlhf_gym.envs.TokenVecEnv` (fast), or any environment of token observations.
        learning_rate: a setting like the others, which stable-baselines3 takes in the third place.
        settings: the fields of the class's ``Settings``. Each becomes an attribute of its name.

    Attributes:
        settings: all of them, with models by name; defaults are adapted to the environment.
        reference: the frozen model that KL is measured from; None where nothing needs it and none was given.
        rollout_engine: what generates responses (:mod:`rlhf_gym.lm.engines`); None for the built-in engine.
        rollout_workers: the workers on Ray that generate and score responses; None without them.
        rollout: the last iteration's rollout.
        iteration: number of iterations done.
        stopped: the reason, in words, why training ended by itself; else None.
        ranks: the processes that learn together.

    Raises:
        ConfigError: an unknown setting, one out of range, or settings that contradict one another; before any work starts.
    """

    Settings: ClassVar[type[AgentSettings]] = AgentSettings

    policy: LMPolicy
    policy_aliases: ClassVar[dict[str, Any]] = {"LMPolicy": LMPolicy}
    in_conversations: ClassVar[bool] = True  # False for agents that cannot learn in several turns
    greedy_first: ClassVar[bool] = False  # True: the first slot of each group takes the most probable tokens
    loss_kl_estimator: ClassVar[Estimator] = "k2"  # for kl_in="loss" without a kl_estimator

    n_episodes: int
    batch_size: int
    tokens_per_batch: int
    learning_rate_decay: str
    learning_rate_warmup: float
    scaler: torch.amp.GradScaler
    _stepping: SteppingCollector | None  # made when it is first needed
    # The values for agents that do not have the setting.
    n_epochs: int = 1
    group_size: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    collect: str = "auto"
    discount_per: Literal["token", "turn"] = "token"
    value_network: ValueNetwork | None = None
    value_start: Any = None
    aggregation: Aggregation = "token"
    clip_range: float | Schedule | None = None
    clip_range_high: float | None = None
    dual_clip: float | None = None
    policy_loss: PolicyLoss = "ppo"
    sapo_temperature: float = 1.0
    sapo_temperature_negative: float = 1.05
    clip_range_vf: float | None = None
    target_kl: float | None = None
    max_ratio: float = math.inf
    old_log_probs: str = "rollout"
    importance_sampling: Correction | None = None
    importance_cap: float = math.inf
    value_max_grad_norm: float | None = None
    clip_scores: float | None = None
    missing_eos_penalty: float | None = None
    missing_eos_score: float | None = None
    ent_coef: float = 0.0
    ent_target: float | None = None
    ent_coef_step: float = 0.0
    kl_coef: float = 0.0
    kl_target: float | None = None
    kl_horizon: float = math.inf
    kl_estimator: Estimator = "k1"
    kl_in: str = "reward"
    kl_gradient: str = "token"
    kl_importance: bool = False
    kl_limit: float | None = None
    on_kl_limit: Action | None = None

    def __init__(
        self,
        policy: str | type[LMPolicy] = "LMPolicy",
        env: GymEnv | str | None = None,
        learning_rate: Any = UNSET,
        *,
        _init_setup_model: bool = True,
        **settings: Any,
    ) -> None:
        if learning_rate is not UNSET:
            settings["learning_rate"] = learning_rate
        self.ranks = process_ranks()  # first: it may choose the device
        self._chosen_sizes = {name: settings[name] for name in SIZES if name in settings}
        given = self.Settings.of(settings, type(self).__name__, num_envs=slots_of(env))
        super().__init__(policy_class(policy), made_env(env), _init_setup_model=False, **sb3_arguments(given))
        for name in given.names() - AgentSettings.argument_names():
            setattr(self, name, getattr(given, name))
        self._given = given
        self.settings = given.named()
        self._model_by_name = isinstance(given.language_model, str)
        self.sampling = Sampling(self.temperature, self.top_k, self.top_p)
        self.rollout_engine = engine_of(vars(given))
        self.rollout_workers: RolloutWorkers | None = workers_of(vars(given))
        self.kl_estimator = self.kl_estimator or ("k1" if self.kl_in == "reward" else self.loss_kl_estimator)
        self.kl_controller: KLController = kl_controller(self.kl_coef, self.kl_target, self.kl_horizon)
        self.entropy_controller = EntropyController(self.ent_coef, self.ent_target, self.ent_coef_step)
        self.kl_guard = KLLimit(self.kl_limit, self.on_kl_limit)
        self.rollout: Rollout | None = None
        self.iteration = 0
        self.episode_count = 0
        self.stopped: str | None = None
        self.seconds = PhaseSeconds()  # the last iteration's
        self.minibatch_metrics: dict[str, list[float]] = {}
        self.updating: list[int] | None = None  # the rows of the minibatch that is being learned from
        self._rollout_start: dict[str, Any] | None = None
        self._learned_from: Rollout | None = None  # the last rollout, until the update by it is checked
        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------------------------------------ learning

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
        started = dict(locals())
        self.ranks.lead(lambda: hook.on_training_start(started, globals()))
        self.stopped, rows = None, 0
        while (progress := self._progress(total_timesteps, iterations)) < 1:
            self._current_progress_remaining = 1 - progress
            try:
                goes_on = self.iterate(hook)
            except NotFiniteError as error:
                self.ranks.each(partial(self._tell_divergence, hook, error))
                raise
            if not goes_on:
                break
            if self._progress(total_timesteps, iterations) >= 1:
                self._check_last_update()
            rows += 1
            write = log_interval is not None and rows % log_interval == 0
            goes_on, self.stopped = self.ranks.lead(partial(self._report, hook, write))
            if self.stopped is not None:
                warnings.warn(self.stopped, TrainingStopped, stacklevel=2)
            if self.stopped is not None or not goes_on:
                break
        if self._check_last_update():  # a callback has ended training
            warnings.warn(str(self.stopped), TrainingStopped, stacklevel=2)
        # The KL at the end is measured after the last row was written.
        if log_interval is not None and KL_AT_END in self.logger.name_to_value:
            self.dump_logs(self.iteration)
        self.ranks.lead(hook.on_training_end)
        return self

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
            self.ranks.lead(callback.on_rollout_start)
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
            goes_on, self.num_timesteps = self.ranks.lead(partial(self._count_steps, part, scored, callback))
            if not goes_on:
                return None
        return rollout

    def generate(self, scoring: Scoring) -> list[Episode]:
        """Generate ``n_episodes`` whole episodes.

        Args:
            scoring: takes responses, and has them scored while others are generated.
        """
        assert self.seed is not None
        env, first = self._vec_env, self.episode_count
        per_slot = self.n_episodes // env.num_envs
        if (talking := text_env_inside(env)) is not None:
            return collect_conversations(
                talking, self.policy, self.seed, first, per_slot, group_size=self.group_size, greedy=self.greedy_slots
            )
        if self.rollout_workers is not None:
            assert isinstance(env, TokenVecEnv)
            return self.rollout_workers.collect(env, self.policy, self.seed, first, self.n_episodes, self.iteration)
        # Wrappers see steps only: what they wrap is stepped.
        if self.collect == "auto" and isinstance(env, TokenVecEnv) and env.append_only:
            engine = None
            if self.rollout_engine is not None:
                with self.seconds.phase("weights"):
                    engine = self.rollout_engine.with_weights(self.policy, env, self.iteration)
            return decode_episodes(
                env, self.policy, self.seed, first, per_slot, scoring, group_size=self.group_size, ranks=self.ranks,
                engine=engine, greedy=self.greedy_slots,
            )  # fmt: skip

        def stepped() -> list[Episode]:
            self._stepping = self._stepping or self.stepping_collector(env)
            self._stepping.observation = self._last_obs
            episodes = self._stepping.collect(first, per_slot)
            self._last_obs = self._stepping.observation
            return episodes

        return self.ranks.from_main(stepped)  # the slots of one environment cannot be stepped in several processes

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
        """True where the pass that generates gives the values of these weights."""
        if self.rollout_workers is not None:
            return self.rollout_workers.max_staleness == 0
        return self.rollout_engine is None or self.rollout_engine.engine.gives_values

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
        kl = response_kl(rollout)
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
        self.stopped = self.kl_guard.restore_after_last_update(self.policy, kl, f"iteration {self.iteration}")
        self.policy.forget()
        return True

    def _fill_advantages(self, rollout: Rollout) -> None:
        """Call :meth:`prepare`, and refuse NaN and infinity in the rollout before and after it."""
        check_rollout(rollout, self.where)
        self.entropy_controller.begin(float(-rollout.log_probs[rollout.mask].mean()))
        self.prepare(rollout)
        check_rollout(rollout, self.where)

    def _note_outcomes(self, rollout: Rollout) -> None:
        """Tell an environment that draws prompts by weights how the responses to them have done."""
        env = self._vec_env
        if not draws_by_weights(env):
            return
        sizes = ((rollout.advantages.abs() * rollout.mask).sum(1) / rollout.mask.sum(1)).tolist()
        prompts, scores = [e.prompt_ids for e in rollout.episodes], [e.score for e in rollout.episodes]
        self.ranks.from_main(lambda: env.env_method("note_outcomes", prompts, scores, sizes, indices=[0]))

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
        self.ranks.sum_gradients(list(self.policy.parameters()))
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
            self.policy.optimizer.zero_grad(set_to_none=True)
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
            torch.tensor([rollout.lengths[i] for i in rows], device=self.device),
            clip_low=0.0 if self.clip_range is None else self.now(self.clip_range), clip_high=self.clip_range_high,
            dual_clip=self.dual_clip, temperatures=(self.sapo_temperature, self.sapo_temperature_negative),
        )  # fmt: skip

    def step_optimizer(self) -> None:
        """Clip the gradient, refuse NaN and infinity in it, and step."""
        self.scaler.unscale_(self.policy.optimizer)
        groups = layer_groups(self.policy)
        by_group = gradient_norms(groups)
        norms = clip_gradients(self.policy, self.max_grad_norm, self.value_max_grad_norm)
        table = torch.stack(list(norms.values()))
        if self.scaler.is_enabled():  # it skips a step whose scaled gradient overflowed, and lowers the scale
            scale = self.scaler.get_scale()
            self.record(**{"train/loss_scale": scale, "train/overflows": float(not table.isfinite().all())})
            if scale < 1:  # overflow is not the reason any more
                check_finite({"the gradient is": table}, self.where)
        else:
            check_finite({"the gradient is": table}, self.where)
        if table.isfinite().all():
            self.record(**norms)
            self.record_all(by_group)
        self.scaler.step(self.policy.optimizer)
        self.scaler.update()
        if not self._knows_update_norms:  # once an iteration: it costs as much as the step
            self.record_all(update_norms(groups, self.policy.optimizer))
        self.policy.optimizer.zero_grad(set_to_none=True)

    @property
    def _knows_update_norms(self) -> bool:
        return any(name.startswith("update_norm/") for name in self.minibatch_metrics)

    def after_learning(self, rollout: Rollout) -> None:
        """Adapt the KL coefficient to the KL measured in this rollout."""
        self.kl_controller.update(response_kl(rollout), len(rollout.episodes))

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                if group["own_rate"] is not None:
                    decay, warmup = self.learning_rate_decay, self.learning_rate_warmup
                    group["lr"] = group["own_rate"] * rate_at(self._current_progress_remaining, decay, warmup)
                group["lr"] *= self.kl_guard.rate
            self.logger.record("train/learning_rate", optimizer.param_groups[0]["lr"])

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
        return flat(table, rows, self.rollout.mask).to(self.device)

    # ------------------------------------------------------------------------------------------------ metrics

    def record(self, **metrics: Tensor | float) -> None:
        """Keep metrics of a minibatch; the mean over the iteration's minibatches is logged under each name."""
        for name, value in metrics.items():
            self.minibatch_metrics.setdefault(name, []).append(float(value))

    def record_all(self, metrics: Mapping[str, Tensor]) -> None:
        """:meth:`record` metrics ``[]`` with one transfer from the device."""
        amounts = torch.stack([metric.to(self.device) for metric in metrics.values()]).tolist()
        self.record(**dict(zip(metrics, amounts, strict=True)))

    def log(self, rollout: Rollout) -> None:
        """Hand the iteration's metrics to stable-baselines3's logger, under the names of the field's dashboards."""
        metrics = rollout_metrics(rollout, self.policy.limits.eos_ids) | means(self.minibatch_metrics)
        metrics |= self.seconds.metrics(sum(rollout.lengths))
        metrics |= {"episode": self.episode_count, "lr": self.policy.optimizer.param_groups[0]["lr"]}
        clips = {"train/clip_range": self.clip_range, "train/clip_range_vf": self.clip_range_vf}
        metrics |= {name: self.now(clip) for name, clip in clips.items() if clip is not None}
        if self.kl_guard.nats is not None:
            metrics["train/kl_back_offs"] = self.kl_guard.back_offs
        if self.rollout_engine is not None:
            metrics |= self.rollout_engine.engine.metrics()
        if self.rollout_workers is not None:
            metrics |= self.rollout_workers.metrics(self.seconds.total)
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

    # ------------------------------------------------------------------------------------------------ what it is made of

    @classmethod
    def preset(cls, name: str) -> dict[str, Any]:
        """The settings of a published method, e.g. ``GRPO(env=env, **GRPO.preset("dapo"))``; docs/algorithms.md lists them.

        Args:
            name: of the preset; ``Settings.presets`` has them all.

        Raises:
            ConfigError: the agent has no preset of that name.
        """
        return cls.Settings.preset(name, cls.__name__)

    def __init_subclass__(cls, **options: Any) -> None:
        """Show the settings in the constructor's signature, for ``help`` and notebooks."""
        super().__init_subclass__(**options)
        cls.__signature__ = signature_of(cls.Settings)  # type: ignore[attr-defined]

    def _setup_lr_schedule(self) -> None:
        """Make SB3's schedule, with the settings' warm-up and decay."""
        super()._setup_lr_schedule()
        rate, decay, warmup = self.learning_rate, self.learning_rate_decay, self.learning_rate_warmup
        if not callable(rate):
            self.lr_schedule = lambda progress_remaining: rate * rate_at(progress_remaining, decay, warmup)

    def _setup_model(self) -> None:
        """Load and check what was given, then build policy and optimizer."""
        if self.env is not None:
            self._check_talks(self.env)
            check_observations(self.env)  # first: a model takes long to load
        elif not hasattr(self, "observation_space"):
            raise ConfigError(f"{type(self).__name__} needs an environment: pass env=...")
        models = load_models(self._given)
        self.device, self.reference = models.policy.device, models.reference
        limits = limits_of(None, models.policy) if self.env is None else self._check(self.env, models.policy)
        if self.seed is None:
            self.seed = self.ranks.from_main(lambda: int(np.random.SeedSequence().generate_state(1)[0]))
        self.set_random_seed(self.seed)  # after everything is loaded: that draws noise, too
        self._setup_lr_schedule()
        model = learning_model(
            models.policy, self._given.lora, self.seed, gradient_checkpointing=self._given.gradient_checkpointing
        )
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, model, self.sampling, limits, self.value_network,
            models.value_start,
        )  # fmt: skip
        if model.adapter is not None:  # the model may have come with it
            self.settings = replace(self.settings, lora=Lora.of(model.adapter.settings()))
        self._given, self.value_start = self.settings, None  # models that were given are kept no longer
        self.policy.optimizer = make_optimizer(self.policy, self._given, self.lr_schedule(1))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self._given.precision == "fp16")
        self._update_rng = np.random.default_rng(np.random.SeedSequence((self.seed, 1)))
        self._counter = StepCounter(self.n_envs if self.env is not None else 1)
        self._stepping = None
        self.rollout_buffer = None  # type: ignore[assignment]  # SB3's, for steps; sequences have their own

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed as stable-baselines3 does, but for the slots, which get the same seeds in every kind of environment."""
        super().set_random_seed(seed)
        if seed is not None and self.env is not None:
            seed_slots(self.env, seed, self.group_size)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Change the environment: other prompts, another reward, another number of slots.

        ``n_episodes`` stays where it is a multiple of the number of slots; where it is not, it adapts, unless somebody gave it.
        ``batch_size`` and ``group_size`` adapt likewise.

        Args:
            env: the environment.
            force_reset: as in stable-baselines3.

        Raises:
            ConfigError: it is no token environment, or does not fit the model or a number that somebody gave.
        """
        wrapped = self._wrap_env(made_env(env), self.verbose)
        self._check_talks(wrapped)
        self.policy.limits = self._check(wrapped, self.policy.language_model)
        # SB3 demands the same spaces and number of slots; the weights depend on neither.
        self.observation_space, self.action_space = wrapped.observation_space, wrapped.action_space
        self.n_envs = wrapped.num_envs
        super().set_env(wrapped, force_reset)
        if self.group_size > 1 and token_env_inside(wrapped) is None:
            assert self.seed is not None
            seed_slots(wrapped, self.seed, self.group_size)
        self._counter = StepCounter(self.n_envs)
        self._stepping = None

    def _check_talks(self, env: VecEnv) -> None:
        """Refuse an environment of conversations where the agent cannot learn in them."""
        if text_env_inside(env) is not None and not self.in_conversations:
            able = "PPO, A2C, TRPO, GRPO, GSPO, RLOO, ReMax, REINFORCE"
            raise ConfigError(
                f"{type(self).__name__} does not learn in conversations (wrap_text_env): take {able} or RAFT"
            )

    def _check(self, env: VecEnv, model: LanguageModel) -> Limits:
        # In another environment the number of episodes stays where it can.
        fits = self.n_episodes is not None and self.n_episodes % env.num_envs == 0
        kept = {"n_episodes": self.n_episodes} if fits else {}
        self.settings = self.settings.adapted({**kept, **self._chosen_sizes}, env.num_envs)
        self.group_size = getattr(self.settings, "group_size", self.group_size)
        group_slots(env, self.group_size)
        check_divides(self.ranks, env.num_envs, self.group_size)
        self.n_episodes, self.batch_size = sizes(self.settings.n_episodes, self.settings.batch_size, env.num_envs)
        limits = check_env(env, model, self.reference, by_name=self._model_by_name)
        if self.rollout_engine is not None:
            for sampling in (self.sampling, *([greedily(self.sampling)] if self.greedy_first else [])):
                self.rollout_engine.refuse(env, model, limits, sampling, processes=self.ranks.size)
        if self.rollout_workers is not None:
            self.rollout_workers.refuse(env, self.ranks.size, greedy_first=self.greedy_first)
            self.rollout_workers.close()  # those that there were have another environment
        return limits

    def close(self) -> None:
        """End what generates outside of this process: an engine, workers on Ray; the environment stays open."""
        if self.rollout_engine is not None:
            self.rollout_engine.engine.close()
        if self.rollout_workers is not None:
            self.rollout_workers.close()

    def stepping_collector(self, env: VecEnv) -> SteppingCollector:
        """The collector for environments that must be stepped."""
        assert self.seed is not None
        return SteppingCollector(env, self.policy, self.seed, self.group_size, greedy=self.greedy_slots)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The next tokens; see :meth:`LMPolicy.predict <rlhf_gym.agents.common.policy.LMPolicy.predict>`.

        Args:
            observation: one observation, or observations stacked along a first axis.
            state: returned as it is.
            episode_start: ignored.
            deterministic: take the most probable token.
            action_masks: bool ``[n, V]`` or ``[V]``, tokens that may be taken, as sb3-contrib hands them over; None: all.

        Returns:
            int64 actions, ``[n]`` or ``[]``, and ``state``.

        Raises:
            ConfigError: this is no observation of a token environment, or masks that do not fit it.
        """
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any]:
        """The counters and random states that training needs to go on exactly, as JSON values."""
        if self._rollout_start is not None:
            return self._rollout_start
        return training_state(self)

    def restore(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state`."""
        restore_training(self, state)

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Write a checkpoint; see :func:`~rlhf_gym.agents.common.checkpoint.save_agent`.

        Args:
            path: where to (``.zip`` is added where it is missing), or a binary file.
            exclude: names of attributes, as in stable-baselines3: none that a checkpoint holds.
            include: names of attributes: only such as a checkpoint holds.

        Raises:
            ConfigError: ``exclude`` or ``include`` would make it more or less than a whole checkpoint.
        """
        check_whole(self, exclude or (), include or ())
        self.ranks.from_main(lambda: save_agent(self, path))

    @classmethod
    def load(
        cls,
        path: Any,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        language_model: LanguageModel | str | None = None,
        tokenizer: AnyTokenizer | None = None,
        **changes: Any,
    ) -> Self:
        """Read a checkpoint; see :func:`~rlhf_gym.agents.common.checkpoint.load_agent`.

        ``load(path, env=env).learn(n, reset_num_timesteps=False)`` goes on as if training had never stopped. A checkpoint
        taken inside a rollout goes on from that rollout's start.

        Args:
            path: as :meth:`save` was given it.
            env: the environment to go on in; None is enough for ``predict``.
            device: device of the weights.
            custom_objects: like ``changes``, in stable-baselines3's form: names that the agent does not have are ignored, and
                a learning rate of 0 (of an agent that is only to be evaluated) is allowed.
            print_system_info: print the versions of libraries and machine.
            force_reset: either value does the same: learning goes on from the state of the environment that the checkpoint
                holds, and begins with a reset where it holds none.
            language_model: the base (or its name) of an agent with an adapter, where it cannot be loaded by its old name.
            tokenizer: needed where the tokenizer is not a Hugging Face one and no ``TokenVecEnv`` is given that has it.
            changes: settings to use instead of the saved ones.
        """
        if print_system_info:
            get_system_info()
        return load_agent(
            cls,
            path,
            env,
            usable_device(device),
            {**custom_settings(cls.Settings, custom_objects or {}), **changes},
            language_model=language_model,
            tokenizer=tokenizer,
        )
