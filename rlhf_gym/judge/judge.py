"""A judge: the questions to a chat model, and its opinions of one response, or of two in both orders."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_gym.errors import ConfigError
from rlhf_gym.judge.client import ChatClient, Messages, Reply
from rlhf_gym.judge.template import Template, text_from
from rlhf_gym.text import shorten

Columns = Mapping[str, Any]
SIDES = {"A": -1, "B": 1, "TIE": 0}
# A letter alone, in double brackets, or behind the word: "A" is an article, too.
_SIDE = re.compile(r"^\W*([AB])\W*$|\[\[([AB])\]\]|\b[Rr]esponse\W{1,3}([AB])\b|\b([Tt]ie)\b")


@dataclass(frozen=True)
class Opinion:
    """A judge's opinion of one response, or of two.

    Attributes:
        value: a score; or, of two responses, -1 (the first is better), 0 or 1 (the second). None where the reply could not
            be read.
        reason: the judge's words.
        replies: its replies, a text for each question.
        disagreed: of two responses, True if the two orders gave different answers.
        first_shown: of two responses, the number of orders, 0 to 2, in which the one shown first was chosen.
        tokens: tokens sent and received.
        cost: their cost.
        cached: questions that were answered from the cache.
    """

    value: float | None
    reason: str
    replies: tuple[str, ...]
    disagreed: bool = False
    first_shown: int = 0
    tokens: int = 0
    cost: float = 0.0
    cached: int = 0


class Judge:
    """Asks a chat model for opinions.

    Args:
        client: the model.
        rubric: the criteria, or a ``.md`` or ``.txt`` file with them; default helpful, honest, harmless, well
            written.
        template: a Jinja template, or its ``.j2`` file; default the package's own (``rlhf_gym/judge/templates``).
        pairs: True judges pairs (the template shows ``first`` and ``second``), False single responses (``response``).
        low: the worst score.
        high: the best one.

    Raises:
        ConfigError: a template that does not show the responses, or ``low`` not below ``high``.
    """

    def __init__(
        self,
        client: ChatClient,
        *,
        rubric: str | os.PathLike[str] | None = None,
        template: str | os.PathLike[str] | None = None,
        pairs: bool = False,
        low: int = 1,
        high: int = 10,
    ) -> None:
        if not low < high:
            raise ConfigError(f"a judge's best score must lie above the worst one, got low={low} and high={high}")
        self.client = client
        self.low, self.high = low, high
        self._rubric = text_from(rubric, "rubric.md").strip()
        self._template = Template(text_from(template, "pair.md.j2" if pairs else "score.md.j2"))
        self._template.need("prompt", *(("first", "second") if pairs else ("response",)))

    def scores(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Sequence[Columns] | None = None
    ) -> list[Opinion]:
        """An opinion of each response; its value lies in ``low..high``.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            columns: each sample's columns, for templates that use them.

        Raises:
            JudgeError: the service cannot be reached, or refuses.
        """
        rows = columns or [{}] * len(prompts)
        questions = [
            self._question({"prompt": p, "response": r}, c) for p, r, c in zip(prompts, responses, rows, strict=True)
        ]
        number = {"type": "integer", "minimum": self.low, "maximum": self.high}
        replies = self.client.ask(questions, _schema("score", number))
        return [self._opinion(read_score(reply.text, self.low, self.high), [reply]) for reply in replies]

    def compare(
        self, triples: Sequence[tuple[str, str, str]], columns: Sequence[Columns] | None = None
    ) -> list[Opinion]:
        """Compare pairs of responses, each in both orders; two contradicting replies make a tie.

        Args:
            triples: prompt, one response, the other.
            columns: each prompt's columns.

        Raises:
            JudgeError: the service cannot be reached, or refuses.
        """
        rows = columns or [{}] * len(triples)
        questions = []
        for (prompt, one, other), row in zip(triples, rows, strict=True):
            questions.append(self._question({"prompt": prompt, "first": one, "second": other}, row))
            questions.append(self._question({"prompt": prompt, "first": other, "second": one}, row))
        replies = self.client.ask(questions, _schema("better", {"type": "string", "enum": ["A", "B", "tie"]}))
        opinions = []
        for i in range(0, len(replies), 2):
            straight, swapped = read_side(replies[i].text), read_side(replies[i + 1].text)
            value = None
            if straight is not None and swapped is not None:
                value = float(straight) if straight == -swapped else 0.0
            opinions.append(
                self._opinion(
                    value, replies[i : i + 2], disagreed=value is not None and straight != -(swapped or 0),
                    first_shown=(straight == -1) + (swapped == -1),
                )
            )  # fmt: skip
        return opinions

    def _question(self, material: dict[str, str], columns: Columns) -> Messages:
        return self._template.fill(material, **{**columns, "rubric": self._rubric, "low": self.low, "high": self.high})

    def _opinion(self, value: float | None, replies: Sequence[Reply], **more: Any) -> Opinion:
        return Opinion(
            value, _reason(replies[0].text), tuple(reply.text for reply in replies),
            tokens=sum(reply.prompt_tokens + reply.completion_tokens for reply in replies),
            cost=sum(map(self.client.cost, replies)), cached=sum(reply.cached for reply in replies), **more,
        )  # fmt: skip


def unreadable(opinion: Opinion) -> str:
    """One line about replies that hold no opinion."""
    said = " and ".join(shorten(reply, 160) for reply in opinion.replies)
    return f"the judge wrote {said}, which holds no opinion; ask for JSON in the template, or take a larger model"


def read_score(text: str, low: int, high: int) -> float | None:
    """The score in a reply: ``{"score": 7}``, or else the last number that could be one (``Score: 7/10`` is 7).

    Args:
        text: the reply.
        low: lowest valid score.
        high: highest valid score.

    Returns:
        The score; None where there is none in ``low..high``.

    >>> read_score('Sure! {"reason": "fine", "score": 7}', 1, 10), read_score("I give it 8/10.", 1, 10)
    (7.0, 8.0)
    >>> read_score("no idea", 1, 10), read_score('{"score": 70}', 1, 10)
    (None, None)
    """
    found = _json(text, "score").get("score")
    if found is not None:
        try:
            value = float(found)
        except (TypeError, ValueError):
            return None
        return value if math.isfinite(value) and low <= value <= high else None
    said = re.findall(r"(?<![\w.])(-?\d+(?:\.\d+)?)(?:\s*/\s*\d+)?(?!\w|\.\d)", text)
    fitting = [float(number) for number in said if low <= float(number) <= high]
    return fitting[-1] if fitting else None


def read_side(text: str) -> int | None:
    """The side that a reply prefers: -1 the first (``A``), 1 the second (``B``), 0 neither; None where it does not say.

    >>> read_side('{"better": "B"}'), read_side("Response A is better"), read_side("It is a tie."), read_side("Hm.")
    (1, -1, 0, None)
    """
    found = _json(text, "better").get("better")
    if found is not None:
        return SIDES.get(str(found).strip().upper().removeprefix("RESPONSE "))
    sides = {SIDES[next(filter(None, found)).upper()] for found in _SIDE.findall(text)}
    return sides.pop() if len(sides) == 1 else None


def _json(text: str, key: str) -> dict[str, Any]:
    """The last JSON object with a key in a text that may have words or a code fence around it; empty where there is none.

    Objects inside another one do not count.
    """
    last: dict[str, Any] = {}
    begin = text.find("{")
    while begin >= 0:
        try:
            found, end = json.JSONDecoder().raw_decode(text, begin)
        except ValueError:
            end = begin + 1
        except RecursionError:  # nested a thousand times
            return last
        else:
            last = found if key in found else last
        begin = text.find("{", end)
    return last


def _reason(text: str) -> str:
    return str(_json(text, "reason").get("reason", ""))[:2000]


def _schema(name: str, what: dict[str, Any]) -> dict[str, Any]:
    """An object with a reason, which is written before the opinion, and the opinion."""
    properties = {"reason": {"type": "string"}, name: what}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
