"""Log-probabilities of response tokens under the distribution they were drawn from, for learning and for the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits, Sampling, behaviour_log_probs


def masked_logits(
    model: LanguageModel, hidden: Tensor, positions: Tensor, limits: Limits, allowed: Tensor | None = None
) -> Tensor:
    """Logits with forbidden tokens at -inf.

    Args:
        model: whose head is used.
        hidden: ``[N, D]``.
        positions: int64 ``[N]``, response tokens written before.
        limits: tokens that are forbidden by rule.
        allowed: bool ``[N, V]``, further masks (an environment's action masks), or None.

    Returns:
        float32 ``[N, V]``.
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
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of tokens under :func:`~rlhf_gym.lm.sampling.behaviour_log_probs`, and entropies if asked for.

    With top-k or top-p, a token that was drawn may later fall out of the kept set, of the changed policy or of the reference.
    Its probability there would be 0, and the divergence infinite; it is therefore counted as one more token kept. When the
    token was drawn it was in the set, so the first ratio is 1.

    Args:
        model: policy or reference.
        hidden: ``[N, D]``, the states before each token.
        tokens: int64 ``[N]``.
        positions: int64 ``[N]``, place of each token in its response.
        sampling: temperature, top-k, top-p.
        limits: tokens that are forbidden by rule.
        allowed: bool ``[N, V]``, further masks, or None.
        entropy: also return the entropy of each distribution.

    Returns:
        float32 ``[N]``, and float32 ``[N]`` in nats or None. Differentiable.
    """
    logits = masked_logits(model, hidden, positions, limits, allowed)
    log_probs = behaviour_log_probs(logits, sampling)
    chosen = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
    if sampling.top_k or sampling.top_p < 1:
        lost = (chosen == -torch.inf).nonzero().squeeze(-1)
        if len(lost):
            kept = (log_probs[lost] > -torch.inf).scatter(-1, tokens[lost, None], True)
            widened = (logits[lost] / sampling.temperature).masked_fill(~kept, -torch.inf).log_softmax(-1)
            chosen = chosen.index_copy(0, lost, widened.gather(-1, tokens[lost, None]).squeeze(-1))
    if not entropy:
        return chosen, None
    finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)  # 0 * -inf is NaN
    return chosen, -(log_probs.exp() * finite).sum(-1)
