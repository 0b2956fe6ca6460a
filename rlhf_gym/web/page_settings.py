"""Settings of a rating page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf_gym.errors import ConfigError

GUIDELINES = """\
Choose the response that you would rather have received.

1. **Honest**: what it says is true, and it does not pretend to know.
2. **Helpful**: it does what was asked, completely and no more than needed.
3. **Harmless**: it does not hurt, insult or help anybody to do so.

Where responses differ on several of these, weigh them as you would. Use *slightly* when you hesitated, a tie when you could
not tell, *both bad* when you would want neither. Skip what you cannot judge; flag what nobody should have to read.
"""

WAITING = (
    "Nothing to rate right now",
    "All questions so far are answered. New ones appear here by themselves; you may also come back later.",
)

Text = Literal["markdown", "plain"]


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """The look of the page.

    Attributes:
        title: the study's title, on every page.
        guidelines: Markdown, at hand on the rating page.
        attributes: the attributes of each response that a rating query is about.
        scale: rating queries go from 1 to this.
        text: the format of responses shown: their Markdown rendered, or plain.
        held: questions that a rater holds: the one on the screen, and those after it, so that the next is there at once.
        waiting: a heading and a sentence for a rater for whom there is no question.
        url: the page's public address where a TLS proxy stands in front, e.g. ``https://rate.example.org``.

    Raises:
        ConfigError: a scale, a number or an address that cannot be.
    """

    title: str = "Which response is better?"
    guidelines: str = GUIDELINES
    attributes: tuple[str, ...] = ("overall",)
    scale: int = 7
    text: Text = "plain"
    held: int = 2
    waiting: tuple[str, str] = WAITING
    url: str = ""

    def __post_init__(self) -> None:
        if not 2 <= self.scale <= 9:
            raise ConfigError(f"the scale of ratings must lie in 2..9 (one key each), got {self.scale}")
        if not self.attributes or len(set(self.attributes)) < len(self.attributes):
            raise ConfigError(f"ratings need at least one attribute, each once; got {list(self.attributes)}")
        if self.held < 1:
            raise ConfigError(f"a rater must hold at least 1 question, got {self.held}")
        if self.text not in ("markdown", "plain"):
            raise ConfigError(f"text must be markdown or plain, got {self.text!r}")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"the public address must begin with http:// or https://, got {self.url!r}")


def guidelines_from(path: str | None) -> str:
    """The Markdown in a file, the standard guidelines where none is given.

    Raises:
        ConfigError: no such file, or no text in it.
    """
    if path is None:
        return GUIDELINES
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the guidelines {path} cannot be read ({error}); give a Markdown file in UTF-8") from error
