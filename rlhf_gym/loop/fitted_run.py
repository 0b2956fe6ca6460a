"""What a run with the fitted rater gives: the loop of a run once more, with the rater in the place of whoever answered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config import PeopleConfig, RaterConfig
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.report.run_data import fitted_run_of
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.raters.fitted import FITTED_PREFIX, FittedRater
from rlhf_gym.store_places import store_of


def run_with_fitted(data: Path | str, fitted: FittedRater, progress: Progress | None = None) -> RunDirectory:
    """Run the loop of a run again with a fitted rater: same settings and seed, so the same queries in the first round.

    It lies in the run's folder ``fitted_runs``; one that was interrupted goes on, one that is finished is not done again.

    Args:
        data: the run's directory.
        fitted: the rater, fitted to the run's answers.
        progress: shows the user what goes on.

    Raises:
        ConfigError: there is no such run, or it asks no raters.
    """
    source = store_of(str(data))[1]
    if source is None:
        raise ConfigError(f"--rerun does a run's loop again, and {data} is no run's directory")
    config = RunDirectory(source).config()
    if not config.reward_model.enabled:
        raise ConfigError(f"--rerun does a run's loop with another rater, and the run in {source} asks none")
    folder = fitted_run_of(source.resolve(), fitted)
    file = folder.with_suffix(".json")
    file.parent.mkdir(exist_ok=True)
    fitted.save(file)
    asked = config.rater
    overlap = config.people.overlap if config.asks_people else asked.overlap
    rater = RaterConfig(
        name=f"{FITTED_PREFIX}{file}", query_type=asked.query_type, labels=asked.labels, schedule=asked.schedule,
        select=asked.select, batch_size=asked.batch_size, population=overlap, overlap=overlap,
    )  # fmt: skip
    again = replace(config, rater=rater, people=PeopleConfig())
    return run_loop(again, folder, resume=True, progress=progress)
