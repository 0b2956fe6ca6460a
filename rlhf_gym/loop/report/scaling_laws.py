"""Reward against KL, fitted to the forms of Gao, Schulman and Hilton (2023, "Scaling laws for reward model overoptimization").

With ``d = sqrt(KL)`` and gains over the reference: ``R(d) = d (alpha - beta log d)`` for reinforcement learning,
``R(d) = d (alpha - beta d)`` for best-of-n (their equations 1 and 2). A positive ``beta`` of the gold reward is
over-optimisation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.report.frontier import Frontier

Form = Literal["RL", "best-of-n"]
FEWEST = 4
"""Points that a fit of two parameters needs: with three, an interval of one degree of freedom says nothing."""
NEAREST = 0.05
"""Points nearer to the reference than this root of a KL are left out: the estimate of the KL is noise there."""
LEVEL = 0.975


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """One reward against KL.

    Attributes:
        reward: ``"gold"`` or ``"proxy"``.
        form: ``"RL"`` or ``"best-of-n"``.
        alpha: slope near the reference, in gains per root of a nat.
        beta: the curve's bend; positive where gains turn down.
        correlation: of the estimates of alpha and beta.
        n: points fitted.
        nearest_kl: the smallest KL among them, nats.
        farthest_kl: the largest KL among them, nats.
    """

    reward: str
    form: Form
    alpha: Estimate
    beta: Estimate
    correlation: float
    n: int
    nearest_kl: float
    farthest_kl: float

    def __call__(self, d: float) -> float:
        """The fitted gain at a root of the KL."""
        return gain(self.form, d, self.alpha.value, self.beta.value)

    def interval(self, d: float) -> tuple[float, float]:
        """The ends of the fitted gain's 95% interval at a root of the KL."""
        a, b = self.alpha.high - self.alpha.value, self.beta.high - self.beta.value
        bend = -d * (math.log(d) if self.form == "RL" else d)
        reach = math.sqrt(max((d * a) ** 2 + (bend * b) ** 2 + 2 * self.correlation * d * a * bend * b, 0.0))
        return self(d) - reach, self(d) + reach

    @property
    def peak_kl(self) -> float | None:
        """The KL, in nats, of the largest fitted gain: 0 where it only falls, None where it rises to the farthest point."""
        if self.beta.value <= 0:
            return None if self(math.sqrt(self.farthest_kl)) > 0 else 0.0
        peak = self._peak(self.alpha.value / self.beta.value)
        return peak if peak <= self.farthest_kl else None

    @property
    def peak_interval(self) -> tuple[float, float]:
        """The 95% interval of the KL at which the form is largest, in nats (Fieller 1954); infinite where beta may be 0."""
        a, b = self.alpha.high - self.alpha.value, self.beta.high - self.beta.value
        x, y, shared = self.alpha.value, self.beta.value, self.correlation * a * b
        if y <= b:
            return 0.0, math.inf
        middle = x * y - shared
        reach = math.sqrt(max(middle**2 - (y**2 - b**2) * (x**2 - a**2), 0.0))
        low, high = ((middle + side * reach) / (y**2 - b**2) for side in (-1, 1))
        return self._peak(low), self._peak(high)

    @property
    def peak(self) -> str:
        """Where the fitted gain is largest, in words."""
        at = self.peak_kl
        if at is None:
            return f"rises up to {self.farthest_kl:.3g} nats, the farthest point"
        if at == 0:
            return "falls from the reference on"
        low, high = self.peak_interval
        if math.isinf(high):
            return f"largest at {at:.3g} nats, but beta may be 0"
        reach = f"beyond {self.farthest_kl:.3g}" if high > self.farthest_kl else f"{high:.3g}"
        return f"largest at {at:.3g} nats [{low:.3g}, {reach}]"

    def _peak(self, ratio: float) -> float:
        """The KL of the largest gain at a ratio of alpha to a positive beta."""
        return float((math.exp(min(ratio, 99.0) - 1) if self.form == "RL" else max(ratio, 0.0) / 2) ** 2)

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON; an infinite end of an interval becomes None."""
        ends = [None if math.isinf(end) else end for end in self.peak_interval]
        return {**asdict(self), "peak_kl": self.peak_kl, "peak_interval": ends}


def gain(form: Form, d: float, alpha: float, beta: float) -> float:
    """The gain of a form.

    Args:
        form: ``"RL"`` or ``"best-of-n"``.
        d: root of the KL, at least 0.
        alpha: see :class:`Fit`.
        beta: see :class:`Fit`.

    >>> gain("best-of-n", 2.0, 1.0, 0.25)
    1.0
    """
    if d <= 0:
        return 0.0
    return d * (alpha - beta * (math.log(d) if form == "RL" else d))


def fit(form: Form, reward: str, points: Sequence[tuple[float, float]]) -> Fit | None:
    """Fit a form by least squares; None for fewer than :data:`FEWEST` points, or points that do not determine it.

    Intervals are t-intervals from the least squares' covariance. Successive iterations are alike, so the standard errors are
    multiplied by ``sqrt((1 + r) / (1 - r))`` with ``r`` the residuals' lag-1 correlation, where that is positive.

    Args:
        form: ``"RL"`` or ``"best-of-n"``.
        reward: whose gains they are.
        points: root of the KL and gain over the reference, in the order of training.

    Raises:
        ConfigError: SciPy is not installed.
    """
    optimize, special = _scipy()
    used = np.array([point for point in points if point[0] >= NEAREST and all(map(math.isfinite, point))]).reshape(
        -1, 2
    )
    if len(used) < FEWEST:
        return None
    d, gains = used.T
    inputs = np.stack([d, -d * (np.log(d) if form == "RL" else d)], 1)
    if np.linalg.matrix_rank(inputs) < 2:
        return None
    found = optimize.least_squares(lambda x: inputs @ x - gains, x0=np.array([1.0, 0.0]), jac=lambda _: inputs)
    residuals, freedom = found.fun, len(used) - 2
    covariance = np.linalg.inv(inputs.T @ inputs) * float(residuals @ residuals) / freedom
    total = float(residuals @ residuals)
    alike = float(residuals[1:] @ residuals[:-1]) / total if total > 0 and form == "RL" else 0.0
    alike = min(max(alike, 0.0), 0.99)
    deviations = np.sqrt(np.diag(covariance))
    errors = deviations * math.sqrt((1 + alike) / (1 - alike))
    reach = float(special.stdtrit(freedom, LEVEL)) * errors
    alpha, beta = (Estimate(float(v), float(v - r), float(v + r)) for v, r in zip(found.x, reach, strict=True))
    correlation = float(covariance[0, 1] / (deviations[0] * deviations[1])) if deviations.all() else 0.0
    return Fit(reward, form, alpha, beta, correlation, len(used), float(d.min()) ** 2, float(d.max()) ** 2)


def fits(found: Frontier) -> list[Fit]:
    """The fits of a run: of gold and proxy, along its training and along best-of-n; those that its points allow.

    Args:
        found: the run's frontier. Gains that are not over the reference, as where it was not evaluated, are not fitted.

    Raises:
        ConfigError: SciPy is not installed.
    """
    if not found.standardised:
        return []
    given: list[tuple[Form, str, list[tuple[float, float]]]] = [
        ("RL", "gold", [(p.root_kl, p.gold) for p in found.points]),
        ("RL", "proxy", [(p.root_kl, p.proxy) for p in found.points]),
        ("best-of-n", "gold", [(p.root_kl, p.gold) for p in found.best_of_n]),
        ("best-of-n", "proxy", [(p.root_kl, p.proxy) for p in found.best_of_n]),
    ]
    return [one for form, reward, points in given if (one := fit(form, reward, points)) is not None]


def unfitted(found: Frontier, laws: Sequence[Fit]) -> list[str]:
    """A sentence on each form that a run's points do not allow: how many there are, and what makes more.

    Args:
        found: the run's frontier.
        laws: the fits that they allow.
    """
    given = (
        ("RL", "training", found.points, "more agent.iterations, or a lower agent.kl_coef, which lets the policy go farther"),
        ("best-of-n", "best-of-n", found.best_of_n, "evaluation.best_of of 6 and more"),
    )  # fmt: skip
    sentences = []
    for form, words, points, more in given:
        if all(law.form != form for law in laws):
            used = sum(point.root_kl >= NEAREST for point in points)
            why = f"{used} points of {NEAREST**2:g} nats and more" if used < FEWEST else f"{used} points at the same KL"
            sentences.append(f"{words} is not fitted: {why}; a fit takes {FEWEST} at different KL ({more})")
    return sentences


def mean_over_runs(values: Sequence[float]) -> Estimate:
    """The mean of a parameter over runs, with a t-interval; infinite for a single run.

    Args:
        values: one for each run, at least one.

    Raises:
        ConfigError: SciPy is not installed.
    """
    _, special = _scipy()
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Estimate(mean, -math.inf, math.inf)
    reach = float(special.stdtrit(n - 1, LEVEL)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - reach, mean + reach)


def has_scipy() -> bool:
    """True if SciPy, which fits, is installed."""
    try:
        _scipy()
    except ConfigError:
        return False
    return True


def _scipy() -> tuple[Any, Any]:
    try:
        from scipy import optimize, special
    except ImportError as error:
        raise ConfigError("fits of reward against KL need SciPy: pip install 'rlhf-gym[analysis]'") from error
    return optimize, special
