"""A stable-baselines3 algorithm that acts in token environments: models, checks, the training loop, collection, state."""

from __future__ import annotations

import time
import warnings
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from rlhf_gym.agents.common.collect import SteppingCollector, collect_by_decoding
from rlhf_gym.agents.common.policy import LMPolicy, ValueNetwork, check_spaces
from rlhf_gym.agents.common.rollout import Episode, Rollout, pad
from rlhf_gym.agents.common.settings import AgentSettings, signature_of
from rlhf_gym.agents.common.steps import StepCounter
from rlhf_gym.agents.common.token_envs import group_slots, limits_of, token_env_inside
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.errors import ConfigError, TrainingStopped
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora, adapted, require_peft
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.reward_model import RewardModel
from rlhf_gym.rewards.service.overlap import Beside, is_slow


class TokenAlgorithm(OnPolicyAlgorithm):
    """Everything of an agent but how it learns. See :class:`~rlhf_gym.agents.ppo.PPO` for the arguments."""

    Settings: ClassVar[type[AgentSettings]] = AgentSettings

    policy: LMPolicy
    policy_aliases: ClassVar[dict[str, Any]] = {"LMPolicy": LMPolicy}

    # Every setting is an attribute of its name. These are the values for agents that do not have the setting.
    n_episodes: int | None
    batch_size: int
    tokens_per_batch: int
    learning_rate_decay: str
    n_epochs: int = 1
    group_size: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    collect: str = "auto"
    value_network: ValueNetwork | None = None
    value_start: RewardModel | str | Path | None = None

    def __init__(
        self,
        policy: str = "LMPolicy",
        env: GymEnv | str | None = None,
        *,
        _init_setup_model: bool = True,
        **settings: Any,
    ) -> None:
        given = self.Settings.of(settings, type(self).__name__)
        if isinstance(env, str):
            env = gym.make(env)  # SB3 would ask for a render mode that token environments do not have
        elif env is not None and not isinstance(env, VecEnv | gym.Env):
            raise ConfigError(f"env must be a VecEnv, a gymnasium.Env or the id of one; got {type(env).__name__}")
        neutral = {"gamma": 1.0, "gae_lambda": 1.0, "ent_coef": 0.0, "vf_coef": 0.0}
        of_sb3 = {name: getattr(given, name, default) for name, default in neutral.items()}
        super().__init__(
            policy, env, given.learning_rate, n_steps=1, max_grad_norm=given.max_grad_norm, **of_sb3,  # type: ignore[arg-type]  # SB3 takes None
            use_sde=False, sde_sample_freq=-1, stats_window_size=given.stats_window_size,
            tensorboard_log=given.tensorboard_log, verbose=given.verbose, seed=given.seed, device="cpu",
            _init_setup_model=False,
        )  # fmt: skip
        self.settings = given.named()
        for name in given.names() - AgentSettings.argument_names():
            setattr(self, name, getattr(given, name))
        self.sampling = Sampling(self.temperature, self.top_k, self.top_p)
        self._device_name = str(given.device)
        self._language_model = given.language_model
        self._reference = given.reference
        self._lora = None if given.lora is None else Lora.of(given.lora)
        if self._lora is not None:
            require_peft()
        self.iteration = 0
        self.stopped: str | None = None  # why training ended by itself, in words
        self.episode_count = 0
        self._rollout_start: dict[str, Any] | None = None
        self._in_parts = False  # while further parts of a rollout are collected
        self._seconds: dict[str, float] = {}  # the last iteration's, by phase
        self._scoring_seconds: float | None = None
        if _init_setup_model:
            self._setup_model()

    def __init_subclass__(cls, **options: Any) -> None:
        """Show the settings in the constructor's signature, for ``help`` and notebooks."""
        super().__init_subclass__(**options)
        cls.__signature__ = signature_of(cls.Settings)  # type: ignore[attr-defined]

    def _setup_lr_schedule(self) -> None:
        """A number, a schedule, or a number that falls to 0 with the progress that remains."""
        super()._setup_lr_schedule()
        rate = self.learning_rate
        if self.learning_rate_decay == "linear" and not callable(rate):
            self.lr_schedule = lambda progress_remaining: rate * progress_remaining

    def _setup_model(self) -> None:
        """Load what was given by name, check everything that can be checked, build policy and optimizer."""
        if self.env is not None:
            check_spaces(self.observation_space, self.action_space)
        elif not hasattr(self, "observation_space"):
            raise ConfigError(f"{type(self).__name__} needs an environment: pass env=...")
        model = self._language_model
        if isinstance(model, str):
            model = LanguageModel.load(model, device=self._device_name)
        self.device = model.device
        self.reference = self._load_reference(model)
        if self.seed is None:
            self.seed = int(np.random.SeedSequence().generate_state(1)[0])
        limits = Limits(model.tokenizer.eos_id, (model.tokenizer.pad_id,))
        if self.env is not None:
            limits = self._check(self.env, model)
        start = self.value_start
        if isinstance(start, str | Path):
            start = RewardModel.load(start, device=str(model.device), tokenizer=model.tokenizer)
        self.set_random_seed(self.seed)  # after everything is loaded: that draws noise, too
        self._setup_lr_schedule()
        if self._lora is not None:
            model = adapted(model, self._lora, seed=self.seed)
        if not any(p.requires_grad for p in model.model.parameters()):
            raise ConfigError(
                f"no weight of {model.name!r} learns: it is frozen (as the base of an adapter, perhaps); call "
                "language_model.model.requires_grad_(True), or give lora={...}"
            )
        self.policy = LMPolicy(
            self.observation_space, self.action_space, model, self.sampling, limits, self.value_network, start
        )  # fmt: skip
        self.value_start = None  # it has given what it had
        if model.adapter is not None:  # the model may have come with it
            self.settings = replace(self.settings, lora=model.adapter)
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self.policy.optimizer = torch.optim.Adam(parameters, lr=self.lr_schedule(1), eps=1e-5)
        self._update_rng = np.random.default_rng(np.random.SeedSequence((self.seed, 1)))
        self._counter = StepCounter(self.n_envs if self.env is not None else 1)
        if self.env is not None:
            self._stepping = SteppingCollector(self.env, self.policy, self.seed)
        self.rollout: Rollout | None = None
        # learn() hands this to collect_rollouts(), which does not use it: sequences have their own buffer.
        self.rollout_buffer = None  # type: ignore[assignment]

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Go on in another environment: other prompts, another reward, another number of slots.

        Raises:
            ConfigError: not a token environment, or one that does not fit the model or ``n_episodes``.
        """
        wrapped = self._wrap_env(env, self.verbose)
        self.policy.limits = self._check(wrapped, self.policy.language_model)
        # SB3 insists on the same spaces and number of slots; neither is part of what is learned.
        self.observation_space, self.action_space = wrapped.observation_space, wrapped.action_space
        self.n_envs = wrapped.num_envs
        super().set_env(wrapped, force_reset)
        assert self.seed is not None
        self._counter = StepCounter(self.n_envs)
        self._stepping = SteppingCollector(wrapped, self.policy, self.seed)

    def _load_reference(self, model: LanguageModel) -> LanguageModel:
        """The frozen model that KL is measured from: as given, or the policy as it is now.

        A base never changes while adapters learn, so it is its own reference, and costs no memory.
        """
        base = model if self._lora is not None else model.base
        if base is not None and (self._reference is None or self._reference is base):
            return base
        if self._reference is None:
            return model.frozen_copy()
        if isinstance(self._reference, str):
            self._reference = LanguageModel.load(self._reference, device=str(model.device))
        ours, theirs = ((m.vocab_size, m.tokenizer.eos_id) for m in (model, self._reference))
        if ours != theirs:
            raise ConfigError(
                f"the reference {self._reference.name!r} has {theirs[0]} logits and ends responses with id {theirs[1]}, "
                f"{model.name!r} has {ours[0]} and {ours[1]}: a divergence needs one and the same vocabulary"
            )
        return self._reference.frozen_copy()

    def _check(self, env: VecEnv, model: LanguageModel) -> Limits:
        """Refuse, before any work starts, an environment that could not work; return its fixed limits."""
        capacity, actions = check_spaces(env.observation_space, env.action_space)
        if actions != model.vocab_size:
            raise ConfigError(
                f"the environment has {actions} actions, but {model.name!r} has {model.vocab_size} logits; make the "
                f"environment with the model's own tokenizer: tokenizer={model.name!r}"
            )
        self.n_episodes = env.num_envs if self.n_episodes is None else self.n_episodes
        if self.n_episodes < 1 or self.n_episodes % env.num_envs:
            raise ConfigError(
                f"n_episodes ({self.n_episodes}) must be a multiple of the number of environments ({env.num_envs})"
            )
        self.batch_size = self.settings.batch_size or self.n_episodes
        if not 1 <= self.batch_size <= self.n_episodes:
            raise ConfigError(f"batch_size must lie in 1..n_episodes ({self.n_episodes}), got {self.batch_size}")
        group_slots(env, self.group_size)
        limits = limits_of(env, model)
        if limits.eos_id != model.tokenizer.eos_id:
            raise ConfigError(
                f"the environment ends responses with id {limits.eos_id}, {model.name!r} with {model.tokenizer.eos_id}; "
                f"make the environment with the model's own tokenizer: tokenizer={model.name!r}"
            )
        model.check_fits(capacity, 0)
        self.reference.check_fits(capacity, 0)
        return limits

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train until at least ``total_timesteps`` response tokens have been written; see SB3's ``learn``.

        Two things differ from SB3's loop. An iteration's figures are written after it has learned, so that a row holds
        one iteration's figures and the last one's are not lost. Schedules see the progress made when the rollout starts,
        so that the first one learns at the full rate and none below 0.
        """
        if self.env is None:
            raise ConfigError("there is no environment to learn in: set_env(env), or load(path, env=env)")
        if (
            isinstance(total_timesteps, bool)
            or not isinstance(total_timesteps, int | float)
            or not total_timesteps >= 1
        ):
            raise ConfigError(f"total_timesteps must be a number of at least 1, got {total_timesteps!r}")
        total, hook = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        hook.on_training_start(locals(), globals())
        done, self.stopped = 0, None
        while self.num_timesteps < total:
            self._update_current_progress_remaining(self.num_timesteps, total)
            if not self.collect_rollouts(self.env, hook, None, n_rollout_steps=self.n_steps):
                break
            self.train()
            done += 1
            if log_interval is not None and done % log_interval == 0:
                self.dump_logs(self.iteration)
            if self.stopped is not None:
                warnings.warn(self.stopped, TrainingStopped, stacklevel=2)
                break
        hook.on_training_end()
        return self

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Collect ``n_episodes`` whole episodes; a timestep is a token.

        Returns:
            False if a callback asked to stop; nothing is learned from this rollout then.
        """
        assert self.n_episodes is not None
        assert self.seed is not None
        # A checkpoint taken before this rollout has been learned from writes it again.
        if not self._in_parts:
            self._rollout_start = None
            self._rollout_start = self.state()
        callback.on_rollout_start()
        started = time.perf_counter()
        rounds = self.n_episodes // env.num_envs
        inside = token_env_inside(env)
        scored_before = inside.reward_seconds if inside else 0.0
        if self.collect == "auto" and isinstance(env, TokenVecEnv) and env.append_only:
            with Beside(threaded=is_slow(env.reward)) as beside:
                episodes = collect_by_decoding(
                    env, self.policy, self.seed, self.episode_count, rounds, beside=beside, meanwhile=self._take
                )
            assert self.rollout is not None
            self.rollout.rewards = pad(self.rollout.mask, [e.rewards for e in episodes])
            waited = beside.waited
        else:
            episodes = self._stepping.collect(self.episode_count, rounds, self._last_obs)
            self._last_obs = self._stepping.observation
            waited = inside.reward_seconds - scored_before if inside else 0.0
            self._take(episodes)
        self.episode_count += len(episodes)
        others = {"reference": self._reference_seconds} | ({"reward": waited} if inside else {})
        self._seconds = {"generation": time.perf_counter() - started - sum(others.values()), **others}
        self._scoring_seconds = inside.reward_seconds - scored_before if inside else None
        assert self.rollout is not None
        self.rollout = self.rollout.scored(self.group_size)
        scored = [e.info for e in episodes if not e.skipped]
        self._update_info_buffer(scored, np.ones(len(scored), dtype=np.bool_))
        for step in self._counter.steps(episodes):
            self.num_timesteps += env.num_envs
            callback.update_locals({"self": self, "env": env, **vars(step)})
            if not callback.on_step():
                return False
        callback.update_locals({"rollout": self.rollout})
        callback.on_rollout_end()
        return True

    def _take(self, episodes: list[Episode]) -> Rollout:
        """Make a rollout of these episodes, whose scores may be still to come."""
        started = time.perf_counter()
        self.rollout = rollout = Rollout.of(episodes)
        self.complete(rollout)
        self._reference_seconds = time.perf_counter() - started
        return rollout

    def complete(self, rollout: Rollout) -> None:
        """Look up what does not depend on scores, while slow rewards work on them; nothing by default."""

    @property
    def reward_share(self) -> float | None:
        """Share of the last iteration's time that was spent waiting for rewards, 0 to 1.

        None before the first iteration, and in environments that do not tell: all but :class:`TokenVecEnv`, wrapped or not.
        """
        if "reward" not in self._seconds:
            return None
        return self._seconds["reward"] / sum(self._seconds.values())

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beyond weights and optimizer to go on exactly, as JSON values."""
        if self._rollout_start is not None:
            return self._rollout_start
        return {
            "num_timesteps": self.num_timesteps,
            "iteration": self.iteration,
            "n_updates": self._n_updates,
            "episode_count": self.episode_count,
            "tokens_waiting": self._counter.waiting,
            "seed": self.seed,
            "update_rng": self._update_rng.bit_generator.state,
            "env": self.env.state() if isinstance(self.env, TokenVecEnv) else None,
            "ep_info_buffer": [{k: float(v) for k, v in info.items()} for info in self.ep_info_buffer or ()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state`."""
        self.num_timesteps = state["num_timesteps"]
        self.iteration = state["iteration"]
        self._n_updates = state["n_updates"]
        self.episode_count = state["episode_count"]
        self._counter.waiting = state["tokens_waiting"]
        self._update_rng.bit_generator.state = state["update_rng"]
        self.ep_info_buffer = deque(state["ep_info_buffer"], maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(maxlen=self._stats_window_size)
        if isinstance(self.env, TokenVecEnv) and state["env"] and len(state["env"]["generators"]) == self.env.num_envs:
            self.env.restore(state["env"])
            # learn() resets an environment it has no observation of, which would draw a prompt that nobody used before.
            self._last_obs = dict(self.env.env.episodes.observe())
