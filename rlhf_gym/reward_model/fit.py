"""Fits a reward model to preferences: Bradley-Terry, AdamW, early stopping on prompts that are held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_gym.errors import ConfigError, FeedbackError, TrainingError
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.lm.networks import constants
from rlhf_gym.ranges import bounds_in_words, bounds_of, is_within, setting
from rlhf_gym.reward_model.batches import Comparisons, ComparisonSet, split_by_prompt
from rlhf_gym.reward_model.evaluation import FitResult, evaluate
from rlhf_gym.reward_model.losses import bradley_terry_loss
from rlhf_gym.reward_model.model import RewardModel

OnProgress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit; each field's metadata holds its help and its range, and so does ``rlhf-gym config``.

    The defaults suit trunks of a few million parameters. Larger ones want a lower learning rate (1e-5 from 100 million
    on). One epoch, as in Ouyang et al. 2022: on the embedded model a second one fitted the raters' noise.

    Raises:
        ConfigError: a value out of its range.
    """

    learning_rate: float = setting(
        1e-3,
        "AdamW's peak for the trunk, after a warm-up over a tenth of the comparisons, then linear to 0; models of 100M "
        "parameters and more want less: 1e-5",
        above=0,
    )
    head_learning_rate: float | None = setting(None, "AdamW's peak for the head; null takes learning_rate", above=0)
    epochs: int = setting(
        1, "most passes over the preferences; the one with the lowest validation loss is kept", at_least=1
    )
    patience: int | None = setting(
        1, "stop after this many epochs without a lower validation loss; null never stops early", at_least=1
    )
    batch_size: int = setting(32, "comparisons a step", at_least=1)
    tokens_per_batch: int = setting(
        8192, "most padded tokens of one forward pass; changes memory and speed, not the result", at_least=1
    )
    weight_decay: float = setting(0.01, "AdamW's weight decay; not on biases and norms", at_least=0)
    margin_scale: float = setting(
        0.0,
        "multiplies the raters' margins in the loss; 0 leaves them out (each rater has a scale of their own)",
        at_least=0,
    )
    label_smoothing: float = setting(0.0, "chance that a judgement is the wrong way round", at_least=0, below=0.5)
    dropout: float = setting(
        0.0, "in the trunk's dropout layers (where it has some) and before the head, while fitting", at_least=0, below=1
    )
    trunk_layers: int | None = setting(
        None, "train this many of the trunk's last layers, with its final norm; 0 trains the head alone, null everything",
        at_least=0,
    )  # fmt: skip
    validation_fraction: float = setting(0.2, "share of the prompts held out to judge the fit", above=0, below=1)
    max_grad_norm: float = setting(1.0, "largest norm of the gradient", above=0)
    seed: int = setting(0, "seed of the split, of the order and of dropout", at_least=0)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, bounds = getattr(self, f.name), bounds_of(f.metadata)
            optional = "None" in str(f.type)
            if optional and value is None:
                continue
            if not is_within(value, bounds):
                expected = bounds_in_words(bounds) + (", or None" if optional else "")
                raise ConfigError(f"a reward model's {f.name} must be {expected}, got {value}")


def fit(
    model: RewardModel,
    preferences: Sequence[Preference],
    config: FitConfig | None = None,
    *,
    validation: Sequence[Preference] | None = None,
    on_progress: OnProgress | None = None,
) -> FitResult:
    """Fit trunk and head to preferences, in place; the same seed gives the same weights on the same machine.

    The metrics returned are of the epoch that was kept, on the split that it was chosen by: a choice among a few epochs,
    so they are a little optimistic. Give :func:`evaluate` prompts that played no part for unbiased metrics.

    Args:
        model: the reward model; its gain and bias go back to 1 and 0, since a fit changes the scale of scores.
        preferences: comparisons; ties count with a target of 1/2.
        config: settings; default ``FitConfig()``.
        validation: held-out comparisons of your own, on other prompts; default a share of the prompts.
        on_progress: called after each step with the comparisons done, their total, and the step's loss in nats.

    Raises:
        FeedbackError: too few preferences to hold any out, or a prompt on both sides.
        TrainingError: the loss is not finite.
    """
    config = config or FitConfig()
    if validation is None:
        train, validation = split_by_prompt(preferences, config.validation_fraction, config.seed)
    else:
        train, validation = list(preferences), list(validation)
        _check_split(train, validation)
    comparisons = ComparisonSet(train, model.encode)
    rng = np.random.default_rng(config.seed)
    total, done = config.epochs * len(train), 0
    epochs: list[dict[str, float]] = []
    losses: list[tuple[int, float]] = []
    best: tuple[FitResult, dict[str, Tensor]] | None = None
    with _trainable(model, config) as parameters:
        optimizer = _optimizer(model, parameters, config)
        for epoch in range(1, config.epochs + 1):
            seen, loss_sum = 0, 0.0
            for minibatch in comparisons.minibatches(config.batch_size, config.tokens_per_batch, rng):
                number = sum(map(len, minibatch))
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * learning_rate_factor(done + number / 2, total)
                loss = _step(model, minibatch, optimizer, parameters, config, done)
                done, seen, loss_sum = done + number, seen + number, loss_sum + loss * number
                losses.append((number, loss))
                if on_progress:
                    on_progress(done, total, loss)
            held = evaluate(model, validation)
            epochs.append(
                {
                    "train_loss": loss_sum / seen,
                    "validation_loss": held.loss,
                    "validation_accuracy": held.accuracy,
                }
            )
            if best is None or held.loss < best[0].loss:
                weights = {name: tensor.detach().clone() for name, tensor in _named(model) if tensor.requires_grad}
                best = (replace(held, best_epoch=epoch), weights)
            elif config.patience is not None and epoch - best[0].best_epoch >= config.patience:
                break
        assert best is not None
        with torch.no_grad():
            for name, tensor in _named(model):
                if name in best[1]:
                    tensor.copy_(best[1][name])
    model.gain, model.bias = 1.0, 0.0
    return replace(best[0], n_train=len(train), epochs=epochs, curve=_curve(losses, len(train)))


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
    model: RewardModel,
    minibatch: list[Comparisons],
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    config: FitConfig,
    done: int,
) -> float:
    """One optimiser step; returns the mean loss. The parts add up to the gradient of the whole minibatch's mean."""
    number = sum(map(len, minibatch))
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part in minibatch:
        with model.dropout(config.dropout):  # not around the loop: the held-out loss is measured without
            scores = model.scores(part.sequences)
        target = torch.where(torch.tensor(part.tie), 0.5, 1.0).to(scores.device)
        margin = torch.tensor(part.margin, device=scores.device) * config.margin_scale
        losses = bradley_terry_loss(
            scores[part.chosen],
            scores[part.rejected],
            target=target,
            margin=margin,
            label_smoothing=config.label_smoothing,
        )
        loss = losses.sum() / number
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    if not math.isfinite(total):
        raise TrainingError(
            f"the reward model's loss is {total} after {done} comparisons; lower its learning_rate "
            f"({config.learning_rate:g}), or look for margins that are NaN or infinite"
        )
    nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
    optimizer.step()
    return total


def _optimizer(model: RewardModel, parameters: list[nn.Parameter], config: FitConfig) -> torch.optim.AdamW:
    head = {id(p) for p in model.head.parameters()}
    peaks = {False: config.learning_rate, True: config.head_learning_rate or config.learning_rate}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for p in parameters:
        groups.setdefault((id(p) in head, p.ndim >= 2), []).append(p)
    return torch.optim.AdamW(
        [
            {"params": own, "peak": peaks[in_head], "lr": peaks[in_head], "weight_decay": config.weight_decay * matrix}
            for (in_head, matrix), own in groups.items()
        ]
    )


def _named(model: RewardModel) -> Iterator[tuple[str, nn.Parameter]]:
    yield from ((f"trunk.{name}", p) for name, p in model.language_model.trunk.named_parameters())
    yield from ((f"head.{name}", p) for name, p in model.head.named_parameters())


@contextmanager
def _trainable(model: RewardModel, config: FitConfig) -> Iterator[list[nn.Parameter]]:
    """The parameters to train, with seeded random numbers; afterwards all is as it was, even after Ctrl-C."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    for p, _ in before:
        p.requires_grad_(config.trunk_layers is None)
    if config.trunk_layers is not None:
        for module in (model.head, *model.last_layers(config.trunk_layers)):
            module.requires_grad_(True)
    for p in constants(model.language_model.model):
        p.requires_grad_(False)
    device = model.language_model.device
    # For dropout; the caller's random numbers are left alone.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        try:
            yield [p for p, _ in before if p.requires_grad]
        finally:
            for p, flag in before:
                p.requires_grad_(flag)
                p.grad = None


def _check_split(train: list[Preference], validation: list[Preference]) -> None:
    if not train or not validation:
        raise FeedbackError(
            f"a reward model needs preferences to fit and to validate; got {len(train)} and {len(validation)}"
        )
    if both := {p.prompt for p in train} & {p.prompt for p in validation}:
        raise FeedbackError(
            f"{len(both)} prompts are in the training and in the validation preferences, so accuracy would be overestimated; "
            f"the first is {min(both)!r:.100}. Split by prompt."
        )
