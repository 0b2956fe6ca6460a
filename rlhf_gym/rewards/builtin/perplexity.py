"""Perplexity of a response under a language model: a measure of fluency, to see that a reward does not cost it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlhf_gym.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_gym.lm.language_model import LanguageModel


class Perplexity:
    """``exp`` of the mean negative log-probability a token, of the response given the prompt; at least 1, low is fluent.

    The response is tokenised anew from its text, and counts as it stands: no EOS is scored. An empty response is scored 1.

    Args:
        model: a language model or its name; loaded with the first call.
        limit: higher values are reported as this one, so that a single strange response does not decide a mean.

    Raises:
        ConfigError: a limit below 1.
    """

    name = "perplexity"

    def __init__(self, model: LanguageModel | str = "embedded", limit: float = 1000.0) -> None:
        if not limit >= 1:
            raise ConfigError(f"perplexity's limit must be at least 1, got {limit}")
        self.model, self.limit = model, limit

    def __call__(self, prompts: list[str], responses: list[str], messages: Sequence[Any] | None = None) -> list[float]:
        """Score a batch; ``messages`` are prompts that are conversations, for a chat model."""
        from rlhf_gym.lm.language_model import LanguageModel
        from rlhf_gym.lm.log_probs import response_log_probs
        from rlhf_gym.lm.sampling import Limits, Sampling
        from rlhf_gym.lm.tokenizer import encode_conversation, encode_response

        if isinstance(self.model, str):
            self.model = LanguageModel.load(self.model)
        tokenizer = self.model.tokenizer
        told = [None] * len(prompts) if messages is None else messages
        contexts = [encode_conversation(tokenizer, p, m, r) for p, m, r in zip(prompts, told, responses, strict=True)]
        room = [self.model.context_length - len(ids) for ids in contexts]
        # Tokens beyond the context have no logits; they are left out.
        written = [encode_response(tokenizer, r)[: max(0, n)] for r, n in zip(responses, room, strict=True)]
        some = [i for i, ids in enumerate(written) if ids]
        scores = np.ones(len(responses))
        if some:
            longest = max(len(written[i]) for i in some)
            logs = response_log_probs(
                self.model,
                [contexts[i] for i in some],
                [written[i] for i in some],
                Sampling(),
                Limits(tokenizer.eos_id, max_new_tokens=longest),
            )
            for i, values in zip(some, logs, strict=True):
                scores[i] = min(self.limit, float(np.exp(min(-float(values.double().mean()), 700.0))))
        return [float(x) for x in scores]
