"""Student's t: quantiles, and intervals of figures that are above 0.

Figures are compared as logarithms. Their distribution is closer to the normal one than that of the
figures, which have a lower bound and a long tail, and a difference of them is a ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

#: With two figures on a side t is so large that nothing could be shown.
FEWEST = 3

_LARGEST_LOG = 700.0  # e**709.8 is the largest float


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """How far the interval reaches above the estimate, as a share of it."""
        return self.high / self.estimate - 1


def of_mean(figures: Sequence[float], level: float) -> Interval:
    """The geometric mean of at least `FEWEST` figures above 0, with its interval."""
    logs = [math.log(each) for each in figures]
    degrees = len(logs) - 1
    half = quantile((1 + level) / 2, degrees) * math.sqrt(variance(logs) / len(logs))
    return _ratio(fmean(logs), half)


def of_ratio(
    before: Sequence[float], after: Sequence[float], level: float, resolution: float = 0.0
) -> Interval:
    """The ratio of the geometric means, after / before, with its interval (Welch's t interval).

    The two sides may vary differently. `resolution` is the relative step in which the figures were
    measured: an interval of figures that fall into one step would have no width.
    """
    first, second = ([math.log(each) for each in side] for side in (before, after))
    difference = fmean(second) - fmean(first)
    spread = [variance(side) / len(side) for side in (first, second)]
    half = math.log1p(resolution)
    if sum(spread):
        # Welch-Satterthwaite, of shares of the sum: the square of a small variance would be 0.
        shares = [each / sum(spread) for each in spread]
        parts = zip(shares, (first, second), strict=True)
        degrees = 1 / sum(share**2 / (len(side) - 1) for share, side in parts)
        half += quantile((1 + level) / 2, degrees) * math.sqrt(sum(spread))
    return _ratio(difference, half)


def quantile(probability: float, degrees: float) -> float:
    """The t below which `probability` of the distribution lies; exact to nine digits."""
    if not 0.5 <= probability < 1 or degrees <= 0:
        raise ValueError(f"no quantile for {probability} and {degrees} degrees of freedom")
    high = 1.0
    while _below(high, degrees) < probability:
        high *= 2
    low = 0.0
    for _ in range(80):
        middle = (low + high) / 2
        if _below(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return high


def _ratio(estimate: float, half: float) -> Interval:
    low, middle, high = (
        math.exp(max(-_LARGEST_LOG, min(each, _LARGEST_LOG)))
        for each in (estimate - half, estimate, estimate + half)
    )
    return Interval(middle, low, high)


def _below(t: float, degrees: float) -> float:
    """The share of the distribution below a t of at least 0."""
    return 1 - _beta(degrees / (degrees + t * t), degrees / 2, 0.5) / 2


def _beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function (DLMF 8.17): I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x)) / a
    return front / _fraction(x, a, b)


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of DLMF 8.17.22, by the modified method of Lentz."""
    value, numerator, denominator = 1.0, 1.0, 0.0
    for step in range(1, 1000):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1 / (1 + term * denominator)
        numerator = 1 + term / numerator
        value *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            break
    return value
