"""Embedding similarity as a reward: a response should mean the same as a reference, or as the prompt."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.builtin.against_reference import references_of
from rlhf_gym.rewards.builtin.encoder import Pooling, embed, load_encoder


class EmbeddingSimilarity:
    """Cosine in [-1, 1] of two texts' embeddings by an encoder (Reimers and Gurevych 2019); of several references the best.

    The embedding is the mean of the encoder's last hidden states (or the first of them), scaled to length 1: what most models
    of sentence-transformers compute; a further projection that a model may have is left out. An empty response scores 0.
    Texts beyond ``max_tokens`` lose their end.

    Args:
        model: an encoder's name on the Hugging Face hub, or its folder; loaded with the first call, from safetensors.
        column: the reference's column, or ``"prompt"`` for the prompt itself.
        pooling: ``"mean"`` or ``"cls"``, as the model was trained (BGE: cls; MiniLM, E5, GTE: mean).
        prefix: put before every text, where the model wants one (E5: ``"query: "``).
        max_tokens: most tokens of a text.
        revision: commit, tag or branch on the hub.
        device: ``"cpu"``, ``"cuda"``, ..., or ``"auto"``.

    Raises:
        ConfigError: a setting that does not exist, or a model that cannot be loaded.
    """

    name = "embedding_similarity"

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        column: str = "reference",
        pooling: Pooling = "mean",
        prefix: str = "",
        max_tokens: int = 256,
        revision: str | None = None,
        device: str = "auto",
    ) -> None:
        if pooling not in ("mean", "cls") or max_tokens < 4:
            raise ConfigError(
                f"embedding_similarity needs pooling mean or cls and max_tokens of at least 4, got {pooling!r} and {max_tokens}"
            )
        self.model, self.column, self.pooling = model, column, pooling
        self.prefix, self.max_tokens, self.revision, self.device = prefix, max_tokens, revision, device
        self._loaded: tuple[Any, Any] | None = None

    def __call__(self, prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        """Score a batch.

        Raises:
            RewardError: the data have no such column, or no text in it.
        """
        own = self.column == "prompt" and "prompt" not in columns
        references = [[prompt] for prompt in prompts] if own else references_of(columns, self.column, self.name)
        texts = list(dict.fromkeys([*responses, *(text for some in references for text in some)]))
        vectors = dict(zip(texts, self.embeddings(texts), strict=True))
        return [
            max(float(np.dot(vectors[response], vectors[text])) for text in some) if response.strip() else 0.0
            for response, some in zip(responses, references, strict=True)
        ]

    def embeddings(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, float32 ``[n, D]``."""
        if self._loaded is None:
            self._loaded = load_encoder(self.model, revision=self.revision, device=self.device, name=self.name)
        network, tokenizer = self._loaded
        given = [self.prefix + text for text in texts]
        return embed(network, tokenizer, given, pooling=self.pooling, max_tokens=self.max_tokens)
