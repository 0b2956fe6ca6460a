"""Given prompts and responses as token ids and episodes: those that are too long are counted before any work.

What SFT and offline preference learning read.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.agents.common.rollout import Episode
from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.feedback.exchange.transcripts import prompt_of_messages
from rlhf_gym.lm.chat_template import Messages, messages_before
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import encode_response
from rlhf_gym.tasks.prompt_ids import prompt_ids
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.too_long import OnTooLong, TooLong, counts, cut_prompt
from rlhf_gym.text import shorten

Pair: TypeAlias = tuple[str | Messages, str]
"""A prompt and a response."""
PreferenceRow: TypeAlias = tuple[str | Messages, str | None, str | None]
"""``(prompt, chosen, rejected)``; one of the responses may be None."""
Row: TypeAlias = tuple[str | Messages | Prompt, Sequence[str]]
"""A prompt and its responses: one to imitate, or the two of a preference."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A prompt and a response to it, ready to be learned.

    Ids are arrays of four bytes an id, where a list takes up to 40: all of the data is held while it is learned.

    Attributes:
        prompt: the prompt as text.
        response: the response as text.
        prompt_ids: the ids that the response starts from.
        response_ids: the response's ids, with EOS at the end unless it was cut.
    """

    prompt: str
    response: str
    prompt_ids: array[int]
    response_ids: array[int]

    def episode(self, limits: Limits) -> Episode:
        """The response as an episode without a reward; ``limits`` say which ids end it."""
        ids = self.response_ids.tolist()
        ended, zeros = ids[-1] in limits.eos_ids, [0.0] * len(ids)
        info = {"prompt": self.prompt, "response": self.response, "ended": ended, "response_length": len(ids)}
        return Episode(self.prompt_ids.tolist(), ids, zeros, zeros, list(zeros), ended, info)


@dataclass(frozen=True, slots=True)
class EncodedPreference:
    """The two responses of a preference, to one prompt; one of them is None where it was called good or bad by itself."""

    chosen: EncodedPair | None
    rejected: EncodedPair | None


@dataclass
class _Count:
    """Texts that were cut, and their tokens."""

    number: int = 0
    tokens: int = 0

    def add(self, tokens: int) -> None:
        """Count one text, if any of its tokens were cut."""
        self.number += tokens > 0
        self.tokens += tokens


def is_prompt(prompt: object) -> bool:
    """True for a text, and for chat messages that end with the user's."""
    try:
        return isinstance(prompt, str) or messages_before(prompt) is not None
    except ModelError:
        return False


def place_in_pass(number: int, size: int, seed: int) -> int:
    """The place of what is the ``number``-th to be learned: each once per pass, in an order of the pass's own.

    Args:
        number: counts from 0, over all passes.
        size: of the data.
        seed: of the orders.
    """
    turn, place = divmod(number, size)
    return int(_order(turn, size, seed)[place])


@lru_cache(maxsize=2)  # what is learned next lies in one pass, or at the border of two
def _order(turn: int, size: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(np.random.SeedSequence((seed, 2, turn))).permutation(size)


def encoded_pairs(
    data: Sequence[Pair | EncodedPair], model: LanguageModel, limits: Limits, on_too_long: OnTooLong = "refuse"
) -> tuple[list[EncodedPair], list[TooLong]]:
    """The ids of each pair's prompt and response, as of rows with one response (:func:`encoded_rows`).

    Args:
        data: pairs of texts; what is encoded already stays as it is.
        model: its tokenizer encodes them, and they must fit in its context.
        limits: the environment's.
        on_too_long: what is done with a pair that does not fit in the context.

    Returns:
        The pairs, and what was done with those that were too long; empty where none was.

    Raises:
        ConfigError: a response holds a token that the limits forbid, so that its probability is 0.
        ModelError: a pair does not fit in the model's context and is to be refused, or none is left.
    """
    if (encoded := all_encoded(data, EncodedPair)) is not None:
        return encoded, []
    texts: Any = data
    rows, found = encoded_rows([(prompt, [response]) for prompt, response in texts], model, limits, on_too_long)
    return [pair for (pair,) in rows.values()], found


def encoded_preferences(
    data: Sequence[PreferenceRow | EncodedPreference],
    model: LanguageModel,
    limits: Limits,
    on_too_long: OnTooLong = "refuse",
) -> tuple[list[EncodedPreference], list[TooLong]]:
    """The ids of each preference's prompt and responses, as of rows (:func:`encoded_rows`).

    Args:
        data: rows of texts; what is encoded already stays as it is.
        model: its tokenizer encodes them, and they must fit in its context.
        limits: the environment's.
        on_too_long: what is done with a row that does not fit in the context.

    Returns:
        The preferences, and what was done with those that were too long; empty where none was.

    Raises:
        ConfigError: a response holds a token that the limits forbid, so that its probability is 0.
        ModelError: a row does not fit in the model's context and is to be refused, or none is left.
    """
    if (encoded := all_encoded(data, EncodedPreference)) is not None:
        return encoded, []
    texts: Any = data
    sides = [(prompt, [text for text in both if text is not None]) for prompt, *both in texts]
    rows, found = encoded_rows(sides, model, limits, on_too_long, "preferences")
    whole = [
        EncodedPreference(
            pairs[0] if texts[number][1] is not None else None, pairs[-1] if texts[number][2] is not None else None
        )
        for number, pairs in rows.items()
    ]
    return whole, found


def all_encoded(data: Sequence[Any], kind: type[T]) -> list[T] | None:
    """Rows that are encoded already; None where they are texts.

    Args:
        data: the rows.
        kind: the class of those that are encoded.

    Raises:
        ConfigError: there are both.
    """
    if not any(isinstance(one, kind) for one in data):
        return None
    if not all(isinstance(one, kind) for one in data):
        raise ConfigError(f"rows of texts and {kind.__name__} objects do not mix: encode all of them, or none")
    return list(data)


def encoded_rows(
    data: Sequence[Row], model: LanguageModel, limits: Limits, on_too_long: OnTooLong = "refuse", name: str = "data"
) -> tuple[dict[int, list[EncodedPair]], list[TooLong]]:
    """The ids of each row's prompt and responses, EOS included, cut at the length limit.

    Args:
        data: rows of texts; all responses of one get the same prompt.
        model: its tokenizer encodes them, and they must fit in its context.
        limits: the environment's.
        on_too_long: what is done with a row that does not fit in the context. ``truncate`` cuts the prompt's beginning and the
            responses' end; neither below half of the context.
        name: of the data, for messages.

    Returns:
        Each row's pairs by its number, and what was done with those that were too long; empty where none was.

    Raises:
        ConfigError: a response holds a token that the limits forbid, so that its probability is 0.
        ModelError: a row does not fit in the model's context and is to be refused, or none is left.
    """
    rows: dict[int, list[EncodedPair]] = {}
    beyond: list[str] = []
    limited, prompts, responses, skipped = _Count(), _Count(), _Count(), 0
    for number, (given, texts) in enumerate(data):
        prompt = _prompt(given)
        ids = prompt_ids(prompt, model.tokenizer)
        whole = [[*encode_response(model.tokenizer, text), limits.eos_id] for text in texts]
        kept = [one[: limits.max_new_tokens] for one in whole]
        longest = max(map(len, kept))
        room = model.prompt_room(longest)
        if len(ids) > room and on_too_long == "refuse":
            beyond.append(_why(f"{name}[{number}]", model, len(ids), longest))
            continue
        if len(ids) > room:
            most = max(model.response_room(len(ids)), model.context_length // 2)
            fitted = [one[:most] for one in kept]
            shorter = (
                _cut(prompt, ids, model, model.prompt_room(max(map(len, fitted))))
                if on_too_long == "truncate"
                else None
            )
            if shorter is None:
                skipped += 1
                continue
            before, prompt = len(ids), shorter
            ids = prompt_ids(prompt, model.tokenizer)
            prompts.add(before - len(ids))
            for one, cut in zip(kept, fitted, strict=True):
                responses.add(len(one) - len(cut))
            kept = fitted
        row, start = [], array("i", ids)
        for response, entire, one in zip(texts, whole, kept, strict=True):
            limited.add(len(entire) - max(len(one), min(len(entire), limits.max_new_tokens)))
            _check_allowed(f"{name}[{number}]", response, one, limits)
            text = response if len(one) == len(entire) else model.tokenizer.decode(one)
            row.append(EncodedPair(prompt.text, text, start, array("i", one)))
        rows[number] = row
    context, n_responses = f"the {model.context_length} tokens of {model.name!r}", sum(len(texts) for _, texts in data)
    if beyond:
        raise ModelError(
            f"{len(beyond)} of {len(data)} pairs do not fit in the model; {beyond[0]}. Or choose on_too_long='skip' or "
            "'truncate' (in a run: task.on_too_long)"
        )
    if not rows:
        raise ModelError(f"none of {len(data)} pairs fits in {context}: give shorter ones, or on_too_long='truncate'")
    found = counts("pairs", len(data), context, skipped=skipped)
    found += counts("prompts of pairs", len(data), context, cut=prompts.number, tokens=prompts.tokens)
    for count, limit in ((responses, context), (limited, f"the length limit of {limits.max_new_tokens} tokens")):
        if count.number:
            found.append(TooLong("responses to learn", n_responses, count.number, limit, "end cut", count.tokens))
    return rows, found


def _prompt(given: str | Messages | Prompt) -> Prompt:
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        return Prompt(given)
    return Prompt(prompt_of_messages(given), {"messages": given})


def _cut(prompt: Prompt, ids: list[int], model: LanguageModel, room: int) -> Prompt | None:
    return prompt if len(ids) <= room else cut_prompt(prompt, model.tokenizer, room)


def _why(place: str, model: LanguageModel, prompt_length: int, response_length: int) -> str:
    try:
        model.check_fits(prompt_length, response_length)
    except ModelError as error:
        return f"{place}: {error}"
    raise AssertionError("check_fits and prompt_room disagree")


def _check_allowed(place: str, response: str, ids: Sequence[int], limits: Limits) -> None:
    early = [token for token in ids[: limits.min_new_tokens] if token in limits.eos_ids]
    if forbidden := early or [token for token in ids if token in limits.suppress_tokens]:
        rule = f"EOS is not allowed in the first {limits.min_new_tokens}" if early else f"id {forbidden[0]} never is"
        raise ConfigError(
            f"{place} has the response {shorten(response)} of {len(ids)} tokens, which the environment does not "
            f"allow: {rule}. Leave the pair out, or change the environment's limits"
        )
