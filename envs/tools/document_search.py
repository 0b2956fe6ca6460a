"""A search over local documents: Okapi BM25 (Robertson and Zaragoza 2009), computed by the library bm25s."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_gym.envs.missing import LibraryMissingError
from rlhf_gym.envs.tools.tool import Tool, ToolError
from rlhf_gym.errors import ConfigError
from rlhf_gym.text import visible

ENDINGS = (".txt", ".md")
"""Files of a folder that are documents."""
LARGEST_FILE = 10_000_000
"""Bytes; a larger file is refused rather than read in part."""
PASSAGE = 600
"""Characters of a passage; paragraphs are joined up to here, and cut where one is longer."""
LONGEST_QUERY = 400


class DocumentSearch:
    """Passages of documents, found by their words.

    Args:
        documents: a folder (its ``.txt`` and ``.md`` files, those of its subfolders too), a file, or texts.
        count: passages to return where a call does not say.

    Raises:
        LibraryMissingError: bm25s is not installed.
        ConfigError: no such folder or file, a file that cannot be read, or no text in any.
    """

    def __init__(self, documents: str | os.PathLike[str] | Sequence[str], *, count: int = 3) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise LibraryMissingError("the search tool needs bm25s: pip install 'rlhf-gym[search]'") from error
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 20:
            raise ConfigError(f"the search's count must be a whole number in 1..20, got {count!r}")
        self.count = count
        self.passages = [passage for name, text in _read(documents) for passage in _passages(name, text)]
        if not self.passages:
            raise ConfigError(
                f"there is no text to search in {visible(repr(documents), 80)}; expected {' or '.join(ENDINGS)} files"
            )
        self._index = bm25s.BM25()
        self._index.index(_words([text for _, text in self.passages]), show_progress=False)

    def __call__(self, query: str, count: int = 0) -> str:
        """The best passages, each with its document's name; the earlier one first where two fit alike.

        Args:
            query: words to look for.
            count: passages to return, 1 to 20; 0 takes the search's own number.

        Raises:
            ToolError: an empty query, one without a word that can be looked for, or a count out of its range.
        """
        if not 0 <= count <= 20:
            raise ToolError(f"count must be in 1..20, got {count}.")
        words = _words([query[:LONGEST_QUERY]])
        if not words[0]:
            raise ToolError("The query has no word to look for.")
        scores = self._index.get_scores(words[0])
        best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: count or self.count]
        found = [self.passages[i] for i in best if scores[i] > 0]
        if not found:
            return "Nothing found."
        return "\n".join(f"[{i}] {name}: {text}" for i, (name, text) in enumerate(found, 1))


def _words(texts: list[str]) -> Any:
    from bm25s import tokenize

    return tokenize(texts, stopwords="english", token_pattern=r"(?u)\b\w+\b", return_ids=False, show_progress=False)


def _read(documents: str | os.PathLike[str] | Sequence[str]) -> Iterator[tuple[str, str]]:
    """The name and the text of every document, in the order of names."""
    if not isinstance(documents, str | os.PathLike):
        for i, text in enumerate(documents, 1):
            if not isinstance(text, str):
                raise ConfigError(f"document {i} is {type(text).__name__}; expected texts, a folder or a file")
            yield f"document {i}", text
        return
    place = Path(documents).expanduser()
    if place.is_file():
        files, base = [place], place.parent
    elif place.is_dir():
        base = place
        # A link could lead anywhere: what is shown to a model is what lies in the folder.
        files = sorted(f for f in place.rglob("*") if f.suffix in ENDINGS and f.is_file() and not f.is_symlink())
    else:
        raise ConfigError(f"there is no folder or file {str(place)!r} to search")
    for file in files:
        try:
            if file.stat().st_size > LARGEST_FILE:
                raise ConfigError(f"{file} is larger than {LARGEST_FILE:,} bytes; split it or leave it out")
            yield str(file.relative_to(base)), file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the document {file} cannot be read as UTF-8: {error}") from error


def _passages(name: str, text: str) -> Iterator[tuple[str, str]]:
    """A document in pieces of up to :data:`PASSAGE` characters."""
    held = ""
    for paragraph in re.split(r"\n\s*\n", text):
        words = " ".join(paragraph.split())
        if held and len(held) + 1 + len(words) > PASSAGE:
            yield name, held
            held = ""
        while len(words) > PASSAGE:
            cut = words.rfind(" ", 0, PASSAGE + 1)
            cut = cut if cut > 0 else PASSAGE
            yield name, words[:cut]
            words = words[cut:].strip()
        held = f"{held} {words}".strip()
    if held:
        yield name, held


def search_tool(documents: str | os.PathLike[str] | Sequence[str], *, count: int = 3, name: str = "search") -> Tool:
    """The search as a tool.

    Args:
        documents: a folder, a file, or texts; see :class:`DocumentSearch`.
        count: passages to return where a call does not say.
        name: the name that the policy calls it by.
    """
    return Tool(
        name,
        "the passages of the documents that fit a query best",
        DocumentSearch(documents, count=count),
        {"query": str, "count": int},
        frozenset({"query"}),
        example="longest river",
    )
