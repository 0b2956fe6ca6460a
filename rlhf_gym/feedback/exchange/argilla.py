"""Records of Argilla, version 1 and 2: rankings, ratings, and questions that choose one response."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from rlhf_gym.feedback.exchange.pairs import answer_of, pair_columns
from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin, Record, user_name
from rlhf_gym.feedback.exchange.sides import prompt_column, prompt_of
from rlhf_gym.feedback.preferences import judged_pairs
from rlhf_gym.feedback.queries import Judgement, Query, QueryType, content_id

_TIES = "ties"
_ANSWERS = ".responses"
_NAMES = ("response", "completion", "answer", "output", "generation", "text")
_NUMBERED = re.compile(r"[_-]?([0-9]+|[a-z])?")
_RATERS = uuid.UUID("4a1f6d0e-62a4-4d5a-9b0a-6f0d7b6a5c11")  # Argilla's users are UUIDs: ours are made from names


def write_argilla(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """A record with fields ``instruction``, ``response1``, ..., and responses to a ranking or to ratings.

    A ranking without ties is one record, with a response to the ``RankingQuestion`` named ``ranking``. Ratings (whole numbers
    from 0 to 10) are one record, with a response to a ``RatingQuestion`` for each attribute and response: ``helpful_1``,
    ``helpful_2``, ... Anything else is a record a pair. Argilla's users are UUIDs, so the rater is in ``metadata.rater``.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """

    def record(shown: list[int], said: Mapping[str, Any], status: str = "submitted") -> Record:
        user = _argilla_user(judgement.rater)
        fields = {f"response{place}": query.responses[index] for place, index in enumerate(shown, start=1)}
        return {
            "id": content_id("argilla", judgement.id, shown),
            "fields": {"instruction": query.prompt, **fields},
            "metadata": {"rater": judgement.rater},
            "suggestions": {},
            "responses": {
                name: [{"value": value, "user_id": user, "status": status}] for name, value in said.items()
            },
            "vectors": {},
        }  # fmt: skip

    def ranked(shown: list[int], best_first: list[int]) -> Record:
        return record(shown, {"ranking": [f"response{shown.index(index) + 1}" for index in best_first]})

    every = list(range(len(query.responses)))
    order = [index for group in judgement.ranking or () for index in group]
    ratings = _stars(judgement)
    if judgement.skipped:
        yield record(every, {"ranking" if len(every) > 1 else "overall_1": None}, "discarded")
    elif ratings:
        yield record(every, ratings)
    elif len(order) == len(judgement.ranking or ()) and sorted(order) == every:
        yield ranked(every, order)
    else:
        if judgement.ratings is not None and len(every) == 1:
            yield Dropped("ratings that are not whole numbers from 0 to 10")
        for chosen, rejected, _, tie in judged_pairs(query, judgement):
            yield Dropped(_TIES) if tie else ranked(sorted((chosen, rejected)), [chosen, rejected])


def read_argilla(record: Mapping[str, Any], origin: Origin) -> list[Answer | Dropped]:
    """An answer for each person's ranking or choice, and one for their ratings.

    Records are read as ``dataset.records.to_list()``, ``to_json`` and ``to_datasets()`` of version 2 give them, and those of
    version 1, where answers stand by person. The prompt is the field ``prompt``, ``instruction``, ``question``, ``input``, ...;
    ``response_1`` and ``completion-1`` are as good as ``response1``. A ranking is any answer that lists responses, a choice any
    that names one of two; ratings are responses to questions that end in a response's number (``helpful_1``); where there is
    one response, to any question that is answered with a number.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.

    Raises:
        KeyError: the record has no prompt or no response; it names the missing field.
    """
    record = _of_flat(record) if is_flat(record) else record
    fields, metadata = record["fields"], record.get("metadata") or {}
    asked = prompt_column(fields) or next((name for name, v in fields.items() if isinstance(v, list)), None)
    names = _responses(fields, asked)
    if asked is None or not names:
        raise KeyError("instruction" if asked is None else "response1")
    prompt, texts = prompt_of(fields[asked], asked), [fields[name] for name in names]
    columns = {k: v for k, v in metadata.items() if k != "rater"}
    found: list[Answer | Dropped] = []
    rated: dict[str, dict[str, list[float | None]]] = {}
    for question, responses in _by_question(record.get("responses") or {}).items():
        attribute, place = _rated(question, len(names))
        ranks = question == "ranking" or any(isinstance(said.get("value"), list) for said in responses)
        for said in responses:
            user, value, status = said.get("user_id"), said.get("value"), said.get("status")
            rater = user_name(user) or origin.rater
            if "rater" in metadata and user in (None, _argilla_user(metadata["rater"])):
                rater = metadata["rater"]  # answers given in Argilla later carry their own user
            if status == "draft":
                found.append(Dropped("drafts"))
            elif ranks or (chosen := _chosen(value, fields, texts)) is not None:
                answer: dict[str, Any] = {"skipped": True}
                if status != "discarded" and value is not None:
                    answer = _ranking(value, names) if ranks else chosen or answer
                kind: QueryType = "pair" if len(names) == 2 else "ranking"
                details = {} if question == "ranking" else {"question": question}
                found.append(
                    origin.answer(
                        prompt, texts, query_type=kind, columns=columns, rater=rater, details=details, **answer
                    )
                )
            elif attribute is not None and (value is None or _is_number(value)):
                values = rated.setdefault(rater, {}).setdefault(attribute, [None] * len(names))
                values[place] = None if status == "discarded" else value
    for rater, attributes in rated.items():
        ratings = {name: tuple(values) for name, values in attributes.items()}
        empty = all(value is None for values in ratings.values() for value in values)
        fields_said: dict[str, Any] = {"skipped": True} if empty else {"ratings": ratings}
        found.append(origin.answer(prompt, texts, query_type="rating", columns=columns, rater=rater, **fields_said))
    return found or [Dropped("records without a ranking, a rating or a choice of one response")]


def is_flat(record: Mapping[str, Any]) -> bool:
    """True for a row of the data set that version 2 makes of records: a column a field, answers in ``NAME.responses``."""
    return any(f"{name}.users" in record for name in record if isinstance(name, str) and name.endswith(_ANSWERS))


def _of_flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a data set as a record with fields and responses."""
    responses: dict[str, list[dict[str, Any]]] = {}
    for name in record:
        if name.endswith(_ANSWERS):
            values, users, states = (record.get(f"{name}{part}") or [] for part in ("", ".users", ".status"))
            responses[name.removesuffix(_ANSWERS)] = [
                {"value": value, "user_id": user, "status": state}
                for value, user, state in zip_longest(values, users, states)
            ]
    fields = {name: value for name, value in record.items() if "." not in name and isinstance(value, str | list)}
    return {"fields": fields, "responses": responses}


def _responses(fields: Mapping[str, Any], prompt: str | None) -> list[str]:
    """The names of the fields that hold responses, in the order of their numbers."""
    for stem in _NAMES:
        found = {name: _NUMBERED.fullmatch(name.casefold().removeprefix(stem)) for name in fields if name != prompt}
        numbers = {name: match[1] or "" for name, match in found.items() if match and name.casefold().startswith(stem)}
        if numbers:
            return sorted(numbers, key=lambda name: (len(numbers[name]), numbers[name]))
    return []


def _by_question(responses: Any) -> dict[str, list[Mapping[str, Any]]]:
    """The answers to each question; in version 1 they are given by person."""
    if isinstance(responses, Mapping):
        return {question: list(said or ()) for question, said in responses.items()}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for person in responses:
        # Who discards a record answers nothing: that is a skip of its ranking.
        for question, said in (person.get("values") or {"ranking": {}}).items():
            if person.get("values") or person.get("status") == "discarded":
                found.setdefault(question, []).append({**person, "value": said.get("value")})
    return found


def _ranking(value: Any, names: list[str]) -> dict[str, Any]:
    """A ranking as a choice of two or as groups; each place is a name, or a name with its rank, where equal ranks are ties."""
    places: dict[int, list[int]] = {}
    for number, best in enumerate(value):
        rank = best.get("rank") if isinstance(best, Mapping) else None
        name = best["value"] if isinstance(best, Mapping) else best
        places.setdefault(number if rank is None else rank, []).append(names.index(name))
    groups = tuple(tuple(places[rank]) for rank in sorted(places))
    if len(names) != 2:
        return {"ranking": groups}
    return {"tie": True} if len(groups) == 1 and len(groups[0]) == 2 else {"choice": groups[0][0]}


def _chosen(value: Any, fields: Mapping[str, Any], texts: list[Any]) -> dict[str, Any] | None:
    """The choice that the answer to a question about labels makes of two responses; None for other answers."""
    pair = pair_columns(fields)
    if pair is None or not isinstance(value, str) or not value.strip() or len(value.split()) > 2:
        return None
    return answer_of(value, pair[:2], pair[2], {}, texts)


def _argilla_user(rater: str) -> str:
    return str(uuid.uuid5(_RATERS, rater.encode("utf-8", "backslashreplace").decode()))


def _stars(judgement: Judgement) -> dict[str, int]:
    """Ratings as answers to Argilla's rating questions; none where there are no ratings, or some it cannot hold."""
    said: dict[str, int] = {}
    for attribute, values in (judgement.ratings or {}).items():
        for place, value in enumerate(values, start=1):
            if value is not None and value not in range(11):
                return {}
            if value is not None:
                said[f"{attribute}_{place}"] = int(value)
    return said


def _rated(question: str, number: int) -> tuple[str | None, int]:
    """The attribute and the response that a rating question asks about."""
    attribute, _, place = question.replace("-", "_").rpartition("_")
    if attribute and place.isascii() and place.isdigit() and 1 <= int(place) <= number:
        return attribute, int(place) - 1
    return (question, 0) if number == 1 else (None, 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
