"""Ratings of single responses, as reward models are fitted to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.lm.chat_template import prompt_messages


@dataclass(frozen=True)
class Rating:
    """One rater's rating of one response.

    Attributes:
        prompt: the response's prompt.
        response: the response.
        value: the rating on the rater's scale, larger is better; the mean over attributes where there are several. Thumbs are 1
            and 0.
        query_id: the query it comes from.
        rater: name of the rater.
        messages: the prompt as chat messages, where it is a conversation.
        attribute: the attribute that is rated, where it is learned by a head of its own; empty for the whole.
    """

    prompt: str
    response: str
    value: float
    query_id: str = ""
    rater: str = ""
    messages: Sequence[Mapping[str, Any]] | None = field(default=None, compare=False)
    attribute: str = ""


def ratings_of(answers: Iterable[tuple[Query, Judgement]]) -> list[Rating]:
    """The ratings in judgements: of rating queries and of thumbs; other answers give none.

    Args:
        answers: judgements with their queries.

    >>> query = Query(prompt="2 + 2?", responses=("4", "5"), query_type="rating")
    >>> said = Judgement(query_id=query.id, rater="ann", ratings={"right": (5, 1), "polite": (3, None)})
    >>> [(r.response, r.value) for r in ratings_of([(query, said)])]
    [('4', 4.0)]
    """
    found = []
    for query, judgement in answers:
        for response, values in zip(
            query.responses, zip(*(judgement.ratings or {}).values(), strict=True), strict=False
        ):
            given = [value for value in values if value is not None]
            if given and len(given) == len(values):  # a mean of some attributes is another scale
                messages = prompt_messages(query.columns)
                found.append(Rating(query.prompt, response, fmean(given), query.id, judgement.rater, messages))
    return found
