"""Prompts from a file of one's own: plain text, JSON lines, CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ModelError, TaskError
from rlhf_gym.lm.chat_template import content_text
from rlhf_gym.table_files import rows_from_file
from rlhf_gym.tasks.samples import Prompt


def prompts_from_file(path: Path | str, *, column: str = "prompt") -> list[Prompt]:
    """Read prompts; a table's other columns go to rewards by name.

    Args:
        path: as for :func:`rows_from_file`.
        column: the column that holds the prompt, in tables.

    Returns:
        The prompts in the file's order; blank lines and blank prompts of a text file are left out.

    Raises:
        TaskError: no such file, unknown kind of file, a missing column (with the row's number), or no prompt in it.
    """
    return prompts_from_rows(rows_from_file(path, column=column), column, str(path))


def prompts_from_rows(rows: Iterable[Mapping[str, Any]], column: str, where: str) -> list[Prompt]:
    """Prompts from a table's rows; the other columns go to rewards by name.

    Args:
        rows: the table.
        column: the column that holds the prompt: a text that is not blank, or chat messages of which the last is the user's,
            also where a text spells them in JSON.
        where: name of the table in messages.

    Raises:
        TaskError: a row without a prompt (with the row's number, from 1), or no row at all.
    """
    prompts = []
    for number, row in enumerate(rows, start=1):
        text, columns = row.get(column), {k: v for k, v in row.items() if k != column}
        if isinstance(text, str) and text.startswith("[{"):  # as a table spells messages
            text = _spelled(text, f"{where}, row {number}")
        if isinstance(text, list):
            text, columns["messages"] = _from_messages(text, column, f"{where}, row {number}")
        if not isinstance(text, str) or not text.strip():
            raise TaskError(
                f"{where}, row {number}: expected a text in column {column!r}, got {text!r}; the row's columns are "
                f"{', '.join(map(str, row)) or 'none'}"
            )
        prompts.append(Prompt(text, columns))
    if not prompts:
        raise TaskError(f"{where} holds no prompts; expected at least one")
    return prompts


def _spelled(text: str, where: str) -> str | list[Any]:
    """The messages that a text spells, as the importer reads them; any other text as it is.

    Args:
        text: a field of a table.
        where: the row, for the message.

    Raises:
        TaskError: it spells messages without a text.
    """
    from rlhf_gym.feedback.exchange.sides import NoTextError, spelled_messages

    try:
        found = spelled_messages(text)
    except NoTextError as error:
        raise TaskError(f"{where}: {error}") from error
    return text if found is None else list(found)


def _from_messages(messages: list[Any], column: str, where: str) -> tuple[str, list[dict[str, Any]]]:
    """The prompt of chat messages: one message's text, or several as a transcript; and the messages.

    Args:
        messages: as they stand in the table.
        column: their column.
        where: the row, for the message.

    Raises:
        TaskError: they are no messages, hold something other than text, or end with the assistant's.
    """
    if good := all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages):
        try:
            messages = [{**m, "content": content_text(m.get("content"))} for m in messages]
        except ModelError as error:
            raise TaskError(f"{where}, column {column!r}: {error}") from error
    if not messages or not good or messages[-1]["role"] == "assistant":
        raise TaskError(
            f"{where}: expected a text or chat messages that end with the user's in column {column!r}, got {messages!r:.80}"
        )
    from rlhf_gym.feedback.exchange.transcripts import prompt_of_messages

    kept = [dict(m) for m in messages]
    return prompt_of_messages(kept), kept
