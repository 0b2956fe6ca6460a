"""The tokenizer of the tasks over a handful of symbols: one id a symbol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import TaskError


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
        """The texts of many rows of ids.

        Args:
            rows: int64 ``[n, T]``.
            lengths: int64 ``[n]``, ids of each row that count.
        """
        text = self._code_points.take(rows).tobytes().decode("utf-32-le")
        width = rows.shape[1]
        return [text[i * width : i * width + n].replace("\0", "") for i, n in enumerate(lengths.tolist())]
