"""What every on-policy agent over tokens shares: models, collection, the KL reward, learning in minibatches, logging.

A new algorithm is an advantage estimator and a loss: subclass :class:`TokenOnPolicyAlgorithm` and write
:meth:`~TokenOnPolicyAlgorithm.prepare` and :meth:`~TokenOnPolicyAlgorithm.update`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents.collect import SteppingCollector, collect_by_decoding
from rlhf_gym.agents.policy import LMPolicy, ValueNetwork
from rlhf_gym.agents.rollout import Episode, Rollout, flat, pad, unpack_masks
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.errors import ConfigError, TrainingError
from rlhf_gym.language_model import LanguageModel
from rlhf_gym.sampling import Limits, Sampling
from rlhf_gym.sequences import batches_by_length, chosen_log_probs, pack_sequences, response_hidden, token_log_probs


class TokenOnPolicyAlgorithm(OnPolicyAlgorithm):
    """Base of the on-policy agents. See :class:`~rlhf_gym.agents.ppo.PPO` for the arguments."""

    policy: LMPolicy
    value_network: ValueNetwork | None = None
    policy_aliases: ClassVar[dict[str, Any]] = {"LMPolicy": LMPolicy}

    def __init__(
        self,
        policy: str,
        env: GymEnv | None,
        *,
        language_model: LanguageModel | str,
        reference: LanguageModel | str | None,
        learning_rate: float | Schedule,
        n_episodes: int | None,
        n_epochs: int,
        batch_size: int,
        tokens_per_batch: int,
        sampling: Sampling,
        max_grad_norm: float,
        collect: str,
        seed: int | None,
        device: torch.device | str,
        verbose: int,
        tensorboard_log: str | None,
        stats_window_size: int,
        _init_setup_model: bool,
    ) -> None:
        super().__init__(
            policy, env, learning_rate, n_steps=1, gamma=1.0, gae_lambda=0.95, ent_coef=0.0, vf_coef=0.0,
            max_grad_norm=max_grad_norm, use_sde=False, sde_sample_freq=-1, stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log, verbose=verbose, seed=seed, device="cpu", _init_setup_model=False,
            supported_action_spaces=(gym.spaces.Discrete,),
        )  # fmt: skip
        self.n_episodes = n_episodes
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.tokens_per_batch = tokens_per_batch
        self.sampling = sampling
        self.collect = collect
        self._device_name = str(device)
        self._language_model = language_model
        self._reference = reference
        self.iteration = 0
        self.episode_count = 0
        self._tokens_not_stepped = 0
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        """Load what was given by name, check everything that can be checked, build policy and optimizer."""
        if self.env is None:
            raise ConfigError(f"{type(self).__name__} needs an environment: pass env=...")
        model = self._language_model
        if isinstance(model, str):
            model = LanguageModel.load(model, device=self._device_name)
        self.device = model.device
        self.reference = self._load_reference(model)
        self.n_episodes = self.env.num_envs if self.n_episodes is None else self.n_episodes
        self._check_sizes(self.env, model)
        if self.seed is None:
            self.seed = int(np.random.SeedSequence().generate_state(1)[0])
        self.set_random_seed(self.seed)
        self._setup_lr_schedule()
        self.policy = LMPolicy(
            self.observation_space, self.action_space, model, self.sampling, limits_of(self.env, model), self.value_network
        )  # fmt: skip
        self.policy.optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.lr_schedule(1), eps=1e-5)
        self._update_rng = np.random.default_rng(np.random.SeedSequence((self.seed, 1)))
        self._stepping = SteppingCollector(self.env, self.policy, self.seed)
        self.rollout: Rollout | None = None
        # learn() hands this to collect_rollouts(), which does not use it: sequences have their own buffer.
        self.rollout_buffer = None  # type: ignore[assignment]

    def _load_reference(self, model: LanguageModel) -> LanguageModel:
        """The frozen model that KL is measured from: as given, or a copy of the policy as it is now."""
        if self._reference is None:
            return model.frozen_copy()
        if isinstance(self._reference, str):
            self._reference = LanguageModel.load(self._reference, device=str(model.device))
        return self._reference.frozen_copy()

    def _check_sizes(self, env: VecEnv, model: LanguageModel) -> None:
        """Refuse, before any work starts, what could not work."""
        assert self.n_episodes is not None
        space = env.observation_space
        if not isinstance(space, gym.spaces.Dict) or not {"ids", "length", "prompt_length"} <= set(space.spaces):
            raise ConfigError(
                f"expected a token environment, whose observation is Dict(ids, length, prompt_length); got {space}"
            )
        assert isinstance(env.action_space, gym.spaces.Discrete)
        if env.action_space.n != model.vocab_size:
            raise ConfigError(
                f"the environment has {env.action_space.n} actions, but {model.name!r} has {model.vocab_size} logits; make "
                f"the environment with the model's own tokenizer: tokenizer={model.name!r}"
            )
        if self.n_episodes % env.num_envs:
            raise ConfigError(
                f"n_episodes ({self.n_episodes}) must be a multiple of the number of environments ({env.num_envs})"
            )
        if not 1 <= self.batch_size <= self.n_episodes:
            raise ConfigError(f"batch_size must lie in 1..n_episodes ({self.n_episodes}), got {self.batch_size}")
        if self.n_epochs < 1:
            raise ConfigError(f"n_epochs must be at least 1, got {self.n_epochs}")
        if self.collect not in ("auto", "step"):
            raise ConfigError(f"collect must be 'auto' or 'step', got {self.collect!r}")
        model.check_fits(space["ids"].shape[0], 0)

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Collect ``n_episodes`` whole episodes; a timestep is a token.

        Returns:
            False if a callback asked to stop.
        """
        assert self.n_episodes is not None
        assert self.seed is not None
        callback.on_rollout_start()
        started = time.perf_counter()
        rounds = self.n_episodes // env.num_envs
        if self.collect == "auto" and isinstance(env, TokenVecEnv) and env.append_only:
            episodes = collect_by_decoding(env, self.policy, self.seed, self.episode_count, rounds)
        else:
            episodes = self._stepping.collect(self.episode_count, rounds, self._last_obs)
            self._last_obs = self._stepping.observation
        self.episode_count += len(episodes)
        self.rollout = Rollout.of(episodes)
        self._seconds = {"generation": time.perf_counter() - started}
        infos = [e.info for e in episodes]
        dones = np.ones(len(episodes), dtype=np.bool_)
        rewards = np.array([e.score for e in episodes])
        self._update_info_buffer(infos, dones)
        # One step of the environments is num_envs tokens: callbacks count calls of on_step, the progress bar num_envs a call.
        self._tokens_not_stepped += sum(self.rollout.lengths)
        steps, self._tokens_not_stepped = divmod(self._tokens_not_stepped, env.num_envs)
        for _ in range(steps):
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def train(self) -> None:
        """Learn from the rollout: prepare advantages, then epochs of minibatches of whole sequences."""
        self._update_learning_rate(self.policy.optimizer)
        rollout = self.rollout
        assert rollout is not None
        started = time.perf_counter()
        self._fill_reference(rollout)
        if self.policy.value_trunk is not None:
            self._fill_separate_values(rollout)
        self._seconds["reference"] = time.perf_counter() - started
        started = time.perf_counter()
        self.prepare(rollout)
        self._statistics: dict[str, list[float]] = {}
        self._epochs_done = 0
        for _ in range(self.n_epochs):
            if not all(self.update(rollout, rows) for rows in rollout.minibatches(self.batch_size, self._update_rng)):
                break
            self._epochs_done += 1
        self.policy.forget()
        self.iteration += 1
        self._seconds["learning"] = time.perf_counter() - started
        self._log(rollout)

    @abstractmethod
    def prepare(self, rollout: Rollout) -> None:
        """Fill ``rollout.advantages`` (and ``returns``) from its rewards and log-probabilities."""

    @abstractmethod
    def update(self, rollout: Rollout, rows: list[int]) -> bool:
        """Take one optimizer step on a minibatch of sequences; False ends learning from this rollout."""

    def _fill_reference(self, rollout: Rollout) -> None:
        prompts = [e.prompt_ids for e in rollout.episodes]
        responses = [e.response_ids for e in rollout.episodes]
        if rollout.episodes[0].masks is None:
            logs: Any = token_log_probs(
                self.reference, prompts, responses, self.sampling, self.policy.limits, tokens_per_batch=self.tokens_per_batch
            )
        else:
            logs = [torch.zeros(0)] * len(prompts)
            with torch.no_grad():
                for rows in batches_by_length(rollout.lengths, self.tokens_per_batch):
                    values, _ = self._chosen(self.reference, [rollout.episodes[i] for i in rows])
                    for i, row in zip(rows, values.split([rollout.lengths[i] for i in rows]), strict=True):
                        logs[i] = row.cpu()
        rollout.reference_log_probs = pad(rollout.mask, logs)

    def _fill_separate_values(self, rollout: Rollout) -> None:
        assert self.policy.value_trunk is not None
        values: list[Tensor] = [torch.zeros(0)] * len(rollout.episodes)
        with torch.no_grad():
            for rows in batches_by_length(rollout.lengths, self.tokens_per_batch):
                episodes = [rollout.episodes[i] for i in rows]
                flat_values = self.policy.values(response_hidden(self.policy.value_trunk, self._pack(episodes)))
                for i, row in zip(rows, flat_values.split([rollout.lengths[i] for i in rows]), strict=True):
                    values[i] = row.cpu()
        rollout.values = pad(rollout.mask, values)

    def _pack(self, episodes: list[Episode]) -> Any:
        pad_id = self.policy.language_model.tokenizer.pad_id
        prompts, responses = [e.prompt_ids for e in episodes], [e.response_ids for e in episodes]
        return pack_sequences(prompts, responses, pad_id, device=self.device)

    def _chosen(
        self, model: LanguageModel, episodes: list[Episode], *, entropy: bool = False, hidden: Tensor | None = None,
        batch: Any = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        batch = self._pack(episodes) if batch is None else batch
        hidden = response_hidden(model, batch) if hidden is None else hidden
        allowed = unpack_masks(episodes, model.vocab_size)
        allowed = None if allowed is None else allowed.to(self.device)
        return chosen_log_probs(model, batch, hidden, self.sampling, self.policy.limits, entropy=entropy, allowed=allowed)

    def forward_minibatch(
        self, rollout: Rollout, rows: list[int]
    ) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor | None]]:
        """Run a minibatch through the policy in micro-batches of like length.

        Yields:
            The micro-batch's rows, and flat over its response tokens: new log-probabilities, entropies, and values (None
            without a value head).
        """
        totals = [len(rollout.episodes[i].prompt_ids) + rollout.lengths[i] for i in rows]
        for group in batches_by_length(totals, self.tokens_per_batch):
            micro = [rows[g] for g in group]
            episodes = [rollout.episodes[i] for i in micro]
            batch = self._pack(episodes)
            hidden = response_hidden(self.policy.language_model, batch)
            logs, entropies = self._chosen(
                self.policy.language_model, episodes, entropy=True, hidden=hidden, batch=batch
            )
            values = None
            if self.policy.value_trunk is not None:
                values = self.policy.values(response_hidden(self.policy.value_trunk, batch))
            elif self.policy.value_head is not None:
                values = self.policy.values(hidden)
            assert entropies is not None
            yield micro, logs, entropies, values

    def step_optimizer(self) -> None:
        """Clip the gradient, refuse one that is not finite, and step."""
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        if not torch.isfinite(norm):
            raise TrainingError(
                f"the gradient is {float(norm)} in iteration {self.iteration + 1}; the last checkpoint is untouched. Lower "
                f"the learning rate ({self.policy.optimizer.param_groups[0]['lr']:g}) or look at the rewards' scale."
            )
        self.policy.optimizer.step()
        self.policy.optimizer.zero_grad(set_to_none=True)

    def note(self, **statistics: Tensor | float) -> None:
        """Keep figures of a minibatch; the iteration's mean is logged under each name."""
        for name, value in statistics.items():
            self._statistics.setdefault(name, []).append(float(value))

    def _log(self, rollout: Rollout) -> None:
        """Hand the iteration's figures to stable-baselines3's logger, under the names of the field's dashboards."""
        log = self.logger.record
        kl = ((rollout.log_probs - rollout.reference_log_probs) * rollout.mask).sum(1)
        scores = torch.tensor([e.score for e in rollout.episodes])
        lengths = torch.tensor(rollout.lengths, dtype=torch.float32)
        log("objective/kl", kl.mean().item())
        log("objective/entropy", (-(rollout.log_probs * rollout.mask).sum(1)).mean().item())
        log("objective/scores", scores.mean().item())
        log("objective/scores_std", scores.std(unbiased=False).item())
        log("response_length", lengths.mean().item())
        log("val/num_eos_tokens", sum(e.response_ids[-1] == self.policy.limits.eos_id for e in rollout.episodes))
        log("eos_rate", float(np.mean([e.ended for e in rollout.episodes])))
        terms = [e.info.get("reward_terms", {}) for e in rollout.episodes]
        for name in terms[0]:
            log(f"reward/{name}", float(np.mean([t[name] for t in terms])))
        log("episode", self.episode_count)
        log("lr", self.policy.optimizer.param_groups[0]["lr"])
        for name, values in self._statistics.items():
            log(name, float(np.mean(values)))
        for name, seconds in self._seconds.items():
            log(f"time/{name}_seconds", seconds)
        log("time/tokens_per_second", sum(rollout.lengths) / sum(self._seconds.values()))
        log("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        log("time/iterations", self.iteration, exclude="tensorboard")
        if self.ep_info_buffer:
            log("rollout/ep_rew_mean", float(np.mean([i["r"] for i in self.ep_info_buffer])))
            log("rollout/ep_len_mean", float(np.mean([i["l"] for i in self.ep_info_buffer])))
        self.logger.dump(step=self.num_timesteps)

    def dump_logs(self, iteration: int = 0) -> None:
        """Nothing yet: an iteration's figures are complete, and are dumped, only after learning."""

    def flat(self, table: Tensor, rows: list[int]) -> Tensor:
        """A rollout table's entries at the response tokens of some rows, on the policy's device: ``[N]``."""
        assert self.rollout is not None
        return flat(table, rows, self.rollout.mask).to(self.device)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_language_model", "_reference", "reference", "rollout", "_stepping"]


def limits_of(env: VecEnv, model: LanguageModel) -> Limits:
    """Fixed limits on tokens: the environment's own where it tells them, else those of its spaces."""
    if isinstance(env, TokenVecEnv):
        return Limits(env.eos_id, env.banned, env.min_response_tokens, env.max_response_tokens)
    space = env.observation_space
    assert isinstance(space, gym.spaces.Dict)
    return Limits(model.tokenizer.eos_id, (model.tokenizer.pad_id,), 0, int(space["ids"].shape[0]))  # type: ignore[index]
