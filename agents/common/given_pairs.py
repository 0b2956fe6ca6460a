"""Given prompts and responses as token ids, for agents that imitate: those that are too long are counted before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.feedback.exchange.transcripts import prompt_of_messages
from rlhf_gym.lm.chat_template import Messages
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import encode_conversation, encode_response
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.too_long import OnTooLong, TooLong, counts, cut_prompt
from rlhf_gym.text import shorten

Pair: TypeAlias = tuple[str | Messages, str]


@dataclass(frozen=True)
class EncodedPair:
    """A prompt and the response to imitate.

    Attributes:
        prompt: the prompt as text.
        response: the response as text.
        prompt_ids: the ids that the response starts from.
        response_ids: the response's ids, with EOS at the end unless it was cut.
    """

    prompt: str
    response: str
    prompt_ids: list[int]
    response_ids: list[int]


@dataclass
class _Count:
    """Texts that were cut, and their tokens."""

    number: int = 0
    tokens: int = 0

    def add(self, tokens: int) -> None:
        """Count one text, if any of its tokens were cut."""
        self.number += tokens > 0
        self.tokens += tokens


def encoded_pairs(
    data: Sequence[Pair], model: LanguageModel, limits: Limits, on_too_long: OnTooLong = "refuse"
) -> tuple[list[EncodedPair], list[TooLong]]:
    """The ids of each pair's prompt and response, EOS included, cut at the length limit.

    Args:
        data: pairs of texts.
        model: its tokenizer encodes them, and they must fit in its context.
        limits: the environment's.
        on_too_long: what is done with a pair that does not fit in the context. ``truncate`` cuts the prompt's beginning and the
            response's end; neither below half of the context.

    Returns:
        The pairs, and what was done with those that were too long; empty where none was.

    Raises:
        ConfigError: a response holds a token that the limits forbid, so that its probability is 0.
        ModelError: a pair does not fit in the model's context and is to be refused, or none is left.
    """
    pairs: list[EncodedPair] = []
    beyond: list[str] = []
    limited, prompts, responses, skipped = _Count(), _Count(), _Count(), 0
    for number, (given, response) in enumerate(data):
        prompt = _prompt(given)
        ids, whole = _prompt_ids(prompt, model), [*encode_response(model.tokenizer, response), limits.eos_id]
        kept = whole[: limits.max_new_tokens]
        room = model.prompt_room(len(kept))
        if len(ids) > room and on_too_long == "refuse":
            beyond.append(_why(number, model, len(ids), len(kept)))
            continue
        if len(ids) > room:
            most = max(model.response_room(len(ids)), model.context_length // 2)
            fitted = kept[:most]
            shorter = _cut(prompt, ids, model, model.prompt_room(len(fitted))) if on_too_long == "truncate" else None
            if shorter is None:
                skipped += 1
                continue
            before, prompt = len(ids), shorter
            ids = _prompt_ids(prompt, model)
            prompts.add(before - len(ids))
            responses.add(len(kept) - len(fitted))
            kept = fitted
        limited.add(len(whole) - max(len(kept), min(len(whole), limits.max_new_tokens)))
        _check_allowed(number, response, kept, limits)
        text = response if len(kept) == len(whole) else model.tokenizer.decode(kept)
        pairs.append(EncodedPair(prompt.text, text, ids, kept))
    context = f"the {model.context_length} tokens of {model.name!r}"
    if beyond:
        raise ModelError(
            f"{len(beyond)} of {len(data)} pairs do not fit in the model; {beyond[0]}. Or choose on_too_long='skip' or "
            "'truncate' (in a run: task.on_too_long)"
        )
    if not pairs:
        raise ModelError(f"none of {len(data)} pairs fits in {context}: give shorter ones, or on_too_long='truncate'")
    found = counts("pairs", len(data), context, skipped=skipped)
    found += counts("prompts of pairs", len(data), context, cut=prompts.number, tokens=prompts.tokens)
    for count, limit in ((responses, context), (limited, f"the length limit of {limits.max_new_tokens} tokens")):
        if count.number:
            found.append(TooLong("responses to learn", len(data), count.number, limit, "end cut", count.tokens))
    return pairs, found


def _prompt(given: str | Messages) -> Prompt:
    if isinstance(given, str):
        return Prompt(given)
    return Prompt(prompt_of_messages(given), {"messages": given})


def _prompt_ids(prompt: Prompt, model: LanguageModel) -> list[int]:
    return encode_conversation(model.tokenizer, prompt.text, prompt.columns.get("messages"))


def _cut(prompt: Prompt, ids: list[int], model: LanguageModel, room: int) -> Prompt | None:
    return prompt if len(ids) <= room else cut_prompt(prompt, model.tokenizer, room)


def _why(number: int, model: LanguageModel, prompt_length: int, response_length: int) -> str:
    try:
        model.check_fits(prompt_length, response_length)
    except ModelError as error:
        return f"data[{number}]: {error}"
    raise AssertionError("check_fits and prompt_room disagree")


def _check_allowed(number: int, response: str, ids: Sequence[int], limits: Limits) -> None:
    early = [token for token in ids[: limits.min_new_tokens] if token in limits.eos_ids]
    if forbidden := early or [token for token in ids if token in limits.suppress_tokens]:
        rule = f"EOS is not allowed in the first {limits.min_new_tokens}" if early else f"id {forbidden[0]} never is"
        raise ConfigError(
            f"data[{number}] has the response {shorten(response)} of {len(ids)} tokens, which the environment does not "
            f"allow: {rule}. Leave the pair out, or change the environment's limits"
        )
