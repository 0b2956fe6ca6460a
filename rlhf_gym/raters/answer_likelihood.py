"""The likelihood of answers under the simulated rater's model, and its maximum: how a rater's parameters are estimated.

The model is that of :mod:`~rlhf_gym.raters.behaviour` with Gumbel noise: a pair is Rao and Kupper's, a ranking and the best of
``k`` are Plackett and Luce's, a share of answers is blind, and a share of lapses takes the response shown first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_gym.feedback.queries import Judgement, Query

Array = NDArray[np.float64]

FITTED = ("beta", "position_bias", "length_bias", "error_rate", "lapse_rate", "rao_kupper_theta")
"""The parameters that are estimated together, in this order; fields of :class:`~rlhf_gym.raters.Behaviour`."""
MOST_ORDERS = 24
"""Most orders that a ranking with ties may be consistent with: four responses in one place."""
_LEAST = math.log(1e-3)  # of beta and of theta - 1, and the rates' logit: what is smaller is taken to be 0
_STARTED = 0.02
"""Least rate of errors and of lapses from which a fit is started."""
_ITERATIONS, _ITERATIONS_FROM_START = 60, 20


@dataclass(frozen=True)
class Answers:
    """``N`` answers as arrays: each says that the responses are in one of ``M`` orders of ``K`` places.

    Attributes:
        reward: ``[N, M, K]``, rewards in the order that the answer gives, best first; 0 where there are fewer responses.
        early: ``[N, M, K]``, 1 for the response shown first, falling evenly to 0 for the last; 0.5 where the order is unknown.
        words: ``[N, M, K]``, words between white space.
        present: bool ``[N, M, K]``.
        stages: int ``[N]``, places that the answer decides: 1 for a choice, ``k - 1`` for a ranking.
        is_pair: bool ``[N]``, a choice between two that could have been a tie.
        tie: bool ``[N]``.
        blind: ``[N]``, the probability of the answer where it is given blindly; 0 for a tie.
        lapse: ``[N]``, that of a lapse; between 0 and 1 where the order shown is unknown.
        prompts: ``N`` prompts: answers about one prompt depend on one another.
    """

    reward: Tensor
    early: Tensor
    words: Tensor
    present: Tensor
    stages: Tensor
    is_pair: Tensor
    tie: Tensor
    blind: Tensor
    lapse: Tensor
    prompts: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def of(cls, answers: Sequence[tuple[Query, Judgement]], rewards: Sequence[Array]) -> Answers:
        """Make the arrays of answers for which :func:`orders_of` gives orders.

        Args:
            answers: judgements with their queries.
            rewards: for each the rewards ``[k]`` of the query's responses.
        """
        found = [orders_of(query, judgement) for query, judgement in answers]
        n, m, k = len(found), max(map(len, found)), max(len(order) for orders in found for order in orders)
        tables = [np.zeros((n, m, k)) for _ in range(3)]
        present = np.zeros((n, m, k), dtype=bool)
        stages, is_pair, tie = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        blind, lapse = np.zeros(n), np.zeros(n)
        for row, ((query, said), values, orders) in enumerate(zip(answers, rewards, found, strict=True)):
            size, shown = len(query.responses), said.order_shown
            early = np.full(size, 0.5)
            if shown:
                early[list(shown)] = np.linspace(1.0, 0.0, size)
            words = np.array([len(response.split()) for response in query.responses], dtype=np.float64)
            for place, order in enumerate(orders):
                present[row, place, : len(order)] = True
                for table, of_response in zip(tables, (values, early, words), strict=True):
                    table[row, place, : len(order)] = of_response[list(order)]
            is_pair[row], tie[row] = query.query_type == "pair", said.tie
            if said.choice is not None:
                stages[row], blind[row] = 1, 1 / size
                lapse[row] = float(shown[0] == said.choice) if shown else 1 / size
            elif said.ranking is not None:
                placed = len(orders[0])
                stages[row], blind[row] = placed - 1, len(orders) / math.factorial(placed)
                lapse[row] = (
                    float(tuple(shown) == orders[0] and len(orders) == 1) if shown else 1 / math.factorial(size)
                )
        reward, early_table, word_table = map(torch.from_numpy, tables)
        return cls(
            reward=reward,
            early=early_table,
            words=word_table,
            present=torch.from_numpy(present),
            stages=torch.from_numpy(stages),
            is_pair=torch.from_numpy(is_pair),
            tie=torch.from_numpy(tie),
            blind=torch.from_numpy(blind),
            lapse=torch.from_numpy(lapse),
            prompts=[query.prompt for query, _ in answers],
        )


def orders_of(query: Query, judgement: Judgement) -> list[tuple[int, ...]]:
    """The orders of responses, best first, that an answer is consistent with; none for an answer that the model does not cover.

    The first place alone counts for a choice. A ranking with ties is consistent with every order inside its groups.

    Args:
        query: the query that was answered.
        judgement: the answer to it.

    >>> query = Query(prompt="p", responses=("a", "b", "c"), query_type="ranking")
    >>> orders_of(query, Judgement(query_id=query.id, rater="ann", ranking=((2,), (0, 1))))
    [(2, 0, 1), (2, 1, 0)]
    """
    if query.query_type not in ("pair", "best", "ranking") or judgement.skipped:
        return []
    if judgement.choice is not None:
        return [(judgement.choice, *(i for i in range(len(query.responses)) if i != judgement.choice))]
    if judgement.tie:
        return [(0, 1)]
    groups = judgement.ranking or ()
    number = math.prod(math.factorial(len(group)) for group in groups)
    if len(groups) < 2 or number > MOST_ORDERS:
        return []
    ways = product(*(permutations(group) for group in groups))
    return [tuple(i for group in way for i in group) for way in islice(ways, number)]


def probabilities(answers: Answers, values: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of each answer, given that the query is not skipped; and that of some answer that is no tie.

    Args:
        answers: ``N`` answers.
        values: float64 ``[6]``, the parameters :data:`FITTED`; biases in units of reward, ``beta`` above 0.

    Returns:
        Two tensors float64 ``[N]``.
    """
    beta, position, length, error, lapse, theta = values
    felt = beta * (answers.reward + position * answers.early + length * answers.words)
    felt = felt.masked_fill(~answers.present, -1e9)
    # log P of an order: at each place the chosen response against those that are left.
    left = torch.logcumsumexp(felt.flip(-1), -1).flip(-1)
    places = torch.arange(felt.shape[-1])
    counted = answers.present & (places < answers.stages[:, None, None])
    orders = torch.where(counted, felt - left, 0.0).sum(-1)
    in_order = torch.where(answers.present[..., 0], orders.exp(), 0.0).sum(-1)
    if felt.shape[-1] > 1:
        gap = felt[:, 0, 0] - felt[:, 0, 1]
        first, second = torch.sigmoid(gap - theta.log()), torch.sigmoid(-gap - theta.log())
        tie = torch.where(answers.is_pair, 1 - first - second, 0.0)
        in_order = torch.where(answers.is_pair, torch.where(answers.tie, tie, first), in_order)
    else:
        tie = torch.zeros_like(in_order)
    given = lapse * answers.lapse + (1 - lapse) * (error * answers.blind + (1 - error) * in_order)
    return given, lapse + (1 - lapse) * (error + (1 - error) * (1 - tie))


def maximise(answers: Answers, weights: Tensor | None = None, start: Array | None = None) -> Array:
    """The parameters :data:`FITTED` under which the answers are likeliest, by L-BFGS; ``[6]``.

    A parameter that the answers say nothing of keeps the value that means nothing: position and lapses where no order shown is
    known, ties where there are none.

    Args:
        answers: ``N`` answers.
        weights: ``[N]``, how often each counts; default once.
        start: parameters near the maximum to start from; default those of a Boltzmann-rational rater, beta 1 per standard
            deviation of the reward.
    """
    scale = float(answers.reward[answers.present].std()) or 1.0
    longest = max(float(answers.words[answers.present].std()), 1e-9)
    known_order = bool((answers.early[answers.present] != 0.5).any())
    any_tie, any_length = bool(answers.tie.any()), longest > 1e-6
    free = torch.tensor([True, known_order, any_length, True, known_order, any_tie])
    neutral = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    weight = torch.ones(len(answers), dtype=torch.float64) if weights is None else weights

    def natural(raw: Tensor) -> Tensor:
        """Parameters from unbounded numbers: each stays in its range, and beta above 0 so that biases keep a meaning."""
        bounded = -_LEAST * torch.tanh(raw / -_LEAST)
        beta = bounded[0].exp() / scale
        rates = torch.sigmoid(10 * torch.tanh(raw[3:5] / 10))
        found = torch.stack([beta, raw[1] / beta, raw[2] / beta / longest, rates[0], rates[1], 1 + bounded[5].exp()])
        return torch.where(free, found, neutral)

    raw = torch.tensor([0.0, 0.0, 0.0, -3.0, -3.0, -1.0], dtype=torch.float64)
    if start is not None:
        beta, position, length, error, lapse, theta = start
        # Off the bounds, where the gradient vanishes: else no resample of answers would ever find a rate above 0.
        rates = [min(max(p, _STARTED), 1 - _STARTED) for p in (error, lapse)]
        logits = [10 * math.atanh(math.log(p / (1 - p)) / 10) for p in rates]
        logs = [
            np.arctanh(np.clip(math.log(x) / -_LEAST, -0.99, 0.99)) * -_LEAST
            for x in (beta * scale, max(theta - 1, 1e-3))
        ]
        raw = torch.tensor([logs[0], position * beta, length * beta * longest, *logits, logs[1]], dtype=torch.float64)
    raw.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [raw],
        max_iter=_ITERATIONS if start is None else _ITERATIONS_FROM_START,
        tolerance_change=1e-7,
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -(weight * probabilities(answers, natural(raw))[0].clamp_min(1e-12).log()).sum() / weight.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return natural(raw).numpy()
