"""Ratings of several attributes as one rating, by stated weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.queries import Judgement, Query

ATTRIBUTE = "attribute"
"""The key in a judgement's ``details`` that names the one attribute which its comparison is about."""
WEIGHTED = "weighted"
"""The attribute that stands for the weighted ones."""


def weighted(answers: Iterable[tuple[Query, Judgement]], weights: Mapping[str, float]) -> list[tuple[Query, Judgement]]:
    """The same answers, with one rating in the place of each one's attributes: the sum of weight times rating.

    Answers to other query types stay as they are. A response that lacks one of the attributes has no rating.

    Args:
        answers: judgements with their queries.
        weights: of the attributes, by name; attributes that are not named count nothing. Empty changes nothing.

    Raises:
        FeedbackError: no rating has one of the attributes.

    >>> query = Query(prompt="2 + 2?", responses=("4", "5"), query_type="rating")
    >>> said = Judgement(query_id=query.id, rater="ann", ratings={"right": (5, 1), "polite": (3, None)})
    >>> weighted([(query, said)], {"right": 2.0, "polite": -1.0})[0][1].ratings
    {'weighted': (7.0, None)}
    """
    answers = list(answers)
    if not weights:
        return answers
    found, known = [], dict[str, None]()
    for query, judgement in answers:
        ratings = judgement.ratings
        if query.query_type == "rating" and ratings:
            known |= dict.fromkeys(ratings)
            rows = zip(*(ratings.get(name, (None,) * len(query.responses)) for name in weights), strict=True)
            values = tuple(
                None
                if None in row
                else float(sum(w * v for w, v in zip(weights.values(), row, strict=True) if v is not None))
                for row in rows
            )
            judgement = replace(judgement, ratings={WEIGHTED: values})
        found.append((query, judgement))
    if known and not set(weights) <= set(known):
        lacking = ", ".join(name for name in weights if name not in known)
        raise FeedbackError(
            f"no rating has the attribute {lacking} (reward_model.attribute_weights); there are {', '.join(known)}"
        )
    return found
