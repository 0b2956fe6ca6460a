"""Turns the rewards of a query's responses into an answer: one latent model behind every query type.

Each response is felt with some noise: ``v = beta (reward + biases) + noise``, with standard Gumbel noise (or normal). A
pair chooses the larger ``v``, a ranking sorts by ``v``, a rating cuts ``v`` into levels. With Gumbel noise that is
Boltzmann's (Bradley-Terry's) pair and Plackett-Luce's ranking exactly (Yellott 1977), with normal noise Thurstone's
case V; a pair that is a tie where ``|v_a - v_b| < ln theta`` is Rao and Kupper's. The formulas are in
:mod:`rlhf_gym.raters.choice_models`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.queries import Query, QueryType, content_id
from rlhf_gym.raters.choice_models import davidson

Array = NDArray[np.float64]

ANSWERED: tuple[QueryType, ...] = ("pair", "ranking", "best", "rating")
"""The query types that simulated raters answer: thumbs and edits take more than an order of responses."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """The faults and habits of a simulated rater. The default is a Boltzmann-rational rater without faults.

    An answer is made in this order: lapse, skip, tie below the threshold, error, choice with its own ties.

    Attributes:
        beta: how well the rater tells responses apart, per unit of reward: 0 or more; ``inf`` is rational.
        noise: ``"gumbel"`` (Boltzmann, Plackett-Luce) or ``"normal"`` (Thurstone, with ``sigma = 1 / beta``).
        error_rate: share of answers, 0 to 1, given blindly: p' = error_rate / 2 + (1 - error_rate) p. Half of them are
            right by luck, so labels flip half as often.
        tie_threshold: differences of felt reward smaller than this are always ties, in pairs and rankings; in units of
            reward. A ranking ties A with C where both are tied with B, however far A and C are apart.
        rao_kupper_theta: 1 or more; 1 is no such ties. Between equal responses P(tie) = (theta - 1) / (theta + 1).
        davidson_nu: 0 or more; 0 is no such ties. Between equal responses P(tie) = nu / (2 + nu). Pairs only.
        skip_rate: share of queries, 0 to 1, skipped for no reason.
        skip_below: skip where every response's reward is below this; in units of reward.
        position_bias: reward added to the response shown first, falling evenly to 0 for the last; in units of reward.
        length_bias: reward added for each word (between white space) of a response; in units of reward.
        lapse_rate: share of queries, 0 to 1, answered without looking: the first shown is best, ratings in the middle.
        intransitivity: strength of preferences that go in circles, in units of reward; 0 or more. Every response has a place
            on a circle, which its text decides; between two, ``intransitivity sin(angle_a - angle_b)`` is added to the
            difference of their rewards, so that equally good responses beat one another like rock, paper and scissors
            (Balduzzi et al. 2019, "Open-ended learning in symmetric zero-sum games", the disc game). Of more than two, each is
            compared with the mean of the others. Ratings do not compare, and have none of it.
        fatigue: added to the error rate for every 100 queries of the round that came before this one.
        strength_cuts: ascending differences of felt reward at which a pair's strength rises from 1 to 2, 3, ...; empty:
            the rater gives no strength. In units of reward.
        rating_cuts: ascending felt rewards at which a rating rises from 1 to 2, 3, ...; in units of reward.

    Raises:
        ConfigError: a value out of its range, or two models of ties at once.
    """

    beta: float = 1.0
    noise: Literal["gumbel", "normal"] = "gumbel"
    error_rate: float = 0.0
    tie_threshold: float = 0.0
    rao_kupper_theta: float = 1.0
    davidson_nu: float = 0.0
    skip_rate: float = 0.0
    skip_below: float = -math.inf
    position_bias: float = 0.0
    length_bias: float = 0.0
    lapse_rate: float = 0.0
    fatigue: float = 0.0
    intransitivity: float = 0.0
    strength_cuts: tuple[float, ...] = ()
    rating_cuts: tuple[float, ...] = (-1.5, -0.5, 0.5, 1.5)

    def __post_init__(self) -> None:
        lowest = {
            "beta": 0.0, "tie_threshold": 0.0, "rao_kupper_theta": 1.0, "davidson_nu": 0.0, "fatigue": 0.0,
            "intransitivity": 0.0,
        }  # fmt: skip
        for name, low in lowest.items():
            value = getattr(self, name)
            if not value >= low or (math.isinf(value) and name != "beta"):
                raise ConfigError(f"a simulated rater's {name} must be a number of {low:g} or more, got {value}")
        for name in ("error_rate", "skip_rate", "lapse_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"a simulated rater's {name} must lie in 0..1, got {getattr(self, name)}")
        for name in ("position_bias", "length_bias"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"a simulated rater's {name} must be a finite number, got {getattr(self, name)}")
        if math.isnan(self.skip_below):
            raise ConfigError("a simulated rater's skip_below must be a number, got nan")
        for name in ("strength_cuts", "rating_cuts"):
            cuts = tuple(getattr(self, name))
            object.__setattr__(self, name, cuts)
            if list(cuts) != sorted(set(cuts)) or not all(map(math.isfinite, cuts)):
                raise ConfigError(f"a simulated rater's {name} must be ascending finite numbers, got {cuts}")
        if self.noise not in ("gumbel", "normal"):
            raise ConfigError(f"a simulated rater's noise must be gumbel or normal, got {self.noise!r}")
        if self.davidson_nu and (self.rao_kupper_theta > 1 or self.noise != "gumbel"):
            raise ConfigError(
                "davidson_nu goes with Gumbel noise and without rao_kupper_theta: choose one model of ties"
            )

    @classmethod
    def knobs(cls) -> tuple[str, ...]:
        """The names of all attributes."""
        return tuple(field.name for field in fields(cls))

    def in_unit(self, unit: float, origin: float = 0.0) -> Behaviour:
        """The same behaviour for rewards on another scale: answers to ``origin + unit * reward`` as to ``reward`` before.

        Args:
            unit: the new scale's rewards for each unit of the old, above 0; e.g. a reward's standard deviation.
            origin: the new scale's value of the old 0; e.g. a reward's mean.

        Raises:
            ConfigError: ``unit`` is not a finite number above 0.
        """
        if not (math.isfinite(unit) and unit > 0 and math.isfinite(origin)):
            raise ConfigError(
                f"a simulated rater cannot be scaled to a reward of standard deviation {unit} and mean {origin}: "
                "the reward must tell responses apart"
            )
        return replace(
            self,
            beta=self.beta / unit,
            tie_threshold=self.tie_threshold * unit,
            skip_below=self.skip_below * unit + origin,
            position_bias=self.position_bias * unit,
            length_bias=self.length_bias * unit,
            intransitivity=self.intransitivity * unit,
            strength_cuts=tuple(cut * unit for cut in self.strength_cuts),
            rating_cuts=tuple(cut * unit + origin for cut in self.rating_cuts),
        )

    def answer(self, query: Query, rewards: Array, rng: np.random.Generator) -> dict[str, Any]:
        """Answer a query.

        Args:
            query: with ``k`` responses.
            rewards: float64 ``[k]``, finite.
            rng: the source of chance. The same numbers are drawn for every setting, so raters that differ in one knob
                and share their seed differ only where that knob matters.

        Returns:
            The answer as keyword arguments of :class:`~rlhf_gym.feedback.queries.Judgement`, ``order_shown`` included.

        Raises:
            FeedbackError: a ranking, where the model of ties is Davidson's; thumbs and edits, which say how good a response is
                in itself or how it should read.
        """
        return _Answer(self, query, rewards, rng).give()


class _Answer:
    """The state of one answer: its random numbers, and the felt value of each response."""

    def __init__(self, behaviour: Behaviour, query: Query, rewards: Array, rng: np.random.Generator) -> None:
        self.behaviour, self.query, self.rewards = behaviour, query, rewards
        k = len(rewards)
        # The generator draws uniform numbers only: NumPy may change how it makes other distributions.
        self.chance = rng.random(5)
        self.order, self.blind_order = np.argsort(rng.random(k)), np.argsort(rng.random(k))
        uniforms, self.blind_levels = np.maximum(rng.random(k), 2.0**-54), rng.random(k)
        words = np.array([len(response.split()) for response in query.responses], dtype=np.float64)
        early = np.empty(k)
        early[self.order] = np.linspace(1.0, 0.0, k)
        self.felt = rewards + behaviour.length_bias * words + behaviour.position_bias * early
        if behaviour.intransitivity and k > 1 and query.query_type != "rating":
            self.felt = self.felt + behaviour.intransitivity * _circular(query)
        if behaviour.noise == "gumbel":
            self.noise = -np.log(-np.log(uniforms))
        else:
            self.noise = np.array([NormalDist().inv_cdf(u) for u in uniforms])
        # A rational rater (beta = inf) feels rewards as they are; noise then only decides between equals.
        self.rational = math.isinf(behaviour.beta)
        self.value = self.felt if self.rational else behaviour.beta * self.felt + self.noise

    def give(self) -> dict[str, Any]:
        """The whole answer."""
        if self.query.query_type not in ANSWERED:
            raise FeedbackError(f"simulated raters answer {', '.join(ANSWERED)} queries; got {self.query.query_type}")
        lapse, skip, error = self.chance[:3]
        error_rate = self.behaviour.error_rate + self.behaviour.fatigue * self.query.index / 100
        if lapse < self.behaviour.lapse_rate:
            answer = self.lapse()
        elif skip < self.behaviour.skip_rate or self.rewards.max() < self.behaviour.skip_below:
            answer = {"skipped": True}
        elif self.query.query_type == "pair":
            answer = self.pair(blind=error < error_rate)
        elif self.query.query_type == "best":
            answer = {"choice": int((self.blind_order if error < error_rate else self.sorted())[0])}
        elif self.query.query_type == "ranking":
            answer = self.ranking(blind=error < error_rate)
        else:
            answer = self.rating(blind=error < error_rate)
        return {**answer, "order_shown": tuple(map(int, self.order))}

    def lapse(self) -> dict[str, Any]:
        """The answer of a rater who does not read."""
        if self.query.query_type in ("pair", "best"):
            return {"choice": int(self.order[0])}
        if self.query.query_type == "ranking":
            return {"ranking": tuple((int(i),) for i in self.order)}
        middle = 1.0 + len(self.behaviour.rating_cuts) // 2
        return {"ratings": {"overall": (middle,) * len(self.rewards)}}

    def pair(self, blind: bool) -> dict[str, Any]:
        """The better of two, or a tie."""
        if abs(self.felt[0] - self.felt[1]) < self.behaviour.tie_threshold:
            return {"tie": True}
        cuts = self.behaviour.strength_cuts
        if blind:
            level = int(self.chance[4] * (len(cuts) + 1))
            return {"choice": int(self.blind_order[0]), "strength": 1.0 + level if cuts else None}
        nu = self.behaviour.davidson_nu
        if self.indistinct(0, 1):
            return {"tie": True}
        if nu and self.chance[3] < davidson(self.felt[0], self.felt[1], self.behaviour.beta, nu)[1]:
            return {"tie": True}
        gap = abs(self.value[0] - self.value[1])
        return {"choice": int(self.sorted()[0]), "strength": self.level(gap, cuts) if cuts else None}

    def ranking(self, blind: bool) -> dict[str, Any]:
        """All responses, best first; indistinguishable responses share a place."""
        if self.behaviour.davidson_nu:
            raise FeedbackError("Davidson's ties are for pairs; for rankings use rao_kupper_theta or tie_threshold")
        ties = self.below_threshold()
        if blind:
            rank = np.argsort(self.blind_order)
            groups = sorted(_grouped(len(rank), ties), key=lambda group: int(rank[group[0]]))
        else:
            order = self.sorted()
            ties += [(int(a), int(b)) for a, b in pairwise(order) if self.indistinct(a, b)]
            rank = np.argsort(order)
            # What is tied below the threshold need not stand side by side once there is noise: a group has one place, by the
            # mean of what is felt. Noise decides between equals.
            groups = sorted(
                _grouped(len(rank), ties), key=lambda group: (-self.value[group].mean(), int(rank[group].min()))
            )
        return {"ranking": tuple(map(tuple, groups))}

    def below_threshold(self) -> list[tuple[int, int]]:
        """Responses that are tied because their felt rewards differ by less than the threshold, two by two."""
        by_reward = np.argsort(self.felt, kind="stable")
        threshold = self.behaviour.tie_threshold
        return [(int(a), int(b)) for a, b in pairwise(by_reward) if self.felt[b] - self.felt[a] < threshold]

    def rating(self, blind: bool) -> dict[str, Any]:
        """A level for each response, from 1 to one more than there are cuts."""
        cuts = self.behaviour.rating_cuts
        if blind:
            levels = tuple(1.0 + int(u * (len(cuts) + 1)) for u in self.blind_levels)
        else:
            levels = tuple(self.level(value, cuts) for value in self.value)
        return {"ratings": {"overall": levels}}

    def level(self, value: float, cuts: tuple[float, ...]) -> float:
        """1, and 1 more for every cut that a felt value reaches."""
        scale = 1.0 if self.rational else self.behaviour.beta
        return 1.0 + sum(float(value) >= scale * cut for cut in cuts)

    def indistinct(self, a: int, b: int) -> bool:
        """Rao and Kupper's tie: the felt values differ by less than ln theta."""
        theta = self.behaviour.rao_kupper_theta
        if theta == 1:
            return False
        gap = self.value[a] - self.value[b]
        if self.rational:  # the limit of large beta: any difference is felt, and noise decides between equals
            gap = math.inf if gap else self.noise[a] - self.noise[b]
        return bool(abs(gap) < math.log(theta))

    def sorted(self) -> NDArray[np.intp]:
        """Indices of the responses, best first; noise decides between equals."""
        return np.lexsort((-self.noise, -self.value))


def _circular(query: Query) -> Array:
    """What each response gains on the others by its place on the circle, ``[k]``: half the mean sine of the angles between."""
    turns = [
        int(content_id("place on the circle", query.prompt, response), 16) / 2.0**128 for response in query.responses
    ]
    angle = 2 * math.pi * np.array(turns)
    return np.asarray(np.sin(angle[:, None] - angle[None, :]).sum(axis=1) / (2 * (len(angle) - 1)))


def _grouped(k: int, ties: list[tuple[int, int]]) -> list[list[int]]:
    """The groups, each ascending, that ties between two responses make of ``k``; a tie's ties are ties.

    Args:
        k: number of responses.
        ties: pairs of their indices.
    """
    group_of = list(range(k))
    for a, b in ties:
        keep, merge = sorted((group_of[a], group_of[b]))
        group_of = [keep if group == merge else group for group in group_of]
    return [[i for i in range(k) if group_of[i] == group] for group in sorted(set(group_of))]
