"""Certified thresholds: what they promise, kept on many draws of generated data."""

import random

import pytest
from scipy.stats import binom

from bayeslora.prediction.certified import certified_threshold, fewest_units, upper_bound

ALPHA, DELTA = 0.1, 0.1


def test_the_bound_is_where_so_few_errors_have_probability_delta() -> None:
    for errors, count in ((0, 22), (3, 50), (10, 40)):
        bound = upper_bound(errors, count, DELTA)
        assert binom.cdf(errors, count, bound) == pytest.approx(DELTA)
    assert upper_bound(4, 4, DELTA) == 1
    assert (
        upper_bound(0, fewest_units(0.05, DELTA), DELTA) <= 0.05 < upper_bound(0, fewest_units(0.05, DELTA) - 1, DELTA)
    )


def drawn(
    seed: int, units: int = 300, questions: int = 1, difficulty: float = 0.5
) -> tuple[list[float], list[bool], list[int]]:
    """Scores that are surer where errors are rarer; questions of one unit are right or wrong together."""
    generator = random.Random(seed)
    scores, wrong, names = [], [], []
    for unit in range(units):
        score = generator.random()
        error = generator.random() < difficulty * (1 - score)
        scores += [score] * questions
        wrong += [error] * questions
        names += [unit] * questions
    return scores, wrong, names


def risk(threshold: float | None, difficulty: float = 0.5) -> float:
    """Exact share of errors among what is accepted: scores are uniform above the threshold."""
    return 0.0 if threshold is None else difficulty * (1 - threshold) / 2


@pytest.mark.parametrize("questions", [1, 6])
def test_the_promise_holds_on_many_draws_with_grouped_questions_too(questions: int) -> None:
    found = [certified_threshold(*drawn(seed, questions=questions), ALPHA, DELTA) for seed in range(200)]
    broken = sum(risk(one.threshold) > ALPHA for one in found)
    # Of 200 draws 20 may break it; 30 is what a promise that just holds exceeds in 1 % of such tests.
    assert broken <= 30
    assert sum(one.coverage for one in found) / len(found) > 0.1


def test_counting_questions_in_place_of_states_breaks_the_promise() -> None:
    """What the unit is for."""
    broken = 0
    for seed in range(60):
        scores, wrong, names = drawn(seed, units=60, questions=6)
        by_question = certified_threshold(scores, wrong, list(range(len(names))), ALPHA, DELTA)
        broken += risk(by_question.threshold) > ALPHA
    assert broken > 9


def test_the_order_of_rows_means_nothing_and_equal_scores_stand_together() -> None:
    scores, wrong, names = drawn(3, difficulty=0.2)
    scores = [round(score, 1) for score in scores]
    found = certified_threshold(scores, wrong, names, ALPHA, DELTA)
    rows = list(zip(scores, wrong, names, strict=True))
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        again = certified_threshold(*map(list, zip(*rows, strict=True)), ALPHA, DELTA)  # type: ignore[arg-type]
        assert again == found
    assert found.threshold is not None
    accepted = [error for score, error in zip(scores, wrong, strict=True) if score >= found.threshold]
    assert (len(accepted), sum(accepted)) == (found.accepted, found.errors)
    assert upper_bound(found.errors, found.accepted, DELTA) == found.bound <= ALPHA


def test_nothing_is_certified_where_everything_is_wrong_and_too_few_labels_are_refused() -> None:
    scores = [n / 100 for n in range(100)]
    none = certified_threshold(scores, [True] * 100, range(100), ALPHA, DELTA)
    assert (none.threshold, none.coverage, none.bound) == (None, 0.0, 1.0)
    everything = certified_threshold(scores, [False] * 100, range(100), ALPHA, DELTA)
    assert (everything.threshold, everything.coverage) == (0.0, 1.0)
    with pytest.raises(ValueError, match="at least 22 labelled states, got 21"):
        certified_threshold(scores[:21], [False] * 21, range(21), ALPHA, DELTA)
    with pytest.raises(ValueError, match="alpha must be between"):
        certified_threshold(scores, [False] * 100, range(100), 1.0, DELTA)
