"""Offline RL on stored trajectories: implicit language Q-learning (Snell et al. 2022, "ILQL")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.action_value_heads import (
    ActionValueHeads,
    conservative_loss,
    expectile_loss,
    next_values,
    q_loss,
    token_q,
)
from rlhf_gym.agents.common.forward import episode_batches, episode_log_probs, pack_episodes
from rlhf_gym.agents.common.given_trajectories import (
    EncodedTrajectory,
    TrajectoryRow,
    check_trajectory,
    encoded_trajectories,
)
from rlhf_gym.agents.common.losses import token_weights
from rlhf_gym.agents.common.metrics import read_once
from rlhf_gym.agents.common.minibatch import Terms, add_gradients, sum_terms
from rlhf_gym.agents.common.optimizer import make_optimizer
from rlhf_gym.agents.common.rollout import Rollout, flat
from rlhf_gym.agents.common.settings import AgentSettings, argument, setting
from rlhf_gym.agents.common.shared_settings import EpochSettings, LossSettings
from rlhf_gym.agents.common.shares import sum_tables
from rlhf_gym.agents.given_responses import GivenResponses
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.sequences import response_positions
from rlhf_gym.tasks.too_long import TooLong

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import ILQLKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class ILQLSettings(EpochSettings, LossSettings):
    """The settings of ILQL."""

    trajectories: Sequence[TrajectoryRow | EncodedTrajectory] = argument(
        help="triples `(prompt, response, reward)`; a prompt may be chat messages, too. The reward is a number, paid at the "
        "end, or a list of one for each token of the response. A response is learned from with EOS at its end; one that is "
        "longer than the environment's length limit is cut, and has no EOS. They are not part of a checkpoint: give them to "
        "`load`, too"
    )
    on_too_long: Literal["refuse", "skip", "truncate"] = setting(
        "refuse",
        "if a trajectory exceeds the model's context: refuse it; skip it; or truncate its prompt at the beginning, its "
        "response at the end. They are counted before anything is learned",
    )
    gamma: float = setting(0.99, "discount factor, per token", at_least=0, at_most=1, source="Snell et al. 2022")
    expectile: float = setting(
        0.7, "the expectile of a token's Q values that the value function learns: 0.5 is the mean over what the data does; "
        "towards 1 it tends to the best", above=0, below=1, source="Kostrikov et al. 2022, IQL",
    )  # fmt: skip
    q_coef: float = setting(
        1.0, "weight of the losses of Q and value heads; the cross-entropy of the policy has weight 1", above=0
    )
    cql_coef: float = setting(
        0.1, "weight of the CQL term, which lowers the values of tokens that the data does not hold", at_least=0,
        source="Kumar et al. 2020, CQL",
    )  # fmt: skip
    target_rate: float = setting(
        0.05, "the part of the way that the target Q heads go, at each optimizer step, towards those that learn. Theirs is "
        "0.005, for tens of thousands of steps", above=0, at_most=1, source="Snell et al. 2022",
    )  # fmt: skip
    beta: float = setting(
        4.0, "weight of the Q values in the logits that the policy acts by; 0 acts as the data does", at_least=0,
        source="Snell et al. 2022",
    )  # fmt: skip
    normalize_rewards: bool = setting(
        True, "rewards are divided by the standard deviation of the trajectories' sums of rewards, so that their scale does "
        "not matter"
    )  # fmt: skip
    value_learning_rate: float | None = setting(
        None, "the learning rate of the Q and value heads, with the same decay; None takes `learning_rate`", above=0
    )
    batch_size: int | None = setting(16, "whole trajectories per minibatch; None takes all of them")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trajectories:
            raise ConfigError("ILQL needs trajectories: a list of (prompt, response, reward), got none")
        for number, row in enumerate(self.trajectories):
            check_trajectory(number, row)


class ILQL(GivenResponses):
    """Learns Q values from stored, rewarded responses, and acts by the data's own policy with its logits shifted by them.

    Heads on the policy's trunk estimate ``V(s)``, and twice ``Q(s, a)`` for every token ``a``. ``Q`` learns
    ``r + gamma V(s')``, ``V`` an upper expectile of the lesser target ``Q`` over the tokens of the data, so that no value of a
    token outside of the data is learned from; the language model learns the responses by cross-entropy. The policy draws
    from ``softmax(log pi + beta (min Q - V))``: ``policy.acting_model`` does, and ``policy.language_model`` is ``pi``. The
    equations are in docs/algorithms.md.

    An iteration takes the next ``n_episodes`` trajectories in a random order, a new one for each pass over the data. A timestep
    is a token of a response.

    Args:
        policy: ``"LMPolicy"``.
        env: for its spaces and limits (and for ``EvalCallback``); it is not stepped.
        settings: see :class:`ILQLSettings`.

    Attributes:
        reward_scale: rewards are divided by it.

    Raises:
        ConfigError: as PPO; also a trajectory that the environment's limits do not allow.
    """

    Settings: ClassVar[type[AgentSettings]] = ILQLSettings

    trajectories: Sequence[TrajectoryRow | EncodedTrajectory]
    expectile: float
    q_coef: float
    cql_coef: float
    target_rate: float
    beta: float
    normalize_rewards: bool

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[ILQLKeywords],
        ) -> None: ...

    @property
    def heads(self) -> ActionValueHeads:
        """The Q and value heads."""
        heads = self.policy.value_head
        assert isinstance(heads, ActionValueHeads)
        return heads

    def _setup_model(self) -> None:
        super()._setup_model()
        model = self.policy.language_model
        model.action_values = None  # of a model that was tuned like this before: they are learned anew
        self.policy.value_head = ActionValueHeads(model.hidden_size, model.vocab_size, self.beta).to(model.device)
        self.policy.optimizer = make_optimizer(self.policy, self.settings, self.lr_schedule(1))

    def encoded(self, model: LanguageModel, limits: Limits) -> tuple[list[EncodedTrajectory], list[TooLong]]:
        """The trajectories as token ids, and what was done with those that were too long; sets :attr:`reward_scale`.

        Args:
            model: its tokenizer encodes them.
            limits: the environment's.
        """
        rows, found = encoded_trajectories(self.trajectories, model, limits, self.on_too_long)
        sums = torch.tensor([sum(row.rewards) for row in rows], dtype=torch.float64)
        self.reward_scale = (float(sums.std(correction=0)) or 1.0) if self.normalize_rewards else 1.0
        return rows, found

    @property
    def _generates_values(self) -> bool:
        return True  # nothing needs the values from before learning: no pass for them

    def update(self, rollout: Rollout, rows: list[int]) -> bool:
        """One optimizer step on a minibatch, and one step of the target towards the Q heads.

        Args:
            rollout: the episodes.
            rows: the minibatch's.

        Returns:
            True: learning from this rollout always goes on.
        """
        own = self.ranks.share(rows, rollout.totals)
        found = self.gradient(
            lambda tokens: add_gradients(
                self._passes(rollout, rows, own, tokens), self.scaler, self.where, what="the ILQL loss is"
            )
        )
        self.record(**sum_tables(found))
        self.step_optimizer()
        self.heads.follow(self.target_rate)
        return True

    def _passes(
        self, rollout: Rollout, rows: list[int], own: list[int], tokens_per_batch: int
    ) -> Iterator[tuple[Tensor, Terms]]:
        """A minibatch's loss and metrics in parts, each of a micro-batch, which add up to the whole.

        Args:
            rollout: the episodes.
            rows: the minibatch's.
            own: those of them that are passed through.
            tokens_per_batch: padded tokens per pass.
        """
        policy, heads, model = self.policy, self.heads, self.policy.language_model
        lengths = torch.tensor([rollout.lengths[i] for i in rows])
        weights = token_weights(lengths, self.aggregation, constant_length=policy.limits.max_new_tokens)
        weight_of, share = dict(zip(rows, weights, strict=True)), 1 / int(lengths.sum())
        for micro in episode_batches(model, rollout, own, tokens_per_batch):
            episodes, sizes = [rollout.episodes[i] for i in micro], [rollout.lengths[i] for i in micro]
            batch = pack_episodes(policy, episodes)
            hidden, tokens = model.response_states(batch), batch.tokens
            log_probs, _ = episode_log_probs(policy, model, episodes, hidden=hidden, batch=batch)
            values = policy.values(hidden)
            found = token_q(heads.online, hidden, tokens, response_positions(batch), policy.limits)
            with torch.no_grad():
                rewards = flat(rollout.rewards, micro, rollout.mask).to(self.device, non_blocking=True)
                targets = rewards / self.reward_scale + self.gamma * next_values(values, sizes)
                least = heads.target.least_of(hidden, tokens)
            terms = {
                "policy": -log_probs, "q": q_loss(found, targets),
                "value": expectile_loss(values, least, self.expectile), "cql": conservative_loss(found),
            }  # fmt: skip
            weight = torch.cat([weight_of[i].expand(rollout.lengths[i]) for i in micro]).to(
                self.device, non_blocking=True
            )
            parts = {name: (term * weight).sum() for name, term in terms.items()}
            loss = parts["policy"] + self.q_coef * (parts["q"] + parts["value"]) + self.cql_coef * parts["cql"]
            metrics = {f"loss/{name}_avg": part.detach() for name, part in parts.items()} | {
                "train/loss": loss.detach()
            }
            metrics |= {
                "values/v": values.detach().sum() * share, "values/q": least.sum() * share,
                "values/advantage": (least - values.detach()).sum() * share,
            }  # fmt: skip
            yield loss, metrics

    @torch.no_grad()
    def measure(self, data: Sequence[TrajectoryRow | EncodedTrajectory]) -> dict[str, float]:
        """The losses of trajectories, without learning from them.

        Args:
            data: as the setting ``trajectories``.

        Returns:
            Means by name: ``loss``, and its parts ``loss/policy_avg`` (cross-entropy, nats per token), ``loss/q_avg``,
            ``loss/value_avg`` and ``loss/cql_avg``; ``values/q``, ``values/v`` and ``values/advantage``, in units of
            :attr:`reward_scale`.

        Raises:
            ConfigError: a row is no trajectory, or not allowed by the environment's limits.
        """
        for number, row in enumerate(data):
            check_trajectory(number, row)
        limits = self.policy.limits
        encoded, _ = encoded_trajectories(data, self.policy.language_model, limits, self.on_too_long)
        rollout = Rollout.of([row.episode(limits) for row in encoded])
        rows = list(range(len(rollout.episodes)))

        def measured(tokens: int) -> Terms:
            return sum_terms(metrics for _, metrics in self._passes(rollout, rows, rows, tokens))

        found = read_once(self.within_memory(measured))
        return {name.replace("train/loss", "loss"): amount for name, amount in found.items()}
