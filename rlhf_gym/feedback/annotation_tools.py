"""Records of annotation tools: tasks of Label Studio, records of Argilla 2."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from rlhf_gym.feedback.preferences import judged_pairs
from rlhf_gym.feedback.query import Judgement, Query, content_id
from rlhf_gym.feedback.records import Answer, Dropped, Origin, Record

_TIES = "ties"
_RATERS = uuid.UUID("4a1f6d0e-62a4-4d5a-9b0a-6f0d7b6a5c11")  # Argilla's users are UUIDs: ours are made from names


def write_label_studio(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """A task of the template for pairs: ``data`` with ``prompt``, ``answer1``, ``answer2``, and one annotation.

    The project's labelling interface has ``<Pairwise name="comparison" toName="answer1,answer2"/>``. Users of Label Studio are
    numbers of its own, so who answered is ``data.rater``.
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

    if judgement.skipped and query.form == "pair":
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
    """An answer for each annotation of a task, as Label Studio exports them (JSON)."""
    data = record["data"]
    columns = {k: v for k, v in data.items() if k not in ("prompt", "answer1", "answer2", "rater")}
    found: list[Answer | Dropped] = []
    for annotation in record.get("annotations") or ():
        said = {region["type"]: region["value"] for region in annotation["result"]}
        if not annotation.get("was_cancelled") and "pairwise" not in said:
            found.append(Dropped("annotations without a comparison"))
            continue
        answer: dict[str, Any] = {"skipped": True}
        if not annotation.get("was_cancelled"):
            answer = {"choice": ("left", "right").index(said["pairwise"]["selected"])}
        if "textarea" in said:
            answer["reason"] = "\n".join(said["textarea"]["text"])
        if annotation.get("created_at"):
            answer["created_at"] = datetime.fromisoformat(annotation["created_at"])
        if annotation.get("id") is not None:  # whoever annotates a task twice has said two things
            answer["id"] = content_id("label studio", record.get("id"), annotation["id"])
        found.append(
            origin.answer(
                record, (data["answer1"], data["answer2"]), data["prompt"], columns=columns,
                rater=data.get("rater") or _user(annotation.get("completed_by")) or origin.rater,
                seconds=annotation.get("lead_time"), **answer,
            )
        )  # fmt: skip
    return found or [Dropped("tasks without an annotation")]


def write_argilla(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """A record of the template for rankings: fields ``instruction``, ``response1``, ..., and a response to ``ranking``.

    A ranking without ties is one record; anything else is a record a pair. Argilla's users are UUIDs, so who answered is
    ``metadata.rater``.
    """

    def record(shown: list[int], ranked: list[int] | None) -> Record:
        names = {index: f"response{place}" for place, index in enumerate(shown, start=1)}
        said = {
            "value": None if ranked is None else [names[index] for index in ranked],
            "user_id": str(uuid.uuid5(_RATERS, judgement.rater.encode("utf-8", "backslashreplace").decode())),
            "status": "discarded" if ranked is None else "submitted",
        }
        fields = {"instruction": query.prompt, **{name: query.responses[index] for index, name in names.items()}}
        number = content_id("argilla", judgement.id, shown)
        metadata = {"rater": judgement.rater}
        return {
            "id": number, "fields": fields, "metadata": metadata, "suggestions": {}, "responses": {"ranking": [said]},
            "vectors": {},
        }  # fmt: skip

    every = list(range(len(query.responses)))
    order = [index for group in judgement.ranking or () for index in group]
    if judgement.skipped and len(every) > 1:
        yield record(every, None)
    elif (
        judgement.ranking is not None and all(len(group) == 1 for group in judgement.ranking) and sorted(order) == every
    ):
        yield record(every, order)
    else:
        for chosen, rejected, _, tie in judged_pairs(query, judgement):
            yield Dropped(_TIES) if tie else record(sorted((chosen, rejected)), [chosen, rejected])
        if judgement.skipped:
            yield Dropped("skips")


def read_argilla(record: Mapping[str, Any], origin: Origin) -> list[Answer | Dropped]:
    """An answer for each response to the question ``ranking``, as ``dataset.records.to_list()`` and ``to_json`` give them."""
    fields, metadata = record["fields"], record.get("metadata") or {}
    names = sorted((name for name in fields if name.startswith("response")), key=lambda name: int(name[8:]))
    responses = tuple(fields[name] for name in names)
    columns = {k: v for k, v in metadata.items() if k != "rater"}
    pair = len(responses) == 2
    query = Query(
        prompt=fields["instruction"], responses=responses, form="pair" if pair else "ranking", columns=columns,
        round=origin.round, index=origin.index,
    )  # fmt: skip
    found: list[Answer | Dropped] = []
    for said in (record.get("responses") or {}).get("ranking") or ():
        rater = metadata.get("rater") or _user(said.get("user_id")) or origin.rater
        if said.get("status") == "draft":
            found.append(Dropped("drafts"))
        elif said.get("status") == "discarded" or said.get("value") is None:
            found.append((query, Judgement(query_id=query.id, rater=rater, skipped=True)))
        else:
            # Exports of older versions spell a place as {"value": name}.
            order = [names.index(place["value"] if isinstance(place, Mapping) else place) for place in said["value"]]
            answer: dict[str, Any] = {"choice": order[0]} if pair else {"ranking": tuple((index,) for index in order)}
            found.append((query, Judgement(query_id=query.id, rater=rater, **answer)))
    return found or [Dropped("records without a response to 'ranking'")]


def _region(name: str, to_name: str, kind: str, value: Record) -> Record:
    number = content_id(name, to_name, kind, value)[:10]  # any, as long as it is the only one in its annotation
    return {"id": number, "from_name": name, "to_name": to_name, "type": kind, "value": value}


def _user(given: Any) -> str | None:
    """A signature for a tool's user: its number, never an address."""
    number = given.get("id") if isinstance(given, Mapping) else given
    return None if number is None else f"user-{number}"
