"""A regular expression as an automaton over tokens, with the task's length limits worked into it.

The automaton comes from `outlines-core`, which walks every token's bytes through the expression's own automaton. What is
added here: arrays that step all slots at once, and a table that says from which states a match can still be completed within
the limits. With it, a mask only allows tokens that can lead to a complete match, so a response that keeps to the mask matches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.missing import LibraryMissingError
from rlhf_gym.envs.token_rows import Mask
from rlhf_gym.errors import TaskError
from rlhf_gym.lm.tokenizer import Tokenizer, end_ids
from rlhf_gym.tasks import Task
from rlhf_gym.text import shorten

States = NDArray[np.int32]

DEAD = -1
"""The state after a token that the grammar does not allow."""

LARGEST_TABLE = 1 << 28
"""Most entries of the table of states by tokens (4 bytes each)."""


def words_pattern(words: Sequence[str]) -> str:
    """Some of these words, separated by single spaces; a space in front is allowed, as language models go on with one.

    >>> words_pattern(["yes", "no"])
    ' ?(yes|no)( (yes|no))*'
    """
    any_word = "|".join(_escaped(word) for word in dict.fromkeys(words))
    return f" ?({any_word})( ({any_word}))*"


def _escaped(word: str) -> str:
    """Escapes only what has a meaning: the automaton's syntax refuses a backslash before a letter or a space."""
    return re.sub(r"([\\.+*?()|\[\]{}^$#&~-])", r"\\\1", word)


class Grammar:
    """A token automaton.

    Args:
        pattern: a regular expression that the whole response must match (with or without ``^`` and ``$`` around it); no
            look-around, no back-references.
        task: its length limits count: responses have ``min_new_tokens`` before EOS, and ``max_new_tokens`` with it.
        tokenizer: gives each token's text.
        base: bool ``[V]``, tokens that may be used at all.

    Attributes:
        start: the first state.
        table: int32 ``[S, V]``, the next state, :data:`DEAD` where a token is not allowed.
        accepting: bool ``[S]``, True where the text so far matches.

    Raises:
        LibraryMissingError: `outlines-core` is not installed.
        TaskError: the pattern is not a regular expression that it takes; no response within the limits matches; or the table
            would be too large.
    """

    def __init__(self, pattern: str, task: Task, tokenizer: Tokenizer, base: Mask) -> None:
        index = _compile(pattern, tokenizer)
        transitions: dict[int, dict[int, int]] = index.get_transitions()
        number = {state: i for i, state in enumerate(sorted({index.get_initial_state(), *transitions}))}
        if len(number) * tokenizer.vocab_size > LARGEST_TABLE:
            raise TaskError(
                f"the pattern {shorten(pattern)} has {len(number)} states over {tokenizer.vocab_size} tokens, a table of more "
                f"than {LARGEST_TABLE} entries; simplify it (counted repetitions like {{1,500}} make many states)"
            )
        self.start = number[index.get_initial_state()]
        ends = set(end_ids(tokenizer))
        self._ends = [end for end in ends if base[end]]
        self.table: NDArray[np.int32] = np.full((len(number), tokenizer.vocab_size), DEAD, dtype=np.int32)
        self.accepting: Mask = np.zeros(len(number), dtype=np.bool_)
        closing = tokenizer.vocab_size + _END[0]
        for state, moves in transitions.items():
            tokens = [token for token in moves if token < tokenizer.vocab_size and token not in ends]
            self.table[number[state], tokens] = [number[moves[token]] for token in tokens]
            self.accepting[number[state]] = closing in moves and index.is_final_state(moves[closing])
        self.table[:, ~base] = DEAD
        self._hopeful = self._completable(task, may_end=bool(self._ends))
        if not self._hopeful[0, self.start]:
            raise TaskError(
                f"no response of task {task.name!r} can match {shorten(pattern)}: expected a match of at least "
                f"{task.min_new_tokens} and at most {task.max_new_tokens} tokens (EOS included) of "
                f"{tokenizer.name!r}; change the pattern, the limits or the suppressed tokens"
            )
        self._may_end: Mask = np.zeros(task.max_new_tokens + 1, dtype=np.bool_)
        self._may_end[task.min_new_tokens :] = bool(self._ends)

    def _completable(self, task: Task, may_end: bool) -> Mask:
        """bool ``[T + 2, S + 1]``: True where a state can still end in a complete match after ``t`` tokens.

        Computed backwards from the length limit, where the text must match as it is. The last column is :data:`DEAD`'s.
        """
        longest, states = task.max_new_tokens, len(self.accepting)
        sources, tokens = np.nonzero(self.table >= 0)
        edges = np.unique(np.stack([sources, self.table[sources, tokens]]), axis=1)
        hopeful: Mask = np.zeros((longest + 2, states + 1), dtype=np.bool_)
        hopeful[longest, :states] = self.accepting
        for t in range(longest - 1, -1, -1):
            np.logical_or.at(hopeful[t], edges[0], hopeful[t + 1, edges[1]])
            if may_end and t >= task.min_new_tokens:
                hopeful[t, :states] |= self.accepting
        return hopeful

    def next(self, states: States, tokens: NDArray[np.int64]) -> States:
        """The states after these tokens; EOS and tokens that are not allowed lead to :data:`DEAD`.

        Args:
            states: int32 ``[n]``.
            tokens: int64 ``[n]``.

        Returns:
            int32 ``[n]``.
        """
        after: States = np.where(states == DEAD, DEAD, self.table[states, tokens])
        return after

    def lost(self, states: States) -> Mask:
        """bool ``[n]``, True where a token was generated that the grammar does not allow."""
        dead: Mask = states == DEAD
        return dead

    def allowed(self, states: States, generated: NDArray[np.int64]) -> Mask:
        """bool ``[n, V]``: tokens from which a match can be completed; none in a dead state.

        Args:
            states: ``[n]``.
            generated: ``[n]``, response tokens so far.
        """
        # Slots at the same place of the grammar share a row: there are few places, and rows are as wide as the vocabulary.
        places, row_of = np.unique(np.stack([generated, states]), axis=1, return_inverse=True)
        counts, where = places
        rows: Mask = np.take_along_axis(self._hopeful[counts + 1], self.table[where].astype(np.intp), axis=1)
        rows[:, self._ends] = (self.accepting[where] & self._may_end[counts])[:, None]
        rows[where == DEAD] = False
        masks: Mask = rows[row_of.ravel()]
        return masks


_END = b"\0"


def _compile(pattern: str, tokenizer: Tokenizer) -> Any:
    """The library's automaton of the pattern and an end mark; each byte is a token beyond the vocabulary, too.

    The end mark: from a state that already matches, version 0.2 drops continuations unless the next token matches again
    (``(aa)+`` stopped at ``aa``); after an end mark there is none to drop. The bytes: the library refuses a vocabulary with
    which some state has no continuation; here that is decided together with the limits.
    """
    try:
        from outlines_core import Index, Vocabulary
    except ImportError as error:
        raise LibraryMissingError(
            "a mask with a pattern or words needs outlines-core: pip install 'rlhf-gym[grammar]'"
        ) from error
    texts = token_bytes(tokenizer)
    ids: dict[bytes, list[int]] = {bytes([byte]): [tokenizer.vocab_size + byte] for byte in range(256)}
    for token, text in enumerate(texts):
        if text and token != tokenizer.eos_id and _END not in text:
            ids.setdefault(text, []).append(token)
    # The whole response has to match in any case; the library has no marks of begin and end.
    body = pattern.removeprefix("^") if pattern.endswith("\\$") else pattern.removeprefix("^").removesuffix("$")
    # A chat model's response is decoded alone, by some tokenizers without its first space: the text that remains must match.
    space = " ?" if getattr(tokenizer, "is_chat", False) and drops_first_space(tokenizer, texts) else ""
    try:
        return Index(f"{space}({body})\\x00", Vocabulary(tokenizer.eos_id, ids))
    except (ValueError, TypeError) as error:
        raise TaskError(f"cannot make a token mask of the pattern {shorten(pattern)}: {error}") from error


_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """UTF-8 bytes of every token, in the order of ids; empty for special tokens and for unused ids.

    Hugging Face's two families are read from their own tables: byte-level vocabularies (GPT-2's), and those with a mark for
    the space and bytes like ``<0x0A>`` (SentencePiece's). Of any other tokenizer, each id is decoded by itself.
    """
    hub = getattr(tokenizer, "hub", None)
    backend = getattr(hub, "backend_tokenizer", None)
    if hub is None or backend is None:
        return [tokenizer.decode([i]).encode() for i in range(tokenizer.vocab_size)]
    decoder = backend.decoder
    kinds = _kinds(json.loads(decoder.__getstate__())) if decoder is not None else set()
    special = {*hub.all_special_ids, *end_ids(tokenizer)}
    out = [b""] * tokenizer.vocab_size
    for text, index in hub.get_vocab().items():
        if index >= tokenizer.vocab_size or index in special or index == tokenizer.pad_id:
            continue
        added = index in hub.added_tokens_decoder
        if added:
            out[index] = text.encode()
        elif "ByteLevel" in kinds:
            out[index] = bytes(_GPT2_BYTES[c] for c in text if c in _GPT2_BYTES)
        elif "ByteFallback" in kinds and (byte := _BYTE.fullmatch(text)):
            out[index] = bytes([int(byte[1], 16)])
        elif kinds & {"Metaspace", "Replace"}:
            out[index] = text.replace("\u2581", " ").encode()
        else:
            out[index] = tokenizer.decode([index]).encode()
    return out


def drops_first_space(tokenizer: Tokenizer, texts: list[bytes]) -> bool:
    """True if decoding drops a text's first space, as tokenizers of SentencePiece's family do.

    Args:
        tokenizer: the tokenizer.
        texts: its :func:`token_bytes`.
    """
    for token, text in enumerate(texts):
        if text.startswith(b" ") and text[1:].isalpha():
            return not tokenizer.decode([token]).startswith(" ")
    return False


def _kinds(decoder: dict[str, Any]) -> set[str]:
    """The types of a decoder and of its parts."""
    return {decoder["type"]} | {kind for part in decoder.get("decoders", ()) for kind in _kinds(part)}


def _gpt2_bytes() -> dict[str, int]:
    """The byte of each character of byte-level vocabularies: printable bytes are themselves, the others U+0100 and up."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printing}
    others = [byte for byte in range(256) if byte not in printing]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


_GPT2_BYTES = _gpt2_bytes()
