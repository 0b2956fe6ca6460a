"""Tasks of Label Studio: its exports as JSON and as JSON-MIN, comparisons of two texts and rankings of a list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from rlhf_gym.feedback.exchange.dataset_formats import number
from rlhf_gym.feedback.exchange.pairs import answer_of, pair_columns
from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin, Record, user_name
from rlhf_gym.feedback.exchange.sides import prompt_column, prompt_of, spelled
from rlhf_gym.feedback.preferences import judged_pairs
from rlhf_gym.feedback.queries import Judgement, Query, content_id

_ANNOTATION = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")
_NO_COMPARISON = Dropped("annotations without a comparison")
_NO_CHOICE = Dropped("comparisons in which nothing was selected")


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
            Dropped("ties")
            if tie
            else task(a, b, [_region("comparison", "comparison", "pairwise", {"selected": side})])
        )
    if judgement.skipped:
        yield Dropped("skips")


def read_label_studio(record: Mapping[str, Any], origin: Origin) -> list[Answer | Dropped]:
    """An answer for each annotation of a task, as Label Studio exports them (JSON, JSON-MIN).

    The two texts and the prompt are found by their names (``answer1``, ``text1``, ``response_a``, ...; ``prompt``,
    ``question``, ...); a ``Ranker`` orders the items of a list.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.

    Raises:
        KeyError: the task has no prompt, or nothing to compare; it names the missing field.
    """
    if "data" not in record:
        record = _whole(record)
    data = record["data"]
    annotations = record.get("annotations") or record.get("completions") or ()
    found: list[Answer | Dropped] = []
    for annotation in annotations:
        # Where others have annotated our task since, Label Studio tells who each is; it signs ours with whoever imported it.
        ours = "rater" in data and (len(annotations) == 1 or annotation.get("completed_by") is None)
        rater = data["rater"] if ours else user_name(annotation.get("completed_by"))
        said: dict[str, Any] = {"rater": rater, "seconds": number(annotation.get("lead_time"))}
        said["reason"] = "\n".join(
            text for region in annotation.get("result") or () if region["type"] == "textarea" for text in _texts(region)
        )
        if annotation.get("created_at"):
            said["created_at"] = datetime.fromisoformat(annotation["created_at"])
        found.append(_answer(data, annotation, said, origin))
    return found or [Dropped("tasks without an annotation")]


def _answer(
    data: Mapping[str, Any], annotation: Mapping[str, Any], said: dict[str, Any], origin: Origin
) -> Answer | Dropped:
    values = {region["type"]: region.get("value") or {} for region in annotation.get("result") or ()}
    asked, pair = prompt_column(data), pair_columns(data)
    if asked is None:
        raise KeyError("prompt")
    columns = {k: v for k, v in data.items() if k not in (asked, "rater", *(pair[:2] if pair else ()))}
    if "ranker" in values:
        items = next((v for v in data.values() if isinstance(v, list) and v and isinstance(v[0], Mapping)), [])
        texts = {str(item.get("id")): _text(item) for item in items}
        order = _order(values["ranker"].get("ranker"))
        if order is None:
            return Dropped("rankings in several buckets, whose order the export does not tell")
        places = [list(texts).index(str(one)) for one in order if str(one) in texts]
        columns = {k: v for k, v in columns.items() if v is not items}
        if len(places) < 2:
            return _NO_CHOICE
        ranking = tuple((place,) for place in places)
        return origin.answer(
            prompt_of(data[asked]), list(texts.values()), query_type="ranking", ranking=ranking, columns=columns, **said
        )
    if pair is None:
        raise KeyError("answer1")
    one, other, suffixes = pair
    if annotation.get("was_cancelled"):
        answer: dict[str, Any] | None = {"skipped": True}
    elif "pairwise" in values:
        sides = {"left": 0, "right": 1}
        selected = values["pairwise"].get("selected")
        answer = {"choice": sides[selected]} if selected in sides else None
    elif values.get("choices", {}).get("choices"):
        shown = [str(data[one]), str(data[other])]
        answer = answer_of(values["choices"]["choices"][0], (one, other), suffixes, data, shown)
    else:
        return _NO_COMPARISON
    if answer is None:
        return _NO_CHOICE
    return origin.answer(prompt_of(data[asked]), (data[one], data[other]), columns=columns, **answer, **said)


def _whole(record: Mapping[str, Any]) -> Record:
    """The task with one annotation that a record of JSON-MIN, where both are flat, was made from."""
    annotation: Record = {name: record[name] for name in ("created_at", "lead_time") if record.get(name) is not None}
    result, data = [], {}
    for name, value in record.items():
        if isinstance(value, str) and value.startswith(("{", "[{")):  # in a CSV file
            value = value if (told := spelled(value)) is None else told
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        if (isinstance(one, Mapping) and "selected" in one) or one in ("left", "right"):
            selected = one if isinstance(one, str) else one["selected"]
            result.append({"type": "pairwise", "value": {"selected": selected}})
        elif isinstance(one, Mapping) and "ranker" in one:
            result.append({"type": "ranker", "value": one})
        elif isinstance(one, Mapping) and one and all(isinstance(order, list) for order in one.values()):
            result.append({"type": "ranker", "value": {"ranker": one}})
        elif name not in _ANNOTATION:
            data[name] = value
    annotation |= {"completed_by": record.get("annotator"), "result": result}
    return {"id": record.get("id"), "data": data, "annotations": [annotation]}


def _order(ranker: Any) -> list[Any] | None:
    """The ids of a ranking, best first; None where they are in several buckets."""
    if isinstance(ranker, Mapping):
        buckets = [order for name, order in ranker.items() if name != "_" or len(ranker) == 1]
        return buckets[0] if len(buckets) == 1 else None
    return ranker if isinstance(ranker, list) else []


def _text(item: Mapping[str, Any]) -> Any:
    return next((item[name] for name in ("body", "text", "content", "html", "title") if item.get(name)), None)


def _texts(region: Mapping[str, Any]) -> list[str]:
    text = (region.get("value") or {}).get("text") or []
    return [text] if isinstance(text, str) else text


def _region(name: str, to_name: str, kind: str, value: Record) -> Record:
    number = content_id(name, to_name, kind, value)[:10]  # any, as long as it is the only one in its annotation
    return {"id": number, "from_name": name, "to_name": to_name, "type": kind, "value": value}
