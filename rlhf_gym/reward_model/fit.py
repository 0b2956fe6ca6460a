"""Fits a reward model to preferences or ratings: AdamW, early stopping on prompts that are held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_gym.errors import FeedbackError, TrainingError
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.reward_model.batches import (
    Comparisons,
    ComparisonSet,
    Item,
    Text,
    is_held_out,
    like_those,
    prompt_hashes,
    split_key,
    texts_of,
)
from rlhf_gym.reward_model.evaluation import FitResult, evaluate
from rlhf_gym.reward_model.features import Features
from rlhf_gym.reward_model.fit_config import EPOCHS_OF_A_HEAD, PATIENCE_WITH_A_HEAD, FitConfig
from rlhf_gym.reward_model.model import RewardModel
from rlhf_gym.reward_model.objective import JointObjective, Objective
from rlhf_gym.reward_model.trained_part import HeadOnFeatures, TrainedPart, TrunkAndHead

OnProgress = Callable[[int, int, float], None]
AnyObjective = Objective | JointObjective
OF_THE_OBJECTIVE = 0.02
"""AdamW's peak for the few parameters of an objective, such as its probability of ties."""


def fit(
    model: RewardModel,
    preferences: Sequence[Preference],
    config: FitConfig | None = None,
    *,
    ratings: Sequence[Item] = (),
    validation: Sequence[Preference] | None = None,
    features: Features | None = None,
    on_progress: OnProgress | None = None,
    on_features: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Fit trunk and head to preferences, in place; the same seed gives the same weights on the same machine.

    A frozen trunk computes its hidden states once (:class:`Features`); the head begins at 0 and is trained on them.

    The metrics returned are of the epoch that was kept, on the split that it was chosen by: a choice among a few epochs,
    so they are a little optimistic. Give :func:`evaluate` prompts that played no part for unbiased metrics.

    Args:
        model: the reward model; its gain and bias go back to 1 and 0, since a fit changes the scale of scores.
        preferences: comparisons. With a loss on ratings, they judge the fit only.
        config: settings; default ``FitConfig()``. Its ``layers`` and ``pooling`` are the model's, and not read here.
        ratings: what is fitted in their place: ratings of single responses, for the losses of those; with
            ``attribute_heads`` the items of the attributes (:func:`~rlhf_gym.reward_model.attribute_items.items_to_fit`).
        validation: held-out comparisons of your own, on other prompts; default a share of the prompts.
        features: of this model, from an earlier fit on the same frozen trunk: texts in there do not go through it again.
        on_progress: called after each step with the comparisons done, their total, and the step's loss in nats.
        on_features: called with the number of texts that have gone through a frozen trunk, and the number of all.

    Raises:
        FeedbackError: too few preferences to hold any out, a prompt on both sides, or no ratings for a loss on ratings.
        TrainingError: the loss is not finite.
    """
    config = config or FitConfig()
    train, held_out, validation = _split(preferences, ratings, validation, config)
    trunk_layers = config.trains(model.language_model)
    made = JointObjective(config, train) if config.attribute_heads else Objective(config, train)
    objective: AnyObjective = made.to(model.language_model.device)
    texts = texts_of([*train, *held_out, *validation])
    if trunk_layers == 0:
        if features is None:
            features = Features(model, precision=config.precision, tokens_per_batch=config.tokens_per_batch)
        encoded: Mapping[Text, Sequence[int]] = {
            text: [row] for text, row in zip(texts, features.rows(texts, on_features), strict=True)
        }
        n_cut = features.n_cut(texts)
    else:
        features = None
        sequences, cut = model.encode_all([(*text, messages) for text, messages in texts.items()])
        n_cut = sum(cut)
        encoded = dict(zip(texts, sequences, strict=True))
    comparisons = ComparisonSet(train, lambda prompt, response: encoded[prompt, response])
    held_comparisons = ComparisonSet(held_out, lambda prompt, response: encoded[prompt, response])
    rng = np.random.default_rng(config.seed)
    most = config.epochs or (1 if features is None else EPOCHS_OF_A_HEAD)
    patience = config.patience or (1 if features is None else PATIENCE_WITH_A_HEAD)
    total, done = most * len(train), 0
    epochs: list[dict[str, float]] = []
    losses: list[tuple[int, float]] = []
    best: tuple[FitResult, dict[str, Tensor]] | None = None
    raters: dict[str, float] = {}
    with _seeded(model, config), _trained_part(model, config, trunk_layers, features, encoded, train) as part:
        optimizer = _optimizer(part, objective, config)
        for epoch in range(1, most + 1):
            seen, loss_sum = 0, 0.0
            for minibatch in comparisons.minibatches(config.batch_size, config.tokens_per_batch, rng):
                number = sum(map(len, minibatch))
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * learning_rate_factor(done + number / 2, total)
                loss = _step(part, minibatch, optimizer, objective, done)
                done, seen, loss_sum = done + number, seen + number, loss_sum + loss * number
                losses.append((number, loss))
                if on_progress:
                    on_progress(done, total, loss)
            part.settle()
            held = evaluate(model, validation, features=features)
            criterion = held.loss if not held_out else _mean_loss(part, held_comparisons, objective)
            epochs.append(
                {
                    "train_loss": loss_sum / seen,
                    "validation_loss": criterion,
                    "validation_accuracy": held.accuracy,
                }
            )
            if best is None or criterion < epochs[best[0].best_epoch - 1]["validation_loss"]:
                best = (replace(held, best_epoch=epoch), part.weights())
                raters = objective.raters_found()
            elif epoch - best[0].best_epoch >= patience:
                break
        assert best is not None
        part.restore(best[1])
    model.gain, model.bias, model.fitted_prompts = 1.0, 0.0, prompt_hashes(train)
    return replace(
        best[0], n_train=len(train), epochs=epochs, curve=_curve(losses, len(train)), n_texts=len(texts), n_cut=n_cut,
        raters=raters,
    )  # fmt: skip


def learning_rate_factor(done: float, total: int) -> float:
    """Share of the peak learning rate: up over the first tenth of the comparisons, then down to 0, linearly.

    Args:
        done: comparisons done.
        total: comparisons of the whole fit.

    >>> [learning_rate_factor(done, 100) for done in (0, 5, 10, 55, 100)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    warm_up = total / 10
    return min(done / warm_up, (total - done) / (total - warm_up))


def _curve(losses: Sequence[tuple[int, float]], per_epoch: int) -> list[dict[str, float]]:
    """Means of the steps' losses over twentieths of an epoch, or over steps that are longer."""
    curve: list[dict[str, float]] = []
    done = since = 0
    total = 0.0
    for number, loss in losses:
        done, since, total = done + number, since + number, total + number * loss
        if since * 20 >= per_epoch:
            curve.append({"epoch": done / per_epoch, "loss": total / since})
            since, total = 0, 0.0
    return curve


def _step(
    part: TrainedPart,
    minibatch: list[Comparisons],
    optimizer: torch.optim.Optimizer,
    objective: AnyObjective,
    done: int,
) -> float:
    """One optimiser step; returns the mean loss. The parts add up to the gradient of the whole minibatch's mean."""
    number = sum(map(len, minibatch))
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for comparisons in minibatch:
        loss = objective(part.scores(comparisons.sequences), comparisons) / number
        loss.backward()
        total += float(loss.detach())
    if not math.isfinite(total):
        raise TrainingError(
            f"the reward model's loss is {total} after {done} comparisons; lower its learning_rate "
            f"({objective.config.learning_rate:g}), or look for margins that are NaN or infinite"
        )
    nn.utils.clip_grad_norm_(part.parameters(), objective.config.max_grad_norm)
    optimizer.step()
    return total


def _optimizer(part: TrainedPart, objective: AnyObjective, config: FitConfig) -> torch.optim.AdamW:
    peaks = {False: config.learning_rate, True: config.head_learning_rate or config.learning_rate}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for in_head, parameters in ((False, part.trunk), (True, part.head)):
        for p in parameters:
            groups.setdefault((in_head, p.ndim >= 2), []).append(p)
    settings = [
        {"params": own, "peak": peaks[in_head], "lr": peaks[in_head], "weight_decay": config.weight_decay * matrix}
        for (in_head, matrix), own in groups.items()
    ]
    if learned := list(objective.parameters()):  # not clipped with the others: their gradients are of another size
        settings.append({"params": learned, "peak": OF_THE_OBJECTIVE, "lr": OF_THE_OBJECTIVE, "weight_decay": 0.0})
    return torch.optim.AdamW(settings)


def _trained_part(
    model: RewardModel, config: FitConfig, trunk_layers: int, features: Features | None,
    encoded: Mapping[tuple[str, str], Sequence[int]], train: Sequence[Item],
) -> AbstractContextManager[TrainedPart]:  # fmt: skip
    if features is None:
        return TrunkAndHead(model, None if trunk_layers == -1 else trunk_layers, config.dropout)
    rows = [row for text in texts_of(train) for row in encoded[text]]
    return HeadOnFeatures(model, features, rows, config.dropout)


@contextmanager
def _seeded(model: RewardModel, config: FitConfig) -> Iterator[None]:
    """Random numbers for dropout, seeded; the caller's are left alone."""
    device = model.language_model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        yield


@torch.no_grad()
def _mean_loss(part: TrainedPart, items: ComparisonSet, objective: AnyObjective) -> float:
    """The objective's mean on held-out items, without dropout."""
    total = 0.0
    for minibatch in items.minibatches(512, objective.config.tokens_per_batch, np.random.default_rng(0)):
        total += sum(float(objective(part.scores(c.sequences, dropout=False), c)) for c in minibatch)
    return total / len(items)


def _split(
    preferences: Sequence[Preference], ratings: Sequence[Item], validation: Sequence[Preference] | None, config: FitConfig
) -> tuple[Sequence[Item], list[Item], list[Preference]]:  # fmt: skip
    """What is fitted, the items that choose the epoch (none for a loss on comparisons), and the preferences that judge it."""
    if validation is None:
        everything: list[Item] = [*preferences, *(ratings if config.fits_items else ())]
        held_out = is_held_out(everything, config.validation_fraction, config.seed)
        train, validation = ([p for p in preferences if held_out(p) is side] for side in (False, True))
    else:
        train, validation = list(preferences), list(validation)
        part_of = split_key([*train, *validation])
        _check_split(train, validation, part_of)
        held_out = like_those(validation, part_of)
    if not config.fits_items:
        return train, [], validation
    return [r for r in ratings if not held_out(r)], [r for r in ratings if held_out(r)], validation


def _check_split(train: list[Preference], validation: list[Preference], part_of: Callable[[Preference], str]) -> None:
    if not train or not validation:
        raise FeedbackError(
            f"a reward model needs preferences to fit and to validate; got {len(train)} and {len(validation)}"
        )
    if both := {part_of(p) for p in train} & {part_of(p) for p in validation}:
        raise FeedbackError(
            f"{len(both)} prompts are in the training and in the validation preferences, so accuracy would be overestimated; "
            f"the first is {min(both)!r:.100}. Split by prompt."
        )
