"""``times.jsonl``: how long each iteration took, by phase. Nothing heavy is imported here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_gym.loop.whole_files import write_text

TIMES_FILE = "times.jsonl"
_PREFIX = "time/"


class IterationTimes:
    """The file of times: a line for each iteration. They differ from run to run, so ``metrics.csv`` does not hold them.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, where: tuple[int, int], metrics: Mapping[str, Any]) -> None:
        """Append an iteration's times. They are not synced to the disk: a power cut may cost them.

        Args:
            where: round and iteration.
            metrics: the iteration's metrics by name; ``time/..._seconds`` and ``time/tokens_per_second`` are taken.
        """
        names = [name.removeprefix(_PREFIX) for name in metrics if name.startswith(_PREFIX)]
        times = {
            name: round(float(metrics[_PREFIX + name]), 6)
            for name in names
            if name.endswith("_seconds") or name == "tokens_per_second"
        }
        if times:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps({"round": where[0], "iteration": where[1], **times}) + "\n")

    def keep_until(self, last: tuple[int, int]) -> None:
        """Drop the lines after an iteration, and what a kill has cut short.

        Args:
            last: round and iteration of the last line to keep.
        """
        if self.path.exists():
            rows = read_times(self.path.read_text(encoding="utf-8", errors="replace"))
            kept = [row for row in rows if (row["round"], row["iteration"]) <= last]
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))


def read_times(text: str) -> list[dict[str, Any]]:
    """Read the lines of the file; those that no run wrote whole are left out."""
    found = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
            row["round"], row["iteration"] = int(row["round"]), int(row["iteration"])
        except (ValueError, KeyError, TypeError):
            continue
        found.append(row)
    return found
