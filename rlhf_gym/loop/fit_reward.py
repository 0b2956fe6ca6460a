"""The fit of a reward model by itself, without a run: from judgements to a folder that ``--reward`` takes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.loop.more_labels import more_labels
from rlhf_gym.loop.preference_data import READ_COLUMNS, read_data
from rlhf_gym.loop.progress import Bar, Progress
from rlhf_gym.loop.reward_evaluation import RewardEvaluation, attribute_slices, judge
from rlhf_gym.loop.whole_files import write_json
from rlhf_gym.reward_model import Features, FitConfig, FitResult, RewardModel, fit, split_by_prompt
from rlhf_gym.reward_model.attribute_items import items_to_fit, preferences_to_judge
from rlhf_gym.reward_model.batches import is_held_out, like_those, split_key, texts_of
from rlhf_gym.reward_model.evaluation import head_scores
from rlhf_gym.reward_model.fit_config import RATING_LOSSES
from rlhf_gym.reward_model.label_curve import LabelCurve
from rlhf_gym.reward_model.ratings import ratings_of

FIT_FILE = "fit.json"


@dataclass(frozen=True)
class FittedReward:
    """A fit, and what it says of the held-out judgements.

    Attributes:
        result: the fit.
        evaluation: of the model on the judgements held out.
        folder: the reward model's folder.
        curve: accuracy by number of labels, where it was asked for.
        remarks: what was left out, or taken and is worth saying, in words; empty for nothing.
    """

    result: FitResult
    config: FitConfig
    evaluation: RewardEvaluation
    folder: Path
    curve: LabelCurve | None = None
    remarks: str = ""

    @property
    def doubt(self) -> str:
        """That the fit may have learned nothing, with the likely cures; empty where the held-out judgements say that it did."""
        config, held, low = self.config, self.evaluation, self.evaluation.interval[0]
        if config.loss in RATING_LOSSES:
            if held.ratings is None or not held.ratings.low <= 0:  # NaN of too few to say
                return ""
            said = f"the correlation with held-out ratings ({held.ratings.correlation:+.2f}) may be 0"
        elif low > 0.5:
            return ""
        else:
            said = f"the accuracy on held-out comparisons ({held.fit.accuracy:.1%}) may be that of a coin"
        cures = ["more judgements, or such as agree with one another"]
        if config.trunk_layers != 0:
            epochs = len(self.result.epochs)
            cures = [
                "a frozen trunk (--set trunk_layers=0)", f"more epochs than {epochs} (--set epochs={10 * epochs})",
                f"a higher rate (--set learning_rate={3 * config.learning_rate:g})", *cures,
            ]  # fmt: skip
        return f"this fit may have learned nothing: {said}. What may help: {', '.join(cures)}"


@dataclass(frozen=True)
class _Way:
    """A fit that was tried."""

    config: FitConfig
    model: RewardModel
    features: Features | None
    result: FitResult

    def named(self) -> str:
        """What was trained, in words."""
        layers = self.config.trunk_layers
        if layers in (0, -1):
            return "with a frozen trunk" if layers == 0 else "of the whole trunk"
        return f"of the last {layers} layers"


def _show(bar: Bar, done: int, total: int, loss: float) -> None:
    bar.update(done, f"loss {loss:.3f}", total)


def _show_reading(bar: Bar, done: int, total: int) -> None:
    bar.update(done, "texts read by the frozen trunk", total)


def fit_reward(
    data: str,
    out: Path | str,
    *,
    model: str = "embedded",
    format: str | None = None,  # noqa: A002
    columns: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    curve: bool = False,
    progress: Progress | None = None,
) -> FittedReward:
    """Fit a reward model to judgements and write it to a folder; ``fit.json`` in there holds the metrics of the fit.

    It is normalised on the held-out texts, to mean 0 and standard deviation 1.

    Args:
        data: a run's directory, a feedback store or a file of judgements (:func:`~rlhf_gym.loop.preference_data.read_data`).
        out: the folder; a reward model that is there is replaced.
        model: the language model whose trunk it gets: ``"embedded"``, a folder, a GGUF file, or a name on the hub.
        format: the file's exchange format; None finds it.
        columns: the name in the file of what the format calls otherwise.
        settings: fields of :class:`~rlhf_gym.reward_model.FitConfig`.
        seed: seed of the split, the order and dropout.
        device: device of the weights.
        curve: also measure accuracy by number of labels, of heads on the frozen trunk, and how many more would raise it.
        progress: shows the user what goes on; None shows nothing.

    Raises:
        ConfigError: there is no such data, a setting is out of its range, or ``out`` holds something else.
        FeedbackError: too few judgements, or a fit that learns nothing of them; or a file that cannot be read.
        ModelError: there is no such model, or it cannot be written.
    """
    out, progress = Path(out), progress or Progress(quiet=True)
    if out.exists() and not (out / "reward_model.json").is_file():
        raise ConfigError(f"{out} is there and is no reward model: nothing is written over it; give another --out")
    config = FitConfig(**(settings or {}), seed=seed)
    read = read_data(data, format, columns, keep=READ_COLUMNS)
    everything = read.answers
    items = items_to_fit(everything, config)
    read = replace(read, answers=preferences_to_judge(everything, config.attribute_weights))
    rated = config.loss in RATING_LOSSES
    preferences = read.comparisons() if rated else read.preferences()
    ratings = ratings_of(read.answers) if rated else []
    if rated:  # prompts whose responses are not compared are split, too
        is_held = is_held_out([*preferences, *items], config.validation_fraction, config.seed)
        held_out, ratings = [p for p in preferences if is_held(p)], [r for r in ratings if is_held(r)]
        fitted, validation = preferences, None
    else:
        fitted, held_out = split_by_prompt(preferences, config.validation_fraction, config.seed)
        validation = held_out
    remarks = read.remarks()
    also = f" and {len(items)} ratings" if rated else ""
    progress.say(f"{len(preferences)} comparisons{also} of {read.source}{f'; {remarks}' if remarks else ''}")
    language_model = LanguageModel.load(model, device=device)
    ways, by_labels, tried = config.ways(language_model), None, list[_Way]()
    for way in ways:
        trunk = LanguageModel.load(model, device=device) if tried else language_model
        reward_model = RewardModel(trunk, readout=way.readout(trunk), attributes=way.attributes, seed=way.seed)
        features = None
        if way.trunk_layers == 0:
            features = Features(reward_model, precision=way.precision, tokens_per_batch=way.tokens_per_batch)
        if curve and not tried:
            by_labels = more_labels(read, trunk, features=features, seed=seed, progress=progress)
        kind = "" if len(ways) == 1 else ", frozen trunk" if way.trunk_layers == 0 else ", whole trunk"
        with progress.stage(f"reward model{kind}", 0) as bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\d+ of \d+ texts exceed")  # which the evaluation says, and once
            result = fit(
                reward_model, fitted, way, validation=validation, ratings=items, features=features,
                on_progress=partial(_show, bar), on_features=partial(_show_reading, bar),
            )  # fmt: skip
        tried.append(_Way(way, reward_model, features, result))
    kept = min(tried, key=lambda way: way.result.kept_loss)
    if len(tried) > 1:
        losses = ", ".join(f"{one.result.kept_loss:.3f} {one.named()}" for one in tried)
        progress.say(f"held-out loss: {losses}; kept the fit {kept.named()}")
    config, reward_model, features, result = kept.config, kept.model, kept.features, kept.result
    texts = texts_of([*held_out, *ratings])
    heads = head_scores(reward_model, texts, features)
    if heads.std(axis=0).max() == 0:
        raise FeedbackError(
            f"the fit on {len(fitted) or len(items)} judgements of {read.source} learned nothing: all responses have the "
            f"same score{f' ({remarks})' if remarks else ''}. Collect judgements that agree with one another, or more"
        )
    reward_model.normalise_to(heads)
    raw = reward_model.weighed(torch.from_numpy(heads))
    by_attribute = attribute_slices(reward_model, everything, features, like_those(held_out, split_key(preferences)))
    scores = dict(zip(texts, raw.tolist(), strict=True))
    evaluation = judge(
        held_out, scores, calibrated=not config.attribute_heads, answers=read.answers, n_cut=result.n_cut,
        n_texts=result.n_texts, ratings=ratings,
    ).with_slices(by_attribute)  # fmt: skip
    reward_model.save(out)
    written = {"data": data, "fit": result.as_dict(), "held_out": evaluation.as_dict()}
    written["held_out_loss"] = {one.named(): one.result.kept_loss for one in tried}
    write_json(out / FIT_FILE, written | ({} if by_labels is None else {"label_curve": by_labels.as_dict()}))
    return FittedReward(result, config, evaluation, out, by_labels, remarks)
