"""The fit of a simulated rater by itself: from the answers in a run, a store or a file to a rater that runs take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.loop.context import load_reference
from rlhf_gym.loop.more_labels import more_labels
from rlhf_gym.loop.preference_data import PreferenceData, read_data
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.report import write_report
from rlhf_gym.loop.report.run_data import FITTED_FILE, LABEL_CURVE_FILE
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.run_task import gold_of, task_of
from rlhf_gym.loop.whole_files import write_json
from rlhf_gym.raters.fitted import FittedRater
from rlhf_gym.raters.rater_fit import fit_rater as fit
from rlhf_gym.reward_model.label_curve import LabelCurve
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import AnyReward, reward_name, score
from rlhf_gym.rewards.spec import load_reward
from rlhf_gym.store_places import store_of

_SCORED_AT_ONCE = 256


def fit_rater(
    data: str,
    *,
    reward: str | AnyReward | None = None,
    format: str | None = None,  # noqa: A002
    columns: Mapping[str, str] | None = None,
    raters: Sequence[str] | None = None,
    resamples: int = 100,
    seed: int = 0,
    progress: Progress | None = None,
) -> FittedRater:
    """Fit a simulated rater to the answers that people gave; see :func:`rlhf_gym.raters.rater_fit.fit_rater`.

    Args:
        data: a run's directory, a feedback store or a file of judgements (:func:`~rlhf_gym.loop.preference_data.read_data`).
        reward: what the rater is taken to prefer by: a reward, or its name as ``--reward`` takes it; None takes the run's gold
            reward.
        format: the file's exchange format; None finds it.
        columns: the name in the file of what the format calls otherwise.
        raters: names of raters whose answers count; ``"web"`` includes ``"web/ann"``. None takes everybody's.
        resamples: bootstrap samples for the intervals.
        seed: of the folds and the bootstrap.
        progress: shows the user what goes on; None shows nothing.

    Raises:
        ConfigError: there is no such data or rater, or no reward.
        FeedbackError: too few answers.
        RewardError: the reward fails on a sample.
    """
    progress = progress or Progress(quiet=True)
    read = read_data(data, format, columns)
    scored_by = _reward(data, reward)
    answers, skips = _of_raters(read, raters)
    rewards = _rewards(scored_by, answers)
    kept = [i for i, values in enumerate(rewards) if np.isfinite(values).all()]
    with progress.stage("rater", 0) as bar:
        fitted = fit(
            [answers[i] for i in kept], [rewards[i] for i in kept], reward_name=reward_name(scored_by), skips=skips,
            resamples=resamples, seed=seed, on_progress=lambda done, total: bar.update(done, "fits", total),
        )  # fmt: skip
    dropped = {reason: number for reason, number in read.dropped.items() if reason != "skips"}
    if len(kept) < len(answers):
        dropped["answers that the reward cannot score"] = len(answers) - len(kept)
    fitted.left_out.update(dropped)
    return fitted


def show_in_report(
    data: str, fitted: FittedRater, *, seed: int = 0, progress: Progress | None = None
) -> tuple[LabelCurve | None, Path] | None:
    """Put a fitted rater on the report of the run whose answers it was fitted to, with accuracy by number of answers.

    Args:
        data: what it was fitted to.
        fitted: the fitted rater.
        seed: of the splits of the learning curve.
        progress: shows the user what goes on; None shows nothing.

    Returns:
        The curve, None where the answers are too few or the model has no trunk for a reward model; and the report. None where
        the data is no run.
    """
    run = store_of(data)[1] if "://" not in data and Path(data).is_dir() else None
    if run is None or not RunDirectory(run).config_file.is_file():
        return None
    progress, directory, curve = progress or Progress(quiet=True), RunDirectory(run), None
    fitted.save(directory.path / FITTED_FILE)
    config = directory.config()
    if config.reward_model.enabled:
        try:
            curve = more_labels(read_data(data), load_reference(config), seed=seed, progress=progress)
        except FeedbackError as error:
            progress.say(f"accuracy by number of labels is left out: {error}")
        else:
            write_json(directory.path / LABEL_CURVE_FILE, curve.as_dict())
    return curve, write_report(directory.path)


def _reward(data: str, reward: str | AnyReward | None) -> AnyReward:
    if isinstance(reward, str):
        return load_reward(reward)
    if reward is not None:
        return reward
    run = store_of(data)[1] if Path(data).is_dir() else None
    if run is None:
        raise ConfigError(
            f"{data} does not say what raters prefer by: give --reward, e.g. the task's reward or a reward model's folder"
        )
    config = RunDirectory(run).config()
    return gold_of(config.task, task_of(config.task))


def _of_raters(read: PreferenceData, raters: Sequence[str] | None) -> tuple[list[tuple[Query, Judgement]], int]:
    """The answers of some raters, and the number of skips besides (everybody's, where all raters count)."""
    if raters is None:
        return read.answers, read.dropped.get("skips", 0)
    chosen = [
        (query, said)
        for query, said in read.answers
        if any(said.rater == name or said.rater.startswith(f"{name}/") for name in raters)
    ]
    if not chosen:
        known = sorted({said.rater for _, said in read.answers})
        raise FeedbackError(
            f"no answer in {read.source} is of {', '.join(raters)}; there are answers of {', '.join(known[:12]) or 'nobody'}"
        )
    return chosen, 0


def _rewards(reward: AnyReward, answers: Sequence[tuple[Query, Judgement]]) -> list[NDArray[np.float64]]:
    """Rewards ``[k]`` of each answer's responses, NaN where the reward leaves one out; each query is scored once."""
    queries = list({query.id: query for query, _ in answers}.values())
    found: dict[str, NDArray[np.float64]] = {}
    for begin in range(0, len(queries), _SCORED_AT_ONCE):
        batch = queries[begin : begin + _SCORED_AT_ONCE]
        names = dict.fromkeys(name for query in batch for name in query.columns)
        flat = [(query, response) for query in batch for response in query.responses]
        columns = {name: [query.columns.get(name) for query, _ in flat] for name in names}
        with frozen(reward):
            scored = score(reward, [query.prompt for query, _ in flat], [r for _, r in flat], columns, may_skip=True)
        values = np.where(scored.kept, np.asarray(scored.values, dtype=np.float64), np.nan)
        ends = np.cumsum([len(query.responses) for query in batch])
        found.update(zip((query.id for query in batch), np.split(values, ends[:-1]), strict=True))
    return [found[query.id] for query, _ in answers]
