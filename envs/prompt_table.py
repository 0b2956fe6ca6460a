"""A task's prompts as token ids, texts and columns, ready to be laid into rows: checked once, looked up in one NumPy step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import TaskError
from rlhf_gym.lm.tokenizer import Tokenizer
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt

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
        # The last prompt's row reaches beyond its end.
        self._flat = np.concatenate([self._flat, np.zeros(self.longest, dtype=np.int64)])
        self._places: Ids = np.arange(self.longest)
        self._texts = _objects(p.text for p in task.prompts)
        self._columns = {
            name: _objects(p.columns.get(name) for p in task.prompts) for name in column_names(task.prompts)
        }

    def __len__(self) -> int:
        return len(self.sizes)

    def one(self, index: int) -> Ids:
        """The ids of one prompt, a view."""
        start = self._starts[index]
        return self._flat[start : start + self.sizes[index]]

    def rows(self, indices: Ids, pad_id: int) -> Ids:
        """int64 ``[n, longest]``, prompts padded on the right."""
        rows = self._flat.take(self._starts.take(indices)[:, None] + self._places)
        rows[self._places >= self.sizes.take(indices)[:, None]] = pad_id
        return rows

    def texts(self, indices: Ids) -> list[str]:
        """The texts of some prompts."""
        texts: list[str] = self._texts.take(indices).tolist()
        return texts

    def columns(self, indices: Ids) -> dict[str, list[Any]]:
        """The columns of some prompts by name, as :func:`columns_of` gives them."""
        return {name: values.take(indices).tolist() for name, values in self._columns.items()}


def _objects(values: Iterable[Any]) -> NDArray[np.object_]:
    """One object a place: lists of equal lengths must not become a matrix."""
    return np.fromiter(values, dtype=np.object_)


def column_names(prompts: Iterable[Prompt]) -> list[str]:
    """The names of all columns that some of these prompts have."""
    return list(dict.fromkeys(name for p in prompts for name in p.columns))


def columns_of(prompts: Sequence[Prompt], names: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """The prompts' columns by name; None where a prompt has none of that name.

    Args:
        prompts: some of a task's prompts.
        names: the names of all of the task's columns, so that a reward finds the same ones whichever prompts share its
            batch; None: those that these prompts have.
    """
    return {
        name: [p.columns.get(name) for p in prompts] for name in (column_names(prompts) if names is None else names)
    }
