"""An assignment as the rater sees it: blind, in the order drawn for this rater, as safe HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup, escape

from rlhf_gym.feedback.exchange.transcripts import read_turns
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.lm.chat_template import SEVERAL_TURNS
from rlhf_gym.study.leases import Assignment
from rlhf_gym.web.answers import PAIR, earlier_value, in_words, letter
from rlhf_gym.web.markup import LONGEST, Turn, coded, markdown_html, plain_html, turns_of
from rlhf_gym.web.page_settings import PageSettings

_HEADINGS = {
    "pair": "Which response is better, A or B?",
    "ranking": "Put the responses in order, best first",
    "rating": "How good is each response?",
    "best": "Which response is best?",
    "thumbs": "Is this response good?",
    "edit": "Correct this response, or accept it",
}
_OF_TALKS = {
    "pair": "Which conversation is better, A or B?",
    "ranking": "Put the conversations in order, best first",
    "rating": "How good is each conversation?",
    "best": "Which conversation is best?",
    "thumbs": "Is this conversation good?",
    "edit": "Correct this conversation, or accept it",
}
_ONE_RATING = "How good is this response?"
_REPLY = "How good is the last answer, and what do you say next?"
_LAST = "How good is the last answer? The conversation ends with it."
_SPEAKERS = {"user": "you", "assistant": "model"}
"""The roles, for somebody who is the user in the conversation."""
_SIDES = {"user": "left-side", "assistant": "right-side"}


@dataclass(frozen=True)
class ShownTurn:
    """One turn of the prompt: who speaks, on which side, and what, as HTML."""

    role: str
    side: str
    html: Markup


@dataclass(frozen=True)
class ShownResponse:
    """One response: its letter, its text as HTML, and flags for Markdown and for a text that is cut."""

    letter: str
    html: Markup
    markdown: bool
    longer: bool


@dataclass(frozen=True)
class Card:
    """The values of a card's template. They do not show a response's model, nor that a question is a check or a repetition."""

    id: str
    query_type: str
    kind: str
    heading: str
    turns: list[ShownTurn]
    responses: list[ShownResponse]
    shown: str
    earlier: str
    earlier_value: str
    attributes: tuple[str, ...]
    scale_top: int
    raw: Markup
    speaker: str
    reply: bool
    said: Markup
    scale: tuple[tuple[str, str, str, str], ...] = PAIR


def card_of(assignment: Assignment, settings: PageSettings) -> Card:
    """The card of an assignment. Check questions and repeated queries look like any other: only practice is named.

    Args:
        assignment: the question in the rater's hands.
        settings: the settings.
    """
    query, order = assignment.query, assignment.order_shown
    markdown = settings.text == "markdown"
    texts = [query.responses[i] for i in order]
    earlier = assignment.earlier
    replies, talks, several = asks_for_reply(query), "reply" in query.columns, query.columns.get(SEVERAL_TURNS) is True
    heading = (_OF_TALKS if several else _HEADINGS)[query.query_type]
    if query.query_type == "rating" and len(texts) == 1 and not several:
        heading = _REPLY if replies else _LAST if talks else _ONE_RATING
    speakers = _SPEAKERS if talks else {}
    return Card(
        id=assignment.id,
        query_type=query.query_type,
        kind="practice" if assignment.kind == "practice" else "query",
        heading=heading,
        turns=[_shown(turn, speakers) for turn in turns_of(query)],
        responses=[
            ShownResponse(
                letter(place),
                conversation_html(text, markdown=markdown) if several else _html(text, markdown=markdown),
                markdown,
                len(text) > LONGEST,
            )
            for place, text in enumerate(texts)
        ],
        shown=f"{datetime.now(UTC).timestamp():.3f}",
        earlier=in_words(earlier, order, query.query_type) if earlier else "",
        earlier_value=earlier_value(earlier, order, query.query_type) if earlier else "",
        attributes=settings.attributes,
        scale_top=settings.scale,
        raw=_raw(texts[0], earlier, "edited") if query.query_type == "edit" else Markup(""),
        speaker=speakers.get("assistant", ""),
        reply=replies,
        said=_raw("", earlier, "reply"),
    )


def asks_for_reply(query: Query) -> bool:
    """True for a rating query of one answer in a conversation that goes on with the person's next message."""
    return query.query_type == "rating" and len(query.responses) == 1 and query.columns.get("reply") is True


def conversation_html(text: str, *, markdown: bool) -> Markup:
    """All further turns of a conversation, each with its speaker, as safe HTML; the longest ones are cut.

    Args:
        text: the turns, as :func:`~rlhf_gym.feedback.exchange.transcripts.further_turns` writes them.
        markdown: the assistant's turns are Markdown.
    """
    turns = [
        Markup('<div class="said {}"><span class="role">{}</span>{}</div>').format(
            _SIDES.get(turn["role"], ""),
            coded(turn["role"]),
            _html(turn["content"], markdown=markdown and turn["role"] == "assistant"),
        )
        for turn in read_turns(text[:LONGEST])
    ]
    return Markup("").join(turns)


def _html(text: str, *, markdown: bool) -> Markup:
    """A text as safe HTML, without the space that a continuation begins with: it leaves the first line crooked."""
    return markdown_html(text) if markdown else plain_html(text.removeprefix(" "))


def _raw(text: str, earlier: Judgement | None, detail: str) -> Markup:
    """The first content of a text field: a text, or what was taken back with an answer; what no page can hold is replaced."""
    written = earlier.details.get(detail) if earlier else None
    text = written if isinstance(written, str) else text
    return escape(text.encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}"))


def _shown(turn: Turn, speakers: Mapping[str, str]) -> ShownTurn:
    role = speakers.get(turn.role, turn.role)
    return ShownTurn(coded(role), _SIDES.get(turn.role, ""), _html(turn.text, markdown=False))
