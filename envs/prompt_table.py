"""A task's prompts as token ids, ready to be laid into rows: checked once, drawn in one NumPy step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks import Task
from rlhf_gym.tokenizer import Tokenizer

Ids = NDArray[np.int64]


class PromptTable:
    """The ids of all prompts, one behind the other: as large as the prompts, however uneven they are.

    Args:
        task: the task.
        tokenizer: gives the ids.
        max_prompt_tokens: longest prompt allowed; None takes the task's longest.

    Attributes:
        sizes: int64 ``[P]``, tokens of each prompt.
        longest: most tokens that a prompt may have.

    Raises:
        TaskError: a prompt without tokens, with an id outside the vocabulary, or longer than allowed.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, max_prompt_tokens: int | None = None) -> None:
        rows = [tokenizer.encode_prompt(p.text) for p in task.prompts]
        self.sizes: Ids = np.array([len(row) for row in rows], dtype=np.int64)
        if not self.sizes.all():
            empty = int(np.argmin(self.sizes))
            raise TaskError(
                f"the tokenizer {tokenizer.name!r} gives no ids for prompt {empty} of task {task.name!r}; expected at least one"
            )
        most = int(np.argmax(self.sizes))
        if max_prompt_tokens is not None and self.sizes[most] > max_prompt_tokens:
            raise TaskError(
                f"prompt {most} of task {task.name!r} has {self.sizes[most]} tokens, more than the "
                f"{max_prompt_tokens} that leave room for a response; shorten it or leave it out"
            )
        self.longest = max_prompt_tokens or int(self.sizes[most])
        self._flat: Ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        if self._flat.min() < 0 or self._flat.max() >= tokenizer.vocab_size:
            wrong = int(np.argmax((self._flat < 0) | (self._flat >= tokenizer.vocab_size)))
            raise TaskError(
                f"the tokenizer {tokenizer.name!r} gives the id {self._flat[wrong]} in a prompt of task {task.name!r}; "
                f"expected 0..{tokenizer.vocab_size - 1}"
            )
        self._starts: Ids = np.cumsum(self.sizes) - self.sizes
        self._columns: Ids = np.arange(self.longest)

    def __len__(self) -> int:
        return len(self.sizes)

    def one(self, index: int) -> Ids:
        """The ids of one prompt, a view."""
        start = self._starts[index]
        return self._flat[start : start + self.sizes[index]]

    def rows(self, indices: Sequence[int] | Ids, pad_id: int) -> Ids:
        """int64 ``[n, longest]``, prompts padded on the right."""
        places = self._starts[indices][:, None] + self._columns
        inside = self._columns < self.sizes[indices][:, None]
        return np.where(inside, self._flat[np.minimum(places, len(self._flat) - 1)], pad_id)
