"""Log-probabilities of response tokens under the distribution they are drawn from: one path for everybody.

Policy, reference, evaluation and perplexity all come here. Logits are computed from hidden states for one chunk of tokens at
a time, so memory does not grow with the number of tokens times the vocabulary. With gradients, a chunk's logits are computed
once more in the backward pass (Chen et al. 2016) in place of being stored. Where all tokens fit in one chunk, nothing is
computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits, Sampling, behaviour_log_probs
from rlhf_gym.lm.sequences import pack_sequences, response_batches, response_positions

CHUNK = 1 << 24
"""Logits in a chunk (64 MiB in float32): 4096 tokens of a vocabulary of 4096, which is a micro-batch of the embedded model."""


def masked_logits(
    model: LanguageModel, hidden: Tensor, positions: Tensor, limits: Limits, allowed: Tensor | None = None
) -> Tensor:
    """Logits with forbidden tokens at -inf, over the whole vocabulary at once.

    For callers that need the distribution itself: acting, and TRPO's Fisher-vector products, which differentiate it twice.

    Args:
        model: whose head is used.
        hidden: ``[N, D]``.
        positions: int64 ``[N]``, number of response tokens before each.
        limits: tokens that are forbidden by rule.
        allowed: bool ``[N, V]``, further masks (an environment's action masks), or None.

    Returns:
        float32 ``[N, V]``. Differentiable, any number of times.
    """
    logits = limits.apply(model.logits(hidden), positions)
    return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)


def token_log_probs(
    model: LanguageModel,
    hidden: Tensor,
    tokens: Tensor,
    positions: Tensor,
    sampling: Sampling,
    limits: Limits,
    *,
    allowed: Tensor | None = None,
    entropy: bool = False,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of tokens under :func:`~rlhf_gym.lm.sampling.behaviour_log_probs`, and entropies if wanted.

    With top-k or top-p, a token that was drawn may later lie outside the set that the changed policy, or the reference, keeps.
    Its probability there would be 0, and the KL infinite; it is therefore counted as one more token kept. When the token was
    drawn it was in the set, so the first ratio is 1.

    Args:
        model: policy or reference.
        hidden: ``[N, D]``, the states before each token.
        tokens: int64 ``[N]``.
        positions: int64 ``[N]``, place of each token in its response.
        sampling: temperature, top-k, top-p.
        limits: tokens that are forbidden by rule.
        allowed: bool ``[N, V]``, further masks, or None.
        entropy: also return the entropy of each distribution, truncated and renormalised as it is sampled from.
        chunk: most logits at a time (one token's at least); changes memory and speed, and the numbers by rounding alone.

    Returns:
        float32 ``[N]``, and float32 ``[N]`` in nats or None. Differentiable.
    """

    def of(hidden: Tensor, rows: slice) -> tuple[Tensor, ...]:
        logits = masked_logits(model, hidden, positions[rows], limits, None if allowed is None else allowed[rows])
        return chosen_and_entropy(logits, tokens[rows], sampling, entropy)

    step = max(1, chunk // model.vocab_size)
    if len(tokens) <= step:
        parts = [of(hidden, slice(None))]
    else:
        places = [slice(begin, begin + step) for begin in range(0, len(tokens), step)]
        states = torch.split(hidden, step)  # one operation, so that its gradient is put together once
        if torch.is_grad_enabled():
            parts = [
                checkpoint(of, part, rows, use_reentrant=False, preserve_rng_state=False)
                for part, rows in zip(states, places, strict=True)
            ]
        else:
            parts = [of(part, rows) for part, rows in zip(states, places, strict=True)]
    chosen, *entropies = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
    return chosen, entropies[0] if entropies else None


def chosen_and_entropy(logits: Tensor, tokens: Tensor, sampling: Sampling, entropy: bool) -> tuple[Tensor, ...]:
    """Log-probabilities ``[N]`` of tokens, and entropies ``[N]`` if wanted.

    Args:
        logits: float32 ``[N, V]``, forbidden tokens at -inf.
        tokens: int64 ``[N]``; one outside of what top-k and top-p keep counts as one more token kept.
        sampling: temperature, top-k, top-p.
        entropy: also return the entropies, in nats.
    """
    log_probs = behaviour_log_probs(logits, sampling)
    chosen = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
    if sampling.top_k or sampling.top_p < 1:
        lost = (chosen == -torch.inf).nonzero().squeeze(-1)
        if len(lost):
            kept = (log_probs[lost] > -torch.inf).scatter(-1, tokens[lost, None], True)
            widened = (logits[lost] / sampling.temperature).masked_fill(~kept, -torch.inf).log_softmax(-1)
            chosen = chosen.index_copy(0, lost, widened.gather(-1, tokens[lost, None]).squeeze(-1))
    if not entropy:
        return (chosen,)
    finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)  # 0 * -inf is NaN
    return chosen, -(log_probs.exp() * finite).sum(-1)


@torch.no_grad()
def response_log_probs(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    sampling: Sampling,
    limits: Limits,
    *,
    tokens_per_batch: int = 4096,
) -> list[Tensor]:
    """Log-probabilities of every response's tokens, without gradients, in batches of like length.

    Args:
        model: the language model.
        prompts: ids of each prompt, at least one each.
        responses: ids of each response, EOS included where it was generated.
        sampling: temperature, top-k and top-p, as in generation.
        limits: forbidden tokens, as in generation.
        tokens_per_batch: most tokens, padding included, in one forward pass.

    Returns:
        For each response a float32 tensor ``[len(response)]``, in the order given.
    """
    out: list[Tensor] = [torch.zeros(0)] * len(prompts)
    for rows in response_batches(prompts, [len(r) for r in responses], tokens_per_batch, shared=model.shares_prompts):
        batch = pack_sequences(
            [prompts[i] for i in rows], [responses[i] for i in rows], model.tokenizer.pad_id, device=model.device
        )
        chosen, _ = token_log_probs(
            model, model.response_states(batch), batch.tokens, response_positions(batch),
            sampling, limits,
        )  # fmt: skip
        for i, values in zip(rows, torch.split(chosen.cpu(), [len(responses[i]) for i in rows]), strict=True):
            out[i] = values
    return out
