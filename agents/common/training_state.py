"""The state of training beyond weights and optimizer: counters, random states, the KL coefficient, running episodes."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from rlhf_gym.agents.common.callbacks import StepCounter
from rlhf_gym.agents.common.entropy import EntropyController
from rlhf_gym.agents.common.kl import KLController, KLLimit, LastGood
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout_workers import RolloutWorkers, warn_of_episodes
from rlhf_gym.agents.common.settings import AgentSettings
from rlhf_gym.agents.common.slots import slots_of
from rlhf_gym.lm.language_model import LanguageModel


class Agent(Protocol):
    """An agent, as far as checkpoints need to know it."""

    policy: LMPolicy
    settings: AgentSettings
    reference: LanguageModel | None
    kl_guard: KLLimit
    kl_controller: KLController
    entropy_controller: EntropyController
    scaler: torch.amp.GradScaler
    rollout_workers: RolloutWorkers | None
    observation_space: spaces.Space[Any]
    env: VecEnv | None
    num_timesteps: int
    iteration: int
    stopped: str | None
    episode_count: int
    seed: int | None
    ep_info_buffer: deque[Any] | None
    ep_success_buffer: deque[Any] | None
    _n_updates: int
    _counter: StepCounter
    _update_rng: np.random.Generator
    _stats_window_size: int
    _last_obs: Any
    _chosen_sizes: dict[str, Any]

    def state(self) -> dict[str, Any]:
        """Counters and random states."""

    def whole_state(self) -> tuple[dict[str, Any], LastGood | None]:
        """The optimizer's state, and the last good weights."""


def training_state(agent: Agent) -> dict[str, Any]:
    """The counters and random states of an agent, as JSON values."""
    return {
        "num_timesteps": agent.num_timesteps,
        "iteration": agent.iteration,
        "n_updates": agent._n_updates,
        "episode_count": agent.episode_count,
        "tokens_waiting": agent._counter.waiting,
        "seed": agent.seed,
        "update_rng": agent._update_rng.bit_generator.state,
        "env": None if agent.env is None else slots_of(agent.env).state(),
        "rollout_workers": None if agent.rollout_workers is None else agent.rollout_workers.state(),
        "ep_info_buffer": [{k: float(v) for k, v in info.items()} for info in agent.ep_info_buffer or ()],
        # These move only after learning, so they fit the state at a rollout's start, too.
        "kl_coef": agent.kl_controller.coef,
        "ent_coef": agent.entropy_controller.coef,
        "kl_back_offs": agent.kl_guard.back_offs,
        "loss_scaler": agent.scaler.state_dict(),
        "stopped": agent.stopped,
    }


def restore_training(agent: Agent, state: dict[str, Any]) -> None:
    """Go on from where :func:`training_state` was taken.

    Args:
        agent: the agent.
        state: the counters and random states.
    """
    agent.num_timesteps = state["num_timesteps"]
    agent.iteration = state["iteration"]
    agent._n_updates = state["n_updates"]
    agent.episode_count = state["episode_count"]
    agent._counter.waiting = state["tokens_waiting"]
    agent._update_rng.bit_generator.state = state["update_rng"]
    agent.kl_controller.coef = float(state["kl_coef"])
    if agent.entropy_controller.target is not None:
        agent.entropy_controller.coef = float(state["ent_coef"])
    agent.kl_guard.back_offs = int(state["kl_back_offs"])
    if state["loss_scaler"] and agent.scaler.is_enabled():  # the precision may have been changed
        agent.scaler.load_state_dict(state["loss_scaler"])
    agent.stopped = state["stopped"]
    if agent.rollout_workers is not None:
        agent.rollout_workers.restore(state["rollout_workers"])
    elif agent.env is not None:
        warn_of_episodes(state["rollout_workers"])
    agent.ep_info_buffer = deque(state["ep_info_buffer"], maxlen=agent._stats_window_size)
    agent.ep_success_buffer = deque(maxlen=agent._stats_window_size)
    if agent.env is not None and slots_of(agent.env).restore(state["env"]):
        # learn() resets an environment it has no observation of, which would draw a prompt that nobody used before.
        agent._last_obs = {}
