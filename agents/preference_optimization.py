"""Offline learning from stored preferences: DPO, IPO, KTO, ORPO and SimPO, in the form of the other agents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.forward import episode_log_probs, fill_reference
from rlhf_gym.agents.common.given_pairs import (
    EncodedPair,
    EncodedPreference,
    PreferenceRow,
    encoded_preferences,
    is_prompt,
)
from rlhf_gym.agents.common.metrics import read_once
from rlhf_gym.agents.common.minibatch import Terms, add_gradients, sum_terms
from rlhf_gym.agents.common.preference_losses import (
    PreferenceLoss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    preference_loss,
    response_sums,
    simpo_loss,
)
from rlhf_gym.agents.common.rollout import Episode, Rollout, flat
from rlhf_gym.agents.common.settings import AgentSettings, argument, setting
from rlhf_gym.agents.common.shared_settings import EpochSettings
from rlhf_gym.agents.common.shares import sum_tables
from rlhf_gym.agents.given_responses import GivenResponses
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.sequences import batches_by_length
from rlhf_gym.tasks.too_long import TooLong

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import PreferenceOptimizationKeywords
    from rlhf_gym.agents.common.policy import LMPolicy

WITHOUT_REFERENCE = ("orpo", "simpo")
"""Losses of log-probabilities alone; with a reference, the KL is measured all the same."""

DEFAULT_BETA: Mapping[PreferenceLoss, float] = {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}


@dataclass(frozen=True, kw_only=True)
class PreferenceOptimizationSettings(EpochSettings):
    """The settings of offline preference learning. The reference is part of the loss: there is no KL penalty."""

    preferences: Sequence[PreferenceRow | EncodedPreference] = argument(
        help="triples `(prompt, chosen, rejected)` of texts; a prompt may be chat messages, too. With `loss: kto` one of the "
        "two responses may be None. Responses are learned with EOS at their end; longer ones than the environment's length "
        "limit are cut, and have no EOS. They are not part of a checkpoint: give them to `load`, too"
    )
    on_too_long: Literal["refuse", "skip", "truncate"] = setting(
        "refuse",
        "if a pair exceeds the model's context: refuse it; skip it; or truncate its prompt at the beginning, its responses at "
        "the end. They are counted before anything is learned",
    )
    loss: PreferenceLoss = setting(
        "dpo", "the loss of a pair (kto: of each response)",
        source="Rafailov et al. 2023; Azar et al. 2023; Ethayarajh et al. 2024; Hong et al. 2024; Meng et al. 2024",
    )  # fmt: skip
    beta: float | None = setting(
        None,
        "dpo, ipo, kto: strength of the pull to the reference; orpo: weight of the odds; simpo: scale of the margin. None "
        "takes 0.1, and 2 for simpo",
        above=0,
    )
    label_smoothing: float = setting(
        0.0, "with `loss: dpo`: probability that a pair is the wrong way round", at_least=0, below=0.5
    )
    target_margin: float = setting(
        1.0, "with `loss: simpo`: the margin to reach, the paper's gamma", at_least=0, source="Meng et al. 2024"
    )
    desirable_weight: float = setting(
        1.0, "with `loss: kto`: weight of the chosen responses", above=0, source="Ethayarajh et al. 2024"
    )
    undesirable_weight: float = setting(
        1.0, "with `loss: kto`: weight of the rejected responses", above=0, source="Ethayarajh et al. 2024"
    )
    n_epochs: int = setting(1, "passes over an iteration's responses")
    batch_size: int | None = setting(
        16, "responses per minibatch, an even number but with `loss: kto`; None takes all of them"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing and self.loss != "dpo":
            raise ConfigError(
                f"label_smoothing ({self.label_smoothing}) belongs to loss='dpo': leave it at 0 with loss={self.loss!r}"
            )
        if self.loss == "kto" and self.batch_size == 1:
            raise ConfigError("loss='kto' compares responses with other prompts' ones: batch_size must be at least 2")
        for name in ("batch_size", "n_episodes"):
            number = getattr(self, name)
            if self.loss != "kto" and number is not None and number % 2:
                raise ConfigError(f"loss={self.loss!r} learns from pairs: {name} must be even, got {number}")
        if not self.preferences:
            raise ConfigError(
                "PreferenceOptimization needs preferences: a list of (prompt, chosen, rejected) texts, got none"
            )
        for number, row in enumerate(self.preferences):
            check_row(number, row, self.loss)

    def as_json(self) -> dict[str, Any]:
        """As of every agent, with the ``beta`` that is used where none is given."""
        return super().as_json() | {"beta": self.beta or DEFAULT_BETA[self.loss]}

    @classmethod
    def needs_reference(cls, values: Mapping[str, Any]) -> bool:
        """As of every agent; the losses of log-ratios need one.

        Args:
            values: of all settings, by name.
        """
        return super().needs_reference(values) or values.get("loss") not in WITHOUT_REFERENCE

    @classmethod
    def learns_with_reference(cls, values: Mapping[str, Any]) -> bool:
        """True for KTO, whose reference point is of the minibatch.

        Args:
            values: of all settings, by name.
        """
        return bool(values["loss"] == "kto")

    @classmethod
    def adapted_defaults(cls, given: Mapping[str, Any], num_envs: int | None) -> dict[str, Any]:
        """As of every agent; a minibatch is of whole pairs.

        Args:
            given: values by name, not yet checked.
            num_envs: the number of environments; None where it is not known.
        """
        adapted = super().adapted_defaults(given, num_envs)
        if given.get("loss") == "kto" or "batch_size" not in adapted:
            return adapted
        return {**adapted, "batch_size": max(2, adapted["batch_size"] // 2 * 2)}


class PreferenceOptimization(GivenResponses):
    """Learns from stored pairs of a chosen and a rejected response; KTO from single ones that are desirable or not.

    An iteration takes the next responses, ``n_episodes`` of them, in a random order, a new one for each pass over the data. A
    timestep is a token of a response. ``objective/kl`` compares policy and reference on the given responses.

    Args:
        policy: ``"LMPolicy"``.
        env: for its spaces and limits (and for ``EvalCallback``); it is not stepped.
        settings: see :class:`PreferenceOptimizationSettings`.

    Raises:
        ConfigError: as PPO; also a response that the environment's limits do not allow.
    """

    Settings: ClassVar[type[AgentSettings]] = PreferenceOptimizationSettings

    preferences: Sequence[PreferenceRow | EncodedPreference]
    loss: PreferenceLoss
    beta: float
    label_smoothing: float
    target_margin: float
    desirable_weight: float
    undesirable_weight: float

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[PreferenceOptimizationKeywords],
        ) -> None: ...

    @property
    def together(self) -> int:
        """Responses that the loss sees together: the two of a pair; each by itself with KTO."""
        return 1 if self.loss == "kto" else 2

    def encoded(self, model: LanguageModel, limits: Limits) -> tuple[list[EncodedPreference], list[TooLong]]:
        """The preferences as token ids, each response by itself with KTO, and what was done with those that were too long.

        Args:
            model: its tokenizer encodes them.
            limits: the environment's.

        Raises:
            ConfigError: as :class:`PreferenceOptimization`; also an odd number of episodes where the loss sees pairs.
        """
        if self.n_episodes % self.together:
            raise ConfigError(
                f"loss={self.loss!r} learns from pairs: n_episodes must be even, got {self.n_episodes} (the number of "
                "environments, where it is not given)"
            )
        self.beta = self.beta or DEFAULT_BETA[self.loss]
        rows, found = encoded_preferences(self.preferences, model, limits, self.on_too_long)
        return _single(rows) if self.loss == "kto" else rows, found

    def episodes_of(self, row: EncodedPreference) -> list[Episode]:
        """The responses of a preference as episodes, the chosen one first."""
        return _episodes(row, self.policy.limits)

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Give chosen responses +1 and rejected ones -1.

        Args:
            rollout: the episodes, pair after pair.
            rewards: float32 ``[B, R]``, not used.

        Returns:
            float32 ``[B, 1]``.
        """
        rollout.together = self.together
        return torch.tensor([[1.0] if e.info["chosen"] else [-1.0] for e in rollout.episodes])

    def update(self, rollout: Rollout, rows: list[int]) -> bool:
        """One optimizer step on a minibatch.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the minibatch's, pair after pair.

        Returns:
            True: learning from this rollout always goes on.
        """
        own = self.ranks.share(rows[:: self.together], rollout.totals)
        found = self.gradient(
            lambda tokens: add_gradients(
                self._passes(rollout, rows, tokens, own), self.scaler, self.where, what="the preference loss is"
            )
        )
        self.record(**sum_tables(found))
        self.step_optimizer()
        return True

    @torch.no_grad()
    def measure(self, data: Sequence[PreferenceRow]) -> dict[str, float]:
        """The loss and the implicit rewards of preferences, without learning from them.

        Args:
            data: as the setting ``preferences``.

        Returns:
            Means by name: ``loss``; ``rewards/chosen`` and ``rewards/rejected``; of pairs ``rewards/margins`` and
            ``rewards/accuracies``.

        Raises:
            ConfigError: a row is no preference, or not allowed by the environment's limits.
        """
        for number, row in enumerate(data):
            check_row(number, row, self.loss)
        rows, _ = encoded_preferences(data, self.policy.language_model, self.policy.limits, self.on_too_long)
        if self.loss == "kto":
            rows = _single(rows)
        rollout = Rollout.of([episode for row in rows for episode in _episodes(row, self.policy.limits)])
        everything = list(range(len(rollout.episodes)))

        def measured(tokens: int) -> Terms:
            if self.loss not in WITHOUT_REFERENCE:
                assert self.reference is not None
                fill_reference(self.policy, self.reference, rollout, tokens)
            return sum_terms(metrics for _, metrics in self._passes(rollout, everything, tokens))

        means = read_once(self.within_memory(measured))
        return {name.replace("train/loss", "loss"): value for name, value in means.items()}

    def _passes(
        self, rollout: Rollout, rows: list[int], tokens_per_batch: int, own: list[int] | None = None
    ) -> Iterator[tuple[Tensor, Terms]]:
        """A minibatch's loss in parts, each the sum over a micro-batch divided by the minibatch's size, and their metrics.

        Args:
            rollout: the episodes.
            rows: the minibatch's.
            tokens_per_batch: padded tokens per pass.
            own: the first episodes of those pairs (or responses) that are passed through; None for all.
        """
        size = self.together
        number = len(rows) // size
        firsts = rows[::size] if own is None else own
        point = self._reference_point(rollout, rows, tokens_per_batch) if self.loss == "kto" else None
        counts = {chosen: sum(rollout.episodes[i].info["chosen"] is chosen for i in rows) for chosen in (True, False)}
        longest = [size * max(rollout.totals[first : first + size]) for first in firsts]
        for group in batches_by_length(longest, tokens_per_batch):
            micro = [row for g in group for row in range(firsts[g], firsts[g] + size)]
            episodes = [rollout.episodes[i] for i in micro]
            logs, _ = episode_log_probs(self.policy, self.policy.language_model, episodes)
            lengths = [rollout.lengths[i] for i in micro]
            chosen = torch.tensor([e.info["chosen"] for e in episodes]).to(self.device, non_blocking=True)
            ours = response_sums(logs, lengths)
            if self.loss in WITHOUT_REFERENCE:
                implicit = ours / torch.tensor(lengths).to(self.device, non_blocking=True)
            else:
                theirs = flat(rollout.reference_log_probs, micro, rollout.mask).to(self.device, non_blocking=True)
                implicit = ours - response_sums(theirs, lengths)
            losses = self._losses(implicit, chosen, point)
            rewards = self.beta * implicit.detach()
            metrics = {"train/loss": losses.detach().sum() / number}
            metrics |= {
                f"rewards/{name}": rewards.where(chosen == side, 0.0).sum() / counts[side]
                for name, side in (("chosen", True), ("rejected", False)) if counts[side]
            }  # fmt: skip
            if size == 2:
                margins = rewards[0::2] - rewards[1::2]
                metrics |= {
                    "rewards/margins": margins.sum() / number,
                    "rewards/accuracies": ((margins > 0).float() + 0.5 * (margins == 0)).sum() / number,
                }
            if point is not None:
                metrics["rewards/reference_point"] = point * len(micro) / len(rows)
            yield losses.sum() / number, metrics

    def _losses(self, implicit: Tensor, chosen: Tensor, point: Tensor | None) -> Tensor:
        """The loss of each pair (or response); ``implicit`` is a log-ratio, or a mean log-probability where there is no ref."""
        if point is not None:
            return kto_loss(
                implicit, chosen, point, self.beta, desirable_weight=self.desirable_weight,
                undesirable_weight=self.undesirable_weight,
            )  # fmt: skip
        better, worse = implicit[0::2], implicit[1::2]
        if self.loss == "orpo":
            return orpo_loss(better, worse, self.beta)
        if self.loss == "simpo":
            return simpo_loss(better, worse, self.beta, self.target_margin)
        return preference_loss(
            better - worse, self.beta, "ipo" if self.loss == "ipo" else "dpo", label_smoothing=self.label_smoothing
        )

    @torch.no_grad()
    def _reference_point(self, rollout: Rollout, rows: list[int], tokens_per_batch: int) -> Tensor:
        """KTO's reference point: each prompt of the minibatch with the next one's response."""
        others = rows[1:] + rows[:1] if len(rows) > 1 else [(rows[0] + 1) % len(rollout.episodes)]
        mismatched, ratios, policy, reference = [], [], self.policy.language_model, self.reference
        assert reference is not None
        for row, other in zip(rows, others, strict=True):
            prompt_ids, response_ids = rollout.episodes[row].prompt_ids, rollout.episodes[other].response_ids
            room = policy.response_room(len(prompt_ids))  # which the prompt's own response has
            mismatched.append(replace(rollout.episodes[other], prompt_ids=prompt_ids, response_ids=response_ids[:room]))
        for group in batches_by_length([len(e.prompt_ids) + len(e.response_ids) for e in mismatched], tokens_per_batch):
            part = [mismatched[g] for g in group]
            ours, theirs = (episode_log_probs(self.policy, model, part)[0] for model in (policy, reference))
            ratios.append(response_sums(ours - theirs, [len(e.response_ids) for e in part]))
        return kto_reference_point(torch.cat(ratios))


def _single(rows: Sequence[EncodedPreference]) -> list[EncodedPreference]:
    """The responses of preferences, each by itself."""
    sides = ((EncodedPreference(row.chosen, None), EncodedPreference(None, row.rejected)) for row in rows)
    return [one for both in sides for one in both if (one.chosen or one.rejected) is not None]


def _episodes(row: EncodedPreference, limits: Limits) -> list[Episode]:
    """What the loss sees together: the chosen response before the rejected one, each with ``info["chosen"]``."""
    episodes = []
    for pair, chosen in ((row.chosen, True), (row.rejected, False)):
        if pair is not None:
            episodes.append(pair.episode(limits))
            episodes[-1].info["chosen"] = chosen
    return episodes


def check_row(number: int, row: Any, loss: PreferenceLoss) -> None:
    """Refuse a row that is no preference.

    Args:
        number: its place in the data.
        row: a triple ``(prompt, chosen, rejected)``.
        loss: KTO takes rows with one response.

    Raises:
        ConfigError: it is none, or lacks a response that the loss needs.
    """
    encoded = isinstance(row, EncodedPreference)
    whole = encoded or (not isinstance(row, str) and len(row) == 3 and is_prompt(row[0]))
    sides = (row.chosen, row.rejected) if encoded else row[1:] if whole else ()
    texts = [side for side in sides if side is not None]
    if not texts or not all(isinstance(text, EncodedPair if encoded else str) for text in texts):
        raise ConfigError(
            f"preferences[{number}] must be a triple (prompt, chosen, rejected) of texts, the prompt a text or chat messages "
            f"that end with the user's; got {row!r:.80}"
        )
    if len(texts) < 2 and loss != "kto":
        raise ConfigError(
            f"preferences[{number}] has only one response, and loss={loss!r} learns from pairs: leave it out, or take "
            "loss='kto'"
        )
