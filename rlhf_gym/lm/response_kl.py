"""The KL of responses from a policy to a reference: each token's log-ratio, and the exact KL of its whole distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import CHUNK, chosen_and_entropy, masked_logits, response_log_probs
from rlhf_gym.lm.sampling import Limits, Sampling, behaviour_log_probs
from rlhf_gym.lm.sequences import pack_sequences, response_batches, response_positions


@dataclass(frozen=True)
class ResponseKL:
    """Two estimates of a response's KL, summed over its tokens, in nats; both have the same mean over responses.

    Attributes:
        k1: ``sum_t log pi(y_t) - log pi_ref(y_t)``, of the tokens that were drawn.
        exact: ``sum_t sum_v pi(v) (log pi(v) - log pi_ref(v))``: at each position the exact KL of the next token's
            distribution, at least 0. Conditioning on the prefix takes the drawn token's noise out (Rao-Blackwell; Amini et al.
            2025).
    """

    k1: float
    exact: float


def response_log_ratios(
    policy: LanguageModel,
    reference: LanguageModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    sampling: Sampling,
    limits: Limits,
    *,
    tokens_per_batch: int = 4096,
) -> NDArray[np.float64]:
    """The k1 of :class:`ResponseKL` alone, float64 ``[n]``, where the exact KL is not wanted.

    Args:
        policy: the model that generated them.
        reference: the model that the KL is measured to.
        prompts: ids of each prompt, at least one each.
        responses: ids of each response, EOS included where it was generated.
        sampling: temperature, top-k and top-p of the generation.
        limits: forbidden tokens, as in generation.
        tokens_per_batch: most tokens, padding included, in one forward pass.
    """
    ours, theirs = (
        response_log_probs(model, prompts, responses, how, limits, tokens_per_batch=tokens_per_batch)
        for model, how in ((policy, sampling), (reference, Sampling(sampling.temperature)))
    )
    return np.array([float((a - b).double().sum()) for a, b in zip(ours, theirs, strict=True)])


@torch.no_grad()
def response_kls(
    policy: LanguageModel,
    reference: LanguageModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    sampling: Sampling,
    limits: Limits,
    *,
    tokens_per_batch: int = 4096,
    chunk: int = CHUNK // 2,
) -> list[ResponseKL]:
    """Estimate the KL of responses that the policy has generated: one pass of each model, without gradients.

    It is measured from the distribution that tokens are drawn from to the reference's own at the same temperature, not
    truncated: with top-k or top-p in both, the KL would be infinite.

    Args:
        policy: the model that generated them.
        reference: the model that the KL is measured to.
        prompts: ids of each prompt, at least one each.
        responses: ids of each response, EOS included where it was generated.
        sampling: temperature, top-k and top-p of the generation.
        limits: forbidden tokens, as in generation.
        tokens_per_batch: most tokens, padding included, in one forward pass.
        chunk: most logits of one model at a time (one token's at least).

    Returns:
        One for each response, in the order given.
    """
    plain = Sampling(sampling.temperature)
    step = max(1, chunk // policy.vocab_size)
    out = [ResponseKL(0.0, 0.0)] * len(prompts)
    for rows in response_batches(prompts, [len(r) for r in responses], tokens_per_batch, shared=policy.shares_prompts):
        batches = [
            pack_sequences(
                [prompts[i] for i in rows], [responses[i] for i in rows], m.tokenizer.pad_id, device=m.device
            )
            for m in (policy, reference)
        ]
        states = [m.response_states(b) for m, b in zip((policy, reference), batches, strict=True)]
        tokens, positions = batches[0].tokens, response_positions(batches[0])
        parts: list[Tensor] = []
        for begin in range(0, len(tokens), step):
            part = slice(begin, begin + step)
            ours = masked_logits(policy, states[0][part], positions[part], limits)
            theirs = masked_logits(reference, states[1][part], positions[part], limits)
            k1 = (
                chosen_and_entropy(ours, tokens[part], sampling, False)[0]
                - chosen_and_entropy(theirs, tokens[part], plain, False)[0]
            )
            log_p, log_q = behaviour_log_probs(ours, sampling), behaviour_log_probs(theirs, plain)
            kept = log_p > -torch.inf  # 0 * (-inf - x) is NaN
            ratio = torch.where(kept, log_p - log_q, 0.0)
            parts.append(torch.stack([k1, (log_p.exp() * ratio).sum(-1)], 1))
        found = torch.cat(parts).double().cpu()
        for i, values in zip(rows, torch.split(found, [len(responses[i]) for i in rows]), strict=True):
            out[i] = ResponseKL(*values.sum(0).tolist())
    return out
