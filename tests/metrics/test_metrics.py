"""Metrics against a second implementation, by hand, and by property; the picture they are drawn in."""

import itertools
import json
import math
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy.stats import entropy as scipy_entropy
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from bayeslora import metrics
from bayeslora.metrics import reliability_diagram as plots
from bayeslora.prediction.predictive import Predictive
from bayeslora.runs.prediction import Prediction
from bayeslora.tasks import Item

CALIBRATION_ERRORS = (
    metrics.expected_calibration_error,
    metrics.maximum_calibration_error,
    metrics.adaptive_calibration_error,
)
SELECTIVE = (metrics.correctness_auroc, metrics.aurc, metrics.selective_accuracy)
METRICS = (metrics.accuracy, metrics.nll, metrics.brier, *CALIBRATION_ERRORS, *SELECTIVE)


def predictions(seed: int, items: int = 400, choices: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Overconfident predictions `[items, choices]` and their labels `[items]`."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, choices, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return (3 * logits).softmax(dim=1), labels


@st.composite
def small_predictions(draw: st.DrawFn, most: int = 30) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Up to `most` items; weights of zero give padded choices, certain rows and ties."""
    items, choices = draw(st.integers(1, most)), draw(st.integers(1, 5))
    weight = st.sampled_from([0.0, 0.0, 1.0, 1.0, 2.0, 3.5, 100.0])
    row = st.lists(weight, min_size=choices, max_size=choices).filter(any)
    weights = numpy.array(draw(st.lists(row, min_size=items, max_size=items)))
    labels = draw(st.lists(st.integers(0, choices - 1), min_size=items, max_size=items))
    return weights / weights.sum(axis=1, keepdims=True), numpy.array(labels)


def looped_gaps(confidence: numpy.ndarray, correct: numpy.ndarray, groups: list) -> list[tuple[float, int]]:
    """Gap between accuracy and confidence, and number of items, of each group of item indices."""
    gaps = []
    for group in groups:
        if len(group):
            mean_accuracy = sum(correct[item] for item in group) / len(group)
            mean_confidence = sum(confidence[item] for item in group) / len(group)
            gaps.append((abs(mean_accuracy - mean_confidence), len(group)))
    return gaps


def top_choice(probabilities: numpy.ndarray, labels: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == labels).astype(float)


def equal_width_groups(confidence: numpy.ndarray, bins: int) -> list:
    # numpy's steps differ in the last place, which decides where a confidence of exactly 7 / 13 goes.
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64).tolist()
    last = bins - 1
    return [
        [item for item, value in enumerate(confidence) if edges[b] <= value and (value < edges[b + 1] or b == last)]
        for b in range(bins)
    ]


# --- against a second implementation --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_nll_and_brier_agree_with_scikit_learn(seed: int) -> None:
    probabilities, labels = predictions(seed)
    assert metrics.accuracy(probabilities, labels) == accuracy_score(labels, probabilities.argmax(dim=1))
    assert metrics.nll(probabilities, labels) == pytest.approx(log_loss(labels, probabilities), rel=1e-12)
    expected = brier_score_loss(labels.numpy(), probabilities.numpy(), scale_by_half=False)
    assert metrics.brier(probabilities, labels) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(small_predictions(), st.integers(1, 20))
def test_equal_width_errors_agree_with_a_loop(data: tuple[numpy.ndarray, numpy.ndarray], bins: int) -> None:
    confidence, correct = top_choice(*data)
    gaps = looped_gaps(confidence, correct, equal_width_groups(confidence, bins))
    expected = sum(gap * count for gap, count in gaps) / len(confidence)
    assert metrics.expected_calibration_error(*data, bins=bins) == pytest.approx(expected, abs=1e-9)
    largest = max(gap for gap, _ in gaps)
    assert metrics.maximum_calibration_error(*data, bins=bins) == pytest.approx(largest, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_adaptive_error_agrees_with_a_loop_over_equal_shares(seed: int) -> None:
    probabilities, labels = (array.numpy() for array in predictions(seed, items=390))
    confidence, correct = top_choice(probabilities, labels)
    # 390 items make 15 bins of exactly 26 when no two confidences are equal.
    groups = numpy.array_split(numpy.argsort(confidence), 15)
    expected = sum(gap * count for gap, count in looped_gaps(confidence, correct, groups)) / 390
    assert metrics.adaptive_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_expected_error_agrees_with_torchmetrics_away_from_certainty(seed: int) -> None:
    probabilities, labels = predictions(seed)
    expected = multiclass_calibration_error(probabilities, labels, num_classes=4, n_bins=15, norm="l1")
    assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_reliability_curve_agrees_with_scikit_learn(seed: int) -> None:
    probabilities, labels = predictions(seed)
    confidence, correct = top_choice(probabilities.numpy(), labels.numpy())
    expected_accuracy, expected_confidence = calibration_curve(correct, confidence, n_bins=15)
    curve = metrics.reliability_curve(probabilities, labels)
    filled = curve.count > 0
    numpy.testing.assert_allclose(curve.accuracy[filled], expected_accuracy)
    numpy.testing.assert_allclose(curve.confidence[filled], expected_confidence)
    assert curve.accuracy[~filled].isnan().all()


def ranked_pairs(low: numpy.ndarray, high: numpy.ndarray) -> float:
    """Share of pairs in which the number of `high` is the larger one; equal ones count half. NaN without a pair."""
    wins = [1.0 if h > l else 0.5 if h == l else 0.0 for l in low for h in high]  # noqa: E741
    return sum(wins) / len(wins) if wins else math.nan


def looped_risks(confidence: numpy.ndarray, correct: numpy.ndarray) -> numpy.ndarray:
    """Risk at each coverage, averaged over every order of the items in which confidence never rises."""
    orders = [
        [1 - correct[item] for item in order]
        for order in itertools.permutations(range(len(confidence)))
        if all(confidence[first] >= confidence[second] for first, second in itertools.pairwise(order))
    ]
    return numpy.mean([numpy.cumsum(wrong) / numpy.arange(1, len(wrong) + 1) for wrong in orders], axis=0)


@settings(max_examples=50, deadline=None)
@given(small_predictions())
def test_auroc_of_correctness_agrees_with_a_loop_over_pairs(data: tuple[numpy.ndarray, numpy.ndarray]) -> None:
    confidence, correct = top_choice(*data)
    expected = ranked_pairs(confidence[correct == 0], confidence[correct == 1])
    assert metrics.correctness_auroc(*data) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(5))
def test_aurocs_agree_with_torchmetrics(seed: int) -> None:
    probabilities, labels = predictions(seed)
    confidence, correct = top_choice(probabilities.numpy(), labels.numpy())
    expected = binary_auroc(torch.tensor(confidence), torch.tensor(correct).long()).item()
    assert metrics.correctness_auroc(probabilities, labels) == pytest.approx(expected, abs=1e-6)
    # As a detector of wrong predictions by uncertainty, it is the same number.
    inside, outside = 1 - confidence[correct == 1], 1 - confidence[correct == 0]
    assert metrics.out_of_distribution_auroc(inside, outside) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(small_predictions(most=6))
def test_risks_agree_with_the_mean_over_all_orders_of_ties(data: tuple[numpy.ndarray, numpy.ndarray]) -> None:
    expected = looped_risks(*top_choice(*data))
    curve = metrics.risk_coverage_curve(*data)
    numpy.testing.assert_allclose(curve.risk, expected, atol=1e-12)
    numpy.testing.assert_allclose(curve.coverage, numpy.arange(1, len(expected) + 1) / len(expected))
    assert metrics.aurc(*data) == pytest.approx(expected.mean(), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("coverage", [0.05, 0.5, 0.8, 1.0])
def test_selective_accuracy_is_that_of_the_most_confident_items(seed: int, coverage: float) -> None:
    probabilities, labels = (array.numpy() for array in predictions(seed, items=200))
    chosen = numpy.argsort(-probabilities.max(axis=1))[: int(coverage * 200)]
    expected = accuracy_score(labels[chosen], probabilities[chosen].argmax(axis=1))
    assert metrics.selective_accuracy(probabilities, labels, coverage) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(small_predictions())
def test_entropy_agrees_with_scipy(data: tuple[numpy.ndarray, numpy.ndarray]) -> None:
    numpy.testing.assert_allclose(metrics.entropy(data[0]), scipy_entropy(data[0], axis=1), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 0.5 + 1e-12, 1.0, 3.0]), min_size=1, max_size=12),
    st.lists(st.sampled_from([0.0, 0.5, 0.5 + 1e-12, 1.0, 3.0]), min_size=1, max_size=12),
)
def test_detection_auroc_agrees_with_a_loop_over_pairs(inside: list[float], outside: list[float]) -> None:
    arrays = numpy.array(inside), numpy.array(outside)
    assert metrics.out_of_distribution_auroc(*arrays) == pytest.approx(ranked_pairs(*arrays), abs=1e-12)


# --- by hand --------------------------------------------------------------------------------------------

# Three items: sure and right, sure and wrong, unsure and right; the last choice of item two is padding.
BY_HAND = numpy.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.2, 0.2, 0.6]])
BY_HAND_LABELS = numpy.array([0, 0, 2])


def test_values_by_hand() -> None:
    by_hand = (BY_HAND, BY_HAND_LABELS)
    assert metrics.accuracy(*by_hand) == pytest.approx(2 / 3)
    assert metrics.nll(*by_hand) == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.6)) / 3)
    assert metrics.brier(*by_hand) == pytest.approx((0.02 + 1.62 + 0.24) / 3)
    # Bins: {0.6} with accuracy 1, {0.9, 0.9} with accuracy 1/2; the gaps are 0.4 and 0.4.
    assert metrics.expected_calibration_error(*by_hand) == pytest.approx(0.4)
    assert metrics.maximum_calibration_error(*by_hand) == pytest.approx(0.4)
    # One bin: accuracy 2/3, confidence 0.8.
    for error in CALIBRATION_ERRORS:
        assert error(*by_hand, bins=1) == pytest.approx(0.8 - 2 / 3)


def test_certain_items_share_the_last_bin_with_nearly_certain_ones() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [0.96, 0.04]])
    # One bin of accuracy 1/2 and confidence 0.98; a bin of its own for 1 would make it 0.5.
    assert metrics.expected_calibration_error(probabilities, torch.tensor([1, 0])) == pytest.approx(0.48)


def test_rounding_past_one_is_not_taken_for_logits() -> None:
    probabilities = torch.tensor([[1.0 + 1e-6, 0.0], [0.7, 0.3]])
    assert metrics.expected_calibration_error(probabilities, torch.tensor([0, 0])) == pytest.approx(0.15)


def test_nll_of_an_impossible_label_is_finite() -> None:
    impossible = metrics.nll(numpy.array([[1.0, 0.0]]), numpy.array([1]))
    assert impossible == pytest.approx(-math.log(metrics.SMALLEST_PROBABILITY))
    assert impossible == pytest.approx(87.3, abs=0.05)


def test_selective_values_by_hand() -> None:
    by_hand = (BY_HAND, BY_HAND_LABELS)
    # Two items at 0.9, one of them right, then a right one at 0.6.
    assert metrics.risk_coverage_curve(*by_hand).risk.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3])
    assert metrics.aurc(*by_hand) == pytest.approx(4 / 9)
    assert metrics.selective_accuracy(*by_hand, coverage=0.8) == pytest.approx(2 / 3)
    assert metrics.selective_accuracy(*by_hand, coverage=0.6) == pytest.approx(1 / 2)
    # The wrong one at 0.9 ties with one right prediction and beats the other.
    assert metrics.correctness_auroc(*by_hand) == pytest.approx(1 / 4)


def test_entropy_by_hand() -> None:
    rows = numpy.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert metrics.entropy(rows).tolist() == pytest.approx([math.log(4), math.log(2), 0])


def test_detection_auroc_by_hand() -> None:
    # Of six pairs the outside item is larger in four and equal in one.
    auroc = metrics.out_of_distribution_auroc(torch.tensor([0.1, 0.2, 0.7]), torch.tensor([0.2, 0.9]))
    assert auroc == pytest.approx(4.5 / 6)


def test_detection_by_an_uncertainty_that_is_always_zero_is_chance() -> None:
    assert metrics.out_of_distribution_auroc(torch.zeros(5), torch.zeros(3)) == 0.5


def test_large_uncertainties_keep_their_order() -> None:
    # A sigmoid, which torchmetrics applies outside [0, 1], makes 40 and 41 the same.
    assert metrics.out_of_distribution_auroc(torch.tensor([40.0]), torch.tensor([41.0])) == 1


@pytest.mark.parametrize("label", [0, 1])
def test_auroc_of_correctness_needs_right_and_wrong_predictions(label: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NaN is the documented answer, not an accident to warn of
        auroc = metrics.correctness_auroc(numpy.array([[0.9, 0.1], [0.7, 0.3]]), numpy.array([label, label]))
    assert math.isnan(auroc)


def test_coverage_counts_items_in_decimals() -> None:
    # 0.55 * 100 is 55.00000000000001 in floats; the 56th item is the first wrong one.
    confidence = numpy.linspace(0.99, 0.6, 100)
    labels = (numpy.arange(100) >= 55).astype(int)
    assert metrics.selective_accuracy(numpy.stack([confidence, 1 - confidence], axis=1), labels, coverage=0.55) == 1


def test_confidences_rounded_past_one_are_equal_to_one() -> None:
    probabilities = torch.tensor([[1.0 + 1e-6, 0.0], [1.0, 0.0]])
    assert metrics.correctness_auroc(probabilities, torch.tensor([1, 0])) == 0.5


def test_summary_holds_plain_numbers() -> None:
    result = metrics.summary(BY_HAND, BY_HAND_LABELS)
    assert list(result) == [
        *("accuracy", "nll", "ece", "brier", "num_examples"),
        *("adaptive_ece", "mce", "auroc", "aurc", "accuracy_at_80"),
    ]
    assert result == {
        "accuracy": metrics.accuracy(BY_HAND, BY_HAND_LABELS),
        "nll": metrics.nll(BY_HAND, BY_HAND_LABELS),
        "ece": metrics.expected_calibration_error(BY_HAND, BY_HAND_LABELS),
        "brier": metrics.brier(BY_HAND, BY_HAND_LABELS),
        "num_examples": 3,
        "adaptive_ece": metrics.adaptive_calibration_error(BY_HAND, BY_HAND_LABELS),
        "mce": metrics.maximum_calibration_error(BY_HAND, BY_HAND_LABELS),
        "auroc": metrics.correctness_auroc(BY_HAND, BY_HAND_LABELS),
        "aurc": metrics.aurc(BY_HAND, BY_HAND_LABELS),
        "accuracy_at_80": metrics.selective_accuracy(BY_HAND, BY_HAND_LABELS, coverage=0.8),
    }
    assert all(type(value) in (int, float) for value in result.values())


def test_summary_of_one_item_is_valid_json() -> None:
    result = metrics.summary(numpy.array([[1.0, 0.0]]), numpy.array([0]))
    assert result["auroc"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_with_gradients_and_other_number_types_are_taken(dtype: torch.dtype) -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=dtype, requires_grad=True)
    assert metrics.accuracy(probabilities, torch.tensor([0, 1], dtype=torch.int32)) == 0.5


# --- properties -----------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(small_predictions())
def test_every_metric_stays_in_its_range(data: tuple[numpy.ndarray, numpy.ndarray]) -> None:
    for share in (metrics.accuracy, *CALIBRATION_ERRORS, metrics.aurc, metrics.selective_accuracy):
        assert 0 <= share(*data) <= 1
    auroc = metrics.correctness_auroc(*data)
    assert math.isnan(auroc) or 0 <= auroc <= 1
    assert metrics.selective_accuracy(*data, coverage=1.0) == pytest.approx(metrics.accuracy(*data), abs=1e-12)
    assert 0 <= metrics.brier(*data) <= 2
    assert 0 <= metrics.nll(*data) < 88
    assert metrics.expected_calibration_error(*data) <= metrics.maximum_calibration_error(*data) + 1e-12


@settings(max_examples=50, deadline=None)
@given(small_predictions(), st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_matter(data: tuple[numpy.ndarray, numpy.ndarray], random: object) -> None:
    probabilities, labels = data
    order = list(range(len(labels)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for metric in METRICS:
        shuffled = metric(probabilities[order], labels[order])
        assert shuffled == pytest.approx(metric(probabilities, labels), abs=1e-12, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(small_predictions(), st.integers(1, 3))
def test_padded_choices_change_nothing(data: tuple[numpy.ndarray, numpy.ndarray], more: int) -> None:
    probabilities, labels = data
    padded = numpy.pad(probabilities, ((0, 0), (0, more)))
    assert metrics.summary(padded, labels) == pytest.approx(metrics.summary(probabilities, labels), abs=1e-12)
    assert metrics.entropy(padded).tolist() == pytest.approx(metrics.entropy(probabilities).tolist(), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_sure_and_right_costs_nothing(labels: list[int]) -> None:
    probabilities = numpy.eye(4)[labels]
    assert metrics.accuracy(probabilities, numpy.array(labels)) == 1
    assert metrics.selective_accuracy(probabilities, numpy.array(labels)) == 1
    for metric in (metrics.nll, metrics.brier, *CALIBRATION_ERRORS, metrics.aurc):
        assert metric(probabilities, numpy.array(labels)) == pytest.approx(0, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(small_predictions(), st.integers(1, 20))
def test_curve_and_expected_error_use_the_same_bins(data: tuple[numpy.ndarray, numpy.ndarray], bins: int) -> None:
    curve = metrics.reliability_curve(*data, bins=bins)
    assert len(curve.count) == bins
    assert curve.count.sum() == len(data[1])
    gap = ((curve.accuracy - curve.confidence).abs() * curve.count).nansum() / curve.count.sum()
    assert gap.item() == pytest.approx(metrics.expected_calibration_error(*data, bins=bins), abs=1e-9)


# --- inputs that do not fit -----------------------------------------------------------------------------

GOOD = [[0.5, 0.5], [0.25, 0.75]]


@pytest.mark.parametrize("metric", [*METRICS, metrics.reliability_curve, metrics.risk_coverage_curve, metrics.summary])
@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (GOOD, [0], r"shapes \[2, 2\] and \[1\]"),
        ([0.5, 0.5], [0, 1], r"shapes \[2\] and \[2\]"),
        (numpy.zeros((0, 2)), numpy.zeros(0, dtype=int), r"at least one item"),
        ([[0.5, 0.5], [2.0, 3.0]], [0, 1], r"row 1 .* sum 5"),
        ([[1.5, -0.5], [0.5, 0.5]], [0, 1], r"non-negative .* row 0"),
        ([[0.5, 0.5], [math.nan, 1.0]], [0, 1], r"finite probabilities, but row 1"),
        (GOOD, [0, 2], r"labels in 0 to 1, but they run from 0 to 2"),
        (GOOD, [-100, 1], r"they run from -100 to 1"),
    ],
)
def test_wrong_inputs_are_refused(metric: object, probabilities: list, labels: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(numpy.array(probabilities), numpy.array(labels))  # type: ignore[operator]


@pytest.mark.parametrize("function", [metrics.confidence_calibration_error, metrics.confidence_reliability_curve])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.1, 1.1, 3.7])
def test_what_is_no_confidence_is_refused(function: object, wrong: float) -> None:
    """It would fall into no bin, or past 1 be taken for a logit."""
    with pytest.raises(ValueError, match=r"Expected confidences in \[0, 1\], but item 1 has"):
        function(torch.tensor([0.9, wrong, 0.2]), torch.tensor([True, False, True]))


@pytest.mark.parametrize("function", [metrics.confidence_calibration_error, metrics.confidence_reliability_curve])
def test_confidences_need_as_many_answers(function: object) -> None:
    for confidence, correct in (([0.5], [True, False]), ([], []), ([[0.5]], [[True]])):
        with pytest.raises(ValueError, match="with at least one item"):
            function(torch.tensor(confidence), torch.tensor(correct, dtype=torch.bool))
    with pytest.raises(TypeError, match="true or false"):
        function(torch.tensor([0.5]), torch.tensor([2]))
    function(torch.tensor([1 + 1e-6, 0.0]), torch.tensor([1, 0]))


def test_every_uncertainty_of_a_record_declares_its_direction() -> None:
    sure, torn = torch.tensor([[0.97, 0.03]] * 2), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    found = Predictive(torch.stack([sure, torn], 1).log())
    prediction = Prediction([Item(id="a", question="q", choices=("b", "c"), label=0)] * 2, found, 2, 0.0)
    first, second = prediction.rows()
    numbers = {name for name, value in first.items() if isinstance(value, float)}
    assert numbers == metrics.MEASURES.keys()
    for name, measure in metrics.MEASURES.items():
        doubt = measure.doubt([first[name], second[name]])
        assert doubt[0] < doubt[1], name


def test_values_are_ranked_in_their_direction() -> None:
    probabilities, labels = predictions(3)
    entropy = metrics.entropy(probabilities)
    for measured in (metrics.aurc, metrics.correctness_auroc, metrics.selective_accuracy):
        confidence = probabilities.max(1).values
        assert measured(probabilities, labels) == measured(probabilities, labels, values=confidence)
        by_entropy = measured(probabilities, labels, values=entropy, measure=metrics.ENTROPY)
        assert by_entropy == measured(probabilities, labels, values=-entropy)
        assert by_entropy != measured(probabilities, labels, values=entropy)
        with pytest.raises(ValueError, match="values of the entropy"):
            measured(probabilities, labels, measure=metrics.ENTROPY)
        with pytest.raises(ValueError, match="for each of the 400 items"):
            measured(probabilities, labels, values=entropy[1:], measure=metrics.ENTROPY)
        with pytest.raises(ValueError, match="finite"):
            measured(probabilities, labels, values=entropy * math.nan, measure=metrics.ENTROPY)
    inside, outside = torch.tensor([0.9, 0.8]), torch.tensor([0.6, 0.5])
    assert metrics.out_of_distribution_auroc(inside, outside, metrics.CONFIDENCE) == 1
    assert metrics.out_of_distribution_auroc(inside, outside) == 0


@given(small_predictions())
@settings(max_examples=50, deadline=None)
def test_a_threshold_on_its_own_rows_keeps_the_risk_of_the_curve(data: tuple[numpy.ndarray, numpy.ndarray]) -> None:
    """Equals are answered together: at each value that occurs, every selective figure is that of the items kept."""
    probabilities, labels = map(torch.tensor, data)
    wrong = probabilities.argmax(1) != labels
    for values, measure in (
        (probabilities.max(1).values, metrics.CONFIDENCE),
        (metrics.entropy(probabilities), metrics.ENTROPY),
    ):
        curve = metrics.risk_coverage_curve(probabilities, labels, values, measure)
        doubt = measure.doubt(values)
        for threshold in doubt.unique():
            kept = doubt <= threshold
            expected, count = wrong[kept].double().mean().item(), int(kept.sum())
            assert curve.risk[count - 1].item() == pytest.approx(expected)
            coverage = curve.coverage[count - 1].item()
            accuracy = metrics.selective_accuracy(probabilities, labels, coverage, values, measure)
            assert accuracy == pytest.approx(1 - expected)


def test_abstaining_above_an_entropy_of_the_records_keeps_their_risk() -> None:
    """Ten items of three kinds, whose equals have right and wrong answers."""
    rows = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4]])[torch.tensor([1, 0, 2, 1, 0, 1, 2, 2, 0, 1])]
    labels = [0, 0, 1, 1, 0, 0, 0, 1, 1, 0]
    items = [Item(id=str(index), question="q", choices=("b", "c"), label=label) for index, label in enumerate(labels)]
    prediction = Prediction(items, Predictive(rows.log().unsqueeze(0)), 0, 0.0)
    entropies = torch.tensor([record["entropy"] for record in prediction.rows()], dtype=torch.float64)
    curve = metrics.risk_coverage_curve(rows, torch.tensor(labels), entropies, metrics.ENTROPY)
    for threshold in json.loads(json.dumps(entropies.tolist())):
        kept = [record for record in prediction.rows(abstain_above=threshold) if not record["abstain"]]
        wrong = [record["prediction"] != record["label"] for record in kept]
        assert curve.risk[len(kept) - 1].item() == pytest.approx(sum(wrong) / len(wrong))
        assert len(kept) in (3, 7, 10)


def test_labels_must_be_integers() -> None:
    with pytest.raises(TypeError, match=r"integer labels, but got torch\.float32"):
        metrics.accuracy(torch.tensor(GOOD), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("function", [*CALIBRATION_ERRORS, metrics.reliability_curve])
def test_there_must_be_a_bin(function: object) -> None:
    with pytest.raises(ValueError, match="bin"):
        function(BY_HAND, BY_HAND_LABELS, bins=0)  # type: ignore[operator]


@pytest.mark.parametrize("coverage", [0.0, -0.1, 1.1, 80, math.nan])
def test_a_coverage_is_a_share(coverage: float) -> None:
    with pytest.raises(ValueError, match=rf"above 0 and at most 1, but got {coverage}"):
        metrics.selective_accuracy(BY_HAND, BY_HAND_LABELS, coverage)


@pytest.mark.parametrize(
    ("rows", "message"),
    [([0.5, 0.5], r"got shape \[2\]"), ([[0.5, 0.6]], r"row 0 .* sum 1\.1"), ([[math.nan, 1.0]], r"finite .* row 0")],
)
def test_entropy_is_of_distributions(rows: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.entropy(numpy.array(rows))


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([], [1.0], r"inside \[items\] with at least one item, but got shape \[0\]"),
        ([1.0], [[1.0]], r"outside \[items\] .* shape \[1, 1\]"),
        ([1.0], [0.0, math.inf], r"outside\[1\] is inf"),
    ],
)
def test_detection_needs_uncertainties_of_both_kinds(inside: list, outside: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.out_of_distribution_auroc(torch.tensor(inside), torch.tensor(outside))


# --- the picture ----------------------------------------------------------------------------------------


def test_reliability_diagram_writes_a_png(tmp_path: Path) -> None:
    path = tmp_path / "new" / "reliability.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # empty bins are NaN; they must not trouble matplotlib
        plots.reliability_diagram({"MAP": predictions(0), "ensemble": predictions(1)}, path, title="ARC")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["reliability.png"]


def test_failed_drawing_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reliability.png"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(plots.FigureCanvasAgg, "print_figure", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.reliability_diagram({"MAP": predictions(0)}, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["reliability.png"]


def test_each_panel_names_its_method_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "write_png", lambda figure, path: drawn.append(figure))
    plots.reliability_diagram({"MAP": (BY_HAND, BY_HAND_LABELS)}, tmp_path / "reliability.png")
    title = drawn[0].axes[0].get_title()
    assert title.startswith("MAP\n")
    assert "ECE 0.400" in title
    assert "accuracy 66.7%" in title


def test_a_picture_needs_a_method_and_a_png_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one method"):
        plots.reliability_diagram({}, tmp_path / "reliability.png")
    with pytest.raises(ValueError, match=r"ends in \.png"):
        plots.reliability_diagram({"MAP": predictions(0)}, tmp_path / "reliability.pdf")


def test_the_error_of_two_choices_is_that_of_the_top_choice():
    """The example of docs/reference/metrics.md, where the error of column 1 is 0.1."""
    probabilities = torch.tensor([[0.3, 0.7]] * 10 + [[0.7, 0.3]] * 10)
    labels = torch.tensor([1] * 8 + [0] * 2 + [1] * 4 + [0] * 6)
    assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(0, abs=1e-6)
    column = sum(
        abs(labels[half].float().mean() - probabilities[half, 1].mean()) / 2 for half in (slice(10), slice(10, 20))
    )
    assert column == pytest.approx(0.1, abs=1e-6)


def test_ranked_probability_score_is_that_of_the_borders() -> None:
    """Against its definition, level by level; soft labels are the mean over labels drawn from them."""
    from bayeslora.metrics import ranked_probability_score

    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(20, 4, generator=generator).softmax(1)
    labels = torch.randint(4, (20,), generator=generator)
    slow = [
        sum((float(row[: k + 1].sum()) - (int(label) <= k)) ** 2 for k in range(3)) / 3
        for row, label in zip(rows, labels, strict=True)
    ]
    assert ranked_probability_score(rows, labels) == pytest.approx(sum(slow) / 20, abs=1e-6)
    soft = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    each = [0.1 * (k + 1) * ranked_probability_score(rows[:1], torch.tensor([k])) for k in range(4)]
    assert ranked_probability_score(rows[:1], soft) == pytest.approx(sum(each), abs=1e-6)
    with pytest.raises(ValueError, match="two levels or more"):
        ranked_probability_score(torch.ones(1, 1), torch.tensor([0]))
    with pytest.raises(ValueError, match="labels of the probabilities' shape"):
        ranked_probability_score(rows, soft)
