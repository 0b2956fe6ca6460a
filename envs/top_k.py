"""The top k of a language model as a mask: of the tokens that are allowed otherwise, the k most probable next ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.reading import Reader
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rlhf_gym.envs.episodes import Episodes

Mask = NDArray[np.bool_]
Slots = NDArray[np.intp]


class ModelTopK:
    """Asks a language model when a mask is asked for; every token is read once.

    Args:
        model: the language model, or its name.
        k: how many tokens to allow.
        tokenizer: the environment's.

    Raises:
        TaskError: the model has another vocabulary than the environment.
    """

    def __init__(self, model: LanguageModel | str, k: int, tokenizer: Tokenizer) -> None:
        self.k = k
        self.reader = Reader(model, tokenizer, "mask's model")

    def forget(self, slots: Slots | int) -> None:
        """New episodes start in these slots."""
        self.reader.forget(slots)

    def restrict(self, episodes: Episodes, slots: Slots, masks: Mask) -> Mask:
        """Keep the k most probable tokens of each mask; ties with the k-th are kept.

        Args:
            episodes: what is written.
            slots: ``[n]``.
            masks: bool ``[n, V]``, what is allowed otherwise.
        """
        logits = np.where(masks, self.reader.logits(episodes, slots), -np.inf)
        k = min(self.k, logits.shape[1])
        kth = np.partition(logits, -k, axis=1)[:, -k, None]
        kept: Mask = masks & (logits >= kth)
        return kept
