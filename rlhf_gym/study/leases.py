"""Leases of queries, answers to them, and the judgements made of answers: values, without a database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.queries import Judgement, Query, content_id
from rlhf_gym.study.checks import meets

Kind = Literal["query", "check", "repeat", "practice"]
WEB = "web"
"""The beginning of people's signatures: ``web/calm-otter-41``."""


@dataclass(frozen=True)
class QueueSettings:
    """Settings of the queue.

    Attributes:
        overlap: people who answer each query.
        lease_seconds: seconds that a query is kept for the rater who holds it.
        check_share: share of a rater's questions that are check questions, where there are any.
        repeat_share: share of a rater's questions that repeat an earlier one.
        practice: practice questions before a rater's first real one.
        answered: where all queries of a store are handed out, those, too, that somebody who is not on the page (a file, a
            simulated rater) has answered already.
        seed: seed of the orders shown and of the shares.

    Raises:
        ConfigError: a number out of bounds.
    """

    overlap: int = 1
    lease_seconds: float = 900
    check_share: float = 0.0
    repeat_share: float = 0.0
    practice: int = 0
    answered: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.overlap < 1 or self.practice < 0 or not self.lease_seconds > 0:
            raise ConfigError(
                f"overlap must be at least 1, practice at least 0, lease_seconds above 0; got {self.overlap}, "
                f"{self.practice}, {self.lease_seconds}"
            )
        shares = (self.check_share, self.repeat_share)
        if not all(0 <= share < 1 for share in shares) or sum(shares) >= 1:
            raise ConfigError(f"check_share and repeat_share must be at least 0 and below 1 together, got {shares}")


@dataclass(frozen=True)
class Assignment:
    """A query that a rater holds.

    Attributes:
        id: the lease: random, and the answer's idempotency key.
        query: the query.
        rater: the rater who holds it.
        order_shown: the responses in the order this rater sees them.
        kind: ``query``; ``check`` (a check question); ``repeat`` (put again); ``practice`` (the reply says if it was right).
        expires_at: until when it is kept for this rater.
        earlier: the answer that was taken back, where there is one.
    """

    id: str
    query: Query
    rater: str
    order_shown: tuple[int, ...]
    kind: Kind
    expires_at: datetime
    earlier: Judgement | None = None


@dataclass(frozen=True)
class Answer:
    """A rater's answer; responses are named by their place in the order shown, from 0.

    Attributes:
        choice, ranking, ratings, tie, skipped, strength, reason, details: as in :class:`Judgement`.
    """

    choice: int | None = None
    ranking: tuple[tuple[int, ...], ...] | None = None
    ratings: Mapping[str, tuple[float | None, ...]] | None = None
    tie: bool = False
    skipped: bool = False
    strength: float | None = None
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """The reply to an answer.

    Attributes:
        judgement_id: the judgement that holds it.
        repeated: the answer was there already; this is its first receipt.
        late: the lease had run out; the answer is kept all the same.
        replaced: the rater's earlier answer, given in another window, which this one corrects.
        correct: True if the answer is the expected one; for practice questions only.
        explanation: for practice questions only.
    """

    judgement_id: str
    repeated: bool = False
    late: bool = False
    replaced: Judgement | None = None
    correct: bool | None = None
    explanation: str = ""


@dataclass(frozen=True)
class RaterCount:
    """A rater's progress: questions answered, and queries this rater could still be handed (held ones included)."""

    answered: int
    waiting: int


@dataclass(frozen=True)
class RoundProgress:
    """A round's progress, in answers: a query that two people are to answer counts as two.

    Attributes:
        round: the round.
        given: answers that are there (skips that were passed on are not).
        held: questions in raters' hands now.
        left: answers that are neither given nor held.
    """

    round: int
    given: int
    held: int
    left: int


def judgement_of(assignment: Assignment, answer: Answer, seconds: float, now: datetime) -> Judgement:
    """The judgement that an answer makes: its responses are named by their index in the query.

    Args:
        assignment: the question in the rater's hands.
        answer: the rater's answer.
        seconds: duration of the answer, in seconds.
        now: the current time.

    Raises:
        FeedbackError: the answer names a response that was not shown, or does not rate each response once.
    """
    order = assignment.order_shown
    places = [i for group in answer.ranking or () for i in group] + ([] if answer.choice is None else [answer.choice])
    if not all(0 <= place < len(order) for place in places):
        raise FeedbackError(f"the answer names a response that was not shown: {places}, of {len(order)}")
    ratings = None
    if answer.ratings is not None:
        if any(len(values) != len(order) for values in answer.ratings.values()):
            raise FeedbackError(f"a rating needs a value (or None) for each of {len(order)} responses")
        ratings = {
            name: tuple(values[order.index(i)] for i in range(len(order))) for name, values in answer.ratings.items()
        }
    details = dict(answer.details) | ({} if assignment.kind == "query" else {"kind": assignment.kind})
    earlier = assignment.earlier
    return Judgement(
        # From the lease, not from query and rater: repetitions ask the same rater the same query again.
        id=content_id("assignment", assignment.id, earlier.id if earlier else None),
        query_id=assignment.query.id, rater=assignment.rater,
        choice=None if answer.choice is None else order[answer.choice],
        ranking=None if answer.ranking is None else tuple(tuple(order[i] for i in group) for group in answer.ranking),
        ratings=ratings, tie=answer.tie, skipped=answer.skipped, strength=answer.strength, order_shown=order,
        seconds=seconds, created_at=now, supersedes=earlier.id if earlier else None, reason=answer.reason, details=details,
    )  # fmt: skip


def passed_on(judgement: Judgement) -> bool:
    """True for a plain skip, after which another rater gets the query; a flagged query is not passed on."""
    return judgement.skipped and not judgement.details.get("flagged")


def receipt_of(
    assignment: Assignment,
    judgement_id: str,
    judgement: Judgement | None,
    *,
    repeated: bool = False,
    late: bool = False,
    replaced: Judgement | None = None,
) -> Receipt:
    """The receipt of an answer; that of a practice question also says if the answer was the expected one, and why.

    Args:
        assignment: the question in the rater's hands.
        judgement_id: the id of the judgement that holds the answer.
        judgement: the answer to the question, for practice.
        repeated: the answer was there already.
        late: the lease had run out.
        replaced: the answer that it corrects.
    """
    if assignment.kind != "practice" or judgement is None:
        return Receipt(judgement_id, repeated, late, replaced)
    columns = assignment.query.columns
    return Receipt(
        judgement_id, repeated, late, replaced, meets(judgement, columns), str(columns.get("explanation", ""))
    )
