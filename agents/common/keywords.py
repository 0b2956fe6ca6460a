"""The keywords of every agent's constructor, for editors and type checkers.

Generated from the settings classes by ``rlhf_gym.agents.common.settings_tables``; not to be edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Required, TypedDict

import torch
from stable_baselines3.common.type_aliases import Schedule

from rlhf_gym.agents.common.covariance import CovarianceControl
from rlhf_gym.agents.common.given_pairs import EncodedPair, EncodedPreference, Pair, PreferenceRow
from rlhf_gym.agents.common.given_trajectories import EncodedTrajectory, TrajectoryRow
from rlhf_gym.agents.common.kl import Action, Estimator
from rlhf_gym.agents.common.losses import Aggregation, PairLoss
from rlhf_gym.agents.common.mismatch import Correction
from rlhf_gym.agents.common.policy import ValueNetwork
from rlhf_gym.agents.common.policy_losses import PolicyLoss, TokenPolicyLoss
from rlhf_gym.agents.common.preference_losses import PreferenceLoss
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora
from rlhf_gym.lm.precision import Precision
from rlhf_gym.raters.base import Rater
from rlhf_gym.raters.function import RaterFunction
from rlhf_gym.reward_model import RewardModel


class AgentKeywords(TypedDict, total=False):
    """The settings of every agent."""

    language_model: LanguageModel | str
    reference: LanguageModel | str | None
    lora: Lora | Mapping[str, Any] | None
    learning_rate_decay: Literal["constant", "linear", "cosine"]
    learning_rate_warmup: float
    optimizer: Literal["adamw", "adamw_8bit"]
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    weight_decay: float
    n_episodes: int | None
    batch_size: int | None
    tokens_per_batch: int
    precision: Precision
    gradient_checkpointing: bool
    max_grad_norm: float
    stats_window_size: int
    tensorboard_log: str | None
    verbose: int
    seed: int | None
    device: torch.device | str


class PPOKeywords(AgentKeywords, total=False):
    """The settings of PPO."""

    gamma: float
    discount_per: Literal["token", "turn"]
    gae_lambda: float
    gae_lambda_alpha: float | None
    value_gae_lambda: float | None
    value_warmup: int
    scale_returns: bool
    normalize_advantage: bool
    whiten_rewards: bool
    value_learning_rate: float | None
    value_max_grad_norm: float | None
    value_start: RewardModel | str | Path | None
    vf_coef: float
    value_network: ValueNetwork
    clip_range_vf: float | None
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    max_ratio: float
    n_epochs: int
    clip_range: float | Schedule
    clip_range_high: float | None
    dual_clip: float | None
    policy_loss: TokenPolicyLoss
    sapo_temperature: float
    sapo_temperature_negative: float
    target_kl: float | None
    old_log_probs: Literal["rollout", "recompute"]
    importance_sampling: Correction | None
    importance_cap: float
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None


class NLPOKeywords(AgentKeywords, total=False):
    """The settings of NLPO."""

    gamma: float
    discount_per: Literal["token", "turn"]
    gae_lambda: float
    gae_lambda_alpha: float | None
    value_gae_lambda: float | None
    value_warmup: int
    scale_returns: bool
    normalize_advantage: bool
    whiten_rewards: bool
    value_learning_rate: float | None
    value_max_grad_norm: float | None
    value_start: RewardModel | str | Path | None
    vf_coef: float
    value_network: ValueNetwork
    clip_range_vf: float | None
    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    max_ratio: float
    n_epochs: int
    clip_range: float | Schedule
    clip_range_high: float | None
    dual_clip: float | None
    policy_loss: TokenPolicyLoss
    sapo_temperature: float
    sapo_temperature_negative: float
    target_kl: float | None
    old_log_probs: Literal["rollout", "recompute"]
    importance_sampling: Correction | None
    importance_cap: float
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    mask_top_p: float
    mask_refresh: int


class TRPOKeywords(AgentKeywords, total=False):
    """The settings of TRPO."""

    gamma: float
    discount_per: Literal["token", "turn"]
    gae_lambda: float
    gae_lambda_alpha: float | None
    value_gae_lambda: float | None
    value_warmup: int
    scale_returns: bool
    normalize_advantage: bool
    whiten_rewards: bool
    value_learning_rate: float | None
    value_max_grad_norm: float | None
    value_start: RewardModel | str | Path | None
    clip_range_vf: float | None
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    n_epochs: int
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    max_kl: float
    cg_steps: int
    cg_damping: float
    sub_sampling_factor: int
    line_search_steps: int


class A2CKeywords(AgentKeywords, total=False):
    """The settings of A2C."""

    gamma: float
    discount_per: Literal["token", "turn"]
    gae_lambda: float
    gae_lambda_alpha: float | None
    value_gae_lambda: float | None
    value_warmup: int
    scale_returns: bool
    normalize_advantage: bool
    whiten_rewards: bool
    value_learning_rate: float | None
    value_max_grad_norm: float | None
    value_start: RewardModel | str | Path | None
    vf_coef: float
    value_network: ValueNetwork
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    max_ratio: float
    old_log_probs: Literal["rollout", "recompute"]
    importance_sampling: Correction | None
    importance_cap: float
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None


class CriticFreeKeywords(AgentKeywords, total=False):
    """The settings of CriticFree."""

    group_size: int
    cov_control: CovarianceControl | None
    cov_share: float
    cov_low: float
    cov_high: float
    cov_kl_coef: float
    overlong_buffer: int | None
    max_ratio: float
    n_epochs: int
    clip_range: float | Schedule | None
    clip_range_high: float | None
    dual_clip: float | None
    policy_loss: PolicyLoss
    sapo_temperature: float
    sapo_temperature_negative: float
    target_kl: float | None
    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    old_log_probs: Literal["rollout", "recompute"]
    importance_sampling: Correction | None
    importance_cap: float
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    overlong_filtering: bool


class GRPOKeywords(AgentKeywords, total=False):
    """The settings of GRPO."""

    group_size: int
    cov_control: CovarianceControl | None
    cov_share: float
    cov_low: float
    cov_high: float
    cov_kl_coef: float
    overlong_buffer: int | None
    max_ratio: float
    n_epochs: int
    clip_range: float | Schedule | None
    clip_range_high: float | None
    dual_clip: float | None
    policy_loss: PolicyLoss
    sapo_temperature: float
    sapo_temperature_negative: float
    target_kl: float | None
    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    old_log_probs: Literal["rollout", "recompute"]
    importance_sampling: Correction | None
    importance_cap: float
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    overlong_filtering: bool
    scale_rewards: Literal["group", "batch", "none"]
    compare: Literal["response", "turn"]
    group_baseline: Literal["mean", "length_weighted"]
    dynamic_sampling: bool
    max_resamples: int
    minibatch_groups: bool


class GSPOKeywords(AgentKeywords, total=False):
    """The settings of GSPO."""

    group_size: int
    cov_control: CovarianceControl | None
    cov_share: float
    cov_low: float
    cov_high: float
    cov_kl_coef: float
    overlong_buffer: int | None
    max_ratio: float
    n_epochs: int
    clip_range: float | Schedule
    clip_range_high: float | None
    dual_clip: float | None
    policy_loss: PolicyLoss
    sapo_temperature: float
    sapo_temperature_negative: float
    target_kl: float | None
    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    old_log_probs: Literal["rollout", "recompute"]
    importance_sampling: Correction | None
    importance_cap: float
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    overlong_filtering: bool
    scale_rewards: Literal["group", "batch", "none"]
    compare: Literal["response", "turn"]
    group_baseline: Literal["mean", "length_weighted"]
    dynamic_sampling: bool
    max_resamples: int
    minibatch_groups: bool


class RLOOKeywords(AgentKeywords, total=False):
    """The settings of RLOO."""

    group_size: int
    cov_control: CovarianceControl | None
    cov_share: float
    cov_low: float
    cov_high: float
    cov_kl_coef: float
    overlong_buffer: int | None
    max_ratio: float
    n_epochs: int
    clip_range: float | Schedule | None
    clip_range_high: float | None
    dual_clip: float | None
    policy_loss: PolicyLoss
    sapo_temperature: float
    sapo_temperature_negative: float
    target_kl: float | None
    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    old_log_probs: Literal["rollout", "recompute"]
    importance_sampling: Correction | None
    importance_cap: float
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    overlong_filtering: bool
    running_share: float
    baseline_decay: float


class ReMaxKeywords(AgentKeywords, total=False):
    """The settings of ReMax."""

    group_size: int
    cov_control: CovarianceControl | None
    cov_share: float
    cov_low: float
    cov_high: float
    cov_kl_coef: float
    overlong_buffer: int | None
    max_ratio: float
    n_epochs: int
    clip_range: float | Schedule | None
    clip_range_high: float | None
    dual_clip: float | None
    policy_loss: PolicyLoss
    sapo_temperature: float
    sapo_temperature_negative: float
    target_kl: float | None
    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    old_log_probs: Literal["rollout", "recompute"]
    importance_sampling: Correction | None
    importance_cap: float
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    overlong_filtering: bool


class REINFORCEKeywords(AgentKeywords, total=False):
    """The settings of REINFORCE."""

    group_size: int
    cov_control: CovarianceControl | None
    cov_share: float
    cov_low: float
    cov_high: float
    cov_kl_coef: float
    overlong_buffer: int | None
    max_ratio: float
    n_epochs: int
    clip_range: float | Schedule | None
    clip_range_high: float | None
    dual_clip: float | None
    policy_loss: PolicyLoss
    sapo_temperature: float
    sapo_temperature_negative: float
    target_kl: float | None
    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    old_log_probs: Literal["rollout", "recompute"]
    importance_sampling: Correction | None
    importance_cap: float
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    overlong_filtering: bool
    gamma: float
    discount_per: Literal["token", "turn"]
    baseline: Literal["none", "running", "batch"]
    baseline_decay: float


class ReinforcePlusPlusKeywords(AgentKeywords, total=False):
    """The settings of ReinforcePlusPlus."""

    group_size: int
    cov_control: CovarianceControl | None
    cov_share: float
    cov_low: float
    cov_high: float
    cov_kl_coef: float
    overlong_buffer: int | None
    max_ratio: float
    n_epochs: int
    clip_range: float | Schedule | None
    clip_range_high: float | None
    dual_clip: float | None
    policy_loss: PolicyLoss
    sapo_temperature: float
    sapo_temperature_negative: float
    target_kl: float | None
    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    old_log_probs: Literal["rollout", "recompute"]
    importance_sampling: Correction | None
    importance_cap: float
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    overlong_filtering: bool
    gamma: float
    discount_per: Literal["token", "turn"]


class OnlineDPOKeywords(AgentKeywords, total=False):
    """The settings of OnlineDPO."""

    overlong_buffer: int | None
    n_epochs: int
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    beta: float
    loss: PairLoss
    label_smoothing: float
    rater: Rater | RaterFunction | None


class RAFTKeywords(AgentKeywords, total=False):
    """The settings of RAFT."""

    group_size: int
    overlong_buffer: int | None
    n_epochs: int
    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    aggregation: Aggregation
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    collect: Literal["auto", "step"]
    engine: str
    engine_folder: str | None
    engine_timeout: float
    engine_patience: float
    engine_tolerance: float
    ray: str | None
    ray_workers: int
    ray_cpus: float
    ray_gpus: float
    max_staleness: int
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    keep: Literal["best", "all"]
    min_score: float | None


class ESKeywords(AgentKeywords, total=False):
    """The settings of ES."""

    group_size: int
    overlong_buffer: int | None
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    kl_estimator: Estimator | None
    kl_in: Literal["reward", "loss"]
    kl_gradient: Literal["token", "sequence"]
    kl_importance: bool
    temperature: float
    top_k: int
    top_p: float
    clip_scores: float | None
    missing_eos_penalty: float | None
    missing_eos_score: float | None
    kl_limit: float | None
    on_kl_limit: Action | None
    sigma: float
    fitness: Literal["ranks", "z_scores"]


class PreferenceOptimizationKeywords(AgentKeywords, total=False):
    """The settings of PreferenceOptimization."""

    n_epochs: int
    preferences: Required[Sequence[PreferenceRow | EncodedPreference]]
    on_too_long: Literal["refuse", "skip", "truncate"]
    loss: PreferenceLoss
    beta: float | None
    label_smoothing: float
    target_margin: float
    desirable_weight: float
    undesirable_weight: float


class ILQLKeywords(AgentKeywords, total=False):
    """The settings of ILQL."""

    aggregation: Aggregation
    n_epochs: int
    trajectories: Required[Sequence[TrajectoryRow | EncodedTrajectory]]
    on_too_long: Literal["refuse", "skip", "truncate"]
    gamma: float
    expectile: float
    q_coef: float
    cql_coef: float
    target_rate: float
    beta: float
    normalize_rewards: bool
    value_learning_rate: float | None


class SFTKeywords(AgentKeywords, total=False):
    """The settings of SFT."""

    ent_coef: float
    ent_target: float | None
    ent_coef_step: float
    aggregation: Aggregation
    n_epochs: int
    data: Required[Sequence[Pair | EncodedPair]]
    on_too_long: Literal["refuse", "skip", "truncate"]
