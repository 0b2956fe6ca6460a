"""Accuracy (with its standard error), loss and calibration of a reward model on preferences that it was not fitted to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_gym.feedback.calibration import CalibrationBin, calibration, expected_ece
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.lm.chat_template import Messages
from rlhf_gym.reward_model.batches import Text, texts_of
from rlhf_gym.reward_model.features import Features
from rlhf_gym.reward_model.model import RewardModel


@dataclass(frozen=True)
class FitResult:
    """Quality of a reward model on prompts it was not fitted on; ties count in the loss only.

    Attributes:
        accuracy: share of held-out comparisons that it ranks as the rater did; equal scores count half. NaN without any.
        standard_error: of the accuracy, robust to comparisons of one prompt being alike.
        n_train: comparisons fitted, ties included.
        n_validation: comparisons held out, ties left out.
        ece: expected calibration error, in [0, 1/2].
        ece_floor: the mean ECE of a perfectly calibrated model, as confident on as many comparisons: chance gives that.
        bins: the reliability diagram.
        epochs: ``train_loss``, ``validation_loss`` (nats) and ``validation_accuracy`` of each epoch.
        curve: the training loss during the fit: ``loss`` (nats), the mean over a twentieth of an epoch that ends at ``epoch``.
        loss: mean loss on the held-out comparisons, ties included, in nats; ln 2 is that of a coin.
        best_epoch: the epoch, from 1, whose weights were kept; 0 if nothing was fitted.
        raters: each rater's rationality relative to the others' (geometric mean 1), where ``rater_weights`` are learned.
        n_texts: number of different texts (prompt and response) fitted or held out.
        n_cut: those that exceeded the model's context, of which the beginning was cut.
    """

    accuracy: float
    standard_error: float
    n_train: int
    n_validation: int
    ece: float
    bins: list[CalibrationBin]
    epochs: list[dict[str, float]] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    loss: float = math.nan
    best_epoch: int = 0
    ece_floor: float = math.nan
    raters: dict[str, float] = field(default_factory=dict)
    n_texts: int = 0
    n_cut: int = 0

    @property
    def kept_loss(self) -> float:
        """The validation loss of the epoch that was kept, in nats: what the fit minimises, on the held-out judgements."""
        return self.epochs[self.best_epoch - 1]["validation_loss"]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN, which JSON does not have, becomes None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def evaluate(model: RewardModel, preferences: Sequence[Preference], *, features: Features | None = None) -> FitResult:
    """Accuracy, loss and calibration on preferences that were not fitted.

    Args:
        model: the reward model; raw scores are compared, so that normalising does not change calibration.
        preferences: any number, ties too.
        features: the model's own, where its trunk is frozen: texts that are in there do not go through the trunk again.
    """
    texts = texts_of(preferences)
    scores = dict(zip(texts, raw_scores(model, texts, features).tolist(), strict=True))
    differences = [scores[p.prompt, p.chosen] - scores[p.prompt, p.rejected] for p in preferences]
    return judged(np.array(differences, dtype=np.float64), preferences)


@torch.no_grad()
def raw_scores(
    model: RewardModel, texts: Mapping[Text, Messages | None], features: Features | None = None
) -> NDArray[np.float64]:
    """Raw scores of texts, by a pass of the trunk or from its features.

    Args:
        model: the reward model.
        texts: ``N`` prompts with their responses, each with the prompt's chat messages, if any.
        features: the model's own, where its trunk is frozen.

    Returns:
        float64 ``[N]``.
    """
    if features is None:
        return model.raw([prompt for prompt, _ in texts], [response for _, response in texts], list(texts.values()))
    scores: NDArray[np.float64] = model.read(features[features.rows(texts)]).cpu().double().numpy()
    return scores


@torch.no_grad()
def head_scores(
    model: RewardModel, texts: Mapping[Text, Messages | None], features: Features | None = None
) -> NDArray[np.float64]:
    """What each head says of texts, before normalisation; see :func:`raw_scores`.

    Args:
        model: the reward model.
        texts: ``N`` prompts with their responses, each with the prompt's chat messages, if any.
        features: the model's own, where its trunk is frozen.

    Returns:
        float64 ``[N, A]``; ``[N, 1]`` with one head.
    """
    if features is None:
        return model.raw_heads(
            [prompt for prompt, _ in texts], [response for _, response in texts], list(texts.values())
        )
    scores: NDArray[np.float64] = model.read_heads(features[features.rows(texts)]).cpu().double().numpy()
    return scores


def judged(differences: NDArray[np.float64], preferences: Sequence[Preference]) -> FitResult:
    """Accuracy, loss and calibration of score differences.

    Args:
        differences: float64 ``[N]``, scores of the chosen responses minus those of the rejected.
        preferences: the ``N`` preferences, ties too.
    """
    tie = np.array([p.tie for p in preferences], dtype=bool)
    loss = math.nan
    if len(differences):
        # Cross-entropy against 1, and against 1/2 for ties: log(1 + e^-d) and its mean with log(1 + e^d).
        losses = np.logaddexp(0, -differences) + np.where(tie, differences / 2, 0)
        loss = float(losses.mean())
    decided = differences[~tie]
    share, error = accuracy(differences, preferences)
    if len(decided) == 0:
        return FitResult(share, error, 0, 0, math.nan, [], loss=loss)
    bins, ece = calibration(decided)
    return FitResult(share, error, 0, len(decided), ece, bins, loss=loss, ece_floor=expected_ece(decided))


def accuracy(differences: NDArray[np.float64], preferences: Sequence[Preference]) -> tuple[float, float]:
    """The share of preferences without ties that score differences have right, and its standard error; NaN for none.

    Args:
        differences: float64 ``[N]``, scores of the chosen responses minus those of the rejected.
        preferences: the ``N`` preferences, ties too.
    """
    kept = [i for i, p in enumerate(preferences) if not p.tie]
    if not kept:
        return math.nan, math.nan
    decided = differences[kept]
    right = (decided > 0) + 0.5 * (decided == 0)
    clusters = [preferences[i].prompt for i in kept]
    if len(set(clusters)) == 1:  # a conversation that always begins the same: a single cluster would tell nothing
        clusters = [preferences[i].query_id for i in kept]
    return float(right.mean()), clustered_standard_error(right, clusters)


def clustered_standard_error(values: NDArray[np.float64], clusters: Sequence[str]) -> float:
    """Standard error of a mean whose terms are correlated within clusters (Liang and Zeger 1986).

    ``sqrt(sum over clusters of (sum of its values less the mean)^2) / n``; with one value a cluster and values of 0 and 1 that
    is the binomial ``sqrt(p (1 - p) / n)``.

    Args:
        values: float64 ``[n]``.
        clusters: the cluster of each value, ``n`` of them.
    """
    sums: dict[str, float] = {}
    for deviation, cluster in zip((values - values.mean()).tolist(), clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + deviation
    return math.sqrt(sum(total**2 for total in sums.values())) / len(values)
