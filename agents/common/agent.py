"""What an agent is made of: settings, models, environment, checkpoints. How it learns is in ``algorithm.py``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.common.vec_env import VecEnv

from rlhf_gym.agents.common.callbacks import StepCounter
from rlhf_gym.agents.common.checkpoint import check_whole, custom_settings, load_agent, save_agent
from rlhf_gym.agents.common.collect import SteppingCollector
from rlhf_gym.agents.common.collect_turns import text_env_inside
from rlhf_gym.agents.common.entropy import EntropyController
from rlhf_gym.agents.common.episode_source import EpisodeSource
from rlhf_gym.agents.common.kl import Action, Estimator, KLController, KLLimit, LastGood, kl_controller
from rlhf_gym.agents.common.launch import process_ranks
from rlhf_gym.agents.common.losses import Aggregation
from rlhf_gym.agents.common.metrics import PhaseSeconds
from rlhf_gym.agents.common.mismatch import Correction
from rlhf_gym.agents.common.optimizer import check_parts, make_optimizer, rate_at, require_optimizer
from rlhf_gym.agents.common.policy import LMPolicy, ValueNetwork
from rlhf_gym.agents.common.policy_losses import PolicyLoss
from rlhf_gym.agents.common.ranks import check_divides
from rlhf_gym.agents.common.rollout import Rollout
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
    num_envs_of,
    policy_class,
    sb3_arguments,
    sizes,
    usable_device,
)
from rlhf_gym.agents.common.sharding import Shards, whole
from rlhf_gym.agents.common.slots import seed_slots, slots_of, token_env_inside
from rlhf_gym.agents.common.training_state import restore_training, training_state
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.lm.tokenizer import AnyTokenizer


class TokenAgent(OnPolicyAlgorithm):
    """What every agent is made of; :class:`~rlhf_gym.agents.common.algorithm.TokenAlgorithm` is how it learns.

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
        shards: the policy's weights of which each rank keeps a part, since the first ``learn``; None where all are kept.
        reference_shards: the reference's, likewise; None, too, where the policy has its weights.

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
    where: str  # the place in training, for messages
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
        self.shards: Shards | None = None
        self.reference_shards: Shards | None = None
        self._chosen_sizes = {name: settings[name] for name in SIZES if name in settings}
        given = self.Settings.of(settings, type(self).__name__, num_envs=num_envs_of(env))
        super().__init__(policy_class(policy), made_env(env), _init_setup_model=False, **sb3_arguments(given))
        for name in given.names() - AgentSettings.argument_names():
            setattr(self, name, getattr(given, name))
        self._given = given
        self.settings = given.named()
        self._model_by_name = isinstance(given.language_model, str)
        self.sampling = Sampling(self.temperature, self.top_k, self.top_p)
        self.rollout_engine = engine_of(vars(given))
        self.rollout_workers: RolloutWorkers | None = workers_of(vars(given))
        self.source = EpisodeSource(
            self.rollout_engine, self.rollout_workers, self.collect, greedy_first=self.greedy_first
        )
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

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                if group["own_rate"] is not None:
                    decay, warmup = self.learning_rate_decay, self.learning_rate_warmup
                    group["lr"] = group["own_rate"] * rate_at(self._current_progress_remaining, decay, warmup)
                group["lr"] *= self.kl_guard.rate
            self.logger.record("train/learning_rate", optimizer.param_groups[0]["lr"])

    def _setup_model(self) -> None:
        """Load and check what was given, then build policy and optimizer."""
        if self.env is not None:
            self._check_talks(self.env)
            check_observations(self.env)  # first: a model takes long to load
        elif not hasattr(self, "observation_space"):
            raise ConfigError(f"{type(self).__name__} needs an environment: pass env=...")
        check_parts(self._given.optimizer, self.ranks)
        require_optimizer(self._given.optimizer)
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
        slots_of(env).group(self.group_size)
        check_divides(self.ranks, env.num_envs, self.group_size)
        self.n_episodes, self.batch_size = sizes(self.settings.n_episodes, self.settings.batch_size, env.num_envs)
        limits = check_env(env, model, self.reference, by_name=self._model_by_name)
        self.source.refuse(env, model, limits, self.sampling, self.ranks.size)
        return limits

    def close(self) -> None:
        """End what generates outside of this process: an engine, workers on Ray; the environment stays open."""
        self.source.close()

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

        Of several processes rank 0 writes it. All of them call this, or rank 0 alone in a callback.

        Args:
            path: where to (``.zip`` is added where it is missing), or a binary file.
            exclude: names of attributes, as in stable-baselines3: none that a checkpoint holds.
            include: names of attributes: only such as a checkpoint holds.

        Raises:
            ConfigError: ``exclude`` or ``include`` would make it more or less than a whole checkpoint.
        """
        check_whole(self, exclude or (), include or ())
        if self.shards is None:
            self.ranks.from_main(lambda: save_agent(self, path))
        else:  # the others help where rank 0 calls them
            self.ranks.lead(lambda: save_agent(self, path) if self.ranks.is_main else None, self.whole_state)

    def whole_state(self) -> tuple[dict[str, Any], LastGood | None]:
        """The state of the optimizer, and the last weights within ``kl_limit``: whole, as one process has them.

        Of weights that are kept in parts, all ranks make it whole together, and rank 0 gets it; where rank 0 saves by itself,
        the others come when it calls.
        """
        state, good = self.policy.optimizer.state_dict(), self.kl_guard.last_good
        if self.shards is None:
            return state, good
        self.ranks.call()
        keep = self.ranks.is_main
        state = whole(state, keep=keep)
        if good is not None:
            good = LastGood(whole(good.weights, keep=keep), whole(good.optimizer, keep=keep))
        return state, good

    def _shard_weights(self) -> None:
        """Keep parts of the weights, of the optimizer's state and of the reference from now on, where the launch asks so."""
        if not self.ranks.sharded or not self.ranks.shared or self.shards is not None:
            return
        state, good = self.policy.optimizer.state_dict(), self.kl_guard.last_good
        self.shards = shards = Shards(self.policy, self.ranks, learning=True)
        with shards.apart():
            self.policy.optimizer = make_optimizer(self.policy, self.settings, self.lr_schedule(1))
            self.policy.optimizer.load_state_dict(shards.state_in_parts(state, self.policy.optimizer))
            if good is not None:
                moments = shards.state_in_parts(good.optimizer, self.policy.optimizer)
                self.kl_guard.last_good = LastGood(shards.parts_of(good.weights, self.policy), moments)
            del state, good  # before the weights are whole again
        if self.reference is not None:
            own = {id(weight) for weight in self.policy.parameters()}
            if own.isdisjoint(id(weight) for weight in self.reference.model.parameters()):
                self.reference_shards = Shards(self.reference.model, self.ranks, learning=False)

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
