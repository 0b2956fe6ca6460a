"""A language model's logits along running episodes: it reads every token once, with a cache for each slot."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_gym.envs.token_rows import Slots, TokenRows
from rlhf_gym.errors import TaskError
from rlhf_gym.lm.decoding import CachedDecoder
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.tokenizer import Tokenizer


class Reader:
    """Gives the model's logits for the next token of each episode; reads on demand, every token once.

    Args:
        model: the language model, or its name.
        tokenizer: the environment's.
        purpose: the model's role, for error messages.

    Raises:
        TaskError: the model has another vocabulary than the environment.
    """

    def __init__(self, model: LanguageModel | str, tokenizer: Tokenizer, purpose: str) -> None:
        self.model = LanguageModel.load(model) if isinstance(model, str) else model
        theirs = self.model.tokenizer.vocab_size
        if theirs != tokenizer.vocab_size:
            raise TaskError(
                f"the {purpose} {self.model.name!r} has {theirs} tokens, the environment's tokenizer {tokenizer.name!r} "
                f"has {tokenizer.vocab_size}; give the environment the model's tokenizer"
            )
        self._decoder = CachedDecoder(self.model)
        self._read: dict[int, int] = {}  # the number of ids that the cache holds, by slot
        self._hidden: dict[int, torch.Tensor] = {}

    def forget(self, slots: Slots | int) -> None:
        """Forget the episodes in these slots: new ones start there."""
        for slot in np.atleast_1d(slots).tolist():
            self._read.pop(slot, None)

    def logits(self, rows: TokenRows, slots: Slots) -> NDArray[np.float32]:
        """float32 ``[n, V]``: of the next token in each of these slots.

        Args:
            rows: the ids so far.
            slots: int ``[n]``, all with a running episode.
        """
        self._follow(rows, slots.tolist())
        with torch.no_grad():
            hidden = torch.stack([self._hidden[slot] for slot in slots.tolist()])
            logits: NDArray[np.float32] = self.model.logits(hidden).float().cpu().numpy()
        return logits

    def _follow(self, rows: TokenRows, slots: list[int]) -> None:
        """Let the model read the tokens that it has not read."""
        length = rows.length
        one = [slot for slot in slots if self._read.get(slot) == length[slot] - 1]
        if one:
            tokens = torch.tensor([int(rows.ids[slot, length[slot] - 1]) for slot in one])
            hidden = self._decoder.append(one, tokens.to(self.model.device))
            # The decoder lets go of slots that were not named: they are read again when they go on.
            self._read = {slot: int(length[slot]) for slot in one}
            self._hidden.update(zip(one, hidden, strict=True))
        others = [slot for slot in slots if self._read.get(slot) != length[slot]]
        if others:
            prefixes = [rows.ids[slot, : length[slot]].tolist() for slot in others]
            generated = (length[others] - rows.prompt_length[others]).tolist()
            hidden = self._decoder.start(others, prefixes, generated)
            self._read.update({slot: int(length[slot]) for slot in others})
            self._hidden.update(zip(others, hidden, strict=True))
