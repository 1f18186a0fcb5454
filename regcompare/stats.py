"""Arrays in, numbers out: means with intervals, tests of pairs, the interaction, verdicts. Knows no figure, no store, no torch.

The distributions are scipy.special's, the tests' few formulas stand here: scipy.stats and statsmodels would cost a page server 45 MB
and its first comparison most of a second. `tests/test_stats.py` holds every formula to theirs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, nctdtr, ndtri, stdtr, stdtrit

from regcompare.config import FACTORIAL

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


def number(value: Estimate, digits: int = 3) -> str:
    """Any number as text: `1.331 ± 0.012 (n = 8)`."""
    text = f"{value.mean:.{digits}f}"
    return f"{text} (n = 1, no interval)" if value.half is None else f"{text} ± {value.half:.{digits}f} (n = {value.n})"


def nats(value: Estimate) -> str:
    """A loss as text: `0.0512 ± 0.0031 (n = 8)`."""
    return number(value, 4)


# Comparing arms

HIGHER_IS_BETTER = {"test_accuracy": True, "train_accuracy": True, "test_loss": False, "train_loss": False}
ALPHA, POWER = 1 - LEVEL, 0.8
WORTH_DETECTING = {True: 0.001, False: 0.001}  # 0.1 points of accuracy, 0.001 nats of loss
MIN_SEEDS = 3  # below, an interval is so wide (t = 12.7 at n = 2) that no verdict is given


class Comparison(NamedTuple):
    """Arm `a` against arm `b` in one metric. p values are two-sided; those that do not exist are None.

    `p`: paired t where the seeds are shared (Student 1908), else Welch (1947). `p_wilcoxon`: signed ranks (Wilcoxon 1945), exact,
    ties included; paired only. `p_holm`: `p` after Holm (1979) over the family. `p_floor`: the least that a two-sided sign-flip test
    of n pairs can give, 2^(1-n). `effect`: mean difference over its standard deviation (Cohen's d_z; unpaired: over the pooled one).
    `needed`: seeds for 80 % power to detect 0.1 points (0.001 nats). `verdict`: a sentence, never stronger than these numbers.
    """

    a: str
    b: str
    metric: str
    paired: bool
    difference: Estimate
    p: float | None
    p_wilcoxon: float | None
    p_holm: float | None
    p_floor: float | None
    effect: float | None
    needed: int | None
    verdict: str


class Arm(NamedTuple):
    """One side of a comparison: final values [n] of one metric, and the seeds they come from, in the same order."""

    name: str
    seeds: Sequence[int]
    values: Sequence[float]


def compare_all(arms: Sequence[Arm], metric: str) -> list[Comparison]:
    """Every pair of arms, later against earlier, as one family."""
    found = [compare(a, b, metric) for i, b in enumerate(arms) for a in arms[i + 1 :]]
    return adjust(found)


def compare(a: Arm, b: Arm, metric: str) -> Comparison:
    """a against b alone; paired on the seeds they share if there are at least two, else by Welch's test."""
    shared = sorted(set(a.seeds) & set(b.seeds))
    paired = len(shared) >= 2 or (len(shared) == 1 and len(a.seeds) == len(b.seeds) == 1)
    if paired:
        first, second = (np.array([dict(zip(arm.seeds, arm.values, strict=True))[seed] for seed in shared]) for arm in (a, b))
        gain = difference(first, second)
        spread = float((first - second).std(ddof=1)) if gain.n > 1 else None
        p = _p_of_t(gain.mean, spread, gain.n)
        p_wilcoxon = _signed_ranks(first - second) if gain.n > 1 and (first != second).any() else None
        floor = 2.0 ** (1 - gain.n)
    else:
        gain, p, spread = _welch(np.asarray(a.values, float), np.asarray(b.values, float))
        p_wilcoxon = floor = None
    effect = gain.mean / spread if spread else None
    needed = seeds_needed(spread, WORTH_DETECTING[HIGHER_IS_BETTER[metric]], paired) if spread else None
    one = Comparison(a.name, b.name, metric, paired, gain, p, p_wilcoxon, p, floor, effect, needed, "")
    return one._replace(verdict=verdict(one, 1))


def _p_of_t(mean: float, spread: float | None, n: int) -> float | None:
    """Two-sided p of a mean under Student's t; 1 for no difference at all, 0 for one that never varies."""
    if spread is None:
        return None
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(n - 1, -abs(mean) * n**0.5 / spread))


def _signed_ranks(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test (1945), from the distribution of the rank sum over all 2^n signs; no zero counts."""
    sizes = np.abs(differences[differences != 0])
    # Twice the mean rank of each size among all, ties included: a whole number.
    ranks = (sizes[:, None] > sizes).sum(1) + (sizes[:, None] >= sizes).sum(1) + 1
    chance = np.ones(1)  # of each sum of the ranks that are positive
    for rank in ranks:
        padded = np.zeros(rank)
        chance = (np.concatenate([chance, padded]) + np.concatenate([padded, chance])) / 2
    found = int(ranks[differences[differences != 0] > 0].sum())
    return min(1.0, 2 * float(min(chance[: found + 1].sum(), chance[found:].sum())))


def _welch(a: np.ndarray, b: np.ndarray) -> tuple[Estimate, float | None, float | None]:
    """Difference of means with Welch's interval (1947), its p, and the pooled standard deviation; n is the smaller arm's."""
    n, mean = min(a.size, b.size), float(a.mean() - b.mean())
    if n < 2:
        return Estimate(mean, None, None, n), None, None
    variances = np.array([a.var(ddof=1), b.var(ddof=1)])
    pooled = float(np.sqrt(variances.mean()))
    if pooled == 0:
        return Estimate(mean, mean, mean, n), _p_of_t(mean, 0.0, n), None
    parts = variances / [a.size, b.size]
    error = float(np.sqrt(parts.sum()))
    freedom = parts.sum() ** 2 / (parts**2 / [a.size - 1, b.size - 1]).sum()
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    return Estimate(mean, mean - half, mean + half, n), float(2 * stdtr(freedom, -abs(mean) / error)), pooled


def seeds_needed(spread: float, effect: float, paired: bool) -> int | None:
    """Seeds (an arm, if unpaired) for 80 % power to detect `effect` at the 5 % level, two-sided t-test, given the spread.

    The power is that of the noncentral t distribution (Cohen 1988, chapter 2). None: more than a 64-bit number holds.
    """

    def enough(n: int) -> bool:
        freedom, center = (n - 1, effect / spread * n**0.5) if paired else (2 * n - 2, effect / spread * (n / 2) ** 0.5)
        critical = -stdtrit(freedom, ALPHA / 2)
        if not np.isfinite(critical) or center > critical + 40:  # far beyond, where the distribution function has no digits
            return bool(center > critical)
        return bool(1 - nctdtr(freedom, center, critical) + nctdtr(freedom, center, -critical) >= POWER)

    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if high >= 2**63:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) adjusted p values [n] of a family `p` [n]."""
    order = np.argsort(p)
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum(np.maximum.accumulate(np.arange(p.size, 0, -1) * p[order]), 1)
    return adjusted


def adjust(family: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with Holm's p over the family, and verdicts that rest on it."""
    tested = [one.p for one in family if one.p is not None]
    adjusted = iter(holm(np.array(tested)))
    out = []
    for one in family:
        one = one._replace(p_holm=None if one.p is None else float(next(adjusted)))
        out.append(one._replace(verdict=verdict(one, len(tested))))
    return out


def verdict(one: Comparison, family: int) -> str:
    """What the numbers say, by rule: better or worse (Holm's p below 5 %), no difference shown, or too few seeds."""
    gain, accuracy = one.difference, one.metric.endswith("accuracy")
    scale, unit = (100, "points") if accuracy else (1, "nats")
    digits = 2 if accuracy else 4
    what = one.metric.replace("_", " ").replace("train", "training")
    n = f"n = {gain.n}{'' if one.paired else ' an arm, not paired'}"
    size = f"{scale * gain.mean:+.{digits}f} {unit} of {what}"
    if gain.low is None or gain.high is None or gain.n < MIN_SEEDS:
        return f"Too few seeds to say: {one.a} minus {one.b} is {size} at {n}; train at least {MIN_SEEDS}, better 8."
    interval = f"95 % interval {scale * gain.low:+.{digits}f} to {scale * gain.high:+.{digits}f}, {n}"
    if one.p_holm is not None and one.p_holm < ALPHA:
        better = (gain.mean > 0) == HIGHER_IS_BETTER[one.metric]
        shown = f"{one.a} is {'better' if better else 'worse'} than {one.b}: {size} ({interval}; {p_text(one.p_holm, family)})."
        if one.p_floor is not None and one.p_floor >= ALPHA:
            shown += f" This rests on differences that are normal: without that, {gain.n} seeds cannot give p below {one.p_floor:g}."
        return shown
    hidden = scale * max(abs(gain.low), abs(gain.high))
    alone = (
        f" Alone it would pass ({p_text(one.p)}), but of {family} comparisons one does by luck too often." if (one.p or 0) < ALPHA else ""
    )
    return (
        f"No difference shown between {one.a} and {one.b}: {size} ({interval}; {p_text(one.p_holm, family)}).{alone} "
        f"One of up to {hidden:.{digits}f} {unit} could have hidden."
    )


def p_text(p: float | None, family: int = 1) -> str:
    """`p = 0.031`, with the number of comparisons if Holm took several together."""
    if p is None:
        return "no p"
    value = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return value if family < 2 else f"{value}, Holm over {family}"


# The 2x2 factorial: do the benefits add up?


class Interaction(NamedTuple):
    """(bn-dropout - dropout) - (standard-bn - baseline) by seed: 0 if the benefits add up; with what each arm brings alone."""

    metric: str
    estimate: Estimate
    p: float | None
    batch_norm: Estimate
    dropout: Estimate
    verdict: str


def interaction(arms: Sequence[Arm], metric: str) -> Interaction | None:
    """The interaction over the seeds that all four arms of the factorial share; None if an arm or every seed is missing."""
    named = {arm.name: dict(zip(arm.seeds, arm.values, strict=True)) for arm in arms}
    if not all(name in named for name in FACTORIAL):
        return None
    seeds = sorted(set.intersection(*(set(named[name]) for name in FACTORIAL)))
    if not seeds:
        return None
    neither, norm, drop, both = (np.array([named[name][seed] for seed in seeds]) for name in FACTORIAL)
    values = (both - drop) - (norm - neither)
    found = estimate(values)
    p = _p_of_t(found.mean, float(values.std(ddof=1)) if found.n > 1 else None, found.n)
    one = Interaction(metric, found, p, difference(norm, neither), difference(drop, neither), "")
    return one._replace(verdict=_interaction_verdict(one))


def _interaction_verdict(one: Interaction) -> str:
    accuracy = one.metric.endswith("accuracy")
    scale, unit, digits = (100, "points", 2) if accuracy else (1, "nats", 4)
    found = one.estimate
    size = f"{scale * found.mean:+.{digits}f} {unit} of {one.metric.replace('_', ' ')}"
    if found.low is None or found.high is None or found.n < MIN_SEEDS:
        return f"Too few seeds to say whether the benefits add up: the interaction is {size} at n = {found.n}."
    numbers = f"{size} (95 % interval {scale * found.low:+.{digits}f} to {scale * found.high:+.{digits}f}, n = {found.n}; {p_text(one.p)})"
    alone = f"Alone, batch norm brings {scale * one.batch_norm.mean:+.{digits}f} and dropout {scale * one.dropout.mean:+.{digits}f} {unit}."
    if one.p is None or one.p >= ALPHA:
        hidden = scale * max(abs(found.low), abs(found.high))
        return f"No departure from adding up shown: the interaction is {numbers}; up to {hidden:.{digits}f} could have hidden. {alone}"
    together = "more" if (found.mean > 0) == HIGHER_IS_BETTER[one.metric] else "less"
    return f"The benefits do not add up: both together bring {together} than the sum of each, the interaction is {numbers}. {alone}"


def winners(accuracies: Sequence[np.ndarray]) -> np.ndarray:
    """How often each arm wins if one seed an arm is drawn at random: shares [arms] over every combination; ties are shared.

    `accuracies`: an array [n] an arm, the n may differ. Exact: an arm's value wins against each other arm by its own distribution.
    """
    shares = np.zeros(len(accuracies))
    values = np.unique(np.concatenate(accuracies))
    below = np.array([[(arm < value).mean() for value in values] for arm in accuracies])  # [arms, V]
    equal = np.array([[(arm == value).mean() for value in values] for arm in accuracies])
    for index in range(len(accuracies)):
        for v in range(values.size):
            if equal[index, v]:
                # chance that k of the other arms tie at this value and the rest lie below, each k worth 1 / (k + 1)
                ties = np.array([1.0])
                for other in range(len(accuracies)):
                    if other != index:
                        ties = np.convolve(ties, [below[other, v], equal[other, v]])
                shares[index] += equal[index, v] * float((ties / np.arange(1, ties.size + 1)).sum())
    return shares


def optimism(test_accuracy: np.ndarray, epoch: np.ndarray) -> np.ndarray:
    """How much higher the best epoch on the test set comes out than the last, [K]; `test_accuracy` [T, K], NaN: not measured; `epoch` [T].

    Never negative, and it grows with the number of epochs. An upper bound of the bias: some of it may be real, a net that got
    worse at the end, but the test set that chose the epoch cannot say how much.
    """
    ends = (epoch == epoch.round()) & np.isfinite(test_accuracy).all(1)
    values = test_accuracy[ends].astype(float)
    return values.max(0) - values[-1]


# The other uncertainty: over test images, the nets as they are


def binomial(correct: int, images: int) -> Estimate:
    """Share of test images that a net gets right, with Wilson's (1927) 95 % interval; n is the number of images."""
    share, z2 = correct / images, float(ndtri((1 + LEVEL) / 2)) ** 2 / images
    center = (share + z2 / 2) / (1 + z2)
    half = (z2 * (share * (1 - share) + z2 / 4)) ** 0.5 / (1 + z2)
    return Estimate(share, max(0.0, center - half), min(1.0, center + half), images)


class Disagreement(NamedTuple):
    """Two nets on the same test images: how many only a, or only b, gets right, and McNemar's (1947) exact p."""

    only_a: int
    only_b: int
    p: float


def mcnemar(a: np.ndarray, b: np.ndarray) -> Disagreement:
    """Compare two nets by `a` and `b` [images], true where an image is right.

    Raises:
        ValueError: they are not of one length.
    """
    if a.shape != b.shape:
        raise ValueError(f"both nets must be tested on the same images, got {a.size} and {b.size}")
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    return Disagreement(only_a, only_b, min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5))))
