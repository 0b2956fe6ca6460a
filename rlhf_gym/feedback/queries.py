"""Queries, which are put to raters, and judgements, their answers.

A query's id is derived from its content, so that a run that is killed and resumed asks the very same queries and stores
each once. A judgement is never changed: a correction is a new judgement that names the one it supersedes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from numbers import Integral, Real
from typing import Any, Literal, get_args

from rlhf_gym.errors import FeedbackError
from rlhf_gym.text import shorten

QueryType = Literal["pair", "ranking", "rating", "best", "thumbs", "edit"]
QUERY_TYPES: tuple[QueryType, ...] = get_args(QueryType)
_FEWEST_RESPONSES: dict[QueryType, int] = {"pair": 2, "ranking": 2, "rating": 1, "best": 2, "thumbs": 1, "edit": 1}
_EXACTLY: tuple[QueryType, ...] = ("pair", "thumbs", "edit")

# Which query types each kind of answer fits; the first names it.
_ANSWERS: dict[str, tuple[QueryType, ...]] = {
    "choice": ("pair", "best", "edit"),
    "tie": ("pair",),
    "ranking": ("ranking",),
    "ratings": ("rating", "thumbs"),
    "skipped": QUERY_TYPES,
}
_THUMBS = ({"overall": (1,)}, {"overall": (0,)})
_LARGEST = 2**63 - 1  # of a database's whole numbers


def content_id(*parts: Any) -> str:
    """128 bits, as 32 hexadecimal digits, that depend on every part (JSON values) and on nothing else.

    ASCII JSON separates the parts without ambiguity and also spells text that UTF-8 cannot (lone surrogates).
    """
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True, separators=(",", ":")).encode("ascii")).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Query:
    """One prompt with ``k`` candidate responses, put to a rater as one query type.

    Attributes:
        prompt: the prompt that the responses answer.
        responses: the ``k`` candidates. Judgements name them by their index here, not by the order they were shown in.
        query_type: ``"pair"`` (which of two is better), ``"ranking"`` (``k >= 2``, best first) or ``"rating"`` (``k >= 1``, a
            value for each response), ``"best"`` (which of ``k >= 2``), ``"thumbs"`` (one response: up or down) or ``"edit"``
            (one response: accepted, or corrected).
        columns: the data set's other columns of this prompt; JSON values.
        model_versions: name of the model that wrote each response (``k`` names), or empty where it is not known.
        round: the round of the RLHF loop that asks, from 1; 0 for data from elsewhere.
        index: the query's place in its round, from 0.
        id: derived from round, index, query_type, prompt and responses where it is not given.

    Raises:
        FeedbackError: a query type that does not exist, the wrong number of responses or model versions, a prompt or a
            response that is no text, or columns that have no names.

    >>> Query(prompt="2 + 2?", responses=("4", "5")).id == Query(prompt="2 + 2?", responses=("4", "5")).id
    True
    """

    prompt: str
    responses: tuple[str, ...]
    query_type: QueryType = "pair"
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    model_versions: tuple[str, ...] = ()
    round: int = 1
    index: int = 0
    id: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.responses, str) or not isinstance(self.responses, Iterable):
            raise FeedbackError(f"a query's responses must be a list of texts, got {type(self.responses).__name__}")
        if not isinstance(self.columns, Mapping):
            raise FeedbackError(f"a query's columns must be values by name, got {type(self.columns).__name__}")
        if isinstance(self.model_versions, str) or not isinstance(self.model_versions, Iterable):
            raise FeedbackError(f"model_versions must be a list of names, got {type(self.model_versions).__name__}")
        for name in ("round", "index"):
            if not _is_whole(getattr(self, name)):
                raise FeedbackError(f"a query's {name} must be a whole number, got {getattr(self, name)!r}")
        object.__setattr__(self, "responses", tuple(self.responses))
        object.__setattr__(self, "model_versions", tuple(self.model_versions))
        _check_id(self.id, "a query's id")
        # Before anything is stored: what is no text would fail later, on the page, in an export or in a tokenizer.
        for what, text in (("prompt", self.prompt), *((f"response {i + 1}", r) for i, r in enumerate(self.responses))):
            if not isinstance(text, str):
                raise FeedbackError(
                    f"a query's {what} must be text, got {type(text).__name__} ({shorten(str(text), 60)})"
                )
        if self.query_type not in QUERY_TYPES:
            raise FeedbackError(f"query_type must be one of {', '.join(QUERY_TYPES)}; got {self.query_type!r}")
        k, fewest = len(self.responses), _FEWEST_RESPONSES[self.query_type]
        if k < fewest or (self.query_type in _EXACTLY and k != fewest):
            expected = f"{'exactly' if self.query_type in _EXACTLY else 'at least'} {fewest}"
            raise FeedbackError(f"a {self.query_type} query needs {expected} response{'s' * (fewest > 1)}, got {k}")
        if self.model_versions and len(self.model_versions) != k:
            raise FeedbackError(f"model_versions must name {k} models, one a response; got {len(self.model_versions)}")
        if not all(isinstance(name, str) for name in self.model_versions):
            raise FeedbackError(f"model_versions must be texts, got {shorten(repr(self.model_versions), 60)}")
        if not self.id:
            parts = ("query", self.round, self.index, self.query_type, self.prompt, self.responses)
            object.__setattr__(self, "id", content_id(*parts))


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One rater's answer to one query.

    Exactly one of ``choice``, ``ranking``, ``ratings``, ``tie`` and ``skipped`` is the answer. Responses are named by
    their index in :attr:`Query.responses`, never by the order they were shown in.

    Attributes:
        query_id: the query that is answered.
        rater: name of the rater.
        choice: the better response (pair), the best one (best), or 0 where the one response was accepted, as it stands or
            corrected (edit; the correction is in ``details["edited"]``).
        ranking: groups of responses, best group first; responses of one group are equally good; a response that no
            group names was not judged (ranking).
        ratings: for each attribute (``"overall"`` where there is only one) one value a response, None where the rater
            gave none (rating). Thumbs are ``{"overall": (1,)}`` (up) and ``{"overall": (0,)}`` (down).
        tie: the responses are equally good (pair).
        skipped: the rater would not or could not answer.
        strength: how much better the chosen response is, on the rater's own scale; 0 or more, larger is clearer. People on
            the rating page: 3 much better, 2 better, 1 slightly better.
        order_shown: ``order_shown[0]`` is the response shown first, and so on; empty where it is not known.
        seconds: time that the rater took, in seconds; None where it was not measured.
        created_at: time of the answer; UTC, to the microsecond.
        supersedes: id of the earlier judgement that this one corrects.
        reason: why, in the rater's words.
        details: anything else that was recorded with the answer; JSON values. ``flagged``: why nobody should answer this query;
            ``both_bad``: both responses of a tie are bad; ``edited``: the corrected response; ``reply``: what the person
            said next to the model; ``kind``: ``check``, ``repeat``
            or ``practice``, where the query was put to a person for that reason.
        id: the same for a retry of the same submission. Derived from query, rater and supersedes where it is not given;
            so give one where the same rater is asked the same query again on purpose.

    Raises:
        FeedbackError: not exactly one answer, a rater without a printable name, a number that is negative, NaN or infinite,
            or a time without its zone.
    """

    query_id: str
    rater: str
    choice: int | None = None
    ranking: tuple[tuple[int, ...], ...] | None = None
    ratings: Mapping[str, tuple[float | None, ...]] | None = field(default=None, hash=False)
    tie: bool = False
    skipped: bool = False
    strength: float | None = None
    order_shown: tuple[int, ...] = ()
    seconds: float | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    supersedes: str | None = None
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)
    id: str = ""

    def __post_init__(self) -> None:
        self._check_types()
        given = [name for name in ("choice", "ranking", "ratings") if getattr(self, name) is not None]
        given += [name for name in ("tie", "skipped") if getattr(self, name)]
        if len(given) != 1:
            raise FeedbackError(
                "a judgement needs exactly one of choice, ranking, ratings, tie and skipped; "
                f"got {' and '.join(given) or 'none'} (query {self.query_id}, rater {self.rater!r})"
            )
        if not self.rater or not self.rater.isprintable():
            raise FeedbackError(f"a judgement needs its rater's name, printable; got {self.rater!r} ({self.query_id})")
        for name in ("strength", "seconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise FeedbackError(f"a judgement's {name} must be a finite number of 0 or more, got {value}")
        if self.created_at.tzinfo is None:
            raise FeedbackError("a judgement's created_at must say its time zone, e.g. datetime.now(datetime.UTC)")
        object.__setattr__(self, "created_at", self.created_at.astimezone(UTC))
        object.__setattr__(self, "order_shown", tuple(self.order_shown))
        if self.ranking is not None:
            object.__setattr__(self, "ranking", tuple(tuple(group) for group in self.ranking))
        if self.ratings is not None:
            object.__setattr__(self, "ratings", {name: tuple(values) for name, values in self.ratings.items()})
        if not self.id:
            object.__setattr__(self, "id", content_id("judgement", self.query_id, self.rater, self.supersedes))

    def _check_types(self) -> None:
        """Refuse what no database column would give back as it went in, or give back as something that fails later."""
        for name in ("query_id", "supersedes", "id"):
            if name != "supersedes" or self.supersedes is not None:
                _check_id(getattr(self, name), f"a judgement's {name}")
        expected: dict[str, bool] = {
            "rater a text": isinstance(self.rater, str),
            "reason a text": isinstance(self.reason, str),
            "choice a whole number": self.choice is None or _is_whole(self.choice),
            "strength a number": self.strength is None or _is_number(self.strength),
            "seconds a number": self.seconds is None or _is_number(self.seconds),
            "tie true or false": isinstance(self.tie, bool),
            "skipped true or false": isinstance(self.skipped, bool),
            "order_shown whole numbers": _are(self.order_shown, _is_whole),
            "ranking lists of whole numbers": self.ranking is None
            or _are(self.ranking, lambda group: _are(group, _is_whole)),
            "ratings numbers (or None) by attribute": self.ratings is None
            or (
                isinstance(self.ratings, Mapping)
                and _are(self.ratings.values(), lambda of: _are(of, lambda value: value is None or _is_number(value)))
            ),
            "details values by name": isinstance(self.details, Mapping),
            "created_at a time": isinstance(self.created_at, datetime),
        }
        for what, fits in expected.items():
            if not fits:
                name = what.split()[0]
                given = shorten(repr(getattr(self, name)), 60)
                raise FeedbackError(f"a judgement's {name} must be {what.removeprefix(name)[1:]}, got {given}")

    def same_answer(self, other: Judgement) -> bool:
        """True if the other is a retry: it says the same of the same query, and only its clock may differ."""
        return self._said() == other._said()

    def _said(self) -> tuple[Any, ...]:
        answer = (self.choice, self.ranking, self.ratings, self.tie, self.skipped, self.strength)
        return (self.query_id, self.rater, *answer, self.order_shown, self.supersedes, self.reason, dict(self.details))


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) <= _LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are(values: Any, one: Callable[[Any], bool]) -> bool:
    return isinstance(values, Iterable) and not isinstance(values, str | Mapping) and all(map(one, values))


def _check_id(value: Any, what: str) -> None:
    if not isinstance(value, str) or not value.isprintable():
        raise FeedbackError(f"{what} must be a text that can be printed, got {shorten(repr(value), 60)}")


def check_judgement(query: Query, judgement: Judgement) -> None:
    """Check that a judgement fits its query.

    Args:
        query: the query.
        judgement: the answer to it.

    Raises:
        FeedbackError: the judgement answers another query or is of another query type, or names a response that is not there.
    """
    k = len(query.responses)

    def refuse(problem: str) -> FeedbackError:
        return FeedbackError(f"judgement {judgement.id} by {judgement.rater!r} on query {query.id}: {problem}")

    if judgement.query_id != query.id:
        raise refuse(f"it answers query {judgement.query_id}")
    if judgement.order_shown and sorted(judgement.order_shown) != list(range(k)):
        raise refuse(f"order_shown must hold each of 0..{k - 1} once, got {judgement.order_shown}")
    given = {name: getattr(judgement, name) for name in _ANSWERS}
    [answer] = [name for name, value in given.items() if value is not None and value is not False]
    if query.query_type not in _ANSWERS[answer]:
        article = "an" if query.query_type == "edit" else "a"
        raise refuse(f"expected {article} {query.query_type} answer, got a {answer.rstrip('s')} answer")
    if judgement.choice is not None and judgement.choice not in range(k):
        raise refuse(f"choice must lie in 0..{k - 1}, got {judgement.choice}")
    if judgement.ranking is not None:
        named = [response for group in judgement.ranking for response in group]
        if not named or len(set(named)) != len(named) or not set(named) <= set(range(k)):
            raise refuse(f"ranking must name responses out of 0..{k - 1}, each at most once; got {judgement.ranking}")
    if judgement.ratings is not None and not judgement.ratings:
        raise refuse("ratings must name at least one attribute")
    for attribute, values in (judgement.ratings or {}).items():
        if len(values) != k or not all(value is None or math.isfinite(value) for value in values):
            raise refuse(f"ratings of {attribute!r} must be {k} finite numbers (or None), got {values}")
    if query.query_type == "thumbs" and judgement.ratings is not None and judgement.ratings not in _THUMBS:
        raise refuse(f"thumbs are {{'overall': (1,)}} (up) or {{'overall': (0,)}} (down), got {judgement.ratings}")
    edited = judgement.details.get("edited")
    if edited is not None and (query.query_type != "edit" or judgement.skipped or not isinstance(edited, str | bool)):
        raise refuse("details['edited'] is the corrected text of an edit query's one response")
