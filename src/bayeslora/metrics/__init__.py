"""Accuracy, likelihood, calibration, selective prediction and out-of-distribution detection, from probabilities.

Nearly every function takes `probabilities [items, choices]`, a torch tensor or numpy array whose rows sum to one (a
choice an item does not have carries probability zero), and integer `labels [items]`. They raise `ValueError` when the
two do not fit together, when a row is no distribution, or when a label is out of range; `TypeError` when the labels
are not integers. The work is done in float64 on the CPU. docs/reference/metrics.md has the formulas and their limits.
"""

from bayeslora.metrics.base import Metric
from bayeslora.metrics.calibration import (
    ReliabilityCurve,
    adaptive_calibration_error,
    confidence_calibration_error,
    confidence_reliability_curve,
    ece_floor,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_curve,
)
from bayeslora.metrics.direction import CONFIDENCE, ENTROPY, MEASURES, MUTUAL_INFORMATION, Measure
from bayeslora.metrics.inputs import Array
from bayeslora.metrics.report import METRICS, all_metrics, summary
from bayeslora.metrics.sample import Sample
from bayeslora.metrics.scores import SMALLEST_PROBABILITY, accuracy, brier, nll, ranked_probability_score
from bayeslora.metrics.selective import (
    RiskCoverageCurve,
    aurc,
    correctness_auroc,
    risk_coverage_curve,
    selective_accuracy,
)
from bayeslora.metrics.uncertainty import detection_auroc, entropy, out_of_distribution_auroc

__all__ = [
    "CONFIDENCE",
    "ENTROPY",
    "MEASURES",
    "METRICS",
    "MUTUAL_INFORMATION",
    "SMALLEST_PROBABILITY",
    "Array",
    "Measure",
    "Metric",
    "ReliabilityCurve",
    "RiskCoverageCurve",
    "Sample",
    "accuracy",
    "adaptive_calibration_error",
    "all_metrics",
    "aurc",
    "brier",
    "confidence_calibration_error",
    "confidence_reliability_curve",
    "correctness_auroc",
    "detection_auroc",
    "ece_floor",
    "entropy",
    "expected_calibration_error",
    "maximum_calibration_error",
    "nll",
    "out_of_distribution_auroc",
    "ranked_probability_score",
    "reliability_curve",
    "risk_coverage_curve",
    "selective_accuracy",
    "summary",
]
