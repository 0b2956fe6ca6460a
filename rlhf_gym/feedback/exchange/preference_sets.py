"""Records of public preference data sets that have a shape of their own; they are read, not written.

UltraFeedback, PKU-SafeRLHF, Stanford Human Preferences, Chatbot Arena, HelpSteer 2 and 3, Nectar, WebGPT, RewardBench 2, the
axes of OpenAI's summaries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rlhf_gym.feedback.exchange.dataset_formats import number, summary_prompt
from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin
from rlhf_gym.feedback.exchange.sides import NoTextError, Prompt, messages_in, prompt_of, spelled, text_of
from rlhf_gym.feedback.exchange.transcripts import is_transcript

_HELPSTEER = ("helpfulness", "correctness", "coherence")
_HELPSTEER_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")


def _rest(record: Mapping[str, Any], *used: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in used}


def read_ultrafeedback(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """UltraFeedback (Cui et al. 2023) with its scores: a rating of all completions in each aspect.

    ``overall_score`` and ``fine-grained_score`` stay with the query: the former is known to be wrong where it is 10.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    completions = record["completions"]
    if not completions:
        return Dropped("rows without a completion")
    aspects = dict.fromkeys(name for one in completions for name in one.get("annotations") or ())
    ratings: dict[str, tuple[float | None, ...]] = {}
    for aspect in aspects:
        values = [(one.get("annotations") or {}).get(aspect) for one in completions]
        ratings[aspect] = tuple(number(v.get("Rating") if isinstance(v, Mapping) else v) for v in values)
    if not any(value is not None for values in ratings.values() for value in values):
        ratings = {"overall": tuple(number(one.get("overall_score")) for one in completions)}
    if not any(value is not None for values in ratings.values() for value in values):
        return Dropped("rows without a rating")
    ratings = {name: values for name, values in ratings.items() if any(value is not None for value in values)}
    scores = {name: [one.get(name) for one in completions] for name in ("overall_score", "fine-grained_score")}
    return origin.answer(
        prompt_of(record["instruction"], "instruction"), [one["response"] for one in completions], query_type="rating",
        ratings=ratings, columns=_rest(record, "instruction", "completions", "models") | scores,
        model_versions=[str(one.get("model") or "") for one in completions],
    )  # fmt: skip


def read_pku(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """PKU-SafeRLHF (Ji et al. 2023): ``better_response_id`` is the choice; ``safer_response_id`` stays with the query.

    To learn from the safer one, import with ``--columns better_response_id=safer_response_id``.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    choice = number(record["better_response_id"])
    if choice not in (0, 1):
        return Dropped("rows without a choice")
    columns = _rest(record, "prompt", "response_0", "response_1", "better_response_id")
    responses = (record["response_0"], record["response_1"])
    return origin.answer(prompt_of(record["prompt"]), responses, choice=int(choice), columns=columns)


def read_shp(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """Stanford Human Preferences (Ethayarajh et al. 2022): ``labels`` 1 where comment A has more votes, 0 where B has.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    label = number(record["labels"])
    if label not in (0, 1):
        return Dropped("rows without a label")
    columns = _rest(record, "history", "human_ref_A", "human_ref_B", "labels")
    responses = (record["human_ref_A"], record["human_ref_B"])
    return origin.answer(prompt_of(record["history"], "history"), responses, choice=1 - int(label), columns=columns)


def read_arena(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """Chatbot Arena (Zheng et al. 2023): conversations with a winner (JSON), or texts and three columns of 0 and 1 (CSV).

    Conversations of several turns go apart after the first answer, and compare no two responses.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    if "conversation_a" in record:
        prompt, responses = _conversations(record["conversation_a"], record["conversation_b"])
        winner = str(record.get("winner"))
        used: tuple[str, ...] = ("conversation_a", "conversation_b", "winner", "judge", "full_conversation")
    else:
        turns = [_turns(record[name]) for name in ("prompt", "response_a", "response_b")]
        prompt, responses = Prompt(turns[0][0], {}), (turns[1][0], turns[2][0])
        if any(len(said) > 1 for said in turns):
            return Dropped("conversations of several turns, whose answers reply to different things")
        flags = {name: number(record.get(f"winner_{name}")) for name in ("model_a", "model_b", "tie")}
        winner = next((name for name, flag in flags.items() if flag == 1), "")
        used = ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie")
    said: dict[str, Any] = {"choice": int(winner == "model_b")}
    if winner.startswith("tie") or winner in ("both_bad", "bothbad"):
        said = {"tie": True} | ({"details": {"both_bad": True}} if "bad" in winner else {})
    elif winner not in ("model_a", "model_b"):
        return Dropped("rows without a winner")
    models = (str(record.get("model_a") or ""), str(record.get("model_b") or ""))
    return origin.answer(
        prompt, responses, columns=_rest(record, *used, "model_a", "model_b"), rater=record.get("judge"),
        model_versions=models if any(models) else (), **said,
    )  # fmt: skip


def _conversations(one: Any, other: Any) -> tuple[Prompt, tuple[str, str]]:
    first, second = messages_in(one), messages_in(other)
    if first[:-1] != second[:-1] or not first or first[-1]["role"] != "assistant":
        raise NoTextError("conversations of several turns, whose answers reply to different things")
    asked = first[:-1]
    return prompt_of(asked), (first[-1]["content"], second[-1]["content"])


def _turns(value: Any) -> list[str]:
    """The turns that a field of the CSV file spells as a JSON list; any other text is one turn."""
    found = spelled(value) if isinstance(value, str) and value.startswith("[") else value
    if found == []:
        raise NoTextError("conversations without a turn")
    return [text_of(turn, "a turn") for turn in (found if isinstance(found, list) else [value])]


def read_helpsteer(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """HelpSteer 2 (Wang et al. 2024): the rows of a prompt, one below the other, are one rating of all its responses.

    A prompt of several turns has ``<extra_id_1>User`` and ``<extra_id_1>Assistant`` between them, and becomes messages.
    The query's ratings are those that say good or bad; ``complexity`` and ``verbosity`` stay with it as columns.

    Args:
        record: the rows of one prompt, as ``rows``.
        origin: the record's place, rater and round, where it does not name them.
    """
    rows = record["rows"]
    ratings = {name: tuple(number(row.get(name)) for row in rows) for name in _HELPSTEER if name in rows[0]}
    others = [name for name in rows[0] if name not in ("prompt", "response", *_HELPSTEER)]
    columns = {name: [row.get(name) for row in rows] for name in others}
    responses = [row["response"] for row in rows]
    if not any(value is not None for values in ratings.values() for value in values):
        return Dropped("prompts without a rating that is a number")
    prompt = _helpsteer_prompt(rows[0]["prompt"])
    return origin.answer(prompt, responses, query_type="rating", ratings=ratings, columns=columns)


def _helpsteer_prompt(value: Any) -> Prompt:
    parts = _HELPSTEER_TURN.split(value) if isinstance(value, str) else []
    if len(parts) < 3:
        return prompt_of(value)
    said = [("User", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]
    return prompt_of([{"role": role.casefold(), "content": text} for role, text in said])


def read_helpsteer_preference(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """Preferences of HelpSteer 2 and 3 (Wang et al. 2025): from -3, the first is much better, to 3, the second is; 0 is a tie.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    second = "overall_preference" in record
    strength = number(record["overall_preference" if second else "preference_strength"])
    prompt = prompt_of(record["context"], "context") if "context" in record else _helpsteer_prompt(record["prompt"])
    names = ("response1", "response2") if "response1" in record else ("response_1", "response_2")
    if strength is None or not -3 <= strength <= 3:  # 100 and -100 mean that nobody could say
        return Dropped("rows without a preference")
    said: dict[str, Any] = {"tie": True} if strength == 0 else {"choice": int(strength > 0), "strength": abs(strength)}
    columns = _rest(record, "prompt", "context", *names, "overall_preference", "preference_strength")
    return origin.answer(prompt, [record[name] for name in names], columns=columns, **said)


def read_nectar(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """Nectar (Zhu et al. 2023): answers with their ranks, 1 the best; equal ranks are ties.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    answers, prompt = record["answers"], record["prompt"]
    if isinstance(prompt, str) and is_transcript(prompt.rstrip()):  # a space after it is the beginning of no answer
        prompt = prompt.rstrip()
    return ranked(
        prompt_of(prompt), [one["answer"] for one in answers], [one.get("rank") for one in answers], origin,
        columns=_rest(record, "prompt", "answers", "num_responses"),
        model_versions=[str(one.get("model") or "") for one in answers],
    )  # fmt: skip


def ranked(
    prompt: Prompt, responses: Sequence[Any], ranks: Sequence[Any], origin: Origin, **fields: Any
) -> Answer | Dropped:
    """Responses with ranks, the smallest first, as one answer; a response without a rank was not judged.

    Args:
        prompt: the prompt of the responses.
        responses: the responses.
        ranks: a number for each; None where there is none.
        origin: the record's place, rater and round, where it does not name them.
        **fields: as for :meth:`Origin.answer`.
    """
    placed = sorted((rank, i) for i, rank in enumerate(map(number, ranks)) if rank is not None)
    if len(placed) < 2:
        return Dropped("prompts with fewer than two ranked responses")
    groups = [tuple(i for _, i in group) for _, group in groupby(placed, key=lambda pair: pair[0])]
    return origin.answer(prompt, responses, query_type="ranking", ranking=tuple(groups), **fields)


def read_webgpt(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """Comparisons of WebGPT (Nakano et al. 2021): two scores from -1 to 1; equal ones are a tie.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    scores = [number(record[f"score_{i}"]) for i in (0, 1)]
    if scores[0] is None or scores[1] is None:
        return Dropped("rows without scores")
    question = record["question"]
    prompt = question["full_text"] if isinstance(question, Mapping) else question
    gap = scores[0] - scores[1]
    said: dict[str, Any] = {"tie": True} if gap == 0 else {"choice": int(gap < 0), "strength": abs(gap)}
    used = [f"{name}_{i}" for name in ("answer", "score", "tokens", "quotes") for i in (0, 1)]
    responses = (record["answer_0"], record["answer_1"])
    return origin.answer(prompt_of(prompt, "question"), responses, columns=_rest(record, "question", *used), **said)


def read_rewardbench(record: Mapping[str, Any], origin: Origin) -> list[Answer | Dropped]:
    """RewardBench 2 (Malik et al. 2025): each right response is better than all wrong ones.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    chosen, rejected = record["chosen"], record["rejected"]
    if not chosen or not rejected:
        return [Dropped("rows without a right or without a wrong response")]
    columns = _rest(record, "prompt", "chosen", "rejected")
    prompt = prompt_of(record["prompt"])
    return [origin.preferred(prompt, better, rejected, columns=columns) for better in chosen]


def read_summary_axes(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """Axes of *Learning to summarize from human feedback*: a worker's ratings of the summaries of one post.

    Args:
        record: the rows of one post and worker that stand one below the other, as ``rows``.
        origin: the record's place, rater and round, where it does not name them.
    """
    rows = record["rows"]
    summaries = [row["summary"] for row in rows]
    names = dict.fromkeys(name for summary in summaries for name in summary.get("axes") or ())
    ratings = {name: tuple(number((s.get("axes") or {}).get(name)) for s in summaries) for name in names}
    ratings = {name: values for name, values in ratings.items() if any(value is not None for value in values)}
    if not ratings:
        return Dropped("rows without a rating")
    first = rows[0]
    columns = {name: first[name] for name in ("info", "batch", "split") if name in first}
    return origin.answer(
        summary_prompt(first["info"]), [summary["text"] for summary in summaries], query_type="rating", ratings=ratings,
        columns=columns, rater=first.get("worker"), model_versions=[str(s.get("policy") or "") for s in summaries],
    )  # fmt: skip
