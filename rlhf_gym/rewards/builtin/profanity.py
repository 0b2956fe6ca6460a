"""Profanity by word lists, by the package ``glin-profanity``. ``pip install rlhf-gym[metrics]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.builtin.needs import library
from rlhf_gym.rewards.builtin.text_statistics import words


class Profanity:
    """Share of swear words in a response, 0 to 1 (or their number), disguised ones ("sh1t", "f.u.c.k") too.

    Negate it to punish them.

    Lists of words know no context: "sex" counts in a text on biology, an insult without a swear word does not (see ``harm``).

    Args:
        mode: ``"share"`` of the words, in [0, 1]; ``"count"`` of them; ``"any"``: 0 or 1.
        languages: of the lists, by their English names.
        more: further words to count.
        ignore: words not to count.

    Raises:
        ConfigError: glin-profanity is not installed, has no such list, or an unknown mode.
    """

    name = "profanity"

    def __init__(
        self,
        mode: Literal["share", "count", "any"] = "share",
        languages: Sequence[str] = ("english",),
        more: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> None:
        if mode not in ("share", "count", "any"):
            raise ConfigError(f"profanity's mode must be share, count or any, got {mode!r}")
        self.mode = mode
        filters = library("glin_profanity", "glin-profanity", self.name)
        lists = library("glin_profanity.data.dictionary", "glin-profanity", self.name).dictionary
        known = sorted(lists.available_languages)
        languages = [languages] if isinstance(languages, str) else [str(language) for language in languages]
        if not languages or not set(languages) <= set(known):
            raise ConfigError(f"profanity has lists for {', '.join(known)}; got {', '.join(languages) or 'none'}")
        self._filter = filters.Filter(
            {"languages": languages, "detect_leetspeak": True, "custom_words": list(more), "ignore_words": list(ignore)}
        )

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Score a batch."""
        return [self._score(response) for response in responses]

    def _score(self, text: str) -> float:
        places = {match["index"] for match in self._filter.check_profanity(text).get("matches") or ()}
        if self.mode == "any":
            return float(bool(places))
        return float(len(places)) if self.mode == "count" else min(1.0, len(places) / max(1, len(words(text))))
