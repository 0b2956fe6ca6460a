"""The browser of answers: filters in a query string, and the answers that pass them, page by page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from markupsafe import Markup

from rlhf_gym.feedback import FeedbackStore, Judgement, Query
from rlhf_gym.study.checks import meets
from rlhf_gym.web.answers import in_words
from rlhf_gym.web.markup import plain_html

ON_A_PAGE = 25
SHORT = 600
FILTERS = ("rater", "round", "kind", "text", "page")
"""The fields of a query string."""
KINDS: dict[str, Callable[[Query, Judgement], bool]] = {
    "": lambda _q, _j: True,
    "skipped": lambda _q, j: j.skipped and not j.details.get("flagged"),
    "flagged": lambda _q, j: bool(j.details.get("flagged")),
    "ties": lambda _q, j: j.tie,
    "with a reason": lambda _q, j: bool(j.reason),
    "check questions": lambda _q, j: j.details.get("kind") == "check",
    "corrected": lambda _q, j: j.supersedes is not None,
}


@dataclass(frozen=True)
class ShownAnswer:
    """One answer with its query, in words and as HTML. Only this page names the models."""

    query: Query
    judgement: Judgement
    said: str
    prompt: Markup
    responses: list[tuple[str, str, Markup]]
    reason: Markup
    kind: str


@dataclass(frozen=True)
class Found:
    """A page of answers, the filters that found it, and the values that the filters can have."""

    answers: list[ShownAnswer]
    total: int
    page: int
    pages: int
    filters: dict[str, str]
    raters: list[str]
    rounds: list[int]
    kinds: list[str]

    @property
    def filtered(self) -> bool:
        """True if a filter is set."""
        return any(self.filters.values())

    def address(self, page: int) -> str:
        """The address of another page of the same answers."""
        return "/admin/answers?" + urlencode({**self.filters, "page": page})


def browse(store: FeedbackStore, asked: Mapping[str, str]) -> Found:
    """The answers that pass a query string's filters, the last stored first.

    Args:
        store: the store.
        asked: the fields of the query string.
    """
    filters = {name: asked.get(name, "")[:200] for name in FILTERS if name != "page"}
    everything = store.answers()
    words = filters["text"].casefold()
    kind = KINDS.get(filters["kind"], KINDS[""])
    found = [
        (query, judgement)
        for query, judgement in everything
        if (not filters["rater"] or judgement.rater == filters["rater"])
        and (not filters["round"] or str(query.round) == filters["round"])
        and kind(query, judgement)
        and (not words or any(words in text.casefold() for text in (query.prompt, *query.responses, judgement.reason)))
    ]
    found.sort(key=lambda answer: answer[1].created_at, reverse=True)
    pages = max(1, -(-len(found) // ON_A_PAGE))
    number = asked.get("page", "1")
    page = min(max(int(number), 1), pages) if number.isascii() and number.isdecimal() and len(number) < 9 else 1
    shown = [_shown(*answer) for answer in found[(page - 1) * ON_A_PAGE : page * ON_A_PAGE]]
    return Found(
        shown, len(found), page, pages, filters, sorted({j.rater for _, j in everything}),
        sorted({q.round for q, _ in everything}), list(KINDS),
    )  # fmt: skip


def _shown(query: Query, judgement: Judgement) -> ShownAnswer:
    order = judgement.order_shown or tuple(range(len(query.responses)))
    writers = query.model_versions or ("",) * len(query.responses)
    responses = [(_mark(judgement, i), writers[i], plain_html(query.responses[i], SHORT)) for i in order]
    return ShownAnswer(
        query, judgement, in_words(judgement, order, query.query_type), plain_html(query.prompt, SHORT), responses,
        plain_html(judgement.reason, SHORT), _kind(query, judgement),
    )  # fmt: skip


def _kind(query: Query, judgement: Judgement) -> str:
    """The kind of question in words, with the result of a check or practice question; empty for a plain query."""
    kind = str(judgement.details.get("kind", ""))
    if kind == "repeat":
        return "repetition"
    if kind not in ("check", "practice"):
        return ""
    words = "check question" if kind == "check" else "practice question"
    return f"{words}, {'' if meets(judgement, query.columns) else 'not '}as expected"


def _mark(judgement: Judgement, response: int) -> str:
    """The judgement of one response, in words."""
    if judgement.choice is not None:
        return "chosen" if judgement.choice == response else ""
    if judgement.ranking is not None:
        return next((f"place {n + 1}" for n, group in enumerate(judgement.ranking) if response in group), "")
    if judgement.ratings is not None:
        given = {name: values[response] for name, values in judgement.ratings.items()}
        return ", ".join(f"{name} {value:g}" for name, value in given.items() if value is not None)
    return ""
