"""The bootstrap that marks rows, and the styles of methods in pictures."""

import numpy
import pytest

from bayeslora import metrics
from bayeslora.metrics import Sample, all_metrics, detection_auroc
from bayeslora.report.colours import styles
from bayeslora.report.statistics import Resampling, compare


def random_items(number: int, grid: int | None) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Probabilities [number, 4] and labels; multiples of 1 / grid have tied confidences, also on the edges of bins."""
    source = numpy.random.default_rng(number)
    logits = 3 * source.normal(size=(number, 4))
    probabilities = numpy.exp(logits) / numpy.exp(logits).sum(1, keepdims=True)
    if grid is not None:
        steps = numpy.floor(probabilities * grid)
        steps[:, 0] += grid - steps.sum(1)
        probabilities = steps / grid
    return probabilities, source.integers(0, 4, number)


@pytest.mark.parametrize(("number", "grid"), [(1, None), (2, None), (9, 5), (60, 15), (151, None)])
def test_every_metric_of_a_resample_is_that_of_the_repeated_items(number, grid):
    probabilities, labels = random_items(number, grid)
    counts = Resampling(40, seed=1).item_counts(number)
    sample = Sample(probabilities, labels, counts)
    values = {metric.name: metric.of(sample) for metric in all_metrics()}
    for place, row in enumerate(counts.astype(int)):
        drawn = numpy.repeat(numpy.arange(number), row)
        expected = metrics.summary(probabilities[drawn], labels[drawn])
        for name, value in values.items():
            wanted = numpy.nan if expected[name] is None else expected[name]
            numpy.testing.assert_allclose(value[place], wanted, atol=1e-12, err_msg=name)


def test_detection_of_a_resample_is_that_of_the_repeated_items():
    source = numpy.random.default_rng(0)
    inside, outside = source.integers(0, 6, 30) / 6, source.integers(2, 9, 20) / 6
    resampling = Resampling(40)
    counts = resampling.item_counts(30), resampling.item_counts(20)
    values = detection_auroc(inside, outside, *counts)
    for place, rows in enumerate(zip(*(count.astype(int) for count in counts), strict=True)):
        expected = metrics.out_of_distribution_auroc(numpy.repeat(inside, rows[0]), numpy.repeat(outside, rows[1]))
        assert values[place] == pytest.approx(expected, abs=1e-12)


def test_resamples_draw_as_many_as_there_are_and_begin_with_the_sample_itself():
    resampling = Resampling(2000, seed=3)
    counts = resampling.item_counts(5)
    assert counts.shape == (2001, 5) and (counts[0] == 1).all() and (counts.sum(1) == 5).all()
    # Drawing with replacement: mean 1 and variance 1 - 1/n.
    assert counts[1:].mean(0) == pytest.approx(1, abs=0.1)
    assert counts[1:].var(0) == pytest.approx(0.8, abs=0.1)
    assert not (resampling.item_counts(5) == counts).all()
    assert (Resampling(2000, seed=3).item_counts(5) == counts).all()
    shares = resampling.seed_shares([0, 1, 2])
    assert shares.shape == (3, 2001) and shares.sum(0) == pytest.approx(1)
    assert resampling.seed_shares([0, 1, 2]) is shares


def test_marks_follow_the_basic_interval_of_the_paired_difference():
    """An independent implementation: loops over resamples, seeds and items."""
    source, resamples = numpy.random.default_rng(6), 300
    losses = {row: source.normal(size=(3, 40)) + shift for row, shift in (("a", 0.0), ("b", 0.12), ("c", 0.6))}
    resampling = Resampling(resamples, seed=9)
    counts, shares = resampling.item_counts(40), resampling.seed_shares([0, 1, 2])
    values = {row: {seed: counts @ loss[seed] / 40 for seed in range(3)} for row, loss in losses.items()}
    scores = compare(values, resampling, higher_is_better=False)

    def difference(row: str, best: str, place: int) -> float:
        total = 0.0
        for seed in range(3):
            for item in range(40):
                weight = shares[seed, place] * counts[place, item] / 40
                total += weight * (losses[row][seed, item] - losses[best][seed, item])
        return total

    best = min(losses, key=lambda row: losses[row].mean())
    for row, score in scores.items():
        assert score.mean == pytest.approx(losses[row].mean())
        assert score.std == pytest.approx(numpy.std(losses[row].mean(1), ddof=1))
        drawn = [difference(row, best, place) for place in range(1, resamples + 1)]
        high = 2 * difference(row, best, 0) - numpy.quantile(drawn, 0.025)
        low = 2 * difference(row, best, 0) - numpy.quantile(drawn, 0.975)
        assert score.mark == ("best" if row == best else "tied" if low <= 0 <= high else "")
    assert {score.mark for score in scores.values()} == {"best", "tied", ""}


def constant(*values: float) -> dict[int, numpy.ndarray]:
    """A metric by seed that no resample of the items changes."""
    return {seed: numpy.full(201, value) for seed, value in enumerate(values)}


def test_the_best_row_is_chosen_in_the_direction_of_the_metric_and_equals_share_it():
    rows = {"a": constant(0.25, 0.75), "b": constant(0.5, 0.5), "c": constant(0.125, 0.125), "d": constant(numpy.nan)}
    up = compare(rows, Resampling(200), higher_is_better=True)
    assert [up[row].mark for row in "abcd"] == ["best", "best", "", ""]
    down = compare(rows, Resampling(200), higher_is_better=False)
    assert down["c"].mark == "best" and down["b"].mark == "" and numpy.isnan(down["d"].mean)
    assert up["a"].std == pytest.approx(0.5 / 2**0.5) and numpy.isnan(up["d"].std)
    assert compare({"d": constant(numpy.nan)}, Resampling(200), higher_is_better=True)["d"].mark == ""


@pytest.mark.parametrize(("resampled", "mark"), [((-0.01, 0.05), ""), ((0.15, 0.25), "tied")])
def test_the_interval_takes_away_what_resampling_adds(resampled, mark):
    """The difference is 0.1; where resamples lie below it, the truth lies above it, and the other way round."""
    values = {"a": {0: numpy.zeros(201)}, "b": {0: numpy.array([0.1, *numpy.linspace(*resampled, 200)])}}
    assert compare(values, Resampling(200), higher_is_better=False)["b"].mark == mark


def test_seeds_that_disagree_tie_rows_that_all_items_tell_apart():
    agree = {"a": constant(0.2, 0.2, 0.2), "b": constant(0.3, 0.3, 0.3)}
    disagree = {"a": constant(0.2, 0.2, 0.2), "b": constant(0.0, 0.3, 0.6)}
    assert compare(agree, Resampling(200), higher_is_better=False)["b"].mark == ""
    assert compare(disagree, Resampling(200), higher_is_better=False)["b"].mark == "tied"


def test_pairing_tells_apart_what_two_separate_intervals_would_not():
    hard = 3 * numpy.random.default_rng(0).normal(size=50)
    resampling = Resampling(500)
    counts = resampling.item_counts(50)
    values = {"a": {0: counts @ hard / 50}, "b": {0: counts @ (hard + 0.05) / 50}}
    assert values["a"][0].std() > 0.2
    assert compare(values, resampling, higher_is_better=False)["b"].mark == ""


def test_rows_of_equal_quality_are_tied_about_95_times_of_100():
    tied, trials, source = 0, 200, numpy.random.default_rng(2)
    for trial in range(trials):
        resampling = Resampling(200, seed=trial)
        counts = resampling.item_counts(60)
        values = {row: {0: counts @ source.normal(size=60) / 60} for row in "ab"}
        tied += all(score.mark for score in compare(values, resampling, higher_is_better=False).values())
    # Three binomial standard deviations around 0.95, and a bootstrap interval of 60 items is a little short.
    assert 0.88 < tied / trials < 0.995


# --- the page --------------------------------------------------------------------------------------------------------


def test_styles_differ_and_variants_share_their_colour():
    names = ["lora", "lora + temperature", "lora + label smoothing", "bayesian_lora", "bayesian_lora (mean)", "blob"]
    names += [
        "mc-dropout",
        "ensemble",
        "laplace",
        "laplace (last layer)",
        "tfb",
        "scalabl",
        "c-lora",
        "dalorra",
        "ivon",
    ]
    names += ["mean_field", "swag", "svgd", "sghmc"]  # more than there are colours
    found = styles(names)
    assert len(set(found.values())) == len(names)
    assert len({(style.colour, style.line) for style in found.values()}) == len(names)
    assert found["lora"].colour == found["lora + temperature"].colour != found["bayesian_lora"].colour
