"""Statistics: arrays solved by hand, SciPy as oracle, laws, and what an interval promises. Run: pytest tests/test_stats.py"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from regcompare.stats import (
    FACTORIAL,
    Arm,
    Comparison,
    Estimate,
    adjust,
    band,
    binomial,
    compare,
    compare_all,
    difference,
    estimate,
    holm,
    interaction,
    mcnemar,
    nats,
    optimism,
    p_text,
    percent,
    seeds_needed,
    t_quantile,
    verdict,
    winners,
)

numbers = st.floats(-1e3, 1e3).map(lambda x: round(x, 6))
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=20).map(lambda rows: np.array(rows).T)


def near(one, other, rel=1e-9, scale=0.0):
    """Two estimates with the same numbers; `scale` says how large the numbers were that cancelled."""
    assert one.n == other.n
    assert one[:3] == pytest.approx(other[:3], rel=rel, abs=1e-12 + 1e-12 * scale)


# Solved by hand


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.303), (4, 3.182), (8, 2.365), (30, 2.045), (10_000, 1.960)])
def test_students_table(n, t):
    """As printed in every table of the t distribution, by n - 1 degrees of freedom."""
    assert t_quantile(n) == pytest.approx(t, abs=5e-4)


def test_three_values():
    """1, 2, 3: mean 2, deviation 1, so the half width is 4.303 / sqrt(3)."""
    found = estimate([1, 2, 3])
    assert (found.mean, found.n) == (2, 3)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3))
    assert (found.low, found.high) == pytest.approx((2 - found.half, 2 + found.half))


def test_a_paired_difference():
    """2, 4, 6 less 1, 2, 3 is 1, 2, 3: the pairs count, not the two spreads."""
    assert difference([2, 4, 6], [1, 2, 3]) == estimate([1, 2, 3])
    assert difference([0.5, 0.7], [0.4, 0.6]).half == pytest.approx(0, abs=1e-12)


def test_values_that_do_not_vary():
    assert estimate([0.25] * 4) == Estimate(0.25, 0.25, 0.25, 4)


def test_a_band_is_an_estimate_at_each_point():
    values = np.array([[1, 2, 3], [5, 5, 5], [0, 0, 9]], float)
    mean, half = band(values)
    assert mean.tolist() == [2, 5, 3]
    assert half == pytest.approx([estimate(row).half for row in values])
    assert half[1] == 0


def test_one_seed_has_no_interval_and_says_so():
    one = estimate([0.9853])
    assert one == Estimate(0.9853, None, None, 1)
    assert one.half is None
    assert percent(one) == "98.53 (n = 1, no interval)"
    assert nats(one) == "0.9853 (n = 1, no interval)"
    assert percent(one, signed=True) == "+98.53 (n = 1, no interval)"
    assert difference([0.5], [0.25]) == Estimate(0.25, None, None, 1)
    mean, half = band(np.array([[1.0], [2.0]]))
    assert (mean.tolist(), half) == ([1, 2], None)


def test_the_words():
    value = Estimate(0.98531, 0.98421, 0.98641, 8)
    assert percent(value) == "98.53 ± 0.11 (n = 8)"
    assert percent(value, signed=True) == "+98.53 ± 0.11 (n = 8)"
    assert percent(Estimate(-0.0123, -0.02, -0.0046, 3), signed=True) == "-1.23 ± 0.77 (n = 3)"
    assert nats(Estimate(0.05123, 0.04813, 0.05433, 8)) == "0.0512 ± 0.0031 (n = 8)"


# Bad input


@pytest.mark.parametrize("call", [lambda: estimate([]), lambda: estimate(np.empty(0)), lambda: difference([], [])])
def test_nothing_given(call):
    with pytest.raises(ValueError, match="at least one value, got none"):
        call()


@pytest.mark.parametrize(("a", "b"), [([1, 2, 3], [1, 2]), ([1], [1, 2]), ([], [1, 2, 3, 4]), ([1, 2], [1])])
def test_unequal_lengths_are_both_named(a, b):
    """Nothing is broadcast: one value against two would give a wrong n."""
    with pytest.raises(ValueError, match=f"of one length, got {len(a)} and {len(b)}$"):
        difference(a, b)


def test_nets_on_other_images_are_refused():
    with pytest.raises(ValueError, match=r"the same images, got 3 and 2$"):
        mcnemar(np.ones(3, bool), np.ones(2, bool))


# SciPy as oracle


@given(pairs)
def test_the_interval_is_scipys(rows):
    a, b = rows
    for values, found in ((a, estimate(a)), (a - b, difference(a, b))):
        error = scipy_stats.sem(values)
        if error > 1e-9:
            assert (found.low, found.high) == pytest.approx(scipy_stats.t.interval(0.95, len(values) - 1, values.mean(), error))


@settings(max_examples=40)
@given(st.integers(2, 12), st.integers(0, 2**32))
def test_the_paired_test_is_scipys(n, seed):
    random = np.random.default_rng(seed)
    a, b = random.normal(0.98, 0.01, n), random.normal(0.97, 0.01, n)
    oracle = scipy_stats.ttest_rel(a, b)
    found = compare(Arm("a", range(n), a), Arm("b", range(n), b), "test_accuracy")
    assert found.paired
    assert found.p == pytest.approx(oracle.pvalue)
    assert tuple(found.difference[1:3]) == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    assert found.effect == pytest.approx(oracle.statistic / n**0.5)
    assert found.p_floor == pytest.approx(2 / 2**n)
    assert found.p_wilcoxon == pytest.approx(scipy_stats.wilcoxon(a, b).pvalue)
    assert found.p_wilcoxon >= found.p_floor - 1e-12
    assert (found.p < 0.05) == (found.difference.low > 0 or found.difference.high < 0)


def test_other_seeds_are_not_paired():
    a, b = [0.98, 0.97, 0.99, 0.975], [0.97, 0.965, 0.96]
    oracle = scipy_stats.ttest_ind(a, b, equal_var=False)
    found = compare(Arm("a", range(4), a), Arm("b", range(10, 13), b), "test_accuracy")
    assert not found.paired
    assert (found.p, found.p_wilcoxon, found.p_floor) == (pytest.approx(oracle.pvalue), None, None)
    assert found.difference.n == 3
    assert tuple(found.difference[1:3]) == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    assert "n = 3 an arm, not paired" in found.verdict


def test_pairs_are_found_by_seed_not_by_place():
    """Seeds 2 and 3 are shared; what is left over counts for neither."""
    a, b = Arm("a", (1, 2, 3), (0.1, 0.5, 0.7)), Arm("b", (3, 4, 2), (0.4, 0.9, 0.3))
    found = compare(a, b, "test_accuracy")
    assert found.paired
    near(found.difference, estimate([0.5 - 0.3, 0.7 - 0.4]))


@pytest.mark.parametrize(("spread", "paired", "seeds"), [(0.001, True, 10), (0.001, False, 17), (0.002, False, 64), (1e-9, True, 2)])
def test_seeds_needed(spread, paired, seeds):
    """Cohen (1988): an effect of one deviation needs 10 pairs or 17 an arm, of half a deviation 64 an arm, for 80 % power."""
    assert seeds_needed(spread, 0.001, paired) == seeds


@pytest.mark.parametrize("spread", [1e8, 1e200, np.inf])
def test_seeds_beyond_counting_are_none(spread):
    """A diverged net's losses, say: the search ends, and no table overflows."""
    assert seeds_needed(spread, 0.001, True) is None


# The formulas of our own against the libraries that pages do not load


@settings(max_examples=60)
@given(st.integers(2, 50), st.integers(0, 2**32))
def test_signed_ranks_are_scipys(n, seed):
    """Without ties up to where scipy is exact, with ties and zeros where it tries every sign."""
    a, b = np.random.default_rng(seed).normal(0, 1, (2, n))
    found = compare(Arm("a", range(n), a + 0.3), Arm("b", range(n), b), "test_loss")
    assert found.p_wilcoxon == pytest.approx(scipy_stats.wilcoxon(a + 0.3, b, method="exact").pvalue, rel=1e-9)
    tied = np.random.default_rng(seed).integers(-2, 4, min(n, 10)).astype(float)
    if (tied != 0).sum() > 1:
        found = compare(Arm("a", range(tied.size), tied), Arm("b", range(tied.size), 0 * tied), "test_loss")
        signs = scipy_stats.PermutationMethod(n_resamples=np.inf)
        assert found.p_wilcoxon == pytest.approx(scipy_stats.wilcoxon(tied[tied != 0], method=signs).pvalue, rel=1e-9)


@settings(max_examples=60)
@given(st.integers(2, 12), st.integers(2, 12), st.floats(0.1, 10), st.integers(0, 2**32))
def test_welchs_test_is_scipys(n, m, spread, seed):
    random = np.random.default_rng(seed)
    a, b = random.normal(0.5, 1, n), random.normal(0, spread, m)
    oracle = scipy_stats.ttest_ind(a, b, equal_var=False)
    found = compare(Arm("a", range(n), a), Arm("b", range(100, 100 + m), b), "test_loss")
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-9)
    assert tuple(found.difference[1:3]) == pytest.approx(tuple(oracle.confidence_interval(0.95)), rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=45))
def test_holm_is_statsmodels(p):
    from statsmodels.stats.multitest import multipletests

    np.testing.assert_allclose(holm(np.array(p)), multipletests(p, method="holm")[1], rtol=1e-12)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("effect", [0.002, 0.05, 0.1, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 8.0, 1e3, 1e9])
def test_the_power_is_statsmodels(effect, paired):
    """The number found has the power, by statsmodels' own function, and one less has not."""
    from statsmodels.stats.power import TTestIndPower, TTestPower

    power = (TTestPower() if paired else TTestIndPower()).power
    n = seeds_needed(1 / effect, 1.0, paired)
    if effect < 100:  # beyond, its distribution function overflows
        assert power(effect, n, 0.05) >= 0.8
        assert n == 2 or not power(effect, n - 1, 0.05) >= 0.8  # it is NaN for 8 deviations and two pairs
    else:
        assert n == 2


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilsons_interval_is_statsmodels(images, share):
    from statsmodels.stats.proportion import proportion_confint

    correct = round(share * images)
    oracle = proportion_confint(correct, images, 0.05, method="wilson")
    assert tuple(binomial(correct, images)[1:3]) == pytest.approx(oracle, rel=1e-9, abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_mcnemar_is_statsmodels(only_a, only_b, both):
    from statsmodels.stats.contingency_tables import mcnemar as oracle

    a = np.repeat([True, False, True], [only_a, only_b, both])
    b = np.repeat([False, True, True], [only_a, only_b, both])
    assert mcnemar(a, b).p == pytest.approx(oracle([[both, only_a], [only_b, 0]], exact=True).pvalue, rel=1e-9)


# Laws


@given(pairs)
def test_the_order_flips_the_sign(rows):
    a, b = rows
    one, other = difference(a, b), difference(b, a)
    near(one, Estimate(-other.mean, -other.high, -other.low, other.n), scale=1e3)


@given(pairs, numbers)
def test_a_shift_of_both_changes_nothing(rows, shift):
    a, b = rows
    near(difference(a + shift, b + shift), difference(a, b), scale=1e4)


@given(pairs, st.floats(0.01, 100))
def test_scaling_scales(rows, factor):
    a, b = rows
    found = difference(a, b)
    near(difference(factor * a, factor * b), Estimate(*(factor * x for x in found[:3]), found.n), scale=1e5)


@given(pairs)
def test_the_mean_is_inside_and_more_of_the_same_is_narrower(rows):
    values = rows[0]
    found = estimate(values)
    assert found.low <= found.mean <= found.high
    again = estimate(np.tile(values, 2))
    assert again.mean == pytest.approx(found.mean, abs=1e-9)
    assert again.half <= found.half + 1e-12


def test_the_interval_holds_the_truth_19_times_of_20():
    """10,000 experiments of eight seeds. With 1.96 for Student's t the share would be 0.91."""
    values = np.random.default_rng(20_240_601).normal(0.98, 0.002, (10_000, 8))
    mean, half = band(values)
    assert np.mean(np.abs(mean - 0.98) <= half) == pytest.approx(0.95, abs=0.01)
    assert np.mean(np.abs(mean - 0.98) <= half * 1.96 / t_quantile(8)) < 0.93
    assert estimate(values[0]).half == pytest.approx(half[0])


# Families of comparisons and their verdicts


def arms_of(*means, n=8, spread=0.001):
    """Arms with these means whose paired differences have a known deviation."""
    wave = spread * (np.arange(n) - (n - 1) / 2) / n
    return [Arm(f"arm{i}", range(n), m + wave * (-1) ** i) for i, m in enumerate(means)]


def test_holm_by_hand():
    """Holm (1979): sorted p times 3, 2, 1, never falling."""
    family = [compare(a, b, "test_accuracy") for a, b in zip(arms_of(0.9, 0.91), arms_of(0.9001, 0.9101), strict=True)]
    family = [one._replace(p=p) for one, p in zip([*family, family[0], family[0]], (0.03, 0.01, None, 0.04), strict=True)]
    assert [one.p_holm for one in adjust(family)] == [pytest.approx(0.06), pytest.approx(0.03), None, pytest.approx(0.06)]
    assert adjust([]) == []


def test_every_pair_once_the_later_against_the_earlier():
    found = compare_all(arms_of(0.97, 0.98, 0.981), "test_accuracy")
    assert [(one.a, one.b) for one in found] == [("arm1", "arm0"), ("arm2", "arm0"), ("arm2", "arm1")]
    assert all(one.p_holm >= one.p for one in found)
    assert found[0].difference.mean == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("metric", "means", "says"),
    [
        ("test_accuracy", (0.97, 0.98), "arm1 is better than arm0: +1.00 points of test accuracy"),
        ("test_accuracy", (0.98, 0.97), "arm1 is worse than arm0: -1.00 points of test accuracy"),
        ("test_loss", (0.97, 0.98), "arm1 is worse than arm0: +0.0100 nats of test loss"),
        ("train_loss", (0.98, 0.97), "arm1 is better than arm0: -0.0100 nats of training loss"),
        ("test_accuracy", (0.97, 0.97), "No difference shown between arm1 and arm0: "),
    ],
)
def test_the_verdict_knows_which_way_is_better(metric, means, says):
    (found,) = compare_all(arms_of(*means), metric)
    assert found.verdict.startswith(says)
    assert "n = 8" in found.verdict
    assert "95 % interval" in found.verdict


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_seeds_give_no_verdict(n):
    (found,) = compare_all(arms_of(0.5, 0.9, n=n), "test_accuracy")
    assert found.verdict.startswith("Too few seeds to say")
    assert f"at n = {n};" in found.verdict


def test_a_verdict_says_what_it_rests_on():
    """Four pairs: no test without a normal law can give p below 0.125."""
    (found,) = compare_all(arms_of(0.5, 0.9, n=4), "test_accuracy")
    assert found.verdict.endswith("without that, 4 seeds cannot give p below 0.125.")


def test_luck_in_a_family_is_named():
    """A p of 0.02 alone is not enough among three."""
    family = [compare(*reversed(arms_of(0.97, 0.98)), "test_accuracy")._replace(p=p) for p in (0.02, 0.5, 0.9)]
    first = adjust(family)[0]
    assert first.verdict.startswith("No difference shown")
    assert "Alone it would pass (p = 0.020), but of 3 comparisons one does by luck too often." in first.verdict


def test_arms_that_differ_by_a_constant():
    """No spread at all, as rounded accuracies of few seeds may have it: a p of 0, no effect size, nothing raised."""
    arms = [Arm("a", range(4), [0.5, 0.625, 0.75, 0.5]), Arm("b", range(4), [0.25, 0.375, 0.5, 0.25])]
    (found,) = compare_all(arms, "test_accuracy")
    assert (found.difference, found.p, found.effect, found.needed) == (Estimate(-0.25, -0.25, -0.25, 4), 0, None, None)
    (same,) = compare_all([arms[0], arms[0]._replace(name="c")], "test_accuracy")
    assert (same.p, same.p_wilcoxon) == (1, None)
    assert same.verdict.startswith("No difference shown")


@pytest.mark.parametrize(("p", "text"), [(None, "no p"), (0.0004, "p < 0.001"), (0.0314, "p = 0.031")])
def test_p_in_words(p, text):
    assert p_text(p) == text
    assert p is None or p_text(p, 3) == f"{text}, Holm over 3"


# Do the benefits add up?


def test_the_interaction_by_hand():
    """By seed: (both - dropout) - (batch norm - neither), over the seeds that all four share."""
    values = ([0.90, 0.91, 0.92], [0.95, 0.95, 0.96], [0.93, 0.94, 0.96], [0.96, 0.97, 0.98])
    arms = [Arm(name, (0, 1, 2), row) for name, row in zip(FACTORIAL, values, strict=True)]
    arms[0] = Arm("baseline", (9, 2, 0, 1), [0.1, 0.92, 0.90, 0.91])  # another seed and another order
    found = interaction(arms, "test_accuracy")
    near(found.estimate, estimate([-0.02, -0.01, -0.02]))
    assert found.p == pytest.approx(scipy_stats.ttest_1samp([-0.02, -0.01, -0.02], 0).pvalue)
    near(found.batch_norm, estimate([0.05, 0.04, 0.04]))
    near(found.dropout, estimate([0.03, 0.03, 0.04]))
    assert found.verdict.startswith("The benefits do not add up: both together bring less than the sum of each")
    assert "n = 3" in found.verdict
    assert interaction(arms, "test_loss").verdict.startswith("The benefits do not add up: both together bring more")


def test_benefits_that_add_up():
    wave = np.array([1, -1, 1, -1, 0]) * 1e-3
    arms = [Arm(name, range(5), mean + wave * k) for k, (name, mean) in enumerate(zip(FACTORIAL, (0.9, 0.95, 0.93, 0.98), strict=True))]
    arms[3] = arms[3]._replace(values=arms[3].values + np.array([1, 1, -1, -1, 0]) * 1e-3)
    found = interaction(arms, "test_accuracy")
    assert found.estimate.mean == pytest.approx(0)
    assert found.verdict.startswith("No departure from adding up shown")
    assert found.estimate.low < 0 < found.estimate.high


@pytest.mark.parametrize("left_out", FACTORIAL)
def test_no_interaction_without_its_four_arms(left_out):
    arms = [Arm(name, range(4), [0.9, 0.8, 0.7, 0.6]) for name in FACTORIAL]
    assert interaction(arms, "test_accuracy") is not None
    assert interaction([arm for arm in arms if arm.name != left_out], "test_accuracy") is None
    assert interaction([arm._replace(seeds=range(9, 13)) if arm.name == left_out else arm for arm in arms], "test_accuracy") is None


def test_one_seed_gives_no_word_on_adding_up():
    found = interaction([Arm(name, (0,), [0.9]) for name in FACTORIAL], "test_accuracy")
    assert (found.estimate.low, found.p) == (None, None)
    assert found.verdict.startswith("Too few seeds")


# Over test images


def test_wilsons_interval():
    """Wilson (1927) by its formula; inside [0, 1] even where every image is right."""
    z, n, share = 1.959964, 1_000, 0.985
    middle, half = (
        (share + z * z / 2 / n) / (1 + z * z / n),
        z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / 4 / n / n),
    )
    assert binomial(985, 1_000) == Estimate(0.985, pytest.approx(middle - half), pytest.approx(middle + half), 1_000)
    assert binomial(1_000, 1_000).high == pytest.approx(1)
    assert binomial(1_000, 1_000).low < 0.997


def test_mcnemar_counts_where_nets_disagree():
    """Five images only a gets right, one only b: two-sided binomial(6, 1/2), 2 * 7/64."""
    a = np.array([1, 1, 1, 1, 1, 0, 1, 0], bool)
    b = np.array([0, 0, 0, 0, 0, 1, 1, 0], bool)
    assert mcnemar(a, b) == (5, 1, pytest.approx(14 / 64))
    assert mcnemar(b, a)[:2] == (1, 5)


def test_winners_against_every_combination():
    """By brute force over all draws of one seed an arm, ties shared."""
    draws = np.random.default_rng(5)
    for sizes in ((3, 3), (2, 3, 4), (4, 4, 4, 4)):
        arms = [draws.integers(0, 4, size) / 4 for size in sizes]
        counted = np.zeros(len(arms))
        for drawn in itertools.product(*arms):
            top = np.array(drawn) == max(drawn)
            counted += top / top.sum()
        np.testing.assert_allclose(winners(arms), counted / counted.sum(), atol=1e-12)


def test_winners_by_hand():
    np.testing.assert_allclose(winners([np.array([0.9, 0.8]), np.array([0.85, 0.7])]), [0.75, 0.25])
    np.testing.assert_allclose(winners([np.array([1.0]), np.array([1.0])]), [0.5, 0.5])


def test_optimism_looks_at_epoch_ends_only():
    epoch = np.array([0.5, 1, 1.5, 2, 3])
    accuracy = np.array([[0.99, 0.1], [0.7, 0.5], [np.nan, np.nan], [0.9, 0.6], [0.8, 0.6]])
    np.testing.assert_allclose(optimism(accuracy, epoch), [0.1, 0.0], atol=1e-12)


def test_verdicts_are_wrong_as_often_as_they_admit():
    """10,000 pairs of arms that do not differ, eight seeds each: "better" or "worse" is said of 5 % (within three standard errors)."""
    draws = np.random.default_rng(11).normal(0.98, 0.002, (10_000, 2, 8))
    said = 0
    for a, b in draws:
        gain = difference(a, b)
        p = float(2 * scipy_stats.t.sf(abs(gain.mean) / (gain.half / t_quantile(8)), 7))
        one = Comparison("a", "b", "test_accuracy", True, gain, p, None, p, None, None, None, "")
        said += " is better than " in verdict(one, 1) or " is worse than " in verdict(one, 1)
    assert said / len(draws) == pytest.approx(0.05, abs=3 * (0.05 * 0.95 / len(draws)) ** 0.5)


def test_a_family_of_verdicts_is_wrong_in_one_study_of_twenty_at_most():
    """300 studies of five arms that do not differ: Holm keeps studies with any claim at 5 % or less (within three standard errors)."""
    draws = np.random.default_rng(12).normal(0.98, 0.002, (300, 5, 8))
    wrong = 0
    for study in draws:
        family = []
        for i, j in itertools.combinations(range(5), 2):
            gain = difference(study[j], study[i])
            p = float(2 * scipy_stats.t.sf(abs(gain.mean) / (gain.half / t_quantile(8)), 7))
            family.append(Comparison(str(j), str(i), "test_accuracy", True, gain, p, None, None, None, None, None, ""))
        wrong += any(" is better than " in one.verdict or " is worse than " in one.verdict for one in adjust(family))
    assert wrong / len(draws) <= 0.05 + 3 * (0.05 * 0.95 / len(draws)) ** 0.5
