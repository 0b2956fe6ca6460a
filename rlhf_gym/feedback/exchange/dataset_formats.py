"""Records of preference data sets: TRL's formats, Anthropic's transcripts, AlpacaFarm, OpenAI's summaries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin, Record, left_out, ordered_pairs
from rlhf_gym.feedback.exchange.sides import (
    NoTextError,
    compared,
    prompt_column,
    prompt_of,
    side_of,
    spelled_messages,
    text_of,
    transcripts,
)
from rlhf_gym.feedback.exchange.transcripts import ASSISTANT, is_talk, is_transcript, messages_of, transcript
from rlhf_gym.feedback.preferences import demonstration_from, judged_pairs
from rlhf_gym.feedback.queries import Judgement, Query

_MODELS = ("chosen_model", "rejected_model"), ("chosen-model", "rejected-model")
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
)
_TRUE = {"true": True, "1": True, "1.0": True, "yes": True, "good": True, "false": False, "0": False, "0.0": False}
_TRUE |= {"no": False, "bad": False, "desirable": True, "undesirable": False}


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
    """Any paired format of TRL: prompt explicit, repeated or implicit, texts or messages.

    A prompt of another known name (``question``, ``input``, ...) is one; a column ``system`` stands before it. A difference of
    ``score_chosen`` and ``score_rejected`` (binarised UltraFeedback) is the strength, where there is no margin.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.

    Raises:
        NoTextError: there are no two texts to compare, or the prompt is null and the texts do not imply one.
    """
    asked = prompt_column(record)
    given, system = None if asked is None else record[asked], record.get("system")
    talk = not isinstance(given, str) or is_transcript(given) or spelled_messages(given) is not None
    if not talk and isinstance(system, str) and system.strip() and isinstance(record["chosen"], str):
        given = [{"role": "system", "content": system}, {"role": "user", "content": given}]
    prompt, chosen, rejected = compared(given, record["chosen"], record["rejected"])
    if record.get("prompt", "") is None and not prompt.text:
        raise NoTextError("rows in which 'prompt' is no text but null, and both responses begin with none")
    margin = number(record.get("margin"))
    models = next((names for names in _MODELS if all(isinstance(record.get(name), str) for name in names)), ())
    used = (asked, "chosen", "rejected", "margin", "rater", *models)
    columns = {k: v for k, v in record.items() if k not in used}
    beside = columns.get("messages")
    if not is_talk(beside) or beside[-1]["role"] == "assistant":  # a conversation with its response is not the prompt's
        columns.pop("messages", None)
    pairs = ([number(record.get(name)) for name in names] for names in _SCORES)
    scores = next((pair for pair in pairs if None not in pair), [None, None])
    said: dict[str, Any] = {}
    if margin is None and scores[0] is not None and scores[1] is not None and scores[0] >= scores[1]:
        said["strength"] = scores[0] - scores[1]
    if margin is not None:
        # TRL allows a negative margin, but a strength is 0 or more: the margin goes to the details.
        said |= {"strength": margin} if margin >= 0 else {"details": {"margin": margin}}
    wrote = [str(record[name]) for name in models]
    return origin.preferred(prompt, chosen, [rejected], wrote, columns=columns, rater=record.get("rater"), **said)


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
    columns = {k: v for k, v in record.items() if k not in ("prompt", "completion", "label", "rater")}
    return thumb(record["prompt"], record["completion"], record["label"], record, columns, origin)


def thumb(
    prompt: Any, response: Any, label: Any, record: Mapping[str, Any], columns: Mapping[str, Any], origin: Origin
) -> Answer | Dropped:
    """A thumb up or down for one response, given as a text or as messages that end with it.

    Args:
        prompt: the prompt; None where the messages begin with it.
        response: the response.
        label: true or false, as the file spells it.
        record: one record of the format.
        columns: the query's other columns.
        origin: the record's place, rater and round, where it does not name them.
    """
    up = truth(label)
    if up is None:
        return Dropped("labels that are neither true nor false")
    said = side_of(response, "completion")
    if not isinstance(said, str):
        before = [] if prompt is None else said[:-1]
        if before or said[-1]["role"] != "assistant":
            return Dropped("responses of several messages" if before else "responses that are not the assistant's")
        prompt, said = said[:-1] if prompt is None else prompt, said[-1]["content"]
    ratings = {"overall": (float(up),)}
    fields = {"query_type": "rating", "columns": columns, "rater": record.get("rater")}
    return origin.answer(prompt_of(prompt), (said,), ratings=ratings, **fields)


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
    prompt, chosen, rejected = transcripts(record["chosen"], record["rejected"])
    columns = {k: v for k, v in record.items() if k not in ("chosen", "rejected", "rater")}
    return origin.preferred(prompt, chosen, [rejected], columns=columns, rater=record.get("rater"))


def write_alpacafarm(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """``{instruction, input, output_1, output_2, preference}``: 1, 2, 1.5 for a tie, null for a skip.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    instruction, extra = query.columns.get("instruction"), query.columns.get("input", "")
    if instruction is None or alpaca_prompt(instruction, extra) != query.prompt:
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
    """Also AlpacaEval's weighted preferences between 1 and 2, and 0 for a tie: the number is kept in ``details``.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    instruction, extra = record["instruction"], record.get("input") or ""
    preference = number(record.get("preference"))
    known = ("output_1", "output_2", "preference", "annotator")
    columns = {"input": extra, **{k: v for k, v in record.items() if k not in known and v is not None}}
    said: dict[str, Any] = {"skipped": True}
    if preference is not None:
        if preference != 0 and not 1 <= preference <= 2:
            return Dropped("preferences that are neither 0 nor within 1..2")
        said = {"tie": True} if preference in (0, 1.5) else {"choice": 0 if preference < 1.5 else 1}
        if preference not in (1, 1.5, 2):
            said["details"] = {"preference": preference}
    prompt = alpaca_prompt(text_of(instruction, "'instruction'"), text_of(extra, "'input'"))
    outputs = (record["output_1"], record["output_2"])
    return origin.answer(prompt, outputs, columns=columns, rater=record.get("annotator"), **said)


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
        summary_prompt(info),
        (summaries[0]["text"], summaries[1]["text"]),
        choice=choice,
        columns={"info": info, **{k: record[k] for k in ("batch", "split") if k in record}},
        model_versions=policies if any(policies) else (),
        rater=record.get("worker"),
        details={"extra": record["extra"]} if record.get("extra") else {},
    )


def summary_prompt(info: Mapping[str, Any]) -> str:
    """The text that was to be summarised."""
    return text_of(info.get("post") or info.get("article") or "", "the post")


def truth(value: Any) -> bool | None:
    """True or false, also where a table spells it; None for anything else."""
    return _TRUE.get(str(value).strip().casefold())


def number(value: Any) -> float | None:
    """A number, also where a table spells it; None for what is none, and for NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def alpaca_prompt(instruction: str, extra: str) -> str:
    """An instruction and its input, as one prompt.

    Args:
        instruction: the instruction.
        extra: its input; may be empty.
    """
    return f"{instruction}\n\n{extra}" if extra else instruction
