"""The loop itself: the stages of every round, in order; a stage that is finished is not done again when a run goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.candidates import sample
from rlhf_gym.loop.config import Config
from rlhf_gym.loop.context import PeoplePage, RunContext
from rlhf_gym.loop.evaluate import evaluate
from rlhf_gym.loop.label import label
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.report import write_report
from rlhf_gym.loop.reward_models import fit
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.summary import summary
from rlhf_gym.loop.train import train
from rlhf_gym.loop.whole_files import read_json, write_json, write_text

STAGE_FUNCTIONS = {"sample": sample, "label": label, "fit": fit, "train": train, "evaluate": evaluate}
"""The stages of a round, in order."""
FEEDBACK_STAGES = ("sample", "label", "fit")
"""Stages that a run without a reward model leaves out."""


def run_loop(
    config: Config,
    out: Path | str,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    page: PeoplePage | None = None,
    stages: Sequence[str] | None = None,
) -> RunDirectory:
    """Run the whole loop in a directory.

    A run that was killed goes on with ``resume=True``: no judgement is lost, no finished stage is done again, the agent goes on
    from its latest checkpoint, and on CPU the metrics are those of a run that was never interrupted.

    Args:
        config: the configuration.
        out: the run's directory.
        resume: go on with the run that is there.
        progress: shows the user what goes on; by default bars on a terminal, lines elsewhere.
        page: serves the rating page if the configuration asks people: :class:`rlhf_gym.web.run_page.RunPage`.
        stages: the stages of each round to do; None does all. Others can follow later, with ``resume=True``.

    Returns:
        The run's directory, with ``report.html`` and ``summary.txt`` in it.

    Raises:
        RlhfGymError: something that the user can correct; what was finished before is kept.
    """
    run, progress = RunDirectory(out), progress or Progress()
    run.check(config, resume=resume)
    if config.asks_people:
        if page is None:
            raise ConfigError(
                "people are to answer (rater.name web, or a people.share), and this run has no page for them: start it with "
                "`rlhf-gym run`, or with run_loop(..., page=rlhf_gym.web.run_page.RunPage())"
            )
        page.check(config)
    # Everything is loaded and checked before the directory is made: a mistyped name leaves nothing behind.
    context = RunContext.of(config, run, progress)
    with run.open(config, resume=resume), ExitStack() as stack:
        if context.too_long:
            write_json(run.too_long_file, [found.as_json() for found in context.too_long])
        if config.asks_people and page is not None:
            context = replace(context, people=stack.enter_context(page.serve(config, run, progress.say)))
        for number in range(1, config.run.rounds + 1):
            for stage, work in STAGE_FUNCTIONS.items():
                if (
                    run.done(number, stage)
                    or (stages is not None and stage not in stages)
                    or (stage in FEEDBACK_STAGES and not config.reward_model.enabled)
                ):
                    continue
                started = time.perf_counter()
                work(context, number)
                run.mark_done(number, stage, time.perf_counter() - started)
        versions = read_json(run.versions_file) or {}
        write_json(run.versions_file, {**versions, "wall_seconds": round(run.seconds(), 1)})
        write_report(run.path)
        write_text(run.path / "summary.txt", summary(run.path))
    return run
