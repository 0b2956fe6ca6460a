"""Confidence intervals, for the evaluation and the report; imports nothing heavy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def standard_error(values: NDArray[Any]) -> float:
    """The standard error of the mean of values ``[n]``; NaN for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def wilson_interval(successes: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's (1927) confidence interval of a proportion, which is right near 0 and 1, too.

    Args:
        successes: number of successes; a tie counts half.
        n: number of trials, above 0; an effective number where they are not independent.
        z: quantile of the normal distribution; the default gives 95%.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
