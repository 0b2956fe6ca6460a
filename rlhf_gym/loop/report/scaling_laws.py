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
        n: points fitted.
        farthest_kl: the largest KL among them, nats.
    """

    reward: str
    form: Form
    alpha: Estimate
    beta: Estimate
    n: int
    farthest_kl: float

    def __call__(self, d: float) -> float:
        """The fitted gain at a root of the KL."""
        return gain(self.form, d, self.alpha.value, self.beta.value)

    @property
    def peak_kl(self) -> float | None:
        """The KL, in nats, at which the fitted gain is largest; None where it rises as far as the points reach."""
        if self.beta.value <= 0:
            return None
        ratio = self.alpha.value / self.beta.value
        root = math.exp(min(ratio, 99.0) - 1) if self.form == "RL" else max(ratio, 0.0) / 2
        return root**2 if root**2 <= self.farthest_kl else None

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "peak_kl": self.peak_kl}


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
    errors = np.sqrt(np.diag(covariance)) * math.sqrt((1 + alike) / (1 - alike))
    reach = float(special.stdtrit(freedom, LEVEL)) * errors
    alpha, beta = (Estimate(float(v), float(v - r), float(v + r)) for v, r in zip(found.x, reach, strict=True))
    return Fit(reward, form, alpha, beta, len(used), float(d.max()) ** 2)


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
