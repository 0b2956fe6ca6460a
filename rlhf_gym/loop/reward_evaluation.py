"""A reward's agreement with judgements: accuracy, calibration, by margin, rater and length, and the ceiling of the raters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.feedback.preferences import Preference, preferences_from, preferences_of
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.loop.intervals import wilson_interval
from rlhf_gym.loop.preference_data import PreferenceData
from rlhf_gym.loop.rating_agreement import RatingAgreement
from rlhf_gym.reward_model import FitResult, RewardModel
from rlhf_gym.reward_model.attribute_items import of_attribute, preferences_to_judge
from rlhf_gym.reward_model.batches import prompt_hash, texts_of
from rlhf_gym.reward_model.evaluation import accuracy, head_scores, judged, raw_scores
from rlhf_gym.reward_model.features import Features
from rlhf_gym.reward_model.ratings import Rating, ratings_of
from rlhf_gym.rewards.base import AnyReward, score
from rlhf_gym.study.agreement import accuracy_from_agreement

MOST_ROWS = 12
"""Rows of a table, at most: the raters or groups with the most comparisons."""


@dataclass(frozen=True)
class Slice:
    """Accuracy on some of the comparisons.

    Attributes:
        by: what the comparisons are told apart by, e.g. ``"rater"``.
        name: e.g. the rater's name.
        accuracy: share in which the reward agrees.
        standard_error: of the accuracy.
        n: comparisons.
    """

    by: str
    name: str
    accuracy: float
    standard_error: float
    n: int


@dataclass(frozen=True)
class RewardEvaluation:
    """A reward's agreement with judgements.

    Attributes:
        fit: accuracy, loss and calibration on all of them.
        slices: accuracy on parts of them: by attribute (of heads of their own), margin, rater, length, and the
            prompts' column ``subset``, where there are such.
        shorter_wins: share of comparisons in which the shorter response was chosen; equal lengths count half.
        length_correlation: correlation of differences in score with differences in length (characters), over comparisons.
        agreement: share of equal verdicts of two raters on the same two responses; None where no two raters judged the same.
        ceiling: the accuracy of a perfect model on single labels of raters who agree so; None where it is not known.
        calibrated: the scores are log-odds, so that loss and calibration mean something.
        n_texts: different texts read.
        n_cut: those that exceeded the model's context.
        ratings: agreement with ratings of single responses; None without any.
        n_fitted_prompts: prompts that the reward model was fitted to; None where that is not known.
        n_prompts: all prompts, of dialogues with the same first turn one.
        unseen: the evaluation on the other prompts alone; None where all are fitted, or none.
    """

    fit: FitResult
    slices: list[Slice]
    shorter_wins: float
    length_correlation: float
    agreement: float | None
    ceiling: float | None
    calibrated: bool
    n_texts: int = 0
    n_cut: int = 0
    ratings: RatingAgreement | None = None
    n_fitted_prompts: int | None = None
    n_prompts: int = 0
    unseen: RewardEvaluation | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy, of as many independent comparisons as its standard error stands for.

        At 0% and 100%, where the standard error says nothing, of as many as there are.
        """
        fit = self.fit
        if fit.n_validation == 0:
            return 0.0, 1.0
        n = float(fit.n_validation)
        if fit.standard_error > 0:
            n = min(n, fit.accuracy * (1 - fit.accuracy) / fit.standard_error**2)
        return wilson_interval(fit.accuracy * n, n)

    def with_slices(self, slices: Sequence[Slice]) -> RewardEvaluation:
        """The same with further slices, which come first."""
        return replace(self, slices=[*slices, *self.slices])

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "fit": self.fit.as_dict()}

    def as_text(self) -> str:
        """The evaluation as a table of plain text."""
        fit = self.fit
        low, high = self.interval
        lines = [str(self.ratings)] if self.ratings is not None else []
        if fit.n_validation == 0:
            return "\n".join([*lines, *self._of_fitted(), *self._of_cut()])
        lines += [
            f"accuracy             {fit.accuracy:.1%}  [{low:.1%}, {high:.1%}] (95% interval; {fit.n_validation} comparisons)"
        ]
        if self.calibrated:
            lines += [
                f"log-loss             {fit.loss:.3f} nats (a coin: 0.693)",
                f"calibration error    {fit.ece:.3f} (a perfectly calibrated model of this size: {fit.ece_floor:.3f})",
            ]
        if self.agreement is not None:
            ceiling = "" if self.ceiling is None else f", so no model gets above about {self.ceiling:.1%}"
            lines.append(f"raters' agreement    {self.agreement:.1%}{ceiling}")
        lines += [
            f"the shorter response was chosen in {self.shorter_wins:.1%}; scores correlate with length by "
            f"{self.length_correlation:+.2f}"
        ]
        lines += [*self._of_fitted(), *self._of_cut()]
        by = ""
        for row in self.slices:
            lines += [f"by {row.by}"] * (row.by != by)
            by = row.by
            lines.append(f"  {row.name:<28} {row.accuracy:>6.1%} ± {row.standard_error:.1%}  of {row.n}")
        return "\n".join(lines)

    def _of_cut(self) -> list[str]:
        if not self.n_cut:
            return []
        return [
            f"{self.n_cut} of {self.n_texts} texts exceed the model's context: their beginning was cut, the end never"
        ]

    def _of_fitted(self) -> list[str]:
        """What the prompts that were fitted mean for the metrics above."""
        if not self.n_fitted_prompts:
            return []
        said = (
            f"{self.n_fitted_prompts} of {self.n_prompts} prompts are among those that the reward model was fitted to"
        )
        if self.unseen is None:
            return [f"{said}: this is no measure of its worth; take others"]
        fit, ratings = self.unseen.fit, self.unseen.ratings
        low, high = self.unseen.interval
        on = [f"accuracy {fit.accuracy:.1%} [{low:.1%}, {high:.1%}], {fit.n_validation} comparisons"] * (
            fit.n_validation > 0
        )
        if ratings is not None:
            on.append(f"correlation with ratings {ratings.correlation:+.2f} [{ratings.low:+.2f}, {ratings.high:+.2f}]")
        return [f"{said}; on the others alone: {'; '.join(on) or 'nothing to judge by'}"]


def evaluate_reward(reward: AnyReward, data: PreferenceData) -> RewardEvaluation:
    """Judge a reward by judgements that it was not fitted to.

    Args:
        reward: a reward model, or any other reward. Only a reward model's scores are log-odds, with a loss and a calibration.
        data: the judgements.

    Raises:
        FeedbackError: no judgement prefers one response to another, and no two ratings differ.
        RewardError: the reward fails on a sample.
    """
    answers, by_attribute = data.answers, list[Slice]()
    if isinstance(reward, RewardModel):
        data = replace(data, answers=preferences_to_judge(answers, reward.attributes))
    preferences, ratings = data.comparisons(), ratings_of(data.answers)
    texts = texts_of([*preferences, *ratings])
    n_cut = 0
    if isinstance(reward, RewardModel):
        features = Features(reward)
        values, n_cut = raw_scores(reward, texts, features).tolist(), features.n_cut(texts)
        by_attribute = attribute_slices(reward, answers, features)
    else:
        columns = {query.prompt: query.columns for query, _ in data.answers}
        names = dict.fromkeys(name for found in columns.values() for name in found)
        given = {name: [columns[prompt].get(name) for prompt, _ in texts] for name in names}
        values = score(reward, [prompt for prompt, _ in texts], [r for _, r in texts], given).values.tolist()
    scores = dict(zip(texts, values, strict=True))
    calibrated = isinstance(reward, RewardModel) and not reward.attributes
    found = judge(
        preferences, scores, calibrated=calibrated, answers=data.answers, n_cut=n_cut, ratings=ratings
    ).with_slices(by_attribute)
    if not isinstance(reward, RewardModel) or not reward.fitted_prompts:
        return found
    hashes = {prompt: prompt_hash(prompt) for prompt, _ in texts}
    seen = {prompt for prompt, name in hashes.items() if name in reward.fitted_prompts}
    unseen = None
    if 0 < len(seen) < len(hashes):
        compared, rated = [p for p in preferences if p.prompt not in seen], [r for r in ratings if r.prompt not in seen]
        unseen = judge(compared, scores, calibrated=calibrated, ratings=rated)
    return replace(
        found,
        n_fitted_prompts=len({hashes[prompt] for prompt in seen}),
        n_prompts=len(set(hashes.values())),
        unseen=unseen,
    )


def attribute_slices(
    model: RewardModel,
    answers: Sequence[tuple[Query, Judgement]],
    features: Features | None = None,
    judges: Callable[[Preference], bool] = lambda _: True,
) -> list[Slice]:
    """The accuracy of each head on the comparisons of its attribute, by ratings or by choices; none for one head.

    Args:
        model: the reward model.
        answers: judgements with their queries.
        features: of the model.
        judges: True for preferences to judge by: those that were not fitted.
    """
    rows = []
    for column, name in enumerate(model.attributes):
        found = preferences_of(of_attribute(answers, name))
        own = [p for p in found if p.chosen != p.rejected and not p.tie and judges(p)]
        if not own:
            continue
        texts = texts_of(own)
        scores = dict(zip(texts, head_scores(model, texts, features)[:, column].tolist(), strict=True))
        gaps = [scores[p.prompt, p.chosen] - scores[p.prompt, p.rejected] for p in own]
        rows.append(Slice("attribute", name, *accuracy(np.array(gaps), own), len(own)))
    return rows


def judge(
    preferences: Sequence[Preference],
    scores: Mapping[tuple[str, str], float],
    *,
    calibrated: bool,
    answers: Iterable[tuple[Query, Judgement]] = (),
    n_cut: int = 0,
    n_texts: int | None = None,
    ratings: Sequence[Rating] = (),
) -> RewardEvaluation:
    """Judge scores by preferences.

    Args:
        preferences: the preferences, ties too.
        scores: raw scores by prompt and response.
        calibrated: the scores are log-odds.
        answers: the judgements that the preferences come from, for the raters' agreement and the column ``subset``.
        n_cut: texts that exceeded the model's context.
        n_texts: the texts that these are counted among; None: those with a score.
        ratings: ratings of single responses, which are judged by, too.
    """
    difference = np.array([scores[p.prompt, p.chosen] - scores[p.prompt, p.rejected] for p in preferences])
    whole = judged(difference, preferences)
    kept = [i for i, p in enumerate(preferences) if not p.tie]
    longer = np.array([len(preferences[i].chosen) - len(preferences[i].rejected) for i in kept], dtype=np.float64)
    decided = difference[kept]
    varies = len(kept) > 1 and longer.std() > 0 and decided.std() > 0
    # Chosen first or rejected first is no more than an order: both count, so that the means are 0.
    correlation = (
        float((longer * decided).mean() / np.sqrt((longer**2).mean() * (decided**2).mean())) if varies else 0.0
    )
    answers = list(answers)
    subsets = {query.id: str(query.columns["subset"]) for query, _ in answers if "subset" in query.columns}
    names: dict[str, Callable[[int], str]] = {
        "length": lambda i: _length(preferences[i]),
        "margin": _margins([p.margin for p in preferences]),
        "rater": lambda i: preferences[i].rater or "(no name)",
        "subset": lambda i: subsets.get(preferences[i].query_id, ""),
    }
    slices = [row for by, name in names.items() for row in _sliced(by, name, kept, difference, preferences)]
    agreement = agreement_of(answers)
    return RewardEvaluation(
        whole, slices, float(((longer < 0) + 0.5 * (longer == 0)).mean()) if kept else float("nan"), correlation,
        agreement, accuracy_from_agreement(agreement) if agreement is not None and agreement >= 0.5 else None,
        calibrated, len(scores) if n_texts is None else n_texts, n_cut,
        RatingAgreement.of(ratings, scores) if ratings else None,
    )  # fmt: skip


def agreement_of(answers: Iterable[tuple[Query, Judgement]]) -> float | None:
    """The share of equal verdicts of two raters on the same two responses, over all pairs of raters; None where there is none.

    >>> agreement_of([])
    """
    verdicts: dict[tuple[str, frozenset[str]], dict[str, str]] = defaultdict(dict)
    for query, judgement in answers:
        for p in preferences_from(query, judgement):
            if p.chosen != p.rejected and not p.tie:
                verdicts[p.prompt, frozenset((p.chosen, p.rejected))][p.rater] = p.chosen
    equal = [a == b for by_rater in verdicts.values() for a, b in combinations(by_rater.values(), 2)]
    return sum(equal) / len(equal) if equal else None


def _length(p: Preference) -> str:
    if len(p.chosen) == len(p.rejected):
        return "equally long"
    return "the chosen is shorter" if len(p.chosen) < len(p.rejected) else "the chosen is longer"


def _margins(margins: Sequence[float | None]) -> Callable[[int], str]:
    """Names for margins: each value where they are few, else quarters of the comparisons that have one."""
    known = sorted(m for m in margins if m is not None)
    values = sorted(set(known))
    if len(values) <= 6:
        return lambda i: "" if margins[i] is None else f"{margins[i]:g}"
    cuts = sorted(set(np.quantile(known, [0.25, 0.5, 0.75]).tolist()))

    def name(i: int) -> str:
        margin = margins[i]
        if margin is None:
            return ""
        place = int(np.searchsorted(cuts, margin))
        above = f"above {cuts[place - 1]:.3g}" if place else ""
        up_to = f"up to {cuts[place]:.3g}" if place < len(cuts) else ""
        return ", ".join(filter(None, (above, up_to)))

    return name


def _sliced(
    by: str,
    name: Callable[[int], str],
    kept: Sequence[int],
    difference: NDArray[np.float64],
    preferences: Sequence[Preference],
) -> list[Slice]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i in kept:
        groups[name(i)].append(i)
    if set(groups) <= {""} or (by == "rater" and len(groups) == 1):
        return []
    rows = []
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))[:MOST_ROWS]
    if by == "margin":  # from the least on; by name "up to 1" would follow "above 1"
        largest.sort(key=lambda item: min(preferences[i].margin or 0.0 for i in item[1]))
    for group, members in largest:
        found = accuracy(difference[members], [preferences[i] for i in members])
        rows.append(Slice(by, group or "(none)", *found, len(members)))
    return sorted(rows, key=lambda row: row.name) if by in ("length", "subset") else rows
