"""From a response's ids to its text: what it says after its prompt, cut where a stop sequence appears."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.lm.tokenizer import AnyTokenizer, decode_all, joins_plainly, wrap_tokenizer
from rlhf_gym.text import cut_at_stop

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# Tokens beyond a stop sequence's own characters that are decoded to look for it: special tokens have no text.
_REACH = 8
# Characters beyond them: at the beginning of a piece a space may be dropped and a character broken into three.
_SLACK = 4
_LONGEST = 4  # bytes of a character in UTF-8, and so the most tokens that it takes


class GeneratedText(str):
    """A text that knows the tokens it was generated as, for rewards of tokens and steps; anything else sees a text.

    Copied or pickled, only the text travels.

    Args:
        text: the text.
        ids: the tokens' ids, EOS or a stop sequence included.
        ends: gives for each token the characters that are complete with it; called where a reward asks.
    """

    ids: list[int]

    def __new__(cls, text: str, ids: Sequence[int], ends: Callable[[], list[int]]) -> GeneratedText:
        """See the class."""
        made = super().__new__(cls, text)
        made.ids, made._ends = list(ids), ends
        return made

    _ends: Callable[[], list[int]]

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """As a plain text."""
        return str, (str(self),)

    def token_ends(self) -> list[int]:
        """For each token, the number of the text's characters that are complete with it."""
        return [min(end, len(self)) for end in self._ends()]

    def shortened(self, text: str) -> GeneratedText:
        """The same tokens with a beginning of the text, cut at a stop sequence of the task's."""
        return GeneratedText(text, self.ids, self._ends)


def joined(texts: Sequence[str], between: str) -> str:
    """Texts of several turns as one, which knows its tokens where all of them do.

    Args:
        texts: the turns.
        between: stands between them; it is complete with the last token of the turn before it.
    """
    whole = between.join(texts)
    known = [text for text in texts if isinstance(text, GeneratedText)]
    if len(known) < len(texts):
        return whole

    def ends() -> list[int]:
        out: list[int] = []
        begin = 0
        for text in known:
            out += [begin + end for end in text.token_ends()]
            begin += len(text) + len(between)
            out[-1] = begin
        return out

    return GeneratedText(whole, [token for text in known for token in text.ids], ends)


class ResponseText:
    """Reads responses, for decoding and for environments alike.

    Prompt and response together say what decoding both together gives: after "the film", a response of SentencePiece's family
    is " was", although its ids alone decode to "was". A chat model's response is a turn of its own, and is decoded alone.

    A stop sequence is looked for in the text, so that it makes no difference how it is cut into tokens. One that holds a
    special token (``<|im_end|>``), which texts leave out, is looked for in the text with special tokens written out.

    Args:
        tokenizer: decodes the ids; ours or a transformers one.
        stop: texts that end a response where they appear.
    """

    def __init__(self, tokenizer: AnyTokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer = wrap_tokenizer(tokenizer)
        self.stop = tuple(stop)
        self._in_context = not getattr(tokenizer, "is_chat", False) and not joins_plainly(tokenizer)
        special: frozenset[str] = getattr(tokenizer, "special_tokens", frozenset())
        self._special: re.Pattern[str] | None = None
        self._read: Callable[[Sequence[int]], str] = tokenizer.decode
        if any(token in s for s in self.stop for token in special):
            self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
            self._read = tokenizer.decode_special  # type: ignore[attr-defined]
        self._longest = max(map(len, self.stop), default=0)

    def read(self, ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> tuple[str, bool]:
        """A response's text, cut before a stop sequence, special tokens left out; and True where there is one.

        Args:
            ids: ids of the response.
            prompt_ids: ids of its prompt.
        """
        return self._cut(self._after(self._read, ids, prompt_ids), ids, prompt_ids)

    def generated(self, ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> GeneratedText:
        """A response's text as :meth:`read` gives it, which knows its tokens.

        Args:
            ids: ids of the response.
            prompt_ids: ids of its prompt.
        """
        kept = list(ids)
        return GeneratedText(self.read(kept, prompt_ids)[0], kept, partial(self.ends, kept, prompt_ids))

    def ends(self, ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> list[int]:
        """For each token of a response, the number of its text's characters that are complete with it.

        Args:
            ids: ids of the response.
            prompt_ids: ids of its prompt.
        """
        most = len(self.read(ids, prompt_ids)[0])
        texts = (self._after(self._read, ids[: t + 1], prompt_ids).rstrip(_BROKEN) for t in range(len(ids)))
        return [min(len(text), most) for text in texts]

    def read_all(
        self, rows: NDArray[np.int64], lengths: NDArray[np.int64], prompts: Callable[[], Sequence[Sequence[int]]]
    ) -> tuple[list[str], NDArray[np.bool_]]:
        """Many responses, as :meth:`read` gives them one by one.

        Args:
            rows: int64 ``[n, T]``.
            lengths: int64 ``[n]``, number of ids that count at the beginning of each row.
            prompts: gives the ids of each prompt; called only for tokenizers that need them.

        Returns:
            The texts; and bool ``[n]``, True where a stop sequence was found.
        """
        if not self._in_context and self._special is None:
            raw = decode_all(self.tokenizer, rows, lengths)
            if not self.stop:
                return raw, np.zeros(len(raw), dtype=np.bool_)
            found = [self._cut(text, (), ()) for text in raw]
        else:
            ids = [row[:length] for row, length in zip(rows.tolist(), lengths.tolist(), strict=True)]
            found = [self.read(one, prompt) for one, prompt in zip(ids, prompts(), strict=True)]
        return [text for text, _ in found], np.fromiter((stopped for _, stopped in found), np.bool_, len(found))

    def stopped(self, ids: Sequence[int], prompt_ids: Sequence[int] = ()) -> bool:
        """True where a stop sequence is complete with a response's last token.

        Only the end of the response is decoded; the whole only where the end seems to hold a stop sequence.

        Args:
            ids: ids of the response so far, of which no earlier part held one.
            prompt_ids: ids of its prompt.
        """
        if not self.stop:
            return False
        size = self._longest + _REACH
        while size < len(ids):
            tail = self._tail(ids, size)
            if len(tail) >= self._longest + _SLACK:
                break
            size *= 2  # characters of several tokens each
        else:
            return self._holds(self._after(self._read, ids, prompt_ids))
        return self._holds(tail) and self._holds(self._after(self._read, ids, prompt_ids))

    def _tail(self, ids: Sequence[int], size: int) -> str:
        """The text of the last ``size`` ids, a few more where that begins inside a character."""
        text = tail = self._read(ids[-size:])
        for more in range(1, _LONGEST):
            if not tail.startswith(_BROKEN):
                return tail
            tail = self._read(ids[-size - more :])
        return text if tail.startswith(_BROKEN) else tail

    def _after(self, decode: Callable[[Sequence[int]], str], ids: Sequence[int], prompt_ids: Sequence[int]) -> str:
        """The text of a response, uncut, as it reads after its prompt."""
        if not self._in_context or not len(prompt_ids):
            return decode(ids)
        before = decode(prompt_ids)
        both = decode([*prompt_ids, *ids])
        # A prompt that ends inside a character changes with what follows.
        return both[len(before) :] if both.startswith(before) else decode(ids)

    def _holds(self, text: str) -> bool:
        return any(s in text for s in self.stop)

    def _cut(self, text: str, ids: Sequence[int], prompt_ids: Sequence[int]) -> tuple[str, bool]:
        """See :meth:`read`; ``text`` is the response's, with special tokens written out where they are looked for."""
        stopped = self._holds(text)
        if stopped:
            text = cut_at_stop(text, self.stop)
        if self._special is None:
            return text, stopped
        return (
            self._special.sub("", text) if stopped else self._after(self.tokenizer.decode, ids, prompt_ids)
        ), stopped
