"""Whether somebody works on a run, how far it is, and whether anything has changed: by a look that reads little."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rlhf_gym.loop.report.run_data import RunData, finite
from rlhf_gym.loop.run_directory import FEEDBACK_STAGES, STAGES, RunDirectory, is_locked

_SHOWN = (
    "config.yaml", "versions.json", "metrics.csv", "times.jsonl", "stopped.json", "evaluation.json", "too_long.json",
    "feedback.sqlite", "feedback.sqlite-wal", "fitted_rater.json", "label_curve.json", "round-*/agent_seconds.json",
    "round-*/training.json", "round-*/reward_model.json", "round-*/reward_models.jsonl", "round-*/completions.jsonl",
    "round-*/stages.json", "fitted_runs/*/evaluation.json",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What a look at a run's directory saw; two that are equal have the same page.

    Attributes:
        files: of each file that the page is made from, its name, its size in bytes and when it was written (ns).
        working: True while a process works on the run; None where the file system cannot say.
    """

    files: tuple[tuple[str, int, int], ...]
    working: bool | None

    @property
    def written(self) -> datetime | None:
        """When the newest of the files was written; None if there is none."""
        newest = max((when for _, _, when in self.files), default=None)
        return None if newest is None else datetime.fromtimestamp(newest // 10**9, UTC)


@dataclass(frozen=True)
class RunState:
    """How a run stands, for its page.

    Attributes:
        word: Waiting, Running, Finished, Stopped, or Unknown.
        words: the same in a few sentences.
        written: when the run last wrote something.
    """

    word: str
    words: str
    written: datetime | None

    @property
    def alarming(self) -> bool:
        """True for a run that did not come to its end."""
        return self.word == "Stopped"


def look(run_dir: Path) -> Look:
    """Look at a run's directory without reading or writing any file.

    Args:
        run_dir: the directory; it need not exist.
    """
    files = []
    for pattern in _SHOWN:
        for path in run_dir.glob(pattern):
            try:
                found = path.stat()
            except OSError:  # replaced or removed since it was listed
                continue
            files.append((path.relative_to(run_dir).as_posix(), found.st_size, found.st_mtime_ns))
    return Look(tuple(sorted(files)), is_locked(RunDirectory(run_dir).lock_file))


def state_of(run: RunData, seen: Look) -> RunState:
    """Say how a run stands.

    Args:
        run: the run's data.
        seen: a look at its directory, from before the data were read.
    """
    place = _place(run)
    if not run.config and not any(name == "config.yaml" for name, _, _ in seen.files):
        return RunState(
            "Waiting", "Nothing has been written yet; the page fills as soon as the run has begun.", seen.written
        )
    if seen.working:
        return RunState("Running", f"It is at {place}." if place else "It is writing its results.", seen.written)
    if place is None and not run.stopped:
        return RunState("Finished", "All rounds are done.", seen.written)
    if seen.working is None:
        words = (
            f"The file system of this folder has no locks, so nobody can say whether the run goes on. It is at {place}."
        )
        return RunState("Unknown", words, seen.written)
    why = (
        f"Why: {run.stopped.rstrip('.')}." if run.stopped else "It left no reason: it was killed, or had no more to do."
    )
    words = f"No process works on this run; it is at {place or 'its end'}. {why} --resume goes on from there."
    return RunState("Stopped", words, seen.written)


def _place(run: RunData) -> str | None:
    """The round, the stage and the iteration that a run is at; None once all rounds are done."""
    rounds = max(1, int(finite(run.setting("run.rounds")) or 1))
    labelled = not isinstance(section := run.config.get("reward_model"), dict) or section.get("enabled", True)
    stages = [stage for stage in STAGES if labelled or stage not in FEEDBACK_STAGES]
    for number in range(1, rounds + 1):
        done = run.finished_stages.get(number, ())
        left = [stage for stage in stages if stage not in done]
        if left:
            of_round = f"round {number} of {rounds}, stage {left[0]}"
            if left[0] != "train":
                return of_round
            trained = sum(iteration.round == number for iteration in run.iterations)
            tokens, iterations = finite(run.setting("agent.tokens")), finite(run.setting("agent.iterations"))
            known = "" if tokens is not None or iterations is None else f" of {iterations:.0f}"
            return f"{of_round}, {trained}{known} iterations done"
    return None
