"""Metrics against a second implementation, by hand, and by property; the picture they are drawn in."""

import math
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from bayeslora import metrics, plots

CALIBRATION_ERRORS = (
    metrics.expected_calibration_error,
    metrics.maximum_calibration_error,
    metrics.adaptive_calibration_error,
)
METRICS = (metrics.accuracy, metrics.nll, metrics.brier, *CALIBRATION_ERRORS)


def predictions(seed: int, items: int = 400, choices: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Overconfident predictions `[items, choices]` and their labels `[items]`."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, choices, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return (3 * logits).softmax(dim=1), labels


@st.composite
def small_predictions(draw: st.DrawFn) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Up to 30 items; weights of zero give padded choices, certain rows and ties."""
    items, choices = draw(st.integers(1, 30)), draw(st.integers(1, 5))
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


def test_summary_holds_plain_numbers() -> None:
    result = metrics.summary(BY_HAND, BY_HAND_LABELS)
    assert list(result) == ["accuracy", "nll", "ece", "brier", "num_examples"]
    assert result["ece"] == metrics.expected_calibration_error(BY_HAND, BY_HAND_LABELS)
    assert result["num_examples"] == 3
    assert all(type(value) in (int, float) for value in result.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_with_gradients_and_other_number_types_are_taken(dtype: torch.dtype) -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=dtype, requires_grad=True)
    assert metrics.accuracy(probabilities, torch.tensor([0, 1], dtype=torch.int32)) == 0.5


# --- properties -----------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(small_predictions())
def test_every_metric_stays_in_its_range(data: tuple[numpy.ndarray, numpy.ndarray]) -> None:
    for error in (metrics.accuracy, *CALIBRATION_ERRORS):
        assert 0 <= error(*data) <= 1
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
        assert shuffled == pytest.approx(metric(probabilities, labels), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_sure_and_right_costs_nothing(labels: list[int]) -> None:
    probabilities = numpy.eye(4)[labels]
    assert metrics.accuracy(probabilities, numpy.array(labels)) == 1
    for metric in (metrics.nll, metrics.brier, *CALIBRATION_ERRORS):
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


@pytest.mark.parametrize("metric", [*METRICS, metrics.reliability_curve, metrics.summary])
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


def test_labels_must_be_integers() -> None:
    with pytest.raises(TypeError, match=r"integer labels, but got torch\.float32"):
        metrics.accuracy(torch.tensor(GOOD), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("function", [*CALIBRATION_ERRORS, metrics.reliability_curve])
def test_there_must_be_a_bin(function: object) -> None:
    with pytest.raises(ValueError, match="bin"):
        function(BY_HAND, BY_HAND_LABELS, bins=0)  # type: ignore[operator]


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
    monkeypatch.setattr(plots, "_write_png", lambda figure, path: drawn.append(figure))
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
