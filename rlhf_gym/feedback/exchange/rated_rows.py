"""Tables of one response and its rating in a row, as anybody may have them.

Whatever is called otherwise is mapped with ``--columns prompt=... response=... rating=...``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_gym.feedback.exchange.dataset_formats import number
from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin
from rlhf_gym.feedback.exchange.sides import NoTextError, prompt_of, text_of


def is_rating(record: Mapping[str, Any]) -> bool:
    """True if a record has a prompt, a response and its rating."""
    return all(name in record for name in ("prompt", "response", "rating"))


def same_prompt(record: Mapping[str, Any]) -> str:
    """What rows that are read together have in common."""
    return str(record["prompt"])


def read_ratings(record: Mapping[str, Any], origin: Origin) -> list[Answer | Dropped]:
    """The rows of a prompt, one below the other: for each rater one rating of all responses that they rated.

    A response that a rater (or nobody by name) rated several times is in as many answers: no rating is lost, none averaged.

    Args:
        record: the rows of one prompt, as ``rows``, or a single one.
        origin: the record's place, rater and round, where it does not name them.

    Raises:
        KeyError: a column is missing; it names the missing one.
        NoTextError: the prompt is no text.
    """
    rows = record.get("rows", [record])
    prompt = prompt_of(rows[0]["prompt"])
    answers: list[Answer | Dropped] = []
    by_rater: dict[str, dict[str, list[tuple[float, Mapping[str, Any]]]]] = {}
    for row in rows:
        try:
            response = text_of(row["response"], "a response")
        except (NoTextError, KeyError) as error:
            answers.append(Dropped("rows without a response" if isinstance(error, KeyError) else str(error)))
            continue
        if (rating := number(row.get("rating"))) is None:
            answers.append(Dropped("rows without a rating that is a finite number"))
            continue
        by_rater.setdefault(str(row.get("rater") or ""), {}).setdefault(response, []).append((rating, row))
    for rater, responses in by_rater.items():
        for turn in range(max(map(len, responses.values()))):
            given = {text: found[turn] for text, found in responses.items() if turn < len(found)}
            others = {name: None for _, row in given.values() for name in row}
            columns = {
                name: [row.get(name) for _, row in given.values()]
                for name in others
                if name not in ("prompt", "response", "rating", "rater")
            }
            ratings = {"overall": tuple(rating for rating, _ in given.values())}
            answers.append(
                origin.answer(prompt, list(given), query_type="rating", ratings=ratings, columns=columns, rater=rater)
            )
    return answers
