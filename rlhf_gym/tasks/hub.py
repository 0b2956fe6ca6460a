"""The data sets of the field as tasks. `hub.yaml` describes each one; this file reads them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_gym.errors import TaskError
from rlhf_gym.table_files import rows_from_file
from rlhf_gym.tasks import hub_rows
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.table import RewardSpec, Table, table_task
from rlhf_gym.text import nearest

TABLE = Path(__file__).with_name("hub.yaml")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubEntry:
    """One data set of `hub.yaml`; see there for what the keys mean."""

    what: str
    path: str
    revision: str
    train: str
    columns: Mapping[str, str]
    held_out: str | None = None
    config: str | None = None
    data_dir: str | None = None
    rows: str | None = None
    template: str | None = None
    reward: str | Mapping[str, Any] | None = None
    metrics: Mapping[str, str | Mapping[str, Any]] = field(default_factory=dict)
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def hub_entries() -> dict[str, HubEntry]:
    """All data sets, by name."""
    import yaml

    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: HubEntry(**{**entry, "stop": tuple(entry.get("stop", ()))}) for name, entry in table.items()}


def hub_task(
    dataset: str,
    *,
    path: str | None = None,
    revision: str | None = None,
    data: Table | None = None,
    held_out: Table | bool = True,
    reward: RewardSpec | None = None,
    metrics: Mapping[str, RewardSpec] | None = None,
    max_new_tokens: int | None = None,
    num_prompts: int | None = None,
    num_held_out: int | None = 1000,
    seed: int = 0,
) -> Task:
    """A task of a data set from the Hugging Face hub.

    Args:
        dataset: its name in `hub.yaml`: ``imdb``, ``tldr``, ``cnn_dailymail``, ``common_gen``, ``totto``, ``iwslt2017``,
            ``daily_dialog``, ``narrativeqa``, ``hh_helpful``, ``hh_harmless``, ``real_toxicity_prompts``, ``gsm8k``,
            ``ultrafeedback``.
        path: another repository, or a folder, with the same columns and splits.
        revision: another commit.
        data: rows of the same columns, or a file of them, instead of the hub's.
        held_out: likewise, with ``data``; True keeps a sixth of it.
        reward: replaces the table's; needed for data sets that have none of their own, unless the environment or the loop
            brings one.
        metrics: replace the table's.
        max_new_tokens: replaces the table's.
        num_prompts: take as many rows to train on, from the top; None takes all.
        num_held_out: likewise, of the split held out.
        seed: of the prompts' order.

    Raises:
        TaskError: no such data set; `datasets` is not installed, or cannot read it; a row without an expected column.
    """
    entries = hub_entries()
    if dataset not in entries:
        raise TaskError(
            f"there is no data set {dataset!r}{nearest(dataset, entries)} Expected one of {', '.join(entries)}"
        )
    entry = entries[dataset]
    kept: Table | bool = held_out
    if data is None:
        train: Table = _load(dataset, entry, entry.train, path, revision, num_prompts)
        if entry.held_out is not None and held_out is True:
            kept = _load(dataset, entry, entry.held_out, path, revision, num_held_out)
    else:
        train = data
    prompts = list(islice(_mapped(dataset, entry, train), num_prompts))
    if not isinstance(kept, bool):
        shared = {row["prompt"] for row in prompts}
        # The hub's splits do share a prompt now and then (daily_dialog, common_gen): it is trained on, not held out.
        kept = [row for row in islice(_mapped(dataset, entry, kept), num_held_out) if row["prompt"] not in shared]
    return table_task(
        prompts,
        held_out=kept if kept != [] else False,
        reward=entry.reward if reward is None else reward,
        metrics=entry.metrics if metrics is None else metrics,
        name=dataset,
        max_new_tokens=max_new_tokens or entry.max_new_tokens,
        stop=entry.stop,
        seed=seed,
    )


def _load(
    name: str, entry: HubEntry, split: str, path: str | None, revision: str | None, limit: int | None
) -> Iterable[Mapping[str, Any]]:
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise TaskError(f"the task {name!r} needs datasets: pip install 'rlhf-gym[hub]'") from error
    options: dict[str, Any] = {"split": f"{split}[:{limit}]" if limit else split}
    if path is None:
        options["revision"] = revision or entry.revision
        if entry.config:
            options["name"] = entry.config
        if not _COMMIT.fullmatch(options["revision"]):
            warnings.warn(
                f"the data set {name!r} is read at the branch {options['revision']!r}, which may change; pass revision= with a "
                "commit to pin it",
                stacklevel=4,
            )
    elif revision:
        options["revision"] = revision
    if entry.data_dir:
        options["data_dir"] = entry.data_dir
    try:
        loaded: Iterable[Mapping[str, Any]] = datasets.load_dataset(path or entry.path, **options)
    except Exception as error:  # datasets raises a dozen kinds
        asked = ", ".join(f"{key}={value}" for key, value in options.items())
        raise TaskError(
            f"cannot read the data set {name!r} from {path or entry.path!r} ({asked}): {type(error).__name__}: {error}"
        ) from error
    return loaded


def _mapped(name: str, entry: HubEntry, data: Table) -> Iterator[dict[str, Any]]:
    """Rows in the task's own columns, the prompt among them."""
    rows = rows_from_file(data) if isinstance(data, str | Path) else data
    make: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]] = (
        getattr(hub_rows, entry.rows) if entry.rows else lambda row: [row]
    )
    for number, row in enumerate(rows, start=1):
        try:
            made = [_renamed(entry, one) for one in make(row)]
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise TaskError(
                f"data set {name!r}, row {number}: expected the columns that hub.yaml names, got {', '.join(map(str, row))} "
                f"({type(error).__name__}: {error})"
            ) from error
        yield from (one for one in made if one["prompt"].strip())


def _renamed(entry: HubEntry, row: Mapping[str, Any]) -> dict[str, Any]:
    out = {new: _at(row, place.split(".")) for new, place in entry.columns.items()}
    if entry.template is not None:
        out["prompt"] = entry.template.format(**{**row, **out})
    return out


def _at(value: Any, place: list[str]) -> Any:
    """The value at a place: ``document.summary.text``, ``answers.*.text``."""
    if not place:
        return value
    if place[0] == "*":
        # `datasets` may have made a mapping of lists of a list of mappings.
        items = hub_rows.records(value)
        return [_at(item, place[1:]) for item in items]
    return _at(value[place[0]], place[1:])
