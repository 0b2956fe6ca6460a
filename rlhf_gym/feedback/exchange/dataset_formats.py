"""Records of preference data sets: TRL's formats, Anthropic's transcripts, AlpacaFarm, OpenAI's summaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin, Record, left_out, ordered_pairs
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


def write_trl_explicit(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """``{prompt, chosen, rejected}``, and ``margin`` where the rater gave one.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    for chosen, rejected, margin in ordered_pairs(query, judgement):
        yield {"prompt": query.prompt, "chosen": chosen, "rejected": rejected, **margin}
    yield from left_out(query, judgement)


def write_trl_implicit(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """``{chosen, rejected}``, each with the prompt in front.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    for chosen, rejected, margin in ordered_pairs(query, judgement):
        yield {"chosen": query.prompt + chosen, "rejected": query.prompt + rejected, **margin}
    yield from left_out(query, judgement)


def write_trl_conversational(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """``{prompt, chosen, rejected}``, each a list of messages.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    prompt = messages_of(query)
    for chosen, rejected, margin in ordered_pairs(query, judgement):
        replies = [[{"role": "assistant", "content": reply}] for reply in (chosen, rejected)]
        yield {"prompt": prompt, "chosen": replies[0], "rejected": replies[1], **margin}
    yield from left_out(query, judgement)


def read_trl(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """Any paired format of TRL: prompt explicit or implicit, texts or messages.

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
    # TRL allows a negative margin, but a strength is 0 or more: the margin goes to the details.
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
    for chosen, rejected, _ in ordered_pairs(query, judgement):
        yield {"prompt": query.prompt, "completion": chosen, "label": True}
        yield {"prompt": query.prompt, "completion": rejected, "label": False}
    yield from left_out(query, judgement)


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
    for chosen, rejected, _ in ordered_pairs(query, judgement):
        if any(ASSISTANT in reply for reply in (chosen, rejected)):
            yield Dropped("responses that hold a turn of their own")  # they would be split elsewhere when read
            continue
        replies = [reply if verbatim else f" {reply}" for reply in (chosen, rejected)]
        yield {"chosen": prompt + replies[0], "rejected": prompt + replies[1]}
    yield from left_out(query, judgement)


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
    yield from left_out(query, judgement)


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


def _alpaca_prompt(instruction: str, extra: str) -> str:
    return f"{instruction}\n\n{extra}" if extra else instruction
