"""Conformal sets of decision models: the share of states that they hold, and what is kept of them."""

import json

import numpy as np
import pytest

from bayeslora.runs.decisions.calibration import Calibration, Labelled, calibrated
from bayeslora.runs.decisions.sets import SetSizes, set_threshold
from bayeslora.tasks.decisions import Answer, parse_question

KIND = parse_question({"type": "choice", "instructions": "Which?", "criteria": ["a", "b", "c"]})


def test_sets_hold_the_labels_of_as_many_states_as_asked() -> None:
    """Three labels of a state share their luck: by labels, fewer states would be held."""
    generator = np.random.default_rng(0)
    held, by_labels = [], []
    for _ in range(400):
        luck = generator.random((60, 1))
        scores = np.clip(0.7 * luck + 0.3 * generator.random((60, 3)), 0, 1)
        states = [str(row) for row in range(30) for _ in range(3)]
        new = scores[30:].max(1)
        for found, names in ((held, states), (by_labels, [str(n) for n in range(90)])):
            threshold = set_threshold((1 - scores[:30]).flatten().tolist(), names, 0.8)
            assert threshold is not None
            found.append((new <= threshold).mean())
    assert 0.79 < np.mean(held) < 0.83 and np.mean(by_labels) < 0.78
    assert set_threshold([0.5] * 8, [str(n) for n in range(8)], 0.9) is None
    assert set_threshold([0.5] * 9, [str(n) for n in range(9)], 0.9) == 0.5


def test_answers_have_their_set_before_the_temperature(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        Labelled(Answer(KIND, (0.7, 0.2, 0.1)), (0.0, 1.0, 0.0) if n < 3 else (1.0, 0.0, 0.0), str(n))
        for n in range(19)
    ]
    found = calibrated(rows, alpha=None, delta=0.1, coverage=0.9)
    found = Calibration.from_dict(json.loads(json.dumps(found.to_dict())))
    answers = {"q": Answer(KIND, (0.75, 0.21, 0.04)), "flat": Answer(KIND, (0.1, 0.1, 0.8))}
    applied = found.apply(answers)
    assert applied["q"].to_dict()["x_set"] == ["a", "b"] and applied["flat"].to_dict()["x_set"] == ["c"]
    assert found.set_sizes == SetSizes(mean=2.0, single=0.0)
    assert SetSizes.of([1, 1, 2, 4]) == SetSizes(mean=2.0, single=0.5)
    few = calibrated(rows[:8], alpha=None, delta=0.1, coverage=0.9)
    assert few.set_sizes == SetSizes(mean=3.0, single=0.0)
    unknown = parse_question({"type": "noul", "instructions": "New?"})
    assert found.apply({"n": Answer(unknown, (0.9, 0.1))})["n"].options_in_set == (0, 1)
    assert few.apply(answers)["q"].options_in_set == (0, 1, 2)
    assert "too few states for sets of 0.9" in caplog.text
    without = {k: v for k, v in Calibration().to_dict().items() if k not in ("coverage", "sets", "set_sizes")}
    old = Calibration.from_dict(without)
    assert old.apply(answers)["q"].options_in_set is None and old.set_sizes is None
    for wrong in ({"coverage": 2.0}, {"sets": {"q": -1.0}}, {"set_sizes": {"mean": 0.0, "single": 0.0}}):
        with pytest.raises(ValueError, match="must be"):
            Calibration.from_dict(found.to_dict() | wrong)
    with pytest.raises(ValueError, match="coverage above 0"):
        calibrated(rows, alpha=None, delta=0.1, coverage=1.0)
