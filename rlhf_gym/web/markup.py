"""Text of language models as HTML: nothing in it runs, nothing is fetched, nothing hides.

Hidden characters (control, bidirectional, zero width, unassigned) are shown as marked code points, so that an answer reads
for the rater as it stands in the data. Markdown is rendered with raw HTML off and then cleaned by nh3, which keeps a few
tags and no attribute that could load or run anything.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from markupsafe import Markup, escape

from rlhf_gym.feedback.exchange.transcripts import is_transcript
from rlhf_gym.feedback.queries import Query
from rlhf_gym.text import is_hidden

LONGEST = 20_000
"""Characters of a text that a card shows; the rest is a click away. Markdown is rendered up to here only."""

_SUSPECT = re.compile(r"[^\n\t -~]")
_CODE = re.compile(r"⟦U\+([0-9A-F]{4,6})⟧")
_TAGS = frozenset(
    (
        "p",
        "br",
        "hr",
        "strong",
        "em",
        "s",
        "code",
        "pre",
        "ul",
        "ol",
        "li",
        "blockquote",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    )
)
_TURN = re.compile(r"\n\n(Human|Assistant|System):")
_ROLES = {"Human": "user", "Assistant": "assistant", "System": "system"}


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: who speaks (``user``, ``assistant``, ``system``, ... or empty) and what."""

    role: str
    text: str


def coded(text: str) -> str:
    r"""The text with every hidden character written as its code point; line ends of Windows become plain ones.

    >>> coded("a\x1b[31mb\u202ec")
    'a⟦U+001B⟧[31mb⟦U+202E⟧c'
    """
    return _SUSPECT.sub(lambda found: _spelled(found[0]), text.replace("\r\n", "\n"))


def plain_html(text: str, limit: int = LONGEST) -> Markup:
    """The text as it stands, escaped, hidden characters marked, cut at ``limit`` characters.

    Args:
        text: the text.
        limit: most characters to show.
    """
    return _marked(str(escape(coded(text[:limit])))) + _rest(text, limit)


def markdown_html(text: str) -> Markup:
    """The text's Markdown as safe HTML; where a link leads is written out, and nothing can be clicked or loaded.

    Texts of more than :data:`LONGEST` characters are shown as they stand: what renders Markdown may be made to work
    too hard by them.
    """
    if len(text) > LONGEST:
        return plain_html(text)
    import nh3

    return _marked(nh3.clean(_renderer().render(coded(text)), tags=set(_TAGS), attributes={"ol": {"start"}}))


def turns_of(query: Query) -> list[Turn]:
    """A query's prompt as the turns of a conversation: its ``messages``, a transcript's turns, or one turn.

    What an Anthropic transcript ends with (``Assistant:``) is left out: the responses follow there.
    """
    messages = query.columns.get("messages")
    if isinstance(messages, Sequence) and messages and all(isinstance(m, Mapping) for m in messages):
        return [Turn(str(m.get("role", "")), _content(m.get("content", ""))) for m in messages]
    if not is_transcript(query.prompt):
        return [Turn("", query.prompt)]
    parts = _TURN.split(query.prompt)
    spoken = [(_ROLES[role], text) for role, text in zip(parts[1::2], parts[2::2], strict=True)]
    turns = [Turn("", parts[0])] if parts[0].strip() else []
    return turns + [Turn(role, text.strip()) for role, text in spoken if text.strip()]


def _content(content: Any) -> str:
    """A message's content: text, or a list of parts of which the texts are shown."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [content]
    return "\n".join(str(p.get("text", p)) if isinstance(p, Mapping) else str(p) for p in parts)


@lru_cache(maxsize=4096)
def _spelled(char: str) -> str:
    return f"⟦U+{ord(char):04X}⟧" if is_hidden(char) else char


def _marked(html: str) -> Markup:
    """Our code points in HTML that is safe already, as marks with their names."""

    def mark(found: re.Match[str]) -> str:
        number = int(found[1], 16)
        name = unicodedata.name(chr(number), "control character") if number <= 0x10FFFF else "no character"
        return f'<span class="mark" title="{escape(name)}">U+{found[1]}</span>'

    return Markup(_CODE.sub(mark, html))


def _rest(text: str, limit: int) -> Markup:
    more = len(text) - limit
    return Markup('<span class="mark">… {:,} more characters</span>').format(more) if more > 0 else Markup("")


@lru_cache(maxsize=1)
def _renderer() -> Any:
    """CommonMark with tables, raw HTML off; links and images end with where they lead, as text."""
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])

    def link_open(_self: Any, tokens: Any, index: int, _options: Any, env: Any) -> str:
        env.setdefault("links", []).append(tokens[index].attrGet("href") or "")
        return ""

    def link_close(_self: Any, _tokens: Any, _index: int, _options: Any, env: Any) -> str:
        return f" ({escape(env['links'].pop())})"

    def image(_self: Any, tokens: Any, index: int, _options: Any, _env: Any) -> str:
        return str(escape(f"[image: {tokens[index].content}] ({tokens[index].attrGet('src') or ''})"))

    for name, rule in (("link_open", link_open), ("link_close", link_close), ("image", image)):
        renderer.add_render_rule(name, rule)
    return renderer
