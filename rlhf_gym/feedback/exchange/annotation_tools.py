"""Records of annotation tools: tasks of Label Studio, records of Argilla 2."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin, Record
from rlhf_gym.feedback.preferences import judged_pairs
from rlhf_gym.feedback.queries import Judgement, Query, QueryType, content_id

_TIES = "ties"
_RESPONSE = re.compile(r"response[_-]?[0-9]*")
_RATERS = uuid.UUID("4a1f6d0e-62a4-4d5a-9b0a-6f0d7b6a5c11")  # Argilla's users are UUIDs: ours are made from names


def write_label_studio(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """A task of the template for pairs: ``data`` with ``prompt``, ``answer1``, ``answer2``, and one annotation.

    The project's labelling interface has ``<Pairwise name="comparison" toName="answer1,answer2"/>``. Label Studio
    numbers its own users, so the rater's name is in ``data.rater``.

    Args:
        query: the query that was answered.
        judgement: its answer.
    """

    def task(a: int, b: int, result: list[Record]) -> Record:
        if judgement.reason:
            result = [*result, _region("reason", "prompt", "textarea", {"text": [judgement.reason]})]
        annotation = {
            "result": result, "was_cancelled": judgement.skipped, "lead_time": judgement.seconds,
            "created_at": judgement.created_at.isoformat(),
        }  # fmt: skip
        answers = {"answer1": query.responses[a], "answer2": query.responses[b]}
        return {
            "data": {"prompt": query.prompt, **answers, "rater": judgement.rater},
            "annotations": [annotation],
        }

    if judgement.skipped and query.query_type == "pair":
        yield task(0, 1, [])
        return
    for chosen, rejected, _, tie in judged_pairs(query, judgement):
        a, b = sorted((chosen, rejected))  # never the better one first by rule
        side = "left" if chosen == a else "right"
        # In Label Studio a comparison's regions point at the comparison itself.
        yield (
            Dropped(_TIES) if tie else task(a, b, [_region("comparison", "comparison", "pairwise", {"selected": side})])
        )
    if judgement.skipped:
        yield Dropped("skips")


def read_label_studio(record: Mapping[str, Any], origin: Origin) -> list[Answer | Dropped]:
    """An answer for each annotation of a task, as Label Studio exports them (JSON).

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    data = record["data"]
    columns = {k: v for k, v in data.items() if k not in ("prompt", "answer1", "answer2", "rater")}
    found: list[Answer | Dropped] = []
    for annotation in record.get("annotations") or ():
        said = {region["type"]: region["value"] for region in annotation["result"]}
        if not annotation.get("was_cancelled") and "pairwise" not in said:
            found.append(Dropped("annotations without a comparison"))
            continue
        # Where others have annotated our task since, Label Studio tells who each is; it signs ours with whoever imported it.
        ours = "rater" in data and (len(record["annotations"]) == 1 or annotation.get("completed_by") is None)
        answer: dict[str, Any] = {"skipped": True}
        if not annotation.get("was_cancelled"):
            answer = {"choice": ("left", "right").index(said["pairwise"]["selected"])}
        answer["reason"] = "\n".join(
            text for region in annotation["result"] if region["type"] == "textarea" for text in region["value"]["text"]
        )
        if annotation.get("created_at"):
            answer["created_at"] = datetime.fromisoformat(annotation["created_at"])
        if annotation.get("id") is not None:  # two annotations of one task are two judgements
            answer["id"] = content_id("label studio", record.get("id"), annotation["id"])
        found.append(
            origin.answer(
                record, (data["answer1"], data["answer2"]), data["prompt"], columns=columns,
                rater=data["rater"] if ours else _user(annotation.get("completed_by")) or origin.rater,
                seconds=annotation.get("lead_time"), **answer,
            )
        )  # fmt: skip
    return found or [Dropped("tasks without an annotation")]


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
    """An answer for each person's ranking, and one for their ratings.

    Records are read as ``dataset.records.to_list()`` and ``to_json`` give them.
    The prompt is the field ``instruction``, ``prompt`` or ``input``; ``response_1`` is as good as ``response1``. Ratings are
    responses to questions that end in a response's number (``helpful_1``); where there is one response, to any question
    that is answered with a number.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.

    Raises:
        KeyError: the record has no prompt or no response; it names the missing field.
    """
    fields, metadata = record["fields"], record.get("metadata") or {}
    names = sorted((name for name in fields if _RESPONSE.fullmatch(name)), key=_number)
    prompt = next((fields[name] for name in ("instruction", "prompt", "input") if name in fields), None)
    if prompt is None or not names:
        raise KeyError("instruction" if prompt is None else "response1")
    columns = {k: v for k, v in metadata.items() if k != "rater"}

    def query(query_type: QueryType) -> Query:
        return Query(
            prompt=prompt, responses=tuple(fields[name] for name in names), query_type=query_type, columns=columns,
            round=origin.round,
            index=origin.index,
        )  # fmt: skip

    pair = len(names) == 2
    found: list[Answer | Dropped] = []
    rated: dict[str, dict[str, list[float | None]]] = {}
    for question, responses in (record.get("responses") or {}).items():
        attribute, place = _rated(question, len(names))
        for said in responses or ():
            user, value, status = said.get("user_id"), said.get("value"), said.get("status")
            rater = _user(user) or origin.rater
            if "rater" in metadata and user in (None, _argilla_user(metadata["rater"])):
                rater = metadata["rater"]  # answers given in Argilla later carry their own user
            if status == "draft":
                found.append(Dropped("drafts"))
            elif question == "ranking":
                asked = query("pair" if pair else "ranking")
                answer: dict[str, Any] = {"skipped": True}
                if status != "discarded" and value is not None:
                    # Exports of older versions spell a place as {"value": name}.
                    order = [names.index(best["value"] if isinstance(best, Mapping) else best) for best in value]
                    answer = {"choice": order[0]} if pair else {"ranking": tuple((index,) for index in order)}
                found.append((asked, Judgement(query_id=asked.id, rater=rater, **answer)))
            elif attribute is not None and (value is None or _is_number(value)):
                values = rated.setdefault(rater, {}).setdefault(attribute, [None] * len(names))
                values[place] = None if status == "discarded" else value
    for rater, attributes in rated.items():
        asked = query("rating")
        ratings = {name: tuple(values) for name, values in attributes.items()}
        empty = all(value is None for values in ratings.values() for value in values)
        said = {"skipped": True} if empty else {"ratings": ratings}
        found.append((asked, Judgement(query_id=asked.id, rater=rater, **said)))
    return found or [Dropped("records without a response to 'ranking' or a rating")]


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
    attribute, _, place = question.rpartition("_")
    if attribute and place.isascii() and place.isdigit() and 1 <= int(place) <= number:
        return attribute, int(place) - 1
    return (question, 0) if number == 1 else (None, 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(name: str) -> int:
    return int(name.removeprefix("response").lstrip("_-") or 1)


def _region(name: str, to_name: str, kind: str, value: Record) -> Record:
    number = content_id(name, to_name, kind, value)[:10]  # any, as long as it is the only one in its annotation
    return {"id": number, "from_name": name, "to_name": to_name, "type": kind, "value": value}


def _user(given: Any) -> str | None:
    """A signature for a tool's user: its number, never an address."""
    number = given.get("id") if isinstance(given, Mapping) else given
    return None if number is None else f"user-{number}"
