"""The tokens that are allowed: suppressed tokens, a minimum length, a grammar, the top k of a language model.

All restrictions hold together. A grammar is compiled together with the other limits before the first step (see
:mod:`rlhf_gym.envs.grammar`), so that a mask never leads to a state where nothing is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.token_rows import Mask, Slots, TokenRows
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.lm.tokenizer import AnyTokenizer, Tokenizer, end_ids, never_drawn, wrap_tokenizer
from rlhf_gym.tasks import Task

if TYPE_CHECKING:
    from rlhf_gym.lm.language_model import LanguageModel


@dataclass(frozen=True)
class TokenMask:
    """The tokens that are allowed; an environment's ``mask=`` takes one, or a mapping of the same keys (which JSON can carry).

    Attributes:
        suppress_tokens: tokens that are never allowed, as ids or as texts that are one token. Padding is always suppressed.
        pattern: a regular expression that the whole response must match.
        words: the response must be some of these words, separated by single spaces.
        top_k: allow the k tokens, of those that are allowed otherwise, that ``model`` finds most probable; 0 allows all.
        model: the language model of ``top_k``, or its name.
        strict: refuse a token outside the mask with an error. Otherwise it is appended like any other; after a token that
            a grammar does not allow, only EOS is allowed.
        in_info: put the mask into every ``info`` too, as ``action_mask`` (int8, what ``Discrete.sample(mask=)`` takes).

    Raises:
        ConfigError: values that contradict one another.
    """

    suppress_tokens: Sequence[int | str] = ()
    pattern: str | None = None
    words: Sequence[str] = ()
    top_k: int = 0
    model: LanguageModel | str | None = None
    strict: bool = False
    in_info: bool = False

    def __post_init__(self) -> None:
        if self.pattern is not None and self.words:
            raise ConfigError("a mask takes a pattern or words, not both; write the words into the pattern")
        if isinstance(self.words, str) or isinstance(self.suppress_tokens, str):
            raise ConfigError("a mask's words and suppressed tokens are lists, e.g. ['yes', 'no']; got one text")
        if self.pattern is not None and not isinstance(self.pattern, str):
            raise ConfigError(f"a mask's pattern must be a regular expression as a text, got {self.pattern!r}")
        if any(not isinstance(word, str) or not word for word in self.words):
            raise ConfigError(f"a mask's words must be texts of at least one character, got {list(self.words)!r}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise ConfigError(f"a mask's top_k must be 0 (off) or more, got {self.top_k!r}")
        if (self.top_k > 0) != (self.model is not None):
            raise ConfigError(
                f"a mask's top_k and model go together: got top_k={self.top_k!r} and model={self.model!r}; "
                "give both, e.g. top_k=50, model='embedded'"
            )

    @classmethod
    def of(cls, value: TokenMask | Mapping[str, Any] | None) -> TokenMask:
        """A mask from what an environment was given.

        Raises:
            ConfigError: an unknown key, or something other than a mask or a mapping.
        """
        if value is None:
            return cls()
        if isinstance(value, TokenMask):
            return value
        known = [f.name for f in fields(cls)]
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"mask must be a TokenMask or a mapping with keys {', '.join(known)}; got {type(value).__name__}"
            )
        if unknown := [key for key in value if key not in known]:
            raise ConfigError(f"a mask has no option {unknown[0]!r}; expected some of {', '.join(known)}")
        return cls(**value)


class Masks:
    """The masks of ``N`` slots.

    Args:
        num_slots: ``N``.
        task: its length limits count.
        tokenizer: gives each token's text; ours or a transformers one.
        options: see :class:`TokenMask`.

    Attributes:
        options: as given.
        suppress_tokens: ids that are never allowed, padding first, then ids that no token has.
        follows: True if :meth:`advance` must be called with every token that is appended.

    Raises:
        ConfigError: options that contradict one another.
        TaskError: nothing is allowed, or no response within the task's limits fits the grammar.
    """

    def __init__(
        self, num_slots: int, task: Task, tokenizer: AnyTokenizer, options: TokenMask | Mapping[str, Any] | None = None
    ) -> None:
        self.options = TokenMask.of(options)
        tokenizer = wrap_tokenizer(tokenizer)
        self.suppress_tokens = (
            *never_drawn(tokenizer),
            *(_token_id(token, tokenizer) for token in self.options.suppress_tokens),
        )
        self.min_new_tokens = task.min_new_tokens
        self.eos_ids = list(end_ids(tokenizer))
        self.base: Mask = np.ones(tokenizer.vocab_size, dtype=np.bool_)
        self.base[list(self.suppress_tokens)] = False
        if not self.base.any():
            raise TaskError(
                f"the mask of task {task.name!r} allows nothing: all {tokenizer.vocab_size} tokens are suppressed"
            )
        self._early = self.base.copy()
        self._early[self.eos_ids] = False
        if self.min_new_tokens and not self._early.any():
            raise TaskError(
                f"the mask of task {task.name!r} allows nothing at first: every token but EOS is suppressed, and EOS is not "
                f"allowed before {self.min_new_tokens} tokens"
            )
        self.grammar = None
        if self.options.pattern is not None or self.options.words:
            from rlhf_gym.envs.grammar import Grammar, words_pattern

            pattern = self.options.pattern if self.options.pattern is not None else words_pattern(self.options.words)
            self.grammar = Grammar(pattern, task, tokenizer, self.base)
            self._states: NDArray[np.int32] = np.zeros(num_slots, dtype=np.int32)
            ends: Mask = self.base & np.isin(np.arange(tokenizer.vocab_size), self.eos_ids)
            self._lost = ends if ends.any() else self.base
        self._reader = None
        if self.options.top_k:
            from rlhf_gym.envs.reading import Reader

            assert self.options.model is not None
            self._reader = Reader(self.options.model, tokenizer, "mask's model")

    @property
    def follows(self) -> bool:
        """True if there is a grammar, whose state changes with every token that is appended."""
        return self.grammar is not None

    @property
    def fixed(self) -> bool:
        """True if the mask is ``suppress_tokens`` and the minimum length alone, and tokens outside it are not refused."""
        return self.grammar is None and self._reader is None and not self.options.strict

    def begin(self, slots: Slots | int) -> None:
        """Start the masks of new episodes in these slots."""
        if self.grammar is not None:
            self._states[slots] = self.grammar.start
        if self._reader is not None:
            self._reader.forget(slots)

    def advance(self, slots: Slots, tokens: NDArray[np.int64]) -> None:
        """Advance the grammar's states by tokens that were appended.

        Args:
            slots: int ``[n]``.
            tokens: int64 ``[n]``.
        """
        if self.grammar is not None:
            self._states[slots] = self.grammar.next(self._states[slots], tokens)

    def replay(self, rows: TokenRows) -> None:
        """Compute each slot's grammar state again, from its ids."""
        self.begin(np.arange(len(rows.length)))
        for slot in range(len(rows.length)):
            for token in rows.ids[slot, rows.prompt_length[slot] : rows.length[slot]]:
                self.advance(np.array([slot]), token[None])

    def rows(self, rows: TokenRows) -> Mask:
        """bool ``[N, V]``, True where a token is allowed now; a slot without a running episode has the unrestricted row."""
        generated = rows.length - rows.prompt_length
        masks: Mask = np.repeat(self.base[None], len(generated), axis=0)
        if self.min_new_tokens:
            masks[rows.running & (generated < self.min_new_tokens)] = self._early
        live = np.flatnonzero(rows.running)
        if self.grammar is not None and len(live):
            masks[live] &= self.grammar.allowed(self._states[live], generated[live])
            # A lost response can match no more: it may only end, however short it is; where EOS is suppressed, it is free.
            masks[live[self.grammar.lost(self._states[live])]] = self._lost
        if self._reader is not None and len(live):
            masks[live] = keep_top_k(masks[live], self._reader.logits(rows, live), self.options.top_k)
        return refuse_empty(masks)

    def check(self, rows: TokenRows, actions: NDArray[np.int64], slots: Slots) -> None:
        """Refuse tokens outside the mask.

        Args:
            rows: the ids so far.
            actions: int64 ``[N]``.
            slots: int ``[n]``, the slots whose actions count.

        Raises:
            InvalidAction: an action is outside.
        """
        ok = self.rows(rows)[slots, actions[slots]]
        if not ok.all():
            wrong = int(slots[int(np.argmin(ok))])
            raise gym.error.InvalidAction(
                f"action {int(actions[wrong])} in slot {wrong} is not allowed by the mask; choose one that "
                "action_masks() allows"
            )


def keep_top_k(masks: Mask, logits: NDArray[np.float32], k: int) -> Mask:
    """Keep the ``k`` most probable tokens of each mask; ties with the k-th are kept.

    Args:
        masks: bool ``[n, V]``, the tokens that are allowed otherwise.
        logits: float32 ``[n, V]``, of the next token.
        k: how many tokens to allow.

    Returns:
        bool ``[n, V]``.
    """
    allowed = np.where(masks, logits, -np.inf)
    k = min(k, allowed.shape[1])
    kth = np.partition(allowed, -k, axis=1)[:, -k, None]
    kept: Mask = masks & (allowed >= kth)
    return kept


def refuse_empty(masks: Mask) -> Mask:
    """The masks as they are, if each allows something.

    Args:
        masks: bool ``[N, V]``.

    Raises:
        TaskError: a row is False everywhere.
    """
    some = masks.any(axis=1)
    if not some.all():
        raise TaskError(
            f"the action mask of slot {int(np.argmin(some))} allows no token; it must allow at least one: loosen one of the "
            "restrictions that are combined here"
        )
    return masks


def _token_id(token: int | str, tokenizer: Tokenizer) -> int:
    """A token by its id or its text.

    Raises:
        ConfigError: no such id, or a text that is not one token.
    """
    if isinstance(token, str):
        ids = tokenizer.encode(token)
        if len(ids) != 1:
            raise ConfigError(
                f"a suppressed text must be one token; {token!r} is {len(ids)} in {tokenizer.name!r}: {ids}"
            )
        return ids[0]
    whole = isinstance(token, int | np.integer) and not isinstance(token, bool)
    if not whole or not 0 <= token < tokenizer.vocab_size:
        raise ConfigError(f"suppressed token {token!r} is not an id; expected 0..{tokenizer.vocab_size - 1}")
    return int(token)
