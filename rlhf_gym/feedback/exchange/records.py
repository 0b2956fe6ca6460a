"""One record of each exchange format, to and from a query with its judgement.

Writers yield records, or the reason why something of the answer has no place in the format. Readers return a query and
a judgement, or the reason why the record is no comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from rlhf_gym.feedback.exchange.transcripts import (
    ASSISTANT,
    is_transcript,
    messages_of,
    shared_prompt,
    split_turns,
    transcript,
)
from rlhf_gym.feedback.preferences import demonstration_from, judged_pairs
from rlhf_gym.feedback.queries import Judgement, Query

Record = dict[str, Any]
Answer = tuple[Query, Judgement]


@dataclass(frozen=True)
class Dropped:
    """The reason why something was left out."""

    reason: str


@dataclass(frozen=True)
class Origin:
    """The place, rater and round of a record, where the record does not name them.

    Attributes:
        index: the record's place in its file, from 0.
        rater: signs judgements of records without a rater.
        round: the round that imported queries belong to.
    """

    index: int
    rater: str
    round: int

    def answer(self, record: Mapping[str, Any], responses: tuple[str, str], prompt: str, **fields: Any) -> Answer:
        """A pair query with its judgement.

        Args:
            record: one record of the format.
            responses: the two responses.
            prompt: the prompt of the responses.
            **fields: of the judgement; ``columns`` and ``model_versions`` are the query's.
        """
        columns, versions = fields.pop("columns", {}), fields.pop("model_versions", ())
        query = Query(
            prompt=prompt,
            responses=responses,
            columns=columns,
            model_versions=versions,
            round=self.round,
            index=self.index,
        )
        return query, Judgement(query_id=query.id, rater=fields.pop("rater", self.rater), **fields)


Writer = Callable[[Query, Judgement], Iterator[Record | Dropped]]
Reader = Callable[[Mapping[str, Any], Origin], Answer | Dropped | list[Answer | Dropped]]


def write_native(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """The whole query and judgement.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    asked = {f.name: getattr(query, f.name) for f in fields(query)}
    said = {f.name: getattr(judgement, f.name) for f in fields(judgement)}
    said |= {"created_at": judgement.created_at.isoformat(), "details": dict(judgement.details)}
    yield {"query": asked | {"columns": dict(query.columns)}, "judgement": said}


def read_native(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """The same query and judgement that were written.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    query, judgement = record["query"], record["judgement"]
    created_at = datetime.fromisoformat(judgement["created_at"])
    return Query(**query), Judgement(**{**judgement, "created_at": created_at})


def write_trl_explicit(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """``{prompt, chosen, rejected}``, and ``margin`` where the rater gave one.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    for chosen, rejected, margin in _ordered(query, judgement):
        yield {"prompt": query.prompt, "chosen": chosen, "rejected": rejected, **margin}
    yield from _unordered(query, judgement)


def write_trl_implicit(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """``{chosen, rejected}``, each with the prompt in front.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    for chosen, rejected, margin in _ordered(query, judgement):
        yield {"chosen": query.prompt + chosen, "rejected": query.prompt + rejected, **margin}
    yield from _unordered(query, judgement)


def write_trl_conversational(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """``{prompt, chosen, rejected}``, each a list of messages.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    prompt = messages_of(query)
    for chosen, rejected, margin in _ordered(query, judgement):
        replies = [[{"role": "assistant", "content": reply}] for reply in (chosen, rejected)]
        yield {"prompt": prompt, "chosen": replies[0], "rejected": replies[1], **margin}
    yield from _unordered(query, judgement)


def read_trl(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """Any paired form of TRL: prompt explicit or implicit, texts or messages.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    chosen, rejected, prompt = record["chosen"], record["rejected"], record.get("prompt")
    margin = record.get("margin")
    columns = {k: v for k, v in record.items() if k not in ("prompt", "chosen", "rejected", "margin")}
    if prompt is None:
        prompt, chosen, rejected = shared_prompt(chosen, rejected)
    if not isinstance(chosen, str):
        if len(chosen) != 1 or len(rejected) != 1:
            return Dropped("responses of several messages")
        columns["messages"] = prompt
        chosen, rejected = chosen[0]["content"], rejected[0]["content"]
        prompt = prompt[0]["content"] if len(prompt) == 1 else transcript(prompt)
    # TRL allows a negative margin, a rater's strength does not exist below 0: kept where it cannot mislead.
    strength = {"strength": margin} if margin is not None and margin >= 0 else {}
    details = {"details": {"margin": margin}} if margin is not None and margin < 0 else {}
    return origin.answer(record, (chosen, rejected), prompt, choice=0, columns=columns, **strength, **details)


def write_trl_unpaired(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """``{prompt, completion, label}``: a thumb for one response, or one row for each side of a preference.

    A response that was accepted as it stands is a thumb up.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    if query.query_type == "edit" and demonstration_from(query, judgement) is not None:
        yield {"prompt": query.prompt, "completion": query.responses[0], "label": True}
    if judgement.ratings is not None:
        for response, value in zip(query.responses, judgement.ratings.get("overall", ()), strict=False):
            if value in (0, 1):
                yield {"prompt": query.prompt, "completion": response, "label": bool(value)}
            else:
                yield Dropped("ratings other than 0 (thumb down) and 1 (thumb up)")
        if "overall" not in judgement.ratings:
            yield Dropped("ratings other than 0 (thumb down) and 1 (thumb up)")
        return
    for chosen, rejected, _ in _ordered(query, judgement):
        yield {"prompt": query.prompt, "completion": chosen, "label": True}
        yield {"prompt": query.prompt, "completion": rejected, "label": False}
    yield from _unordered(query, judgement)


def read_trl_unpaired(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """A rating of one response, 1 for a thumb up and 0 for a thumb down.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    columns = {k: v for k, v in record.items() if k not in ("prompt", "completion", "label")}
    query = Query(
        prompt=record["prompt"],
        responses=(record["completion"],),
        query_type="rating",
        columns=columns,
        round=origin.round,
        index=origin.index,
    )
    ratings = {"overall": (float(bool(record["label"])),)}
    return query, Judgement(query_id=query.id, rater=origin.rater, ratings=ratings)


def write_hh(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    r"""``{chosen, rejected}``, whole transcripts with ``\n\nHuman:`` and ``\n\nAssistant:`` before the turns.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    verbatim = is_transcript(query.prompt)
    prompt = query.prompt if verbatim else transcript(messages_of(query))
    for chosen, rejected, _ in _ordered(query, judgement):
        if any(ASSISTANT in reply for reply in (chosen, rejected)):
            yield Dropped("responses that hold a turn of their own")  # they would be split elsewhere when read
            continue
        replies = [reply if verbatim else f" {reply}" for reply in (chosen, rejected)]
        yield {"chosen": prompt + replies[0], "rejected": prompt + replies[1]}
    yield from _unordered(query, judgement)


def read_hh(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """Transcripts, split after the last turn marker; the response is all that follows, its leading space included.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    sides = [split_turns(record[side]) for side in ("chosen", "rejected")]
    if sides[0] is None or sides[1] is None:
        return Dropped("transcripts without an assistant's turn")
    (prompt, chosen), (other, rejected) = sides[0], sides[1]
    if prompt != other:
        return Dropped("pairs whose prompts differ")
    if not chosen.strip() or not rejected.strip():
        return Dropped("pairs with an empty response")
    return origin.answer(record, (chosen, rejected), prompt, choice=0)


def write_alpacafarm(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """``{instruction, input, output_1, output_2, preference}``: 1, 2, 1.5 for a tie, null for a skip.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    instruction, extra = query.columns.get("instruction"), query.columns.get("input", "")
    if instruction is None or _alpaca_prompt(instruction, extra) != query.prompt:
        instruction, extra = query.prompt, ""

    def record(a: int, b: int, preference: float | None) -> Record:
        outputs = {"output_1": query.responses[a], "output_2": query.responses[b]}
        return {
            "instruction": instruction,
            "input": extra,
            **outputs,
            "preference": preference,
            "annotator": judgement.rater,
        }

    if judgement.skipped and query.query_type == "pair":
        yield record(0, 1, None)
        return
    for chosen, rejected, _, tie in judged_pairs(query, judgement):
        a, b = sorted((chosen, rejected))  # never the better one first by rule: position would give the answer away
        preference = 1.5 if tie else 1 if chosen == a else 2
        yield record(a, b, judgement.details.get("preference", preference))
    if judgement.skipped:
        yield Dropped("skips")


def read_alpacafarm(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """Also AlpacaEval's weighted preferences between 1 and 2: the number is kept in ``details``.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    instruction, extra = record["instruction"], record.get("input") or ""
    preference = record.get("preference")
    known = ("output_1", "output_2", "preference", "annotator")
    columns = {"input": extra, **{k: v for k, v in record.items() if k not in known and v is not None}}
    said: dict[str, Any] = {"skipped": True}
    if preference is not None:
        if not 1 <= preference <= 2:
            return Dropped("preferences outside of 1..2")
        said = {"tie": True} if preference == 1.5 else {"choice": 0 if preference < 1.5 else 1}
        if preference not in (1, 1.5, 2):
            said["details"] = {"preference": preference}
    rater = record.get("annotator") or origin.rater
    outputs = (record["output_1"], record["output_2"])
    return origin.answer(record, outputs, _alpaca_prompt(instruction, extra), columns=columns, rater=rater, **said)


def write_openai_summarize(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """``{info, summaries: [{text, policy}] * 2, choice, worker, batch, split, extra}``.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    info = query.columns.get("info", {"post": query.prompt})
    versions = query.model_versions or (None,) * len(query.responses)
    rest = {k: v for k, v in query.columns.items() if k in ("batch", "split")}
    for chosen, rejected, _, tie in judged_pairs(query, judgement):
        if tie:
            continue
        shown = sorted((chosen, rejected))
        summaries = [{"text": query.responses[i], "policy": versions[i]} for i in shown]
        extra = {"extra": judgement.details["extra"]} if "extra" in judgement.details else {}
        yield (
            {"info": info, "summaries": summaries, "choice": shown.index(chosen), "worker": judgement.rater}
            | rest
            | extra
        )
    yield from _unordered(query, judgement)


def read_openai_summarize(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """Comparisons of *Learning to summarize from human feedback* (Stiennon et al. 2020).

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    info, summaries, choice = record["info"], record["summaries"], record["choice"]
    if len(summaries) != 2 or choice not in (0, 1):
        return Dropped("records that do not compare two summaries")
    policies = tuple(str(summary.get("policy") or "") for summary in summaries)
    return origin.answer(
        record,
        (summaries[0]["text"], summaries[1]["text"]),
        info.get("post") or info.get("article") or "",
        choice=choice,
        columns={"info": info, **{k: record[k] for k in ("batch", "split") if k in record}},
        model_versions=policies if any(policies) else (),
        rater=record.get("worker") or origin.rater,
        details={"extra": record["extra"]} if record.get("extra") else {},
    )


def as_pair(query: Query, judgement: Judgement) -> Answer:
    """A corrected response as what most formats can say, the correction better than the original; other answers as they are.

    The two are put in the order of their texts: if the better one were always second, its place would give the answer away.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    demonstration = demonstration_from(query, judgement)
    if demonstration is None or not demonstration.corrects:
        return query, judgement
    original, correction = query.responses[0], demonstration.response
    responses = (original, correction) if original < correction else (correction, original)
    versions = tuple(
        "" if response == correction else version for version in query.model_versions for response in responses
    )
    pair = replace(query, id="", query_type="pair", responses=responses, model_versions=versions)
    details = {name: value for name, value in judgement.details.items() if name != "edited"}
    return pair, replace(
        judgement, query_id=pair.id, choice=responses.index(correction), order_shown=(), details=details
    )


def _ordered(query: Query, judgement: Judgement) -> Iterator[tuple[str, str, Record]]:
    """Chosen, rejected and, where there is one, the margin, of every pair that is not a tie."""
    for chosen, rejected, margin, tie in judged_pairs(query, judgement):
        if not tie:
            yield query.responses[chosen], query.responses[rejected], {} if margin is None else {"margin": margin}


def _unordered(query: Query, judgement: Judgement) -> Iterator[Dropped]:
    """The parts of an answer that formats of chosen and rejected cannot hold."""
    if judgement.skipped:
        yield Dropped("skips")
    for *_, tie in judged_pairs(query, judgement):
        if tie:
            yield Dropped("ties")


def _alpaca_prompt(instruction: str, extra: str) -> str:
    return f"{instruction}\n\n{extra}" if extra else instruction
