"""Turns a posted form into an answer, and checks it: a form may come from anybody."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.queries import Judgement
from rlhf_gym.study.leases import Answer

LONGEST_REASON = 2000
LONGEST_EDIT = 100_000
LONGEST_REPLY = 10_000
MOST_RESPONSES = 100
THUMBS = {"up": 1.0, "down": 0.0}
STRENGTHS = {"3": "much better", "2": "better", "1": "slightly better"}
PAIR = (
    ("a3", "A is much better", "A much better", "1"),
    ("a2", "A is better", "A better", "2 a"),
    ("a1", "A is slightly better", "A slightly", "3"),
    ("tie", "Tie", "Tie", "4 t"),
    ("b1", "B is slightly better", "B slightly", "5"),
    ("b2", "B is better", "B better", "6 b"),
    ("b3", "B is much better", "B much better", "7"),
    ("bad", "Both are bad", "Both bad", "x"),
)
"""The answers to a pair: value, words, short words, keys."""

_OTHER_WORDS = {
    "skip": "skipped", "flag": "flagged", "up": "good", "down": "not good", "accept": "accepted", "correct": "corrected",
}  # fmt: skip

Fields = Mapping[str, str]


def answer_of(fields: Fields, attributes: Sequence[str] = ("overall",), scale: int = 7) -> Answer:
    """The answer in a form's fields; responses are named by their place in the order shown.

    The queue checks that the query is of that type and has those responses.

    Args:
        fields: the form's.
        attributes: the attributes that ratings are about.
        scale: ratings go from 1 to this.

    Raises:
        FeedbackError: the fields hold no answer to the query type they name.
    """
    said, reason = fields.get("answer", ""), fields.get("reason", "").strip()[:LONGEST_REASON]
    if said == "skip":
        return Answer(skipped=True, reason=reason)
    if said == "flag":
        return Answer(skipped=True, reason=reason, details={"flagged": reason or "no reason given"})
    query_type = fields.get("query_type", "")
    found = None
    if query_type == "pair":
        found = _pair(said)
    elif query_type == "best":
        found = _best(said)
    elif query_type == "thumbs":
        found = {"ratings": {"overall": (THUMBS[said],)}} if said in THUMBS else None
    elif query_type == "edit":
        found = _edit(said, fields.get("edited", ""))
    elif query_type == "ranking":
        found = _ranking(fields)
    elif query_type == "rating":
        found = _rating(fields, attributes, scale)
    if found is None:
        raise FeedbackError(
            f"{said[:40]!r} is not an answer to a query of the type {query_type[:40]!r}; go back and choose an answer"
        )
    return Answer(reason=reason, **found)


def seconds_of(fields: Fields) -> float:
    """Seconds that the rater took: by the page's clock, or since the form was sent where no script ran; 0 to a day."""
    try:
        if "seconds" in fields:
            seconds = float(fields["seconds"])
        else:
            seconds = datetime.now(UTC).timestamp() - float(fields.get("shown", ""))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), 86_400.0) if math.isfinite(seconds) else 0.0


def earlier_value(judgement: Judgement, order_shown: Sequence[int], query_type: str = "pair") -> str:
    """The value of the button that an earlier answer pressed; empty for query types that take more than a button.

    Args:
        judgement: the earlier answer.
        order_shown: the responses in the order shown.
        query_type: the query's.
    """
    if judgement.skipped:
        return "flag" if judgement.details.get("flagged") else "skip"
    if judgement.tie:
        return "bad" if judgement.details.get("both_bad") else "tie"
    if query_type == "thumbs" and judgement.ratings:
        return "up" if judgement.ratings["overall"][0] else "down"
    if judgement.choice is None:
        return ""
    if query_type == "best":
        return f"best-{list(order_shown).index(judgement.choice)}"
    if query_type == "edit":
        return "correct" if "edited" in judgement.details else "accept"
    side = "ab"[list(order_shown).index(judgement.choice)] if len(order_shown) == 2 else ""
    return f"{side}{int(judgement.strength or 2)}" if side else ""


def in_words(judgement: Judgement, order_shown: Sequence[int], query_type: str = "pair") -> str:
    """An earlier answer in words.

    Args:
        judgement: the earlier answer.
        order_shown: the responses in the order shown.
        query_type: the query's.
    """
    value = earlier_value(judgement, order_shown, query_type)
    if value.startswith("best-"):
        return f"{letter(int(value.removeprefix('best-')))} is best"
    words = {name: text for name, text, _, _ in PAIR} | _OTHER_WORDS
    if value in words:
        return words[value]
    if judgement.ranking is not None:
        places = [[order_shown.index(i) for i in group] for group in judgement.ranking]
        return " > ".join(" = ".join(letter(place) for place in sorted(group)) for group in places)
    if judgement.ratings is not None:
        given = {name: [values[i] for i in order_shown] for name, values in judgement.ratings.items()}
        return "; ".join(f"{name} {', '.join(_short(value) for value in values)}" for name, values in given.items())
    return "something else"


def letter(place: int) -> str:
    """The name of the response at a place: A, B, ... Z, then numbers.

    >>> letter(0), letter(25), letter(26)
    ('A', 'Z', '27')
    """
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _short(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:g}"


def _pair(said: str) -> dict[str, Any] | None:
    if said == "tie":
        return {"tie": True}
    if said == "bad":
        return {"tie": True, "details": {"both_bad": True}}
    if len(said) == 2 and said[0] in "ab" and said[1] in STRENGTHS:
        return {"choice": "ab".index(said[0]), "strength": float(said[1])}
    return None


def _best(said: str) -> dict[str, Any] | None:
    slot = _number(said.removeprefix("best-"), -1) if said.startswith("best-") else -1
    return {"choice": slot} if slot >= 0 else None


def _edit(said: str, edited: str) -> dict[str, Any] | None:
    """A response accepted, or corrected; browsers send line ends as Windows writes them."""
    if said == "accept":
        return {"choice": 0}
    edited = edited.replace("\r\n", "\n")
    if said != "correct" or not edited.strip() or len(edited) > LONGEST_EDIT:
        return None
    return {"choice": 0, "details": {"edited": edited}}


def _ranking(fields: Fields) -> dict[str, Any] | None:
    """Fields ``place-0``, ``place-1``, ...: the place of each response; empty where it has none."""
    groups: dict[int, list[int]] = {}
    for slot, value in _slots(fields, "place-"):
        if value:
            if not value.isascii() or not value.isdecimal() or len(value) > 3:
                return None
            groups.setdefault(int(value), []).append(int(slot))
    if sum(map(len, groups.values())) < 2:
        return None
    return {"ranking": tuple(tuple(sorted(groups[place])) for place in sorted(groups))}


def _rating(fields: Fields, attributes: Sequence[str], scale: int) -> dict[str, Any] | None:
    """Fields ``rate-0-helpful``, ``rate-1-helpful``, ...: the value of each response; a response may be left out."""
    allowed = {str(value) for value in range(1, scale + 1)}
    slots = sorted({int(name.partition("-")[0]) for name, _ in _slots(fields, "rate-")})
    if not slots or slots[-1] >= MOST_RESPONSES:
        return None
    # How many responses there are is the query's to know: a form that names fewer or more is refused by the queue.
    k = max(slots[-1] + 1, _number(fields.get("k", "")))
    ratings: dict[str, tuple[float | None, ...]] = {}
    for attribute in attributes:
        given = [fields.get(f"rate-{slot}-{attribute}", "") for slot in range(k)]
        if not all(value in allowed or value == "" for value in given):
            return None
        if any(given):
            ratings[attribute] = tuple(float(value) if value else None for value in given)
    reply = fields.get("reply", "").replace("\r\n", "\n").strip()
    if not ratings or len(reply) > LONGEST_REPLY:
        return None
    return {"ratings": ratings, "details": {"reply": reply} if reply else {}}


def _slots(fields: Fields, prefix: str) -> list[tuple[str, str]]:
    """Fields whose name is a prefix and then a response's number (and perhaps more, after a dash)."""
    rest = [(name.removeprefix(prefix), value) for name, value in fields.items() if name.startswith(prefix)]
    return [(name, value) for name, value in rest if _number(name.partition("-")[0], -1) >= 0]


def _number(text: str, otherwise: int = 0) -> int:
    return int(text) if text.isascii() and text.isdecimal() and int(text) <= MOST_RESPONSES else otherwise
