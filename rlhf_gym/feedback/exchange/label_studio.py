"""Tasks of Label Studio: its exports as JSON and as JSON-MIN, comparisons of two texts, rankings of a list, ratings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rlhf_gym.feedback.exchange.dataset_formats import number, truth
from rlhf_gym.feedback.exchange.pairs import answer_of, choice_column, pair_columns, response_column
from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin, Record, user_name
from rlhf_gym.feedback.exchange.sides import prompt_column, prompt_of, spelled
from rlhf_gym.feedback.preferences import judged_pairs
from rlhf_gym.feedback.queries import Judgement, Query, content_id

_ANNOTATION = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")
_NO_COMPARISON = Dropped("annotations without a comparison")
_NO_RATING = Dropped("annotations without a rating or a choice of good or bad")
_UP = {
    "good", "up", "thumbs up", "thumb up", "like", "liked", "positive", "accept", "accepted", "acceptable", "approve",
    "correct", "helpful", "pass", "useful",
}  # fmt: skip
_DOWN = {
    "bad", "down", "thumbs down", "thumb down", "dislike", "disliked", "negative", "reject", "rejected", "unacceptable",
    "incorrect", "wrong", "unhelpful", "not helpful", "fail", "useless",
}  # fmt: skip
_RATES = ("rating", "score", "quality", "thumb", "thumbs", "verdict")
_LEADING = re.compile(r"\s*(\d+(?:[.,]\d+)?)(?![\w.,])")
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
    ``question``, ...); a ``Ranker`` orders the items of a list. Of one text (``response``, ``answer``, ...) a ``Rating``, a
    ``Number`` and ``Choices`` are ratings, each in the attribute that the control is called by; so are those of two texts,
    where the control is ``toName`` of one of them. A choice is its number, or 1 for good (yes, up, accept, ...) and 0 for bad.

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
    regions = annotation.get("result") or ()
    values = {region["type"]: region.get("value") or {} for region in regions}
    asked, pair = prompt_column(data), pair_columns(data)
    if asked is None:
        raise KeyError("prompt")
    if rated := _rated(data, asked, values.keys()):
        columns = {k: v for k, v in data.items() if k not in (asked, "rater", *rated)}
        ratings = {"skipped": True} if annotation.get("was_cancelled") else _ratings(regions, rated)
        if ratings is None:
            return _NO_RATING
        responses = [data[name] for name in rated]
        return origin.answer(prompt_of(data[asked]), responses, query_type="rating", columns=columns, **ratings, **said)
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


def _rated(data: Mapping[str, Any], asked: str, kinds: Collection[str]) -> tuple[str, ...]:
    """The names of the responses that an annotation rates; none where it compares them.

    Args:
        data: the task's texts.
        asked: the name of the prompt.
        kinds: the types of the annotation's regions.
    """
    pair = pair_columns(data)
    if pair is not None:
        compares = any(kind in kinds for kind in ("pairwise", "ranker", "choices"))
        return () if compares or not ("rating" in kinds or "number" in kinds) else pair[:2]
    one = None if "ranker" in kinds else response_column(data, asked)
    return () if one is None else (one,)


def _ratings(regions: Sequence[Mapping[str, Any]], responses: Sequence[str]) -> dict[str, Any] | None:
    """The values that controls give to responses, by the controls' names; None without any.

    Args:
        regions: of one annotation.
        responses: the names of the responses' fields.
    """
    ratings: dict[str, list[float | None]] = {}
    for region in regions:
        to_name = region.get("to_name")
        place = 0 if len(responses) == 1 else responses.index(to_name) if to_name in responses else None
        value = _value(region)
        if place is not None and value is not None:
            attribute = str(region.get("from_name") or "overall")
            attribute = attribute if len(responses) == 1 else attribute.removesuffix(f"_{to_name}")
            ratings.setdefault(attribute, [None] * len(responses))[place] = value
    return {"ratings": {name: tuple(values) for name, values in ratings.items()}} if ratings else None


def _value(region: Mapping[str, Any]) -> float | None:
    """The number that a control's answer says; None where it says none."""
    kind, value = region["type"], region.get("value") or {}
    if kind in ("rating", "number"):
        return number(value.get(kind))
    chosen = value.get("choices") if kind == "choices" else None
    if not chosen or not isinstance(chosen, str | list):
        return None
    words = str(chosen if isinstance(chosen, str) else chosen[0]).strip()
    plain, leading = words.casefold().replace("_", " ").replace("-", " "), _LEADING.match(words)
    if leading:
        return number(leading[1].replace(",", "."))
    if plain in _UP or plain in _DOWN:
        return float(plain in _UP)
    said = truth(words)
    return None if said is None else float(said)


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
        elif isinstance(one, Mapping) and one.keys() & {"rating", "number"}:
            kind = "rating" if "rating" in one else "number"
            result.append({"type": kind, "from_name": name, "value": one})
        elif isinstance(one, str | int | float) and (name == choice_column(record) or name.casefold() in _RATES):
            result.append({"type": "choices", "from_name": name, "value": {"choices": [str(one)]}})
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
