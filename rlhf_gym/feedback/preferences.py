"""Preferences: what judgements say of two samples, as reward models are fitted to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any

from rlhf_gym.feedback.queries import Judgement, Query, check_judgement
from rlhf_gym.lm.chat_template import prompt_messages


@dataclass(frozen=True)
class Preference:
    """One response preferred to another, or held equal.

    Attributes:
        prompt: the prompt of both responses.
        chosen: the better response (in a tie, either).
        rejected: the worse response (in a tie, the other).
        margin: how much better, where the rater said so: a pair's strength, or the difference of two ratings. The scale
            is the rater's own; 0 or more; None where nothing was said.
        tie: True if the rater held them equal.
        query_id: the query it comes from; all pairs of one ranking share it, and belong in the same batch and on the
            same side of a train/validation split (Ouyang et al. 2022, section 3.5).
        rater: name of the rater.
        messages: the prompt as chat messages, where it is a conversation.
        attribute: the attribute that it is about, where it is learned by a head of its own; empty for the whole.
    """

    prompt: str
    chosen: str
    rejected: str
    margin: float | None = None
    tie: bool = False
    query_id: str = ""
    rater: str = ""
    messages: Sequence[Mapping[str, Any]] | None = field(default=None, compare=False)
    attribute: str = ""


@dataclass(frozen=True)
class Demonstration:
    """A response that somebody gives as an example of a good one, for supervised fine-tuning.

    Attributes:
        prompt: its prompt.
        response: the example.
        corrects: it was written by the rater, in place of the model's; False: the model's was accepted as it stood.
        query_id: the query it comes from.
        rater: name of the rater.
    """

    prompt: str
    response: str
    corrects: bool
    query_id: str = ""
    rater: str = ""


def preferences_from(query: Query, judgement: Judgement, *, attribute: str | None = None) -> list[Preference]:
    """Every pair that a judgement orders or holds equal.

    Args:
        query: the query that was answered.
        judgement: the answer.
        attribute: the attribute whose ratings are compared; default their mean.

    Returns:
        A pair: one preference. The best of ``k``: it against each of the others. A ranking of ``k`` responses: all
        ``k (k - 1) / 2`` pairs, best first, tied ones marked. A rating: all pairs of rated responses, with the difference as
        margin. A corrected response: it against the original. A skip, a thumb (see :func:`preferences_of`), a response
        accepted as it stands: none.

    Raises:
        FeedbackError: the judgement does not fit the query.

    >>> query = Query(prompt="2 + 2?", responses=("5", "4"))
    >>> [p.chosen for p in preferences_from(query, Judgement(query_id=query.id, rater="ann", choice=1))]
    ['4']
    """
    messages = prompt_messages(query.columns)
    found = [
        Preference(
            query.prompt, query.responses[a], query.responses[b], margin, tie, query.id, judgement.rater, messages
        )
        for a, b, margin, tie in judged_pairs(query, judgement, attribute=attribute)
    ]
    demonstration = demonstration_from(query, judgement)
    if demonstration is not None and demonstration.corrects:
        better, worse = demonstration.response, query.responses[0]
        found.append(Preference(query.prompt, better, worse, None, False, query.id, judgement.rater, messages))
    return found


def preferences_of(answers: Iterable[tuple[Query, Judgement]], *, attribute: str | None = None) -> list[Preference]:
    """Every pair that many judgements order or hold equal.

    Thumbs compare nothing by themselves. Of the responses to one prompt that were put to raters in one round, each is preferred
    to those with a smaller share of thumbs up; equal shares give no preference.

    Args:
        answers: judgements with their queries.
        attribute: the attribute whose ratings are compared; default their mean.

    Returns:
        What :func:`preferences_from` gives for each answer, in order; then the pairs out of thumbs.

    Raises:
        FeedbackError: a judgement does not fit its query.

    >>> good, bad = (Query(prompt="2 + 2?", responses=(r,), query_type="thumbs") for r in ("4", "5"))
    >>> said = {q: Judgement(query_id=q.id, rater="ann", ratings={"overall": (int(q is good),)}) for q in (good, bad)}
    >>> [(p.chosen, p.rejected) for p in preferences_of(said.items())]
    [('4', '5')]
    """
    found: list[Preference] = []
    thumbs: dict[tuple[int, str], dict[Query, list[Judgement]]] = defaultdict(lambda: defaultdict(list))
    for query, judgement in answers:
        found += preferences_from(query, judgement, attribute=attribute)
        if query.query_type == "thumbs" and not judgement.skipped:
            thumbs[query.round, query.prompt][query].append(judgement)
    for (_, prompt), of_query in thumbs.items():
        share = {query: fmean(_overall(j, None)[0] for j in given) for query, given in of_query.items()}
        group = next(iter(of_query)).id  # all pairs of one prompt belong together, as those of one ranking do
        for one, other in combinations(of_query, 2):
            if share[one] == share[other]:
                continue
            better, worse = (one, other) if share[one] > share[other] else (other, one)
            raters = dict.fromkeys(j.rater for query in (better, worse) for j in of_query[query])
            found.append(
                Preference(
                    prompt,
                    better.responses[0],
                    worse.responses[0],
                    None,
                    False,
                    group,
                    ", ".join(raters),
                    prompt_messages(better.columns),
                )
            )
    return found


def demonstration_from(query: Query, judgement: Judgement) -> Demonstration | None:
    """The response that an ``edit`` judgement gives as an example; None if it gives none.

    None follows from other query types, from skips, and from corrections whose text was removed to forget a person.

    Args:
        query: the query that was answered.
        judgement: the answer to it.

    Raises:
        FeedbackError: the judgement does not fit the query.

    >>> query = Query(prompt="2 + 2?", responses=("5",), query_type="edit")
    >>> said = Judgement(query_id=query.id, rater="ann", choice=0, details={"edited": "4"})
    >>> demonstration_from(query, said).response
    '4'
    """
    check_judgement(query, judgement)
    edited = judgement.details.get("edited")
    if query.query_type != "edit" or judgement.skipped or edited is True:
        return None
    response = edited if isinstance(edited, str) else query.responses[0]
    return Demonstration(query.prompt, response, response != query.responses[0], query.id, judgement.rater)


def judged_pairs(
    query: Query, judgement: Judgement, *, attribute: str | None = None
) -> list[tuple[int, int, float | None, bool]]:
    """Every pair of a query's responses that a judgement orders or holds equal, as (chosen, rejected, margin, tie).

    The first two are indices. A correction is not one of the query's responses, and gives no pair here.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
        attribute: the attribute whose ratings are compared; default their mean.
    """
    check_judgement(query, judgement)
    if judgement.choice is not None:
        others = [i for i in range(len(query.responses)) if i != judgement.choice]
        return [(judgement.choice, other, judgement.strength, False) for other in others]
    if judgement.tie:
        return [(0, 1, None, True)]
    if judgement.ranking is not None:
        place = {i: rank for rank, group in enumerate(judgement.ranking) for i in group}
        return [(a, b, None, place[a] == place[b]) for a, b in combinations(place, 2)]
    if judgement.ratings is not None:
        return _rated_pairs(_overall(judgement, attribute))
    return []


def _overall(judgement: Judgement, attribute: str | None) -> dict[int, float]:
    """Each rated response's value of one attribute, or the mean of all; responses with a gap are left out."""
    ratings = judgement.ratings or {}
    columns = list(ratings.values()) if attribute is None else [ratings[attribute]] if attribute in ratings else []
    rated: dict[int, float] = {}
    for i, values in enumerate(zip(*columns, strict=True)):
        given = [value for value in values if value is not None]
        if len(given) == len(values):
            rated[i] = sum(given) / len(given)
    return rated


def _rated_pairs(rated: dict[int, float]) -> list[tuple[int, int, float | None, bool]]:
    best_first = sorted(rated, key=lambda i: -rated[i])  # stable: equal ratings keep the query's order
    return [
        (a, b, None if rated[a] == rated[b] else rated[a] - rated[b], rated[a] == rated[b])
        for a, b in combinations(best_first, 2)
    ]
