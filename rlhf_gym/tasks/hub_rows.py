"""Rows of the hub's data sets that need more than renamed columns; `hub.yaml` names these functions.

Each takes a row and gives the rows that prompts are made of: none where the row has no prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_gym.feedback.exchange.transcripts import split_turns

Row = Mapping[str, Any]

BEGINNING_WORDS = 12
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def beginning(row: Row) -> Iterator[Row]:
    """The first words of a text, line breaks taken out; texts of fewer words are left out."""
    words = row["text"].replace("<br />", " ").split()
    if len(words) >= BEGINNING_WORDS:
        yield {**row, "start": " ".join(words[:BEGINNING_WORDS])}


def concepts(row: Row) -> Iterator[Row]:
    """The concepts as a list in words."""
    yield {**row, "listed": ", ".join(row["concepts"])}


def marked_cells(row: Row) -> Iterator[Row]:
    """The highlighted cells of a table, each with the header of its column, and the annotators' sentences."""
    table = [records(cells) for cells in row["table"]]
    header = table[0] if table and all(cell["is_header"] for cell in table[0]) else []
    parts = []
    for i, j in row["highlighted_cells"]:
        value = table[i][j]["value"]
        title = header[j]["value"] if i > 0 and j < len(header) else ""
        parts.append(f"{title}: {value}" if title else value)
    sentences = [a["final_sentence"] for a in records(row["sentence_annotations"]) if a["final_sentence"]]
    if parts and sentences:
        yield {**row, "cells": "; ".join(parts), "reference": sentences}


def records(value: Any) -> list[dict[str, Any]]:
    """A list of mappings; `datasets` may have made a mapping of lists of it."""
    if isinstance(value, Mapping):
        return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    return [dict(item) for item in value]


def next_utterances(row: Row) -> Iterator[Row]:
    """For every utterance but the first: the conversation before it, a speaker a line, and the utterance."""
    said = [text.strip() for text in row["dialog"] if text.strip()]
    for turn in range(1, len(said)):
        lines = [f"{'AB'[i % 2]}: {text}" for i, text in enumerate(said[:turn])]
        yield {"prompt": "\n".join([*lines, f"{'AB'[turn % 2]}:"]), "reference": said[turn]}


def transcript(row: Row) -> Iterator[Row]:
    """A pair of Anthropic's transcripts: the prompt up to the last ``Assistant:``, and both responses."""
    chosen, rejected = split_turns(row["chosen"]), split_turns(row["rejected"])
    if chosen and rejected and chosen[0] == rejected[0]:
        yield {"prompt": chosen[0], "chosen": chosen[1], "rejected": rejected[1]}


def final_number(row: Row) -> Iterator[Row]:
    """The number behind ``####``, as the reference."""
    _, marker, number = row["answer"].rpartition("####")
    if marker:
        yield {**row, "reference": number.strip()}


def same_number(prompts: list[str], responses: list[str], reference: list[str]) -> list[float]:
    """1 where the response's number is the reference: the one behind ``####``, or else the last one; else 0.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
        reference: the column with the right answers.

    >>> same_number([""] * 3, ["2+2=4, so #### 1,004.", "it is 5 or 4", "four"], reference=["1004", "4", "4"])
    [1.0, 1.0, 0.0]
    """
    return [float(_last_number(r) == _last_number(a) is not None) for r, a in zip(responses, reference, strict=True)]


def _last_number(text: str) -> float | None:
    before, marker, after = text.rpartition("####")
    found = _NUMBER.findall(after)
    if marker and found:
        return float(found[0].replace(",", ""))
    found = _NUMBER.findall(before + after)
    return float(found[-1].replace(",", "")) if found else None
