"""Preferences: what judgements say of two samples, as reward models are fitted to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from rlhf_gym.feedback.queries import Judgement, Query, check_judgement


@dataclass(frozen=True)
class Preference:
    """One response preferred to another, or held equal.

    Attributes:
        prompt: what both responses answer.
        chosen: the better response (in a tie, either).
        rejected: the worse response (in a tie, the other).
        margin: how much better, where the rater said so: a pair's strength, or the difference of two ratings. The scale
            is the rater's own; 0 or more; None where nothing was said.
        tie: True if the rater held them equal.
        query_id: the query it comes from; all pairs of one ranking share it, and belong in the same batch and on the
            same side of a train/validation split (Ouyang et al. 2022, section 3.5).
        rater: who said so.
    """

    prompt: str
    chosen: str
    rejected: str
    margin: float | None = None
    tie: bool = False
    query_id: str = ""
    rater: str = ""


@dataclass(frozen=True)
class Ordering:
    """A whole order of responses, for listwise losses (Plackett-Luce).

    Attributes:
        prompt: what the responses answer.
        groups: the responses that were judged, best group first; responses of one group are equally good.
        query_id: the query it comes from.
        rater: who said so.
    """

    prompt: str
    groups: tuple[tuple[str, ...], ...]
    query_id: str = ""
    rater: str = ""


@dataclass(frozen=True)
class Demonstration:
    """A response that somebody gives as an example of a good one, for supervised fine-tuning.

    Attributes:
        prompt: what it answers.
        response: the example.
        corrects: it was written by the rater, in place of the model's; False: the model's was accepted as it stood.
        query_id: the query it comes from.
        rater: who gave it.
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
        attribute: which attribute's ratings to compare; default their mean.

    Returns:
        A pair: one preference. The best of ``k``: it against each of the others. A ranking of ``k`` responses: all
        ``k (k - 1) / 2`` pairs, best first, tied ones marked. A rating: all pairs of rated responses, with the difference as
        margin. A corrected response: it against the original. A skip, a thumb, a response accepted as it stands: none.

    Raises:
        FeedbackError: the judgement does not fit the query.

    >>> query = Query(prompt="2 + 2?", responses=("5", "4"))
    >>> [p.chosen for p in preferences_from(query, Judgement(query_id=query.id, rater="ann", choice=1))]
    ['4']
    """
    found = [
        Preference(query.prompt, query.responses[a], query.responses[b], margin, tie, query.id, judgement.rater)
        for a, b, margin, tie in judged_pairs(query, judgement, attribute=attribute)
    ]
    demonstration = demonstration_from(query, judgement)
    if demonstration is not None and demonstration.corrects:
        better, worse = demonstration.response, query.responses[0]
        found.append(Preference(query.prompt, better, worse, None, False, query.id, judgement.rater))
    return found


def demonstration_from(query: Query, judgement: Judgement) -> Demonstration | None:
    """The response that an ``edit`` judgement gives as an example; None for other query types, skips, and what was forgotten.

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
    """The same as :func:`preferences_from`, as indices: chosen, rejected, margin and whether it is a tie."""
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


def ordering_from(query: Query, judgement: Judgement, *, attribute: str | None = None) -> Ordering | None:
    """The order that a judgement puts the responses in; None for a skip, or where fewer than two were judged.

    Of the best of ``k``, the others form one group: nothing was said of how they compare.

    Args:
        query: the query that was answered, of any type.
        judgement: the answer.
        attribute: which attribute's ratings to order by; default their mean.

    Raises:
        FeedbackError: the judgement does not fit the query.
    """
    check_judgement(query, judgement)
    groups: Sequence[Sequence[int]] = ()
    if judgement.choice is not None:
        groups = ((judgement.choice,), tuple(i for i in range(len(query.responses)) if i != judgement.choice))
    elif judgement.tie:
        groups = ((0, 1),)
    elif judgement.ranking is not None:
        groups = judgement.ranking
    elif judgement.ratings is not None:
        rated = _overall(judgement, attribute)
        groups = [[i for i in rated if rated[i] == value] for value in sorted(set(rated.values()), reverse=True)]
    if sum(map(len, groups)) < 2:
        return None
    named = tuple(tuple(query.responses[i] for i in group) for group in groups if group)
    return Ordering(query.prompt, named, query.id, judgement.rater)


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
