"""Every format, every form of answer, hostile texts: no answer goes without a word, and what a format keeps comes back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhf_gym.feedback import Judgement, Query, preferences_from
from rlhf_gym.feedback.exchange.formats import WRITTEN, to_records
from rlhf_gym.feedback.exchange.incoming import Imported, from_records
from rlhf_gym.feedback.exchange.transcripts import ASSISTANT, is_transcript

Answer = tuple[Query, Judgement]

# Of the halves of characters only second ones: a first one before a second one is a whole character in JSON.
PIECES = st.sampled_from(
    ["\udc00", "\udfff", "\u2028", "\x85", "\x00", "\r\n", ASSISTANT, "\n\nHuman:", "<b>", "\u202e", "\x1b[2J", "x" * 100_000]
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=12), PIECES, st.tuples(st.text(max_size=4), PIECES, st.text(max_size=4)).map("".join)
)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    form = draw(st.sampled_from(["pair", "ranking", "rating", "best", "thumbs", "edit"]))
    k = {"pair": 2, "thumbs": 1, "edit": 1}.get(form) or draw(st.integers(1 if form == "rating" else 2, 4))
    query = Query(
        prompt=draw(TEXTS), responses=tuple(draw(st.lists(TEXTS, min_size=k, max_size=k))), query_type=form,
        index=draw(st.integers(0, 9)),
        model_versions=draw(st.sampled_from([(), ("m",) * k])), columns=draw(st.sampled_from([{}, {"source": "\ud800"}])),
    )  # fmt: skip
    said: dict[str, Any] = {"skipped": True}
    if draw(st.integers(0, 5)):
        order = draw(st.permutations(range(k)))
        said = draw(
            st.sampled_from(
                {
                    "pair": [{"choice": order[0]}, {"choice": order[0], "strength": 2.0}, {"tie": True}],
                    "ranking": [
                        {"ranking": tuple((i,) for i in order)},
                        {"ranking": (order[:1], order[1:])},
                        {"ranking": (order[:1],)},
                    ],
                    "rating": [
                        {"ratings": {"helpful": order, "honest": order[::-1]}},
                        {"ratings": {"overall": (0.5, *order[1:])}},
                        {"ratings": {"a": (None, *order[1:])}},
                    ],
                    "best": [{"choice": order[0]}],
                    "thumbs": [{"ratings": {"overall": (1,)}}, {"ratings": {"overall": (0,)}}],
                    "edit": [
                        {"choice": 0},
                        {"choice": 0, "details": {"edited": draw(TEXTS)}},
                        {"choice": 0, "details": {"edited": True}},
                    ],
                }[form]
            )
        )
    return query, Judgement(query_id=query.id, rater="ann", reason=draw(TEXTS), seconds=1.5, **said)


def there_and_back(given: list[Answer], name: str) -> tuple[Imported, dict[str, int]]:
    records, dropped = to_records(given, name)
    return from_records(json.loads(json.dumps(records)), name), dropped


def compared(given: Iterator[Answer]) -> Iterator[tuple[str, str, str, bool]]:
    """Prompt, better and worse response, or both in one order where they are equal."""
    for query, judgement in given:
        for p in preferences_from(query, judgement):
            first, second = sorted((p.chosen, p.rejected)) if p.tie else (p.chosen, p.rejected)
            yield p.prompt, first, second, p.tie


def said_in(name: str, prompt: str, chosen: str, rejected: str) -> tuple[str, ...]:
    """The part that is the same before and after, of a format that puts prompt and response together."""
    if name == "trl-implicit":
        return prompt + chosen, prompt + rejected
    if name == "hh" and not is_transcript(prompt):
        return f"\n\nHuman: {prompt}{ASSISTANT}", f" {chosen}", f" {rejected}"
    return prompt, chosen, rejected


# Both responses begin as the prompt ends, but do not repeat a conversation.
_ONLY_MARKERS = Query(prompt=ASSISTANT, responses=(ASSISTANT, ASSISTANT + "a"), query_type="pair")


@pytest.mark.parametrize("name", [name for name in WRITTEN if name not in ("native", "trl-unpaired")])
@example(given=[(_ONLY_MARKERS, Judgement(query_id=_ONLY_MARKERS.id, rater="ann", choice=0))])
@given(given=st.lists(answers(), max_size=4))
@settings(max_examples=80, deadline=None)
def test_comparisons_come_back(name: str, given: list[Answer]) -> None:
    found, dropped = there_and_back(given, name)
    back = zip(found.queries, found.judgements, strict=True)
    ours, theirs = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    ties = 0
    for prompt, chosen, rejected, tie in compared(iter(given)):
        if name == "hh" and not tie:
            if ASSISTANT in chosen or ASSISTANT in rejected:
                continue  # counted when written
            if not chosen.strip() or not rejected.strip():
                continue  # counted when read
        if tie and name != "alpacafarm":
            ties += 1
        else:
            ours[(str(tie), *said_in(name, prompt, chosen, rejected))] += 1
    for prompt, chosen, rejected, tie in compared(back):
        if tie and name != "alpacafarm":
            ties -= 1  # Argilla keeps ratings, and with them their ties
        else:
            same = (prompt + chosen, prompt + rejected) if name == "trl-implicit" else (prompt, chosen, rejected)
            theirs[(str(tie), *same)] += 1
    assert theirs == ours
    assert dropped.get("ties", 0) == ties
    skipped = [query.query_type for query, judgement in given if judgement.skipped]
    kept = sum(j.skipped for j in found.judgements)
    assert kept + dropped.get("skips", 0) == len(skipped)
    assert kept == {
        "argilla": len(skipped),
        "alpacafarm": skipped.count("pair"),
        "label-studio": skipped.count("pair"),
    }.get(name, 0)


@given(given=st.lists(answers(), max_size=4))
@settings(max_examples=80, deadline=None)
def test_native_comes_back(given: list[Answer]) -> None:
    found, dropped = there_and_back(given, "native")
    assert list(zip(found.queries, found.judgements, strict=True)) == given
    assert not dropped


@given(given=st.lists(answers(), max_size=4))
@settings(max_examples=80, deadline=None)
def test_thumbs_come_back(given: list[Answer]) -> None:
    found, _ = there_and_back(given, "trl-unpaired")
    thumbs = Counter(
        (q.prompt, q.responses[0], j.ratings["overall"][0])
        for q, j in zip(found.queries, found.judgements, strict=True)
        if j.ratings is not None
    )
    ours = Counter[tuple[str, str, float | None]]()
    for query, judgement in given:
        if judgement.ratings is not None:
            values = judgement.ratings.get("overall", ())
            ours.update((query.prompt, r, v) for r, v in zip(query.responses, values, strict=False) if v in (0, 1))
            continue
        edited = judgement.details.get("edited", query.responses[0])
        if query.query_type == "edit" and not judgement.skipped and edited == query.responses[0]:
            ours[(query.prompt, query.responses[0], 1)] += 1
        for p in preferences_from(query, judgement):
            if not p.tie:
                ours.update([(p.prompt, p.chosen, 1), (p.prompt, p.rejected, 0)])
    assert thumbs == ours


@pytest.mark.parametrize("name", list(WRITTEN))
@given(answer=answers())
@settings(max_examples=60, deadline=None)
def test_no_answer_goes_without_a_word(name: str, answer: Answer) -> None:
    records, dropped = to_records([answer], name)
    assert records or sum(dropped.values()) > 0
    if name == "native":
        assert (len(records), dropped) == (1, {})


def test_a_correction_is_better_than_the_original() -> None:
    query = Query(prompt="P", responses=("bad",), query_type="edit", model_versions=("m1",))
    for correction, place in (("good", 1), ("a", 0)):  # in the order of the texts, not of their quality
        said = Judgement(query_id=query.id, rater="ann", choice=0, details={"edited": correction, "note": "x"})
        [record] = to_records([(query, said)], "openai-summarize")[0]
        summaries = [{"text": "bad", "policy": "m1"}, {"text": correction, "policy": ""}]
        assert record["summaries"] == (summaries if place else summaries[::-1])
        assert record["choice"] == place
        assert to_records([(query, said)], "trl-explicit") == (
            [{"prompt": "P", "chosen": correction, "rejected": "bad"}],
            {},
        )
