"""Prompts from a file of one's own: plain text, JSON lines, CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_gym.errors import TaskError
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
        column: the column that holds the prompt: a text that is not blank.
        where: name of the table in messages.

    Raises:
        TaskError: a row without a prompt (with the row's number, from 1), or no row at all.
    """
    prompts = []
    for number, row in enumerate(rows, start=1):
        text = row.get(column)
        if not isinstance(text, str) or not text.strip():
            raise TaskError(
                f"{where}, row {number}: expected a text in column {column!r}, got {text!r}; the row's columns are "
                f"{', '.join(map(str, row)) or 'none'}"
            )
        prompts.append(Prompt(text, {k: v for k, v in row.items() if k != column}))
    if not prompts:
        raise TaskError(f"{where} holds no prompts; expected at least one")
    return prompts
