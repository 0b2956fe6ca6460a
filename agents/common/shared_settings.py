"""Settings that several agents share, one class for each idea; an agent's settings class inherits from those that it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from stable_baselines3.common.type_aliases import Schedule

from rlhf_gym.agents.common.covariance import CovarianceControl
from rlhf_gym.agents.common.kl import Action, Estimator
from rlhf_gym.agents.common.losses import Aggregation
from rlhf_gym.agents.common.mismatch import Correction
from rlhf_gym.agents.common.policy import ValueNetwork
from rlhf_gym.agents.common.policy_losses import DUAL_CLIPPED, OF_RESPONSES, UNCLIPPED, PolicyLoss, TokenPolicyLoss
from rlhf_gym.agents.common.settings import AgentSettings, argument, setting, settings_of
from rlhf_gym.agents.common.value_head import SECOND_BASE
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.engines.builtin_engine import BUILTIN
from rlhf_gym.reward_model import RewardModel


@dataclass(frozen=True, kw_only=True)
class EpochSettings(AgentSettings):
    """Several passes over a rollout."""

    n_epochs: int = setting(1, "passes over an iteration's episodes", at_least=1)


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(AgentSettings):
    """Sampling of responses, shaping of their scores, and a limit on the KL."""

    temperature: float = setting(
        1.0, "divides the logits, in sampling, in learning and for the reference alike", above=0
    )
    top_k: int = setting(0, "tokens are sampled from the k most probable ones; 0 takes all", at_least=0)
    top_p: float = setting(
        1.0, "tokens are sampled from the most probable ones of this total probability; 1 takes all", above=0, at_most=1
    )
    clip_scores: float | None = setting(
        None, "scores are clipped to plus or minus this before learning; None does not clip", above=0
    )
    missing_eos_penalty: float | None = setting(
        None,
        "subtracted from the score of a response that neither EOS nor a stop sequence ended; None subtracts nothing",
        at_least=0,
    )
    missing_eos_score: float | None = setting(
        None, "replaces the score of a response that neither EOS nor a stop sequence ended; None keeps the score"
    )
    kl_limit: float | None = setting(
        None,
        "largest KL from the reference, in nats per response. The agent does not learn from a rollout beyond it, and gets "
        "back the weights of the last rollout within it. None sets no limit",
        above=0,
    )
    on_kl_limit: Action | None = setting(
        None,
        "beyond `kl_limit`, stop ends training; back_off halves the learning rate and goes on, at most eight times "
        "(`train/kl_back_offs` counts them). None takes stop",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.missing_eos_penalty is not None and self.missing_eos_score is not None:
            raise ConfigError("missing_eos_penalty and missing_eos_score are alternatives; give one of them")
        if self.kl_limit is None and self.on_kl_limit is not None:
            raise ConfigError(f"on_kl_limit={self.on_kl_limit!r} needs a kl_limit, in nats per response")

    @classmethod
    def needs_reference(cls, values: Mapping[str, Any]) -> bool:
        """As of every agent; a limit needs one, too.

        Args:
            values: of all settings, by name.
        """
        return super().needs_reference(values) or values["kl_limit"] is not None


@dataclass(frozen=True, kw_only=True)
class MismatchSettings(AgentSettings):
    """The distance between the distribution that wrote the responses and the one that learns from them."""

    old_log_probs: Literal["rollout", "recompute"] = setting(
        "rollout",
        "the log-probabilities that ratios are taken to: rollout has those that the responses were drawn with; recompute has "
        "those of the pass that learns, before its first step, for one more pass. In float32 they differ by rounding alone",
        source="Yao et al. 2025",
    )
    importance_sampling: Correction | None = setting(
        None,
        "with recompute, weighs the policy loss by the ratio of the two, of each token or of the whole response; truncate cuts "
        "the weight at `importance_cap`, mask leaves out what is above it. None does not weigh",
        source="Yao et al. 2025",
    )
    importance_cap: float = setting(2.0, "with `importance_sampling`: the largest weight", above=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.importance_sampling is not None and self.old_log_probs != "recompute":
            raise ConfigError(
                f"importance_sampling={self.importance_sampling!r} needs old_log_probs='recompute', which gives the "
                "log-probabilities of the pass that learns"
            )


@dataclass(frozen=True, kw_only=True)
class CollectSettings(AgentSettings):
    """The way in which a rollout is collected, and what generates its responses."""

    absence: ClassVar[str] = "its responses are not generated whole, by the built-in engine or another; leave it out"

    collect: Literal["auto", "step"] = setting(
        "auto", "auto decodes whole responses where the environment allows it; step steps it token by token"
    )
    engine: str = setting(
        BUILTIN,
        "what generates the responses: builtin, transformers (its continuous batching), vllm (in this process), "
        "vllm:http://host:port or openai:http://host:port (a completions server), or module:Class of your own",
    )
    engine_folder: str | None = setting(
        None,
        "folder that weights for an engine are written to; a server must see it under this path. None takes temporary files",
    )
    engine_timeout: float = setting(600.0, "seconds to wait for one response of an engine's server", above=0)
    engine_patience: float = setting(
        120.0,
        "seconds to go on trying where an engine's server does not answer; then training stops with one line",
        at_least=0,
    )
    engine_tolerance: float = setting(
        0.15,
        "an engine is refused before anything is learned if its log-probabilities differ from the learner's by more, in nats "
        "per token on average",
        above=0,
    )
    ray: str | None = setting(
        None,
        "responses are generated and scored by workers on Ray: local starts Ray on this machine, auto or an address takes a "
        "cluster; None generates and scores in this process",
    )
    ray_workers: int = setting(2, "with `ray`: number of workers", at_least=1)
    ray_cpus: float = setting(1.0, "with `ray`: CPUs of each worker, or a part of one", above=0)
    ray_gpus: float = setting(0.0, "with `ray`: GPUs of each worker, or a part of one; 0 generates on CPUs", at_least=0)
    max_staleness: int = setting(
        0,
        "with `ray`: workers go on generating while the agent learns, so that responses come from weights up to so many "
        "iterations old; older ones are drawn again. 0 waits for the latest weights, with the same episodes as in one process",
        at_least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine != BUILTIN and self.collect == "step":
            raise ConfigError(f"engine={self.engine!r} generates whole responses: leave collect='step' out")
        if self.ray is not None and self.collect == "step":
            raise ConfigError(f"ray={self.ray!r}: workers generate whole responses: leave collect='step' out")
        if self.ray is not None and self.engine != BUILTIN:
            raise ConfigError(
                f"ray={self.ray!r}: each worker generates by the built-in engine, so engine={self.engine!r} cannot be given, "
                "too: leave one of them out"
            )
        if self.max_staleness and self.ray is None:
            raise ConfigError(
                f"max_staleness={self.max_staleness} is for workers on Ray: give ray='local', 'auto' or an address"
            )
        if self.max_staleness and getattr(self, "importance_sampling", None) is None:
            able = "importance_sampling" in self.names()
            raise ConfigError(
                f"max_staleness={self.max_staleness}: responses of older weights need their correction: "
                + (
                    "give old_log_probs='recompute' and importance_sampling='token_truncate' (or another one)"
                    if able
                    else "this agent has none (importance_sampling); leave max_staleness out"
                )
            )


@dataclass(frozen=True, kw_only=True)
class LossSettings(AgentSettings):
    """The average of the tokens' losses."""

    aggregation: Aggregation = setting(
        "token",
        "token takes the mean loss of all tokens; sequence takes each response's mean, and the mean of these; constant divides "
        "the sum by the number of responses times the length limit",
    )


@dataclass(frozen=True, kw_only=True)
class EntropySettings(AgentSettings):
    """An entropy bonus."""

    ent_coef: float = setting(
        0.0, "weight of the entropy bonus; above 0, entropies are computed exactly, which costs time", at_least=0
    )
    ent_target: float | None = setting(
        None,
        "wanted entropy, in nats per token: `ent_coef` rises in iterations below it and falls in those above, which get no "
        "bonus. None keeps it fixed",
        above=0,
        source="He et al. 2025",
    )
    ent_coef_step: float = setting(
        0.005, "with `ent_target`: the change of `ent_coef` per iteration", above=0, source="He et al. 2025"
    )


@dataclass(frozen=True, kw_only=True)
class KLSettings(AgentSettings):
    """A KL penalty."""

    kl_coef: float = setting(
        0.15, "KL coefficient: the weight of each token's KL from the reference; 0 takes no penalty", at_least=0
    )
    kl_target: float | None = setting(
        None, "wanted KL, in nats per response, to which the KL coefficient adapts; None keeps the coefficient fixed",
        above=0, source="Ziegler et al. 2019",
    )  # fmt: skip
    kl_horizon: float = setting(
        10_000, "with `kl_target`: number of episodes in which the KL coefficient changes by a fifth at most", above=0,
        source="Ziegler et al. 2019",
    )  # fmt: skip
    kl_estimator: Estimator | None = setting(
        None, "estimator of the KL; None takes k1 in the reward and k2 in the loss, which have the gradient of the KL",
        source="Schulman 2020",
    )  # fmt: skip
    kl_in: Literal["reward", "loss"] = setting(
        "reward", "reward subtracts the KL penalty from the reward, as a constant; loss differentiates it"
    )
    kl_gradient: Literal["token", "sequence"] = setting(
        "token",
        "with `kl_in: loss`: token takes the gradient of each token's KL, given the tokens before it; sequence that of whole "
        "responses' KL, which a token changes through the later ones, too (exact with `aggregation: constant`; token divides "
        "by the number of a minibatch's tokens, and sequence weighs each response by its own length)",
        source="Tang and Munos 2025",
    )
    kl_importance: bool = setting(
        False,
        "with `kl_in: loss`: the KL loss is weighed by the ratio of new to old probabilities, so that it stays right when a "
        "rollout is learned from in several steps",
        source="DeepSeek-AI 2025, DeepSeek-V3.2",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_target is not None and self.kl_coef == 0:
            raise ConfigError("kl_target needs a kl_coef above 0: the coefficient is multiplied, and 0 stays 0")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ConfigError(
                "kl_in='loss' with kl_estimator='k1' holds nothing back, since the gradient of k1 has mean 0; take 'k2', "
                "whose gradient is that of the KL, or 'k3'"
            )
        if self.kl_in == "reward" and (self.kl_gradient == "sequence" or self.kl_importance):
            name = "kl_importance" if self.kl_importance else "kl_gradient='sequence'"
            raise ConfigError(
                f"{name} is about the KL as a loss: give kl_in='loss', or leave it out (in the reward, the KL of later tokens "
                "counts as any later reward does)"
            )
        if self.kl_gradient == "sequence" and self.kl_estimator is not None:
            raise ConfigError(
                f"kl_gradient='sequence' takes the log-ratios themselves: leave kl_estimator out, got {self.kl_estimator!r}"
            )

    @classmethod
    def needs_reference(cls, values: Mapping[str, Any]) -> bool:
        """As of every agent; a penalty needs one, too.

        Args:
            values: of all settings, by name.
        """
        return super().needs_reference(values) or values["kl_coef"] > 0


@dataclass(frozen=True, kw_only=True)
class RatioSettings(AgentSettings):
    """A guard against large ratios."""

    max_ratio: float = setting(
        10.0, "a minibatch is skipped if its mean ratio (of new to old probabilities) is above this", above=0
    )


@dataclass(frozen=True, kw_only=True)
class ClipSettings(EpochSettings, RatioSettings):
    """A clipped ratio, and the several passes that it allows."""

    clip_range: float | Schedule | None = setting(
        None, "the ratio is clipped at `1 - clip_range`; None takes the plain policy gradient", above=0,
        source="Schulman et al. 2017",
    )  # fmt: skip
    clip_range_high: float | None = setting(
        None, "the ratio is clipped at `1 + clip_range_high`; None takes `clip_range`", above=0, source="Yu et al. 2025"
    )
    dual_clip: float | None = setting(
        None,
        "the ratio is clipped at this where the advantage is negative, also called two-sided clipping; None does not clip it "
        "there", above=1, source="Ye et al. 2020",
    )  # fmt: skip
    policy_loss: PolicyLoss = setting(
        "ppo",
        "ppo clips the ratio, or takes the plain policy gradient without a clip_range; ratio weighs by it without a clip; "
        "cispo takes the clipped ratio as a constant weight; sapo takes a sigmoid of the ratio in the place of a clip; gspo "
        "clips the geometric mean of a response's ratios; gmpo takes that mean of ratios that are clipped one by one, by their "
        "logarithms; response clips the ratio of the whole response. The last three take `aggregation: sequence` unless "
        "another is given",
        source="Schulman et al. 2017; MiniMax 2025; Gao et al. 2025; Zheng et al. 2025; Zhao et al. 2025",
    )
    sapo_temperature: float = setting(
        1.0, "with `policy_loss: sapo`: steepness of the sigmoid where the advantage is positive", above=0,
        source="Gao et al. 2025",
    )  # fmt: skip
    sapo_temperature_negative: float = setting(
        1.05, "with `policy_loss: sapo`: the same where the advantage is negative", above=0, source="Gao et al. 2025"
    )
    target_kl: float | None = setting(
        None,
        "an iteration's learning ends once the approximate KL between old and new policy, in nats per token, is above 1.5 "
        "times this; None never ends it",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.clip_range, self.clip_range_high
        if high is not None and low is not None and not callable(low) and high < low:
            raise ConfigError(f"clip_range_high ({high}) must be at least clip_range ({low})")
        if self.policy_loss in UNCLIPPED and high is not None:
            raise ConfigError(f"policy_loss={self.policy_loss!r} clips nothing: give clip_range_high=None")
        if self.policy_loss not in DUAL_CLIPPED and self.dual_clip is not None:
            raise ConfigError(f"dual_clip does not go with policy_loss={self.policy_loss!r}; leave it out")
        if low is None:
            unclipped = [name for name in ("clip_range_high", "dual_clip") if getattr(self, name) is not None]
            if self.policy_loss == "ppo":
                unclipped += ["n_epochs above 1"] if self.n_epochs > 1 else []
            elif self.policy_loss not in UNCLIPPED:
                unclipped += [f"policy_loss={self.policy_loss!r}"]
            if unclipped:
                raise ConfigError(f"without a clip_range there cannot be {', '.join(unclipped)}; give a clip_range")


@dataclass(frozen=True, kw_only=True)
class TokenClipSettings(ClipSettings):
    """A clipped ratio of each token, for advantages that differ from token to token."""

    policy_loss: TokenPolicyLoss = setting(
        "ppo",
        "ppo clips the ratio; ratio weighs by it without a clip; cispo takes the clipped ratio as a constant weight; sapo "
        "takes a sigmoid of the ratio in the place of a clip",
        source="Schulman et al. 2017; MiniMax 2025; Gao et al. 2025",
    )


@dataclass(frozen=True, kw_only=True)
class DiscountSettings(AgentSettings):
    """A discount."""

    gamma: float = setting(1.0, "discount factor, per token or per turn as `discount_per` says", at_least=0, at_most=1)
    discount_per: Literal["token", "turn"] = setting(
        "token",
        "token applies `gamma` (and `gae_lambda`) after every token; turn after every turn of a conversation, with 1 "
        "inside turns",
    )


@dataclass(frozen=True, kw_only=True)
class ValueSettings(DiscountSettings):
    """A value function, and the advantages that are made with one."""

    absence: ClassVar[str] = "it learns without a value function; leave it out, or take PPO, NLPO or A2C"

    gae_lambda: float = setting(
        0.95, "lambda of generalised advantage estimation", at_least=0, at_most=1, source="Schulman et al. 2016"
    )
    gae_lambda_alpha: float | None = setting(
        None,
        "lambda of the advantages grows with the response: `1 - 1 / (alpha * length)`, at least 0, in place of `gae_lambda`. "
        "None takes one lambda for all lengths. Theirs is 0.05, for responses of thousands of tokens",
        above=0, source="Yue et al. 2025, VAPO",
    )  # fmt: skip
    value_gae_lambda: float | None = setting(
        None, "lambda of the value function's targets; 1 takes the sums of rewards. None takes `gae_lambda`", at_least=0,
        at_most=1, source="Yuan et al. 2025, VC-PPO",
    )  # fmt: skip
    value_warmup: int = setting(
        0,
        "iterations at the start in which only the value function learns, from the policy's own responses (of a shared network "
        "its head); the policy's weights and the coefficients of KL and entropy stay as they are",
        at_least=0, source="Yuan et al. 2025, VC-PPO",
    )  # fmt: skip
    scale_returns: bool = setting(
        False,
        "values are learned in units of the returns' root mean square over all iterations so far, so that the scale of the "
        "rewards does not matter. The unit is 1 up to the first iteration that scores anything but 0, or whose log-ratios to "
        "the reference exceed 5% of the log-probabilities: below that the KL penalty may be rounding",
        source="van Hasselt et al. 2016",
    )
    normalize_advantage: bool = setting(
        True, "advantages are scaled to mean 0 and standard deviation 1 over all tokens of the iteration"
    )
    whiten_rewards: bool = setting(
        False,
        "the tokens' rewards are scaled to standard deviation 1, and keep their mean",
        source="Ziegler et al. 2019",
    )
    value_learning_rate: float | None = setting(
        None,
        "the learning rate of the value function's own weights, with the same decay; None takes `learning_rate`",
        above=0,
        source="Yue et al. 2025",
    )
    value_max_grad_norm: float | None = setting(
        None,
        "the norm that the gradient of the value function's own weights is clipped to by itself; None clips all gradients "
        "together, so that a large value loss slows the policy down",
        above=0,
    )
    value_start: RewardModel | str | Path | None = argument(
        None,
        "a reward model, or its folder: a separate value network starts from its trunk, with a head near zero. It must be "
        "fitted on a model built as the policy, with the same tokenizer. None starts from the policy",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        start = self.value_start
        if start is not None and not isinstance(start, RewardModel | str | Path):
            raise ConfigError(f"value_start must be a reward model or its folder, got {type(start).__name__}")
        if start is not None and self.lora is not None:
            raise ConfigError(SECOND_BASE)
        if self.gae_lambda_alpha is not None and self.discount_per == "turn":
            raise ConfigError(
                f"gae_lambda_alpha ({self.gae_lambda_alpha:g}) is a lambda for each token, and discount_per='turn' "
                f"applies lambda "
                "after turns: leave one of them out"
            )

    def named(self) -> Self:
        """The same with models by their names, the reward model's included."""
        start = self.value_start
        name = f"on {start.language_model.name}" if isinstance(start, RewardModel) else start and str(start)
        return replace(super().named(), value_start=name)


@dataclass(frozen=True, kw_only=True)
class ValueClipSettings(ValueSettings):
    """A clipped value loss."""

    clip_range_vf: float | None = setting(
        0.2,
        "values are clipped to this distance from the rollout's values, in units of the reward, or of the returns with "
        "`scale_returns`; None does not clip",
        above=0,
    )


@dataclass(frozen=True, kw_only=True)
class ValueLossSettings(ValueSettings):
    """A value function that learns with the policy, in one loss."""

    vf_coef: float = setting(0.1, "weight of the value loss", at_least=0)
    value_network: ValueNetwork = setting(
        "shared", "shared is a value head on the policy's trunk; separate is a network of its own"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_start is not None and self.value_network != "separate":
            raise ConfigError(
                "a value network of its own starts from value_start: give value_network='separate', or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class ActorCriticSettings(RolloutSettings, KLSettings, LossSettings, ValueSettings):
    """An agent with a value function: PPO, A2C, TRPO, NLPO."""

    batch_size: int | None = setting(16)


@dataclass(frozen=True, kw_only=True)
class OverlongSettings(AgentSettings):
    """A penalty for long responses."""

    overlong_buffer: int | None = setting(
        None, "over this many tokens before the length limit, the score falls linearly by 1; None takes no such penalty",
        at_least=1, source="Yu et al. 2025",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GroupSettings(AgentSettings):
    """Groups of responses to one prompt."""

    group_size: int = setting(
        1,
        "size of a group: slots that answer the same prompt. It must divide the number of environments; the default adapts to "
        "that number: it is the largest divisor up to the one stated, or else the smallest above it",
        at_least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_episodes is not None and self.n_episodes % self.group_size:
            raise ConfigError(f"group_size ({self.group_size}) must divide n_episodes ({self.n_episodes})")

    @classmethod
    def adapted_defaults(cls, given: Mapping[str, Any], num_envs: int | None) -> dict[str, Any]:
        """As of every agent; the size of a group divides the number of environments.

        Args:
            given: values by name, not yet checked.
            num_envs: the number of environments; None where it is not known.
        """
        adapted, slots = super().adapted_defaults(given, num_envs), num_envs or given.get("n_episodes")
        if "group_size" in given or not isinstance(slots, int):
            return adapted
        spec = settings_of(cls)["group_size"]
        divisors = [size for size in range(int(spec.bounds["at_least"]), slots + 1) if slots % size == 0]
        if divisors:
            adapted["group_size"] = max((size for size in divisors if size <= spec.default), default=divisors[0])
        return adapted


@dataclass(frozen=True, kw_only=True)
class CovarianceSettings(AgentSettings):
    """A hold on the few tokens that take the entropy away."""

    cov_control: CovarianceControl | None = setting(
        None,
        "clip (Clip-Cov) takes the gradient from tokens whose log-probability and advantage vary together; kl (KL-Cov) "
        "penalises the distance of such tokens from the policy that generated them; None does neither",
        source="Cui et al. 2025",
    )
    cov_share: float = setting(
        2e-4, "with `cov_control`: the share of an iteration's tokens, at least one", above=0, at_most=1,
        source="Cui et al. 2025",
    )  # fmt: skip
    cov_low: float = setting(
        1.0, "with `cov_control: clip`: the least covariance of such tokens", source="Cui et al. 2025"
    )
    cov_high: float = setting(
        5.0, "with `cov_control: clip`: the largest covariance of such tokens", source="Cui et al. 2025"
    )
    cov_kl_coef: float = setting(
        1.0, "with `cov_control: kl`: weight of the penalty", above=0, source="Cui et al. 2025"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cov_low >= self.cov_high:
            raise ConfigError(f"cov_low ({self.cov_low}) must be below cov_high ({self.cov_high})")


@dataclass(frozen=True, kw_only=True)
class CriticFreeSettings(
    RolloutSettings,
    MismatchSettings,
    CollectSettings,
    KLSettings,
    LossSettings,
    EntropySettings,
    ClipSettings,
    OverlongSettings,
    CovarianceSettings,
    GroupSettings,
):
    """An agent without a value function."""

    overlong_filtering: bool = setting(
        False,
        "responses that the length limit cut leave the loss; they still count in metrics and in their group's mean",
        source="Yu et al. 2025",
    )

    @classmethod
    def adapted_defaults(cls, given: Mapping[str, Any], num_envs: int | None) -> dict[str, Any]:
        """As of every agent; where a whole response has one ratio, each response counts the same.

        Args:
            given: values by name, not yet checked.
            num_envs: the number of environments; None where it is not known.
        """
        adapted = super().adapted_defaults(given, num_envs)
        if given.get("policy_loss") in OF_RESPONSES and "aggregation" not in given:
            adapted["aggregation"] = "sequence"
        return adapted
