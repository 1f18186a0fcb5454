"""Arrays in, numbers out: means with intervals. Knows no figure, no store, no torch."""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # scipy.stats would cost every page server 45 MB

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean over seeds, its 95 % interval (Student's t) and n. `low` and `high` are None where n is 1: no interval exists."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.high is None else self.high - self.mean


def t_quantile(n: int) -> float:
    """Student's t for a two-sided 95 % interval from n values; 4.30 at n = 3, not 1.96."""
    return float(stdtrit(n - 1, (1 + LEVEL) / 2))


def estimate(values: np.ndarray | list[float]) -> Estimate:
    """Mean over seeds of `values` [n] with mean ± t(n - 1) s / sqrt(n) (Student 1908).

    Raises:
        ValueError: no value is given.
    """
    values = np.asarray(values, dtype=float)
    if not values.size:
        raise ValueError("an estimate needs at least one value, got none")
    mean, n = float(values.mean()), values.size
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = t_quantile(n) * float(values.std(ddof=1)) / n**0.5
    return Estimate(mean, mean - half, mean + half, n)


def difference(a: np.ndarray | list[float], b: np.ndarray | list[float]) -> Estimate:
    """Mean of a - b over pairs, `a` and `b` [n] on the same seeds in the same order, with its interval (paired t).

    Raises:
        ValueError: they are not of one length, or empty.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"paired values must be of one length, got {a.size} and {b.size}")
    return estimate(a - b)


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean [T] over the seeds of `values` [T, K], and half the width of its interval [T]; None where K is 1."""
    mean, n = values.mean(1), values.shape[1]
    return mean, None if n == 1 else t_quantile(n) * values.std(1, ddof=1) / n**0.5


def percent(value: Estimate, signed: bool = False) -> str:
    """A fraction as text in percent: `98.53 ± 0.11 (n = 8)`."""
    sign = "+" if signed else ""
    text = f"{100 * value.mean:{sign}.2f}"
    return f"{text} (n = 1, no interval)" if value.half is None else f"{text} ± {100 * value.half:.2f} (n = {value.n})"


def nats(value: Estimate) -> str:
    """A loss as text: `0.0512 ± 0.0031 (n = 8)`."""
    text = f"{value.mean:.4f}"
    return f"{text} (n = 1, no interval)" if value.half is None else f"{text} ± {value.half:.4f} (n = {value.n})"
