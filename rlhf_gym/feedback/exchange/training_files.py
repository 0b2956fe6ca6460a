"""Records that other trainers take: LLaMA-Factory's DPO and KTO files, OpenAI's preference format; read, not written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_gym.feedback.exchange.dataset_formats import alpaca_prompt, thumb
from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin
from rlhf_gym.feedback.exchange.sides import Message, compared, messages_in, side_of, text_of

_ALPACA = ("instruction", "input", "prompt", "query", "system", "history")
_TALK = ("conversations", "messages", "system")


def read_llama_factory(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """A pair or a thumb of LLaMA-Factory: ``instruction`` (Alpaca), ``conversations`` (ShareGPT) or ``messages``.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    talk = record.get("conversations") or record.get("messages")
    prompt: Any = _system(record) + messages_in(talk) if talk else _alpaca(record)
    used = ["chosen", "rejected", "output", "kto_tag", "label", *_ALPACA, *_TALK]
    columns = {name: value for name, value in record.items() if name not in used}
    if "chosen" in record:
        sides = (_reply(record["chosen"], talk), _reply(record["rejected"], talk))
        found, chosen, rejected = compared(prompt, *sides)
        return origin.preferred(found, chosen, [rejected], columns=columns)
    label = record["kto_tag"] if "kto_tag" in record else record["label"]
    if talk:
        return thumb(None, prompt, label, record, columns, origin)
    return thumb(prompt, record["output"], label, record, columns, origin)


def _reply(value: Any, talk: Any) -> Any:
    """A reply as messages where the prompt is messages, else as it is."""
    return [{"role": "assistant", "content": value}] if talk and isinstance(value, str) else value


def _system(record: Mapping[str, Any]) -> list[Message]:
    system = record.get("system")
    return [{"role": "system", "content": text_of(system, "'system'")}] if system else []


def _alpaca(record: Mapping[str, Any]) -> str | list[Message]:
    """The prompt of an Alpaca record; messages where there is a system prompt or a history."""
    instruction = record.get("instruction", record.get("prompt"))
    text = alpaca_prompt(
        text_of(instruction, "'instruction'"), text_of(record.get("input") or record.get("query") or "")
    )
    before = _system(record)
    for asked, answered in record.get("history") or ():
        before += [{"role": "user", "content": text_of(asked)}, {"role": "assistant", "content": text_of(answered)}]
    return [*before, {"role": "user", "content": text}] if before else text


def read_openai_preference(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """A line of OpenAI's files for preference fine-tuning: ``input.messages``, ``preferred_output``, ``non_preferred_output``.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    asked = record["input"]
    if isinstance(asked, Mapping) and asked.get("tools"):
        return Dropped("rows with tools")
    prompt = side_of(asked, "input")
    sides = (record["preferred_output"], record["non_preferred_output"])
    if not isinstance(prompt, str):
        sides = (_reply(sides[0], True), _reply(sides[1], True))
    found, chosen, rejected = compared(prompt, *sides)
    used = ("input", "preferred_output", "non_preferred_output")
    return origin.preferred(found, chosen, [rejected], columns={k: v for k, v in record.items() if k not in used})
