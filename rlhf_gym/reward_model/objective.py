"""The loss that a fit minimises, with the parameters that it learns beside the model: of ties, of raters, of a rating scale."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.reward_model.batches import Comparisons, Item
from rlhf_gym.reward_model.fit_config import RATING_LOSSES, FitConfig
from rlhf_gym.reward_model.losses import (
    bradley_terry_loss,
    centring_loss,
    davidson_loss,
    ordinal_loss,
    plackett_luce_loss,
    rao_kupper_loss,
    squared_error,
)
from rlhf_gym.reward_model.ratings import Rating

MOST_LEVELS = 100


class Objective(nn.Module):
    """The loss of a fit on comparisons or ratings.

    Args:
        config: settings of the fit.
        items: what is fitted: comparisons, or ratings for a loss on ratings.

    Attributes:
        log_beta: each rater's log rationality, where raters are weighted by it.

    Raises:
        FeedbackError: items of the wrong kind, ties only, or ratings that are all the same.
    """

    def __init__(self, config: FitConfig, items: Sequence[Item]) -> None:
        super().__init__()
        self.config = config
        self.number = len(items)
        self.raters = {name: i for i, name in enumerate(dict.fromkeys(item.rater for item in items))}
        self.log_beta = nn.Parameter(torch.zeros(len(self.raters))) if config.rater_weights == "learned" else None
        # Rao-Kupper's ln theta is its softplus, at first 0.69; Davidson's ln nu is the parameter itself.
        self.tie = nn.Parameter(torch.zeros(())) if config.loss in ("rao_kupper", "davidson") else None
        values = [item.value for item in items if isinstance(item, Rating)]
        if config.loss in RATING_LOSSES and len(set(values)) < 2:
            raise FeedbackError(
                f"the loss {config.loss!r} is fitted to ratings, and got {len(values)} of them with {len(set(values))} "
                "different values: ask for ratings (rater.query_type rating), or take a loss on comparisons"
            )
        self.mean, self.std, self.levels = 0.0, 1.0, dict[float, int]()
        self.first_cut: nn.Parameter | None = None
        self.gaps: nn.Parameter | None = None
        if config.loss == "regression":
            spread = torch.tensor(values, dtype=torch.float64)
            self.mean, self.std = float(spread.mean()), float(spread.std(correction=0))
        if config.loss == "ordinal":
            self._set_levels(values)

    def _set_levels(self, values: Sequence[float]) -> None:
        self.levels = {value: i for i, value in enumerate(sorted(set(values)))}
        if len(self.levels) > MOST_LEVELS:
            raise FeedbackError(
                f"the loss 'ordinal' is for a scale of a few levels, and these ratings have {len(self.levels)} different "
                "values: take the loss 'regression'"
            )
        counts = torch.bincount(torch.tensor([self.levels[value] for value in values]), minlength=len(self.levels))
        cuts = torch.logit(counts.double().cumsum(0)[:-1] / len(values)).float()  # right for scores of 0
        self.first_cut = nn.Parameter(cuts[:1].clone())
        gaps = (cuts[1:] - cuts[:-1]).clamp(min=1e-3)
        self.gaps = nn.Parameter(torch.log(torch.expm1(gaps)))  # of which the softplus is taken

    def cuts(self) -> Tensor:
        """The cut points ``[levels - 1]`` of the rating scale, ascending."""
        assert self.first_cut is not None
        assert self.gaps is not None
        return torch.cat([self.first_cut, self.first_cut + nn.functional.softplus(self.gaps).cumsum(0)])

    def raters_found(self) -> dict[str, float]:
        """Each rater's rationality relative to the others' (geometric mean 1), where it is learned."""
        if self.log_beta is None:
            return {}
        beta = torch.exp(self.log_beta.detach() - self.log_beta.detach().mean()).tolist()
        return {name: beta[i] for name, i in self.raters.items()}

    def forward(self, scores: Tensor, batch: Comparisons) -> Tensor:
        """The sum of the losses of a batch, in nats (squared standard deviations for ``regression``).

        Args:
            scores: float ``[S, 1]``, of the batch's sequences.
            batch: the comparisons or ratings.
        """
        config, scores = self.config, scores.squeeze(-1)
        if config.loss in RATING_LOSSES:
            return self._on_ratings(scores[batch.chosen], batch).sum()
        chosen, rejected = scores[batch.chosen], scores[batch.rejected]
        beta = self._beta(batch, scores)
        tie = torch.tensor(batch.tie, device=scores.device)
        if config.loss == "plackett_luce":
            losses = self._on_choices(scores, batch, tie, beta)
        else:
            losses = self._on_pairs(chosen * beta, rejected * beta, batch, tie)
        total = losses.sum()
        if config.centring:
            total = total + config.centring * centring_loss(chosen, rejected).sum()
        if self.log_beta is not None:
            # A normal prior of standard deviation 1 on each log beta, spread over the comparisons.
            total = total + 0.5 * (self.log_beta**2).sum() * len(batch) / self.number
        return total

    def _beta(self, batch: Comparisons, scores: Tensor) -> Tensor:
        if self.log_beta is None:
            return scores.new_ones(())
        # A rater of the validation split alone is as the others.
        known = [self.raters.get(item.rater, -1) for item in batch.items]
        log_beta = torch.cat([self.log_beta, self.log_beta.new_zeros(1)])
        return torch.exp(log_beta[known])

    def _on_pairs(self, chosen: Tensor, rejected: Tensor, batch: Comparisons, tie: Tensor) -> Tensor:
        config = self.config
        margin = torch.tensor(batch.margin, device=chosen.device) * config.margin_scale
        if self.tie is None:
            target = torch.where(tie, 0.5, 1.0)
            return bradley_terry_loss(
                chosen, rejected, target=target, margin=margin, label_smoothing=config.label_smoothing
            )

        def loss(first: Tensor, second: Tensor) -> Tensor:
            assert self.tie is not None
            if config.loss == "rao_kupper":
                return rao_kupper_loss(first, second, tie, nn.functional.softplus(self.tie))
            return davidson_loss(first, second, tie, self.tie)

        chosen = chosen - margin
        flipped = config.label_smoothing
        right = loss(chosen, rejected)
        return right if flipped == 0 else (1 - flipped) * right + flipped * loss(rejected, chosen)

    def _on_choices(self, scores: Tensor, batch: Comparisons, tie: Tensor, beta: Tensor) -> Tensor:
        """Every response that one judgement puts before others is a choice among itself and these; a tie is Bradley-Terry's."""
        choices: dict[tuple[str, str, int], list[int]] = defaultdict(list)
        for i, item in enumerate(batch.items):
            if not batch.tie[i]:
                query = item.query_id or str(i)
                choices[query, item.rater, batch.chosen[i]].append(i)
        rows = list(choices.values())
        rater = torch.as_tensor(beta).expand(len(batch))
        tied = bradley_terry_loss(
            scores[batch.chosen] * rater, scores[batch.rejected] * rater, target=torch.full_like(rater, 0.5)
        )
        losses = [tied[tie]]
        if rows:
            width = max(map(len, rows))
            first = torch.tensor([row[0] for row in rows], device=scores.device)
            present = torch.tensor([[k < len(row) for k in range(width)] for row in rows], device=scores.device)
            others = torch.tensor([[batch.rejected[row[min(k, len(row) - 1)]] for k in range(width)] for row in rows])
            chosen = torch.tensor([batch.chosen[row[0]] for row in rows])
            losses.append(
                plackett_luce_loss(scores[chosen] * rater[first], scores[others] * rater[first, None], present)
            )
        return torch.cat(losses)

    def _on_ratings(self, scores: Tensor, batch: Comparisons) -> Tensor:
        values = [item.value for item in batch.items if not isinstance(item, Preference)]
        if self.config.loss == "regression":
            return squared_error(scores, (torch.tensor(values, device=scores.device) - self.mean) / self.std)
        known = sorted(self.levels)
        nearest = [self.levels[min(known, key=lambda level: abs(level - value))] for value in values]
        return ordinal_loss(scores, torch.tensor(nearest, device=scores.device), self.cuts())


class JointObjective(nn.Module):
    """The loss of a fit with a head for each attribute: each head's own objective on the items of its attribute.

    Args:
        config: settings of the fit, with the attributes.
        items: what is fitted, each with its attribute.

    Raises:
        FeedbackError: an attribute without items, or as for :class:`Objective`.
    """

    def __init__(self, config: FitConfig, items: Sequence[Item]) -> None:
        super().__init__()
        self.config = config
        self.names = list(config.attributes)
        own = {name: [item for item in items if item.attribute == name] for name in self.names}
        if lacking := [name for name, found in own.items() if not found]:
            raise FeedbackError(
                f"nothing to fit is left of the attribute {', '.join(lacking)}: collect more on other prompts"
            )
        self.parts = nn.ModuleList(Objective(config, found) for found in own.values())

    def raters_found(self) -> dict[str, float]:
        """Each rater's rationality in each attribute, as ``attribute/rater``, where it is learned."""
        return {
            f"{name}/{rater}": beta
            for name, part in zip(self.names, self._parts(), strict=True)
            for rater, beta in part.raters_found().items()
        }

    def forward(self, scores: Tensor, batch: Comparisons) -> Tensor:
        """The sum of the losses of a batch.

        Args:
            scores: float ``[S, A]``, of the batch's sequences by each head.
            batch: the comparisons or ratings of all attributes.
        """
        losses = []
        for column, (name, part) in enumerate(zip(self.names, self._parts(), strict=True)):
            rows = [i for i, item in enumerate(batch.items) if item.attribute == name]
            if rows:
                losses.append(part(scores[:, column : column + 1], batch.only(rows)))
        return torch.stack(losses).sum()

    def _parts(self) -> list[Objective]:
        return [part for part in self.parts if isinstance(part, Objective)]
