"""Prompts that are longer than a model's context: counted before any work, and refused, skipped or truncated.

A prompt loses its beginning, a conversation its oldest turns, a response its end: what stands next to the other is kept. The
chat template's own tokens are never cut, nor is a system message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from rlhf_gym.errors import ConfigError, ModelError, TaskError
from rlhf_gym.feedback.exchange.transcripts import prompt_of_messages
from rlhf_gym.lm.chat_template import Messages, messages_before
from rlhf_gym.lm.tokenizer import Tokenizer
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.prompt_ids import prompt_ids
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.text import shorten

if TYPE_CHECKING:
    from rlhf_gym.lm.language_model import LanguageModel

OnTooLong = Literal["refuse", "skip", "truncate"]
Done = Literal["skipped", "beginning cut", "end cut"]

_LONGEST_WORD = 30  # characters that are given up at most to begin with a whole word
_WORDS: dict[Done, str] = {
    "skipped": "they are skipped",
    "beginning cut": "their beginning is cut",
    "end cut": "their end is cut",
}


@dataclass(frozen=True)
class TooLong:
    """Texts that were too long, and what was done with them.

    Attributes:
        what: their kind, in the plural, e.g. ``prompts``.
        total: number of all texts of this kind.
        number: number of those that this was done with.
        limit: what they exceed, in words.
        done: what was done with them.
        tokens: tokens that were cut, of all of them together; 0 where they are skipped.
    """

    what: str
    total: int
    number: int
    limit: str
    done: Done
    tokens: int = 0

    def __str__(self) -> str:
        """Everything in one line."""
        cut = f", {self.tokens:,} tokens in all" if self.tokens else ""
        return f"{self.number:,} of {self.total:,} {self.what} exceed {self.limit}: {_WORDS[self.done]}{cut}"

    def as_json(self) -> dict[str, Any]:
        """The counts, and the line, as JSON values."""
        return {**asdict(self), "in_words": str(self)}


def fit_task(task: Task, model: LanguageModel, on_too_long: OnTooLong = "refuse") -> tuple[Task, list[TooLong]]:
    """The task with prompts that leave room for a response in a model's context.

    Args:
        task: the task; its own length limit says how long a response may be.
        model: the model that responds.
        on_too_long: ``refuse``, ``skip`` or ``truncate`` prompts that are too long.

    Returns:
        The task, and what was done with its prompts and with those that are held out; empty where nothing was too long.

    Raises:
        TaskError: some prompts are too long and are to be refused; or none is left, or responses leave no room for any; or its
            conversations may outgrow the context.
        ConfigError: ``on_too_long`` is another word.
    """
    if on_too_long not in get_args(OnTooLong):
        raise ConfigError(f"on_too_long must be one of {', '.join(get_args(OnTooLong))}; got {on_too_long!r}")
    try:
        model.check_fits(1, task.max_new_tokens)
    except ModelError as error:
        raise TaskError(f"{error}: lower task.max_new_tokens, which is {task.max_new_tokens}") from None
    check_conversation_fits(task, model)
    room = model.prompt_room(task.max_new_tokens)
    kinds = {"prompts": task.prompts, "held-out prompts": task.held_out}
    lengths = {what: [prompt_length(prompt, model.tokenizer) for prompt in kinds[what]] for what in kinds}
    if on_too_long == "refuse":
        _refuse(kinds, lengths, task, model, room)
    fitted = {what: _fit(kinds[what], what, lengths[what], model, room, on_too_long) for what in kinds}
    found = [one for _, counted in fitted.values() for one in counted]
    if found:
        task = replace(task, prompts=fitted["prompts"][0], held_out=fitted["held-out prompts"][0])
    return task, found


def check_conversation_fits(task: Task, model: LanguageModel) -> None:
    """Refuse a task whose conversations may outgrow a model's context; one of single responses always passes.

    Args:
        task: the task.
        model: the model that talks.

    Raises:
        TaskError: they may.
    """
    if task.conversation is None:
        return
    longest, turn = task.conversation.max_context, task.max_new_tokens
    try:
        model.check_fits(longest - turn, turn)
    except ModelError:
        raise TaskError(
            f"task {task.name!r} has conversations of up to {longest} tokens, and the context of {model.name!r} is "
            f"{model.context_length}: make them shorter, by the task's options or its Conversation's max_context, or take "
            "another model"
        ) from None


def _refuse(
    kinds: Mapping[str, Sequence[Prompt]],
    lengths: Mapping[str, Sequence[int]],
    task: Task,
    model: LanguageModel,
    room: int,
) -> None:
    """Refuse prompts that are too long, if there are any."""
    number = {what: sum(length > room for length in lengths[what]) for what in kinds}
    if not any(number.values()):
        return
    counted = " and ".join(f"{n:,} of {len(kinds[what]):,} {what}" for what, n in number.items() if n)
    most, longest = max(
        (pair for what in kinds for pair in zip(lengths[what], kinds[what], strict=True)), key=lambda pair: pair[0]
    )
    response = "" if model.encoder_decoder else f"with responses of up to {task.max_new_tokens} tokens, "
    lower = "" if model.encoder_decoder else ", or lower task.max_new_tokens"
    raise TaskError(
        f"{counted} are too long. The longest, {shorten(longest.text)}, has {most:,} tokens; {response}{model.name!r} "
        f"(context of {model.context_length}) takes prompts of at most {room}. Choose task.on_too_long=skip or truncate (in "
        f"Python: fit_task), or shorten them{lower}"
    )


def _fit(
    prompts: Sequence[Prompt],
    what: str,
    lengths: Sequence[int],
    model: LanguageModel,
    room: int,
    on_too_long: OnTooLong,
) -> tuple[Sequence[Prompt], list[TooLong]]:
    """Skip or cut prompts of one kind."""
    limit = f"the {room} tokens that {model.name!r} has room for"
    kept, cut, skipped, tokens = list[Prompt](), 0, 0, 0
    for prompt, length in zip(prompts, lengths, strict=True):
        if length <= room:
            kept.append(prompt)
        elif on_too_long == "truncate" and (shorter := cut_prompt(prompt, model.tokenizer, room)) is not None:
            kept.append(shorter)
            cut, tokens = cut + 1, tokens + length - prompt_length(shorter, model.tokenizer)
        else:
            skipped += 1
    if prompts and not kept:
        reason = "on_too_long=skip leaves none" if on_too_long == "skip" else "nothing would be left of them"
        raise TaskError(f"all {len(prompts):,} {what} exceed {limit}, and {reason}: give shorter ones")
    return kept, counts(what, len(prompts), limit, skipped=skipped, cut=cut, tokens=tokens)


def counts(what: str, total: int, limit: str, *, skipped: int = 0, cut: int = 0, tokens: int = 0) -> list[TooLong]:
    """What was done with texts whose beginning is cut; nothing for what was done with none.

    Args:
        what: their kind.
        total: number of all.
        limit: what they exceed.
        skipped: those that were skipped.
        cut: those that were cut.
        tokens: tokens that were cut.
    """
    found = [TooLong(what, total, skipped, limit, "skipped"), TooLong(what, total, cut, limit, "beginning cut", tokens)]
    return [one for one in found if one.number]


def prompt_length(prompt: Prompt, tokenizer: Tokenizer) -> int:
    """The tokens that a response to a prompt starts from.

    Args:
        prompt: the prompt.
        tokenizer: the model's.
    """
    return len(prompt_ids(prompt, tokenizer))


def cut_prompt(prompt: Prompt, tokenizer: Tokenizer, room: int) -> Prompt | None:
    """A prompt without its beginning, so that it has at most ``room`` tokens; as much of its end as fits.

    A conversation loses its oldest turns and begins with one of the user's, after its system message; where the last of the
    user's turns alone is too long, the turn loses its beginning.

    Args:
        prompt: the prompt.
        tokenizer: the model's.
        room: most tokens, those of the chat template included.

    Returns:
        The prompt; None where nothing would be left of it.
    """
    messages = messages_before(prompt.columns.get("messages"))
    if messages is None:
        text = _longest_end(prompt.text, lambda end: prompt_length(replace(prompt, text=end), tokenizer) <= room)
        return replace(prompt, text=text) if text else None

    def among(messages: Messages) -> Prompt:
        columns = {**prompt.columns, "messages": [dict(m) for m in messages]}
        return Prompt(prompt_of_messages(messages), columns)

    def fits(messages: Messages) -> bool:
        return prompt_length(among(messages), tokenizer) <= room

    first = next((i for i, m in enumerate(messages[:-1]) if m["role"] != "system"), len(messages) - 1)
    system, turns = messages[:first], messages[first:]
    begins = [i for i, m in enumerate(turns) if m["role"] == "user"] or [0]
    for begin in begins:
        if fits([*system, *turns[begin:]]):
            return among([*system, *turns[begin:]])
    turn, *after = turns[begins[-1] :]
    said = _longest_end(str(turn["content"]), lambda end: fits([*system, {**turn, "content": end}, *after]))
    return among([*system, {**turn, "content": said}, *after]) if said else None


def _longest_end(text: str, fits: Callable[[str], bool]) -> str:
    """The longest end of a text that fits, from the beginning of a word where one is near; empty where none fits."""
    too_much, begin = 0, len(text)
    while begin - too_much > 1:
        middle = (too_much + begin) // 2
        if fits(text[middle:]):
            begin = middle
        else:
            too_much = middle
    end = text[begin:]
    if text[begin - 1 : begin].strip() and (word := re.search(r"\s+(?=\S)", end[:_LONGEST_WORD])):
        end = end[word.end() :]
    end = end.lstrip()
    # Fewer characters may be more tokens, by one or two.
    return next((some for some in (end, text[begin:]) if some.strip() and fits(some)), "")
