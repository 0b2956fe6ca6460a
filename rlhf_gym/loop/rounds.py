"""The loop itself: the stages of every round, in order; a stage that is finished is not done again when a run goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from rlhf_gym.agents.common.launch import process_ranks
from rlhf_gym.agents.common.optimizer import require_optimizer
from rlhf_gym.agents.common.ranks import Ranks
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.candidates import sample
from rlhf_gym.loop.check_processes import check_processes
from rlhf_gym.loop.config import Config
from rlhf_gym.loop.config_file import to_settings
from rlhf_gym.loop.context import PeoplePage, RunContext
from rlhf_gym.loop.evaluate import evaluate
from rlhf_gym.loop.given_data import GivenData
from rlhf_gym.loop.label import label
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.report import write_report
from rlhf_gym.loop.reward_models import fit
from rlhf_gym.loop.run_directory import FEEDBACK_STAGES, RunDirectory
from rlhf_gym.loop.summary import summary
from rlhf_gym.loop.train import train
from rlhf_gym.loop.whole_files import read_json, write_json, write_text
from rlhf_gym.tasks import Task

STAGE_FUNCTIONS = {"sample": sample, "label": label, "fit": fit, "train": train, "evaluate": evaluate}
"""The stages of a round, in order."""


def run_loop(
    config: Config,
    out: Path | str,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    page: PeoplePage | None = None,
    stages: Sequence[str] | None = None,
    task: Task | None = None,
    given: GivenData | None = None,
) -> RunDirectory:
    """Run the whole loop in a directory.

    A run that was killed goes on with ``resume=True``: no judgement is lost, no finished stage is done again, the agent goes on
    from its latest checkpoint, and on CPU the metrics are those of a run that was never interrupted.

    Launched as several processes (docs/scaling.md), all of them train the agent; everything else is rank 0's.

    Args:
        config: the configuration.
        out: the run's directory.
        resume: go on with the run that is there.
        progress: shows the user what goes on; by default bars on a terminal, lines elsewhere.
        page: serves the rating page if the configuration asks people: :class:`rlhf_gym.web.run_page.RunPage`.
        stages: the stages of each round to do; None does all. Others can follow later, with ``resume=True``.
        task: the configuration's task, where it is loaded already; None loads it.
        given: the rows of ``agent.data``, where they are read already; None reads them.

    Returns:
        The run's directory, with ``report.html`` and ``summary.txt`` in it.

    Raises:
        RlhfGymError: something that the user can correct; what was finished before is kept.
    """
    run, ranks = RunDirectory(out), process_ranks()
    progress = (progress or Progress()) if ranks.is_main else Progress(quiet=True)
    check_ranks(ranks, config, run, resume=resume)
    ranks.from_main(partial(_check, config, run, page, resume=resume))
    # Everything is loaded and checked before the directory is made: a mistyped name leaves nothing behind.
    context = ranks.each(lambda: RunContext.of(config, run, progress, task=task, given=given))
    with ExitStack() as stack:
        ranks.from_main(lambda: stack.enter_context(run.open(config, resume=resume)))
        if ranks.is_main and context.too_long:
            write_json(run.too_long_file, [found.as_json() for found in context.too_long])
        if ranks.is_main and config.asks_people and page is not None:
            context = replace(context, people=stack.enter_context(page.serve(config, run, progress.say)))
        for number in range(1, config.run.rounds + 1):
            for stage in STAGE_FUNCTIONS:
                wanted = stages is None or stage in stages
                if wanted and ranks.from_main(partial(_is_left, context.config, run, number, stage)):
                    _work(ranks, context, number, stage)
        ranks.from_main(lambda: _conclude(run))
    return run


def check_ranks(ranks: Ranks, config: Config, run: RunDirectory, *, resume: bool) -> None:
    """Refuse processes that would not run the same, that the settings do not go with, or that have no such optimizer.

    Args:
        ranks: the processes.
        config: the configuration.
        run: the run's directory.
        resume: go on with the run that is there.

    Raises:
        ConfigError: with the reason.
    """
    sections = to_settings(config)
    settings = {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    facts = {**settings, "the run's directory": str(run.path), "--resume": resume}
    ranks.check_same(lambda: facts, "start every process with the same command and the same files")
    check_processes(ranks, config)
    require_optimizer(config.agent.settings.get("optimizer", "adamw"))


def _check(config: Config, run: RunDirectory, page: PeoplePage | None, *, resume: bool) -> None:
    """Check, before anything is loaded, that the run may go there and that its page can be served."""
    run.check(config, resume=resume)
    if not config.asks_people:
        return
    if page is None:
        raise ConfigError(
            "people are to answer (rater.name web, or a people.share), and this run has no page for them: start it with "
            "`rlhf-gym run`, or with run_loop(..., page=rlhf_gym.web.run_page.RunPage())"
        )
    page.check(config)


def _is_left(config: Config, run: RunDirectory, number: int, stage: str) -> bool:
    """True for a stage that is still to be done."""
    return not run.done(number, stage) and (stage not in FEEDBACK_STAGES or config.reward_model.enabled)


def _work(ranks: Ranks, context: RunContext, number: int, stage: str) -> None:
    """Do a stage: all ranks train, and rank 0 does everything else."""
    started = time.perf_counter()
    work = partial(STAGE_FUNCTIONS[stage], context, number)
    if stage == "train":
        work()
    else:
        ranks.from_main(work, patient=True)  # people may take days to answer
    if ranks.is_main:
        context.run.mark_done(number, stage, time.perf_counter() - started)


def _conclude(run: RunDirectory) -> None:
    """Write a finished run's duration, report and summary."""
    versions = read_json(run.versions_file) or {}
    write_json(run.versions_file, {**versions, "wall_seconds": round(run.seconds(), 1)})
    write_report(run.path)
    write_text(run.path / "summary.txt", summary(run.path))
