"""Episodes, each token stored once, and padded tables of them: collection makes them, learning reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Turn:
    """One turn of the policy in a trajectory.

    Attributes:
        context: the environment's ids before it, that is those since the policy's last turn; or where ``fresh`` all that
            the policy read, some of which it may have written itself in earlier turns.
        length: the policy's tokens, EOS included.
        fresh: True where the policy read nothing but ``context``; False where it read on behind its last turn.
    """

    context: list[int]
    length: int
    fresh: bool = False


@dataclass(frozen=True)
class Segment:
    """A part of a trajectory.

    Attributes:
        ids: token ids, as they were generated, or encoded once.
        ours: True where the policy generated them; only these have log-probabilities, values, rewards and a loss.
    """

    ids: list[int]
    ours: bool


@dataclass
class Episode:
    """One trajectory: one prompt with one response, or the turns of a conversation, as collected.

    What the policy wrote is ``response_ids``, whatever came in between; all other lists go with it, token by token.

    Attributes:
        prompt_ids: ids that the model was given first.
        response_ids: ids that it generated, of all its turns, EOS included.
        log_probs: of each response token, under the distribution it was drawn from.
        values: the value head's output before each token.
        rewards: the environment's reward of each token: 0 but for the last one, unless the environment shapes.
        ended: by EOS or a stop sequence, not at the length limit.
        info: the ending step's ``info``.
        bootstrap: the value after the last token of an episode that an unscored time limit cut, else 0.
        baseline: the score of the greedy response to the same prompt, where the agent generates one; else 0.
        masks: allowed tokens at each step, packed to bits, uint8 ``[len, ceil(V / 8)]``; None where only fixed limits hold.
        version: of the weights that generated it, the iterations learned before; None where it was collected by stepping.
        turns: of a conversation, the first included; empty where one response follows one prompt.
        end: why a conversation ended: ``"terminated"`` or ``"truncated"`` (by the environment), ``"turn_limit"`` or
            ``"token_limit"``; empty for one prompt with one response, where :attr:`ended` says it.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    log_probs: list[float]
    values: list[float]
    rewards: list[float]
    ended: bool
    info: dict[str, Any] = field(default_factory=dict)
    bootstrap: float = 0.0
    baseline: float = 0.0
    masks: NDArray[np.uint8] | None = None
    version: int | None = None
    turns: tuple[Turn, ...] = ()
    end: str = ""

    @property
    def segments(self) -> list[Segment]:
        """The trajectory in order: what others wrote, what the policy wrote, and so on; a single response makes two."""
        out: list[Segment] = []
        for context, ours in self._parts:
            out += [Segment(context, False), Segment(ours, True)]
        return out

    @property
    def _parts(self) -> list[tuple[list[int], list[int]]]:
        """Each turn's context and the policy's own ids."""
        if not self.turns:
            return [(self.prompt_ids, self.response_ids)]
        parts, begin = [], 0
        for turn in self.turns:
            parts.append((turn.context, self.response_ids[begin : begin + turn.length]))
            begin += turn.length
        return parts

    @cached_property
    def rows(self) -> list[list[tuple[list[int], list[int]]]]:
        """The sequences that the policy read: each the turns in it, as their contexts and the policy's own ids."""
        rows: list[list[tuple[list[int], list[int]]]] = []
        for turn, part in zip(self.turns or (Turn(self.prompt_ids, 0, True),), self._parts, strict=True):
            if turn.fresh or not rows:
                rows.append([])
            rows[-1].append(part)
        return rows

    @cached_property
    def row_lengths(self) -> list[int]:
        """Tokens of each of :attr:`rows`."""
        return [sum(len(context) + len(ours) for context, ours in row) for row in self.rows]

    @property
    def score(self) -> float:
        """The environment's reward of the whole response."""
        return float(sum(self.rewards))

    def spread(self) -> None:
        """Give each token its own reward (``info["token_rewards"]``) instead of all of it to the last token."""
        given = self.info.get("token_rewards")
        if given is not None:
            self.rewards = [reward + float(own) for reward, own in zip(self.rewards, given, strict=True)]
            self.rewards[-1] -= float(sum(given))

    @property
    def skipped(self) -> str:
        """The name of the reward that failed, so that the episode has no score; else empty."""
        return str(self.info.get("reward_skipped") or "")


TABLES = (
    "mask", "log_probs", "values", "rewards", "reference_log_probs", "own_reference_log_probs", "advantages", "returns",
    "importance", "held",
)  # fmt: skip
"""The tables ``[B, R]`` of a rollout."""


@dataclass
class Rollout:
    """One iteration's episodes as padded tensors ``[B, R]``, on the CPU.

    Attributes:
        episodes: ``B`` episodes.
        mask: bool, True at response tokens.
        log_probs: old log-probabilities.
        values: old values.
        rewards: the environment's rewards.
        reference_log_probs: filled in by the agent: the reference's, within what the policy may sample (top-k, top-p, masks),
            which penalties and losses compare with.
        own_reference_log_probs: filled in by the agent: the reference's own, whatever the policy may sample.
        advantages: filled in by the agent.
        returns: filled in by the agent.
        importance: weights of the tokens' policy losses; ones unless the agent corrects for a mismatch.
        held: 1 at the tokens that KL-Cov holds near the old policy, else 0.
        learn_from: the episodes that minibatches are drawn from; None is all of them.
        together: this many of these in a row always share a minibatch (the two of a pair, or a group).
        left_out: episodes without a score, and the rest of their groups; they are in no table.
        has_reference: True once the reference's tables are filled in; without a reference they are zeros.
        restricted: True where the policy may not sample every token, so that the reference's two tables differ.
    """

    episodes: list[Episode]
    mask: Tensor
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    reference_log_probs: Tensor
    own_reference_log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    importance: Tensor
    held: Tensor
    learn_from: list[int] | None = None
    together: int = 1
    left_out: list[Episode] = field(default_factory=list)
    has_reference: bool = False
    restricted: bool = False

    def scored(self, group_size: int = 1) -> Rollout:
        """The rollout without the episodes whose reward failed.

        Args:
            group_size: episodes of a group. Groups are left out whole, since their responses are compared with one another.
        """
        groups = [range(first, first + group_size) for first in range(0, len(self.episodes), group_size)]
        whole = [not any(self.episodes[i].skipped for i in group) for group in groups]
        if all(whole):
            return self
        rows = [i for group, kept in zip(groups, whole, strict=True) if kept for i in group]
        left_out = [
            e
            for group, kept in zip(groups, whole, strict=True)
            if not kept
            for e in self.episodes[group.start : group.stop]
        ]
        return replace(self.only(rows), left_out=left_out)

    def only(self, rows: Sequence[int]) -> Rollout:
        """The rollout of some of its episodes.

        Args:
            rows: their numbers.
        """
        longest = max((len(self.episodes[i].response_ids) for i in rows), default=0)
        tables: dict[str, Any] = {name: getattr(self, name)[list(rows), :longest] for name in TABLES}
        return replace(self, episodes=[self.episodes[i] for i in rows], **tables)

    def put(self, rows: Sequence[int], part: Rollout) -> None:
        """Write back what was computed for some of the episodes.

        Args:
            rows: their numbers.
            part: :meth:`only` these.
        """
        for name in TABLES:
            getattr(self, name)[list(rows), : part.mask.shape[1]] = getattr(part, name)
        self.has_reference, self.restricted = part.has_reference, part.restricted

    @classmethod
    def of(cls, episodes: list[Episode]) -> Rollout:
        """Pad episodes to one rectangle."""
        longest = max((len(e.response_ids) for e in episodes), default=0)
        mask = torch.zeros(len(episodes), longest, dtype=torch.bool)
        for row, episode in enumerate(episodes):
            mask[row, : len(episode.response_ids)] = True
        known: dict[str, Any] = {
            name: pad(mask, [getattr(e, name) for e in episodes]) for name in ("log_probs", "values", "rewards")
        }
        others: dict[str, Any] = {name: torch.zeros(mask.shape) for name in TABLES if name not in ("mask", *known)}
        others["importance"] = torch.ones(mask.shape)
        return cls(episodes, mask, **known, **others)

    @classmethod
    def joined(cls, parts: Sequence[Rollout]) -> Rollout:
        """Several rollouts, with all that was computed for them before learning, as one."""
        whole = cls.of([episode for part in parts for episode in part.episodes])
        for name in ("log_probs", "values", "reference_log_probs", "own_reference_log_probs", "importance"):
            rows = [row[kept] for part in parts for row, kept in zip(getattr(part, name), part.mask, strict=True)]
            setattr(whole, name, pad(whole.mask, rows))
        whole.left_out = [episode for part in parts for episode in part.left_out]
        whole.has_reference = any(part.has_reference for part in parts)
        whole.restricted = any(part.restricted for part in parts)
        return whole

    @property
    def lengths(self) -> list[int]:
        """Response lengths."""
        return [len(e.response_ids) for e in self.episodes]

    @property
    def totals(self) -> list[int]:
        """Padded tokens that a pass reads of each episode: the lengths of prompt and response together.

        Where the policy has read several sequences in an episode, each counts as much as the longest of all.
        """
        if all(len(e.turns) < 2 for e in self.episodes):
            return [len(e.prompt_ids) + len(e.response_ids) for e in self.episodes]
        if all(len(e.rows) == 1 for e in self.episodes):
            return [e.row_lengths[0] for e in self.episodes]
        longest = max(max(e.row_lengths) for e in self.episodes)
        return [len(e.rows) * longest for e in self.episodes]

    @property
    def kl(self) -> Tensor:
        """float32 ``[B, R]``: the k1 estimate of the KL from the reference's own distribution at each token; 0 at padding.

        NaN at every token without a reference.
        """
        if not self.has_reference:
            return torch.full_like(self.log_probs, torch.nan)
        return (self.log_probs - self.own_reference_log_probs) * self.mask

    @property
    def bootstrap(self) -> Tensor:
        """float32 ``[B]``, the value after each episode's last token: 0 unless a time limit cut the episode."""
        return torch.tensor([e.bootstrap for e in self.episodes])

    def minibatches(self, size: int, rng: np.random.Generator) -> list[list[int]]:
        """Indices of episodes in random order, in minibatches of ``size`` whole episodes (the last may be smaller).

        Args:
            size: episodes of a minibatch.
            rng: draws the order.
        """
        rows = np.arange(len(self.episodes)) if self.learn_from is None else np.array(self.learn_from, dtype=np.int64)
        order = rng.permutation(rows.reshape(-1, self.together)).flatten().tolist()
        return [order[i : i + size] for i in range(0, len(order), size)]


def pad(mask: Tensor, rows: Sequence[Sequence[float] | Tensor]) -> Tensor:
    """float32 ``[B, R]`` with each row's values where its mask is True, and 0 elsewhere.

    Args:
        mask: bool ``[B, R]``, True at the front of each row.
        rows: ``B`` rows; each has as many values as its row of the mask has True.
    """
    out = torch.zeros(mask.shape)
    for row, values in enumerate(rows):
        out[row, : len(values)] = torch.as_tensor(values, dtype=torch.float32)
    return out


def flat(table: Tensor, rows: Sequence[int], mask: Tensor) -> Tensor:
    """The masked entries of some rows, row after row: ``[N]``.

    Args:
        table: ``[B, R]``.
        rows: the rows to take.
        mask: bool ``[B, R]``.
    """
    index = torch.as_tensor(rows)
    return table[index][mask[index]]


def unpack_masks(episodes: Sequence[Episode], vocab_size: int) -> Tensor | None:
    """Allowed tokens, bool ``[N, V]``, at every response token of these episodes; None where no episode has masks.

    Args:
        episodes: some episodes, with ``N`` response tokens in all.
        vocab_size: ``V``.
    """
    if episodes[0].masks is None:
        return None
    packed = np.concatenate([e.masks for e in episodes if e.masks is not None])
    return torch.from_numpy(np.unpackbits(packed, axis=1, count=vocab_size).astype(np.bool_))
