"""An ensemble of reward models in a run: members besides the round's reward model, and the proxy that they are together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlhf_gym.errors import ModelError
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.loop.config import RewardModelConfig
from rlhf_gym.reward_model import Features, FitConfig, FitResult, RewardModel
from rlhf_gym.reward_model import fit as fit_reward_model
from rlhf_gym.reward_model.batches import Item, is_held_out, split_key
from rlhf_gym.rewards.base import Reward
from rlhf_gym.rewards.ensemble import Ensemble, Minimum

NAME = "ensemble"
"""The proxy's name; its terms are ``ensemble_variance`` and each member's score."""


def fit_members(
    number: int,
    make: Callable[[int], RewardModel],
    preferences: Sequence[Preference],
    config: FitConfig,
    *,
    ratings: Sequence[Item] = (),
    features: Features | None = None,
    on_progress: Callable[[int, int, int, float], None] | None = None,
) -> list[tuple[RewardModel, FitResult]]:
    """Fit further members, each to a resample of the training prompts (the bootstrap), judged on the same held-out prompts.

    Heads on a frozen trunk begin alike, and only the data can make them differ.

    Args:
        number: members besides the first.
        make: makes member ``m``, from 1, before its fit.
        preferences: all of them; the split is that of the first member's fit.
        config: of the first member's fit.
        ratings: what is fitted in the preferences' place, as :func:`~rlhf_gym.reward_model.fit.fit` takes it.
        features: of a frozen trunk, which all members share.
        on_progress: called with the member, the comparisons done, their total, and the loss.
    """
    everything: list[Item] = [*preferences, *(ratings if config.fits_items else ())]
    held_out = is_held_out(everything, config.validation_fraction, config.seed)
    train, validation = ([p for p in preferences if held_out(p) is side] for side in (False, True))
    taught, judged = ([r for r in ratings if held_out(r) is side] for side in (False, True))
    found = []
    for member in range(1, number + 1):
        model, own = make(member), replace(config, seed=config.seed + member)
        drawn, rated = resampled(train, taught, own.seed)
        result = fit_reward_model(
            model, drawn, own, ratings=[*rated, *judged], validation=validation, features=features,
            on_progress=None if on_progress is None else (
                lambda done, total, loss, member=member: on_progress(member, done, total, loss)  # type: ignore[misc]
            ),
        )  # fmt: skip
        found.append((model, result))
    return found


def resampled(
    preferences: Sequence[Preference], ratings: Sequence[Item], seed: int
) -> tuple[list[Preference], list[Item]]:
    """As many prompts (queries, where there is one prompt only), drawn with replacement, with all that is said about them.

    What comes again is a query of its own, so that a ranking's places are not counted as one longer ranking.

    Args:
        preferences: the preferences.
        ratings: the ratings, or items of attributes.
        seed: of the draw.
    """
    everything: list[Item] = [*preferences, *ratings]
    part_of = split_key(everything)
    parts = sorted({part_of(item) for item in everything})
    times = Counter(np.random.default_rng(seed).integers(len(parts), size=len(parts)).tolist())
    copies = {part: times[i] for i, part in enumerate(parts)}

    def again(query_id: str, copy: int) -> str:
        return f"{query_id}#{copy}" if query_id and copy else query_id

    return (
        [replace(p, query_id=again(p.query_id, c)) for p in preferences for c in range(copies[part_of(p)])],
        [replace(r, query_id=again(r.query_id, c)) for r in ratings for c in range(copies[part_of(r)])],
    )


def member_folder(reward_model: Path, member: int) -> Path:
    """The folder of a further member beside that of the round's reward model.

    Args:
        reward_model: the round's reward model, the first member.
        member: from 1.
    """
    return reward_model.with_name(f"{reward_model.name}_{member + 1}")


def together(config: RewardModelConfig, folder: Path, load: Callable[[Path], RewardModel]) -> Reward:
    """The proxy: the round's reward model, or with further members what they are together.

    Args:
        config: says how many, and how they are combined.
        folder: of the round's reward model.
        load: reads a reward model's folder.

    Raises:
        ModelError: a member is missing.
    """
    first = load(folder)
    if config.members == 1:
        return first
    folders = [member_folder(folder, member) for member in range(1, config.members)]
    if missing := [str(one) for one in folders if not one.is_dir()]:
        raise ModelError(f"the ensemble of {config.members} reward models lacks {', '.join(missing)}")
    parts = [first, *map(load, folders)]
    if config.combine == "minimum":
        return Minimum(parts, name=NAME)
    weight = config.variance_weight if config.combine == "mean_minus_variance" else 0.0
    return Ensemble(parts, variance_weight=weight, name=NAME)
