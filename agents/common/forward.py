"""Passes of a model over a rollout's episodes, in micro-batches of sequences of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout import Episode, Rollout, pad, unpack_masks
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import CHUNK, masked_logits, token_log_probs
from rlhf_gym.lm.sampling import Sampling, behaviour_log_probs
from rlhf_gym.lm.sequences import (
    SequenceBatch,
    batches_by_length,
    pack_sequences,
    response_batches,
    response_positions,
)
from rlhf_gym.lm.turn_sequences import pack_turns


class MicroBatch(NamedTuple):
    """Part of a minibatch after a pass of the policy; ``N`` response tokens, row after row.

    Attributes:
        rows: its episodes in the rollout.
        log_probs: ``[N]``, of the tokens under the policy now.
        entropies: ``[N]``, of the distributions; by default the samples' estimate, without a gradient.
        values: ``[N]``; None without a value head.
    """

    rows: list[int]
    log_probs: Tensor
    entropies: Tensor
    values: Tensor | None


def micro_batches(
    policy: LMPolicy, rollout: Rollout, rows: list[int], tokens_per_batch: int, *, entropy: bool = False
) -> Iterator[MicroBatch]:
    """Run a minibatch through the policy.

    Args:
        policy: the policy, with gradients.
        rollout: the episodes.
        rows: the minibatch's episodes.
        tokens_per_batch: padded tokens per micro-batch.
        entropy: compute entropies exactly, which costs a pass over the vocabulary.

    Yields:
        Micro-batches that together are the minibatch.
    """
    for micro in episode_batches(policy.language_model, rollout, rows, tokens_per_batch):
        episodes = [rollout.episodes[i] for i in micro]
        batch = pack_episodes(policy, episodes)
        hidden = policy.language_model.response_states(batch)
        logs, entropies = episode_log_probs(
            policy, policy.language_model, episodes, entropy=entropy, hidden=hidden, batch=batch
        )
        values = None
        if policy.value_trunk is not None:
            values = policy.values(policy.value_trunk.response_states(batch))
        elif policy.value_head is not None:
            values = policy.values(hidden)
        yield MicroBatch(micro, logs, -logs.detach() if entropies is None else entropies, values)


@torch.no_grad()
def rollout_log_probs(policy: LMPolicy, model: LanguageModel, rollout: Rollout, tokens_per_batch: int) -> Tensor:
    """A model's log-probabilities of a rollout's tokens, under the policy's sampling, limits and masks.

    Args:
        policy: its sampling and limits hold.
        model: the policy's language model, or the reference.
        rollout: the episodes.
        tokens_per_batch: padded tokens per pass.

    Returns:
        float32 ``[B, R]`` on the CPU, 0 at padding.
    """
    logs: list[Tensor] = [torch.zeros(0)] * len(rollout.episodes)
    for rows in episode_batches(model, rollout, None, tokens_per_batch):
        values, _ = episode_log_probs(policy, model, [rollout.episodes[i] for i in rows])
        for i, row in zip(rows, torch.split(values.cpu(), [rollout.lengths[i] for i in rows]), strict=True):
            logs[i] = row
    return pad(rollout.mask, logs)


@torch.no_grad()
def fill_reference(policy: LMPolicy, reference: LanguageModel, rollout: Rollout, tokens_per_batch: int) -> None:
    """Fill in a rollout's two tables of the reference's log-probabilities, in one pass of it.

    One is under the policy's sampling and masks. The other is the reference's own: under the same temperature and the
    environment's fixed limits, but without top-k, top-p and masks. Where there are none of these, the two are one.

    Args:
        policy: its sampling and limits hold.
        reference: the reference.
        rollout: the episodes.
        tokens_per_batch: padded tokens per pass.
    """
    episodes, sampling = rollout.episodes, policy.sampling
    truncated = sampling.top_k > 0 or sampling.top_p < 1
    rollout.has_reference = True
    rollout.restricted = truncated or any(e.masks is not None for e in episodes)
    if not rollout.restricted:
        rollout.reference_log_probs = rollout_log_probs(policy, reference, rollout, tokens_per_batch)
        rollout.own_reference_log_probs = rollout.reference_log_probs
        return
    within: list[Tensor] = [torch.zeros(0)] * len(episodes)
    own = list(within)
    for rows in episode_batches(reference, rollout, None, tokens_per_batch):
        chosen = [episodes[i] for i in rows]
        batch = pack_episodes(policy, chosen)
        hidden = reference.response_states(batch)
        restricted, _ = episode_log_probs(policy, reference, chosen, hidden=hidden, batch=batch)
        free, _ = token_log_probs(
            reference, hidden, batch.tokens, response_positions(batch),
            Sampling(sampling.temperature), policy.limits,
        )  # fmt: skip
        sizes = [rollout.lengths[i] for i in rows]
        for i, both in zip(rows, torch.split(torch.stack([restricted, free], 1).cpu(), sizes), strict=True):
            within[i], own[i] = both.unbind(1)
    rollout.reference_log_probs = pad(rollout.mask, within)
    rollout.own_reference_log_probs = pad(rollout.mask, own)


@torch.no_grad()
def kl_along(policy: LMPolicy, reference: LanguageModel, rollout: Rollout, tokens_per_batch: int) -> float:
    """The KL of the policy as it is now along a rollout's responses, in nats per response: exact at each of their tokens.

    Each token's is ``sum_x pi(x) log(pi(x) / pi_ref(x))``: ``pi`` is what the policy samples from, masks included, ``pi_ref``
    the reference's own distribution.

    Args:
        policy: the policy.
        reference: the reference.
        rollout: the episodes; an older policy may have generated them.
        tokens_per_batch: padded tokens per pass.
    """
    own = Sampling(policy.sampling.temperature)
    total = torch.zeros((), dtype=torch.float64, device=policy.language_model.device)
    step = max(1, CHUNK // policy.language_model.vocab_size)
    for rows in episode_batches(policy.language_model, rollout, None, tokens_per_batch):
        episodes = [rollout.episodes[i] for i in rows]
        batch = pack_episodes(policy, episodes)
        ours, theirs = policy.language_model.response_states(batch), reference.response_states(batch)
        positions, allowed = response_positions(batch), unpack_masks(episodes, reference.vocab_size)
        for begin in range(0, len(positions), step):
            part = slice(begin, begin + step)
            mask = None if allowed is None else allowed[part].to(ours.device, non_blocking=True)
            log_p = policy.distribution(ours[part], positions[part], mask)
            log_q = behaviour_log_probs(masked_logits(reference, theirs[part], positions[part], policy.limits), own)
            total += torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0).sum()
    return float(total) / len(rollout.episodes)


@torch.no_grad()
def fill_log_probs(policy: LMPolicy, rollout: Rollout, tokens_per_batch: int) -> None:
    """Fill in a rollout's old log-probabilities by a pass of the policy.

    Args:
        policy: the policy.
        rollout: the episodes.
        tokens_per_batch: padded tokens per pass.
    """
    rollout.log_probs = rollout_log_probs(policy, policy.language_model, rollout, tokens_per_batch)


@torch.no_grad()
def fill_values(policy: LMPolicy, rollout: Rollout, tokens_per_batch: int) -> None:
    """Fill in the values before a rollout's tokens, by a pass of their own.

    Args:
        policy: a policy with a value function.
        rollout: the episodes.
        tokens_per_batch: padded tokens per pass.
    """
    values: list[Tensor] = [torch.zeros(0)] * len(rollout.episodes)
    for rows in episode_batches(policy.value_model, rollout, None, tokens_per_batch):
        batch = pack_episodes(policy, [rollout.episodes[i] for i in rows])
        flat_values = policy.values(policy.value_model.response_states(batch))
        for i, row in zip(rows, torch.split(flat_values.cpu(), [rollout.lengths[i] for i in rows]), strict=True):
            values[i] = row
    rollout.values = pad(rollout.mask, values)


def episode_log_probs(
    policy: LMPolicy, model: LanguageModel, episodes: list[Episode], *, entropy: bool = False,
    hidden: Tensor | None = None, batch: SequenceBatch | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """A model's log-probabilities of the response tokens of some episodes, row after row.

    Args:
        policy: its sampling and limits hold.
        model: the policy's language model, or the reference.
        episodes: ``B`` episodes.
        entropy: also return entropies.
        hidden: ``[N, D]``, the model's states before the tokens; None computes them.
        batch: the packed episodes; None packs them.

    Returns:
        float32 ``[N]``, and float32 ``[N]`` in nats or None.
    """
    batch = pack_episodes(policy, episodes) if batch is None else batch
    hidden = model.response_states(batch) if hidden is None else hidden
    allowed = unpack_masks(episodes, model.vocab_size)
    return token_log_probs(
        model, hidden, batch.tokens, response_positions(batch), policy.sampling, policy.limits,
        allowed=None if allowed is None else allowed.to(hidden.device, non_blocking=True), entropy=entropy,
    )  # fmt: skip


def episode_batches(
    model: LanguageModel, rollout: Rollout, rows: Sequence[int] | None, tokens_per_batch: int
) -> list[list[int]]:
    """Episodes in batches of like length, or of few prompts where the model runs a prompt once for all its responses.

    Args:
        model: whose passes they are for.
        rollout: the episodes.
        rows: the places of those that are wanted; None for all.
        tokens_per_batch: padded tokens of a batch; one episode at least.
    """
    rows = range(len(rollout.episodes)) if rows is None else rows
    episodes = [rollout.episodes[i] for i in rows]
    if any(len(e.turns) > 1 for e in episodes):
        batches = batches_by_length([rollout.totals[i] for i in rows], tokens_per_batch)
    else:
        prompts, lengths = [e.prompt_ids for e in episodes], [rollout.lengths[i] for i in rows]
        batches = response_batches(prompts, lengths, tokens_per_batch, shared=model.shares_prompts)
    return [[rows[place] for place in batch] for batch in batches]


def pack_episodes(policy: LMPolicy, episodes: list[Episode]) -> SequenceBatch:
    """Episodes as padded tensors on the policy's device.

    Args:
        policy: gives the padding id and the device.
        episodes: ``B`` episodes.
    """
    model = policy.language_model
    if any(len(e.turns) > 1 for e in episodes):
        return pack_turns([row for e in episodes for row in e.rows], model.tokenizer.pad_id, device=model.device)
    prompts, responses = [e.prompt_ids for e in episodes], [e.response_ids for e in episodes]
    return pack_sequences(prompts, responses, model.tokenizer.pad_id, device=model.device)
