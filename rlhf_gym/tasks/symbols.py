"""What the tasks over a handful of symbols share: a tokenizer of one id a symbol, prompts drawn by a seed, and verdicts.

These are the CartPoles of the suite: no language model, no torch, a vocabulary of a dozen ids, answers that a few lines of
Python verify, an optimum of exactly 1, and minutes at most to learn on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.sentiment import is_held_out

FEWEST_TO_SPLIT = 24
"""With fewer distinct prompts than these, all are trained on and none is held out."""

_PATIENCE = 1000  # draws in a row that bring nothing new, after which there is nothing new

Draw = Callable[[np.random.Generator], tuple[str, dict[str, Any]]]


class SymbolTokenizer:
    """One id a symbol: 0 is EOS, 1 is padding, 2 and on are the symbols in order.

    Args:
        symbols: the symbols, each one character, all different.

    Raises:
        TaskError: no symbols, one of them twice, or NUL among them.

    >>> tokenizer = SymbolTokenizer("ab=")
    >>> tokenizer.encode("b=a"), tokenizer.decode([3, 4, 2, 0]), tokenizer.vocab_size
    ([3, 4, 2], 'b=a', 5)
    """

    eos_id = 0
    pad_id = 1

    def __init__(self, symbols: str) -> None:
        if not symbols or len(set(symbols)) < len(symbols) or "\0" in symbols:
            raise TaskError(f"expected symbols that are all different, none of them NUL, got {symbols!r}")
        self.symbols = symbols
        self.name = f"symbols {symbols}"
        self.vocab_size = 2 + len(symbols)
        self._ids = {symbol: i for i, symbol in enumerate(symbols, start=2)}
        self._texts = ["", "", *symbols]
        self._code_points = np.array([0, 0, *map(ord, symbols)], dtype="<u4")

    def encode(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            TaskError: a character that is none of the symbols.
        """
        try:
            return [self._ids[c] for c in text]
        except KeyError as error:
            raise TaskError(
                f"{error.args[0]!r} in the text {text!r} is none of the symbols {self.symbols!r}; the "
                "tokenizer has no id for it"
            ) from None

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a prompt; EOS for an empty one, so that there is an id to start from."""
        return self.encode(text) or [self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; EOS and padding are left out."""
        return "".join(map(self._texts.__getitem__, ids))

    def decode_batch(self, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[str]:
        """The texts of many rows of ids, int64 ``[n, T]``, of which ``lengths`` count, read off one long text."""
        text = self._code_points.take(rows).tobytes().decode("utf-32-le")
        width = rows.shape[1]
        return [text[i * width : i * width + n].replace("\0", "") for i, n in enumerate(lengths.tolist())]


def symbol_task(
    name: str,
    symbols: str,
    draw: Draw,
    *,
    max_new_tokens: int,
    reward: Callable[..., Any],
    metrics: Mapping[str, Callable[..., Any]],
    num_prompts: int,
    seed: int,
) -> Task:
    """A task over some symbols, with prompts drawn at random.

    Args:
        name: the task's name.
        symbols: the vocabulary beside EOS and padding.
        draw: gives a prompt and its columns.
        max_new_tokens: the length limit, EOS included.
        reward: the task's reward.
        metrics: what is reported beside it.
        num_prompts: distinct prompts to draw; a task that has fewer gives all it has.
        seed: of the draws. Which prompts are held out (a sixth) does not depend on it.

    Raises:
        TaskError: ``num_prompts`` below 1.
    """
    whole_number("num_prompts", num_prompts, 1)
    rng = np.random.default_rng(seed)
    drawn: dict[str, Prompt] = {}
    misses = 0
    while len(drawn) < num_prompts and misses < _PATIENCE:
        text, columns = draw(rng)
        misses = misses + 1 if text in drawn else 0
        drawn.setdefault(text, Prompt(text, columns))
    prompts = list(drawn.values())
    held_out = [p for p in prompts if is_held_out(p.text)] if len(prompts) >= FEWEST_TO_SPLIT else []
    train = [p for p in prompts if not is_held_out(p.text)] if held_out else prompts
    return Task(
        name=name,
        prompts=train or prompts,
        held_out=held_out,
        reward=reward,
        max_new_tokens=max_new_tokens,
        metrics=metrics,
        tokenizer=SymbolTokenizer(symbols),
    )


def whole_number(what: str, value: object, low: int, high: int | None = None) -> None:
    """Refuse what is not a whole number between two bounds.

    Raises:
        TaskError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise TaskError(
            f"{what} must be a whole number {f'of at least {low}' if high is None else f'in {low}..{high}'}, got {value!r}"
        )


def matching(prompts: list[str], responses: list[str], answer: list[str]) -> list[float]:
    """The share of places where response and answer have the same symbol, of the longer one's places: 0 to 1.

    >>> matching(["ab="] * 3, ["ab", "aa", "abab"], ["ab"] * 3)
    [1.0, 0.5, 0.5]
    """
    pairs = zip(responses, answer, strict=True)
    return [sum(x == y for x, y in zip(r, a, strict=False)) / max(len(r), len(a), 1) for r, a in pairs]


def exact(prompts: list[str], responses: list[str], answer: list[str]) -> list[float]:
    """1 where the response is the answer, else 0.

    >>> exact(["ab="] * 2, ["ab", "a"], ["ab"] * 2)
    [1.0, 0.0]
    """
    return [float(r == a) for r, a in zip(responses, answer, strict=True)]
