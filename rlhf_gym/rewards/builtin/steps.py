"""Process rewards: a value for every step or sentence of a response, paid at the token that ends it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import ConfigError
from rlhf_gym.objects import load_object
from rlhf_gym.rewards.base import reward_name
from rlhf_gym.rewards.calling import call, call_form
from rlhf_gym.rewards.token_values import CONVERSATION, Tokens, checked_tokens

SENTENCE = "sentence"
Whole = Literal["sum", "mean", "last", "minimum"]
# A point, question or exclamation mark (or several), quotation marks and brackets behind it, then a space or the end.
_SENTENCE_END = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*(?=\s|$)")


def find_steps(text: str, split: str) -> list[tuple[str, int, bool]]:
    r"""The steps of a response; pieces of nothing but white space are none.

    Args:
        text: the response.
        split: the text that separates steps, or ``"sentence"``.

    Returns:
        Each step's text, without its separator; the place behind the separator, the last step's at the text's end; and True
        where a separator (or the mark of a sentence's end) is there.

    >>> find_steps("a\n\nb", "\n")
    [('a', 2, True), ('b', 4, False)]
    >>> find_steps("Is 3.5 more? Yes (it is.)", "sentence")
    [('Is 3.5 more?', 12, True), ('Yes (it is.)', 25, True)]
    """
    sentences = split == SENTENCE
    found = _SENTENCE_END.finditer(text) if sentences else re.finditer(re.escape(split), text)
    places = [(match.end() if sentences else match.start(), match.end(), True) for match in found]
    steps, begin = [], 0
    for last, end, closed in (*places, (len(text), len(text), False)):
        if step := text[begin:last].strip():
            steps.append((step, end, closed))
        begin = end
    return steps


class Steps:
    r"""A reward of steps, as one of tokens: each step's value is paid at the token that completes its separator.

    The last step, where no separator ends it, is paid with the response's last token. The function is called like any reward,
    with the column ``steps``: for each response the list of its steps' texts, without separators. It returns one number for
    each of them. An empty response has no steps and is worth 0.

    Args:
        function: the function (or an object that can be called), or its place, ``path/to/file.py:function``.
        split: the text that separates steps, or ``"sentence"``: steps end with a point, a question or an exclamation mark in
            front of a space.
        whole: what a response is worth in all. ``"sum"`` of its steps' values, each is paid as it is; ``"mean"``: each is
            divided by their number; ``"last"``: the last one's, so that a step is paid the change from the one before;
            ``"minimum"``: the smallest, so that a step is paid what it takes the smallest so far down by (the first its value).

    Raises:
        ConfigError: an empty ``split``, or a ``whole`` that does not exist.
        RewardError: the function's parameters fit no form.
    """

    per_token = True
    per_step = True

    def __init__(self, function: Callable[..., Any] | str, *, split: str = "\n", whole: Whole = "sum") -> None:
        if not isinstance(split, str) or not split:
            raise ConfigError(f"steps: split must be the text between steps, or {SENTENCE!r}; got {split!r}")
        if whole not in Whole.__args__:  # type: ignore[attr-defined]
            raise ConfigError(f"steps: whole must be one of {', '.join(Whole.__args__)}, got {whole!r}")  # type: ignore[attr-defined]
        self.function = load_object(function, kind="reward") if isinstance(function, str) else function
        self.name = reward_name(self.function)
        self.split, self.whole = split, whole
        self.slow = bool(getattr(self.function, "slow", False))
        self._form = call_form(self.function, self.name)

    def __call__(
        self,
        prompts: list[str],
        responses: list[str],
        response_ids: Sequence[Sequence[int]] | None = None,
        token_ends: Sequence[Sequence[int]] | None = None,
        conversation: Sequence[int] | None = None,
        **columns: Sequence[Any],
    ) -> list[NDArray[np.float64]]:
        """Values of each token; without ``response_ids``, of each step.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            response_ids: their token ids.
            token_ends: for each token, the characters of the response that are complete with it; without them, all is paid
                with the last token.
            conversation: for turns of conversations, the number of the conversation that each is of; ``whole`` is then of all
                its steps.
            columns: further columns, for the function.
        """
        found = [find_steps(response, self.split) for response in responses]
        steps = [[text for text, _, _ in row] for row in found]
        given = {**columns, **({} if conversation is None else {CONVERSATION: conversation}), "steps": steps}
        result = call(self.function, self._form, prompts, responses, given, self.name)
        values = checked_tokens(result, self.name, prompts, responses, steps, unit="step")
        paid = self._paid_together(values, range(len(responses)) if conversation is None else conversation)
        if response_ids is None:
            return list(paid)
        out = []
        for i, ids in enumerate(response_ids):
            row = np.zeros(len(ids))
            for value, (_, end, closed) in zip(paid[i], found[i], strict=True):
                covered = token_ends[i] if token_ends is not None and closed else ()
                row[next((t for t, so_far in enumerate(covered) if so_far >= end), -1)] += value
            out.append(row)
        return out

    def _paid_together(self, values: Tokens, conversation: Sequence[int]) -> Tokens:
        """What the steps of each row are paid, where rows of one conversation are worth something together."""
        rows_of: dict[int, list[int]] = {}
        for row, number in enumerate(conversation):
            rows_of.setdefault(number, []).append(row)
        out = list(values)
        for rows in rows_of.values():
            borders = np.cumsum([len(values[row]) for row in rows])[:-1]
            together = self._paid(np.concatenate([values[row] for row in rows]))
            for row, part in zip(rows, np.split(together, borders), strict=True):
                out[row] = part
        return tuple(out)

    def _paid(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.whole == "sum" or not len(values):
            return values
        if self.whole == "mean":
            return values / len(values)
        return np.diff(np.minimum.accumulate(values) if self.whole == "minimum" else values, prepend=0.0)
