"""A task of one's own: a table of prompts (a file, a `datasets` object, a list of rows) and a reward."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.errors import TaskError
from rlhf_gym.rewards import load_reward
from rlhf_gym.table_files import rows_from_file
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.prompt_files import prompts_from_rows
from rlhf_gym.tasks.samples import Prompt, is_held_out

Table = Path | str | Iterable[Mapping[str, Any]]
"""A file's path, or anything that gives rows: a list of mappings, a `datasets.Dataset` (or a streamed one)."""

RewardSpec = str | Mapping[str, Any] | Callable[..., Any]
"""A reward, or what :func:`~rlhf_gym.rewards.load_reward` makes one of."""


def table_task(
    data: Table,
    *,
    reward: RewardSpec | None = None,
    held_out: Table | bool = True,
    prompt: str = "prompt",
    template: str | None = None,
    columns: Mapping[str, str] | None = None,
    metrics: Mapping[str, RewardSpec] | None = None,
    name: str = "table",
    max_new_tokens: int = 32,
    min_new_tokens: int = 0,
    stop: Sequence[str] = (),
    num_prompts: int | None = None,
    seed: int = 0,
) -> Task:
    r"""Make a task of a table.

    Every option may be plain JSON, so that the task can be registered with Gymnasium and named in a configuration file.

    Args:
        data: ``.csv``, ``.jsonl``, ``.json``, ``.parquet`` or ``.txt``; or rows: a list of mappings, a ``datasets.Dataset``.
        reward: a function ``(prompts, responses, **columns) -> numbers``, or a built-in reward's name,
            ``path/to/file.py:function``, ``module:function`` or a mapping. None: the environment or the loop brings one.
        held_out: prompts for evaluation, as ``data``; True keeps a sixth of ``data`` for it, by a hash of the text (the
            same prompts whatever the seed and the order); False keeps none.
        prompt: the column that holds the prompt: a text, or chat messages of which the last is the user's.
        template: makes the prompt of a row's columns instead, e.g. ``"Summarise: {article}\nTL;DR:"``.
        columns: renames columns, new name to old: ``{"reference": "highlights"}`` for rewards that take ``reference``.
        metrics: further rewards that are reported, never optimised, by name.
        name: the task's name.
        max_new_tokens: the length limit of a response.
        min_new_tokens: EOS is not allowed before this many tokens.
        stop: texts that end a response where they appear.
        num_prompts: take as many rows, from the top; None takes all.
        seed: of the order in which the prompts stand in the task.

    Raises:
        TaskError: no such file or column, an empty table, or a held-out table that shares prompts with ``data``.
        ConfigError: no such reward.

    >>> task = table_task([{"q": "2+2=", "answer": "4"}], prompt="q", reward="exact_match", columns={"reference": "answer"})
    >>> task.prompts
    [Prompt(text='2+2=', columns={'reference': '4'})]
    """
    if num_prompts is not None and num_prompts < 1:
        raise TaskError(f"num_prompts must be at least 1, got {num_prompts}")
    read = _Reader(prompt, template, dict(columns or {}))
    prompts = read.prompts(data, num_prompts)
    order = np.random.default_rng(seed).permutation(len(prompts))
    train = [prompts[i] for i in order]
    kept: list[Prompt] = []
    if held_out is True:
        kept = [p for p in train if is_held_out(p.text)]
        train = [p for p in train if not is_held_out(p.text)]
        if not train:  # a table of a few rows, all of them drawn
            train, kept = kept, []
    elif held_out is not False:
        kept = read.prompts(held_out, None)
        shared = {p.text.strip() for p in train} & {p.text.strip() for p in kept}
        if shared:
            raise TaskError(
                f"{len(shared)} prompts are both trained on and held out, such as {min(shared)!r:.80}; take them out of one"
            )
    return Task(
        name=name,
        prompts=train,
        held_out=kept,
        reward=as_reward(reward),
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        stop=tuple(stop),
        metrics={key: _metric(key, metric) for key, metric in (metrics or {}).items()},
    )


def as_reward(reward: RewardSpec | None) -> Callable[..., Any] | None:
    """A reward as it is, or the one that a text or a mapping describes."""
    return load_reward(reward) if isinstance(reward, str | Mapping) else reward


def _metric(name: str, given: RewardSpec) -> Callable[..., Any]:
    metric = as_reward(given)
    if metric is None:
        raise TaskError(f"the metric {name!r} must be a reward or its name, got None")
    return metric


class _Reader:
    """Reads tables of one shape."""

    def __init__(self, prompt: str, template: str | None, columns: dict[str, str]) -> None:
        self.prompt, self.template, self.columns = prompt, template, columns
        self.fields: list[str] = []
        if template is not None:
            try:
                parsed = list(string.Formatter().parse(template))
            except ValueError as error:
                raise TaskError(
                    f"the template {template!r} cannot be filled in: {error}; write a brace of your own twice"
                ) from error
            self.fields = [field for _, field, _, _ in parsed if field is not None]
            if not self.fields:
                raise TaskError(f"the template {template!r} names no column; write one in braces, such as {{question}}")

    def prompts(self, data: Table, limit: int | None) -> list[Prompt]:
        where = str(data) if isinstance(data, str | Path) else f"the table ({type(data).__name__})"
        rows = rows_from_file(data, column=self.prompt) if isinstance(data, str | Path) else _rows(data)
        made = (self._row(row, number, where) for number, row in enumerate(islice(rows, limit), start=1))
        return prompts_from_rows(made, self.prompt, where)

    def _row(self, row: Mapping[str, Any], number: int, where: str) -> dict[str, Any]:
        missing = [c for c in [*self.columns.values(), *self.fields] if c not in row]
        if missing:
            raise TaskError(
                f"{where}, row {number}: there is no column {missing[0]!r}; the row's columns are "
                f"{', '.join(map(str, row)) or 'none'}"
            )
        out = {key: value for key, value in row.items() if key not in self.columns.values()}
        out |= {new: row[old] for new, old in self.columns.items()}
        if self.template is not None:
            out[self.prompt] = self.template.format(**row)
        return out


def _rows(data: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    if isinstance(data, Mapping):  # datasets.DatasetDict, or one row by mistake
        raise TaskError(
            f"expected a table of rows, got a mapping with the keys {', '.join(map(repr, data))}; of a DatasetDict, give one "
            "split: data['train']"
        )
    if not isinstance(data, Iterable):
        raise TaskError(f"expected a file, a list of rows or a datasets object, got {type(data).__name__}")
    for number, row in enumerate(data, start=1):
        if not isinstance(row, Mapping):
            raise TaskError(
                f"the table ({type(data).__name__}), row {number}: expected a mapping of columns, got {type(row).__name__}"
            )
        yield row
