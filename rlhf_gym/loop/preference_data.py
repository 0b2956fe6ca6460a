"""Judgements to learn or to judge by: a run's, those of a store, or a file that the importer reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.feedback.exchange.files import read_feedback
from rlhf_gym.feedback.exchange.incoming import AUTO
from rlhf_gym.feedback.oddities import oddities
from rlhf_gym.feedback.preferences import Preference, preferences_of
from rlhf_gym.feedback.purposes import to_learn_from
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.lm.chat_template import SEVERAL_TURNS
from rlhf_gym.reward_model.ratings import ratings_of
from rlhf_gym.store_places import store_of

SQLITE = b"SQLite format 3\x00"
READ_COLUMNS = frozenset({"messages", SEVERAL_TURNS, "subset"})
"""The columns of a query that a reward model and its evaluation read."""


@dataclass(frozen=True)
class PreferenceData:
    """Judgements with their queries, and what was left out.

    Attributes:
        answers: judgements with their queries.
        source: where they come from, in words.
        dropped: number of records that were left out, by reason.
        noted: number of what was taken and is worth saying, once :meth:`preferences` has looked.
    """

    answers: list[tuple[Query, Judgement]]
    source: str
    dropped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)

    def preferences(self) -> list[Preference]:
        """What the judgements say of two responses; two equal responses compare nothing and are left out (and counted).

        Raises:
            FeedbackError: no judgement prefers one response to another.
        """
        found = preferences_of(self.answers)
        kept = [p for p in found if p.chosen != p.rejected]
        if len(kept) < len(found):
            self.dropped["pairs of equal responses"] = len(found) - len(kept)
        if all(p.tie for p in kept):
            left_out = remarks_on(self.dropped, {})
            raise FeedbackError(
                f"no judgement in {self.source} prefers one response to another ({len(self.answers)} judgements, "
                f"{len(kept)} ties{f'; {left_out}' if left_out else ''}): there is nothing to learn or to judge by"
                f"{self._of_ratings()}"
            )
        self.noted.update(oddities(kept))
        return kept

    def comparisons(self) -> list[Preference]:
        """As :meth:`preferences`, but none where there are only ratings, which a loss of ratings learns from.

        Raises:
            FeedbackError: no judgement prefers one response to another, and no two ratings differ.
        """
        try:
            return self.preferences()
        except FeedbackError:
            if len({rating.value for rating in ratings_of(self.answers)}) < 2:
                raise
            return []

    def _of_ratings(self) -> str:
        """Why ratings compare nothing, in words; empty where there are none."""
        rated = [value for _, j in self.answers for column in (j.ratings or {}).values() for value in column]
        values = sorted({value for value in rated if value is not None})
        if not values:
            return ""
        if len(values) == 1:
            return f". All {len(rated)} ratings or labels are {values[0]:g}: one class says nothing of what is better"
        return (
            f". Its {len(rated)} ratings or labels are of single responses to different prompts, or equal: a reward model "
            "is fitted to them with `--set loss=regression` or ordinal. `train-preferences --loss kto` learns from labels of "
            "single responses"
        )

    def remarks(self) -> str:
        """What was left out, and what was taken all the same and is worth saying, in words; empty for nothing."""
        return remarks_on(self.dropped, self.noted)


def remarks_on(dropped: Mapping[str, int], noted: Mapping[str, int]) -> str:
    """What was left out of some data, and what was taken all the same and is worth saying, in words; empty for nothing.

    Args:
        dropped: number of records by the reason for leaving them out.
        noted: number of what was taken, by what it is.
    """
    parts = []
    for what, found in (("left out", dropped), ("taken all the same", noted)):
        if found:
            parts.append(f"{what}: " + ", ".join(f"{number} {reason}" for reason, number in found.items()))
    return "; ".join(parts)


def read_data(
    data: str,
    format: str | None = None,  # noqa: A002
    columns: Mapping[str, str] | None = None,
    *,
    keep: AbstractSet[str] | None = None,
) -> PreferenceData:
    """Read judgements. Answers to check questions, which measure people, are left out.

    A file's rows are read one by one; what is not used of them, and further copies of a text, are not kept.

    Args:
        data: a run's directory, a feedback store (a file, or a database's URL), or a file of an exchange format.
        format: the file's exchange format; None finds it.
        columns: the name in the file of what the format calls otherwise, e.g. ``{"prompt": "question"}``.
        keep: the queries' columns to keep; None keeps all. A large file's may take more memory than its texts.

    Raises:
        ConfigError: there is nothing, or a format or columns do not go with the data.
        FeedbackError: a file that cannot be read, or whose format is not known or not plain.
    """
    path = Path(data)
    if "://" not in data and not path.exists():
        raise ConfigError(f"there is no run, store or file {data!r}")
    if path.is_dir() or "://" in data or is_store(path):
        for option, value in (
            ("--format", format),
            ("--columns", " ".join(f"{a}={b}" for a, b in (columns or {}).items())),
        ):
            if value:
                raise ConfigError(f"{option} {value} is about a file, and does not go with {data}: leave it out")
    if path.is_dir():
        store, run = store_of(data)
        return _of_store(store, f"the store {store}" if run is None else f"the run {data}", keep)
    if "://" in data or is_store(path):
        return _of_store(data, f"the store {data}", keep)
    rows = read_feedback(path, format or AUTO, columns=columns)
    answers = _kept(rows, keep)
    if rows.read == 0:
        raise FeedbackError(f"{path} holds no rows")
    superseded = {judgement.supersedes for _, judgement in answers} - {None}
    dropped = dict(rows.dropped.counts)
    if superseded:
        current = [answer for answer in answers if answer[1].id not in superseded]
        if len(current) < len(answers):
            dropped["superseded answers"] = len(answers) - len(current)
        answers = current
    return _to_learn_from(answers, f"{data} (format {rows.format})", dropped)


def _of_store(store: str, source: str, keep: AbstractSet[str] | None) -> PreferenceData:
    with FeedbackStore(store, read_only=True) as opened:
        return _to_learn_from(_kept(opened.answers(), keep), source, {})


def _kept(answers: Iterable[tuple[Query, Judgement]], keep: AbstractSet[str] | None) -> list[tuple[Query, Judgement]]:
    """All answers, with some of their columns; queries that are equal, equal texts, and their messages are one object."""
    queries, texts, talks = dict[str, Query](), dict[str, str](), dict[str, Any]()
    kept = []
    for query, judgement in answers:
        if query.id not in queries:
            columns = query.columns if keep is None else {n: value for n, value in query.columns.items() if n in keep}
            prompt, *responses = (texts.setdefault(text, text) for text in (query.prompt, *query.responses))
            if (talk := columns.get("messages")) is not None and talks.setdefault(prompt, talk) == talk:
                columns = {**columns, "messages": talks[prompt]}
            queries[query.id] = replace(query, prompt=prompt, responses=tuple(responses), columns=columns)
        kept.append((queries[query.id], judgement))
    return kept


def _to_learn_from(answers: list[tuple[Query, Judgement]], source: str, dropped: dict[str, int]) -> PreferenceData:
    kept = to_learn_from(answers)
    said = [answer for answer in kept if not answer[1].skipped]
    reasons = {
        "answers to check questions, practice and repetitions": len(answers) - len(kept),
        "skips": len(kept) - len(said),
    }
    for reason, number in reasons.items():
        if number:
            dropped[reason] = dropped.get(reason, 0) + number
    return PreferenceData(said, source, dropped)


def is_store(path: Path) -> bool:
    """True for a file that is a feedback store."""
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE
