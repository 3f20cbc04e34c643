"""Prediction sets against MAPIE, by hand and by simulation; `bayeslora predict --coverage`."""

import dataclasses
import json
import math
import warnings
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores import APSConformityScore, LACConformityScore
from sklearn.base import BaseEstimator, ClassifierMixin

from bayeslora.prediction.conformal import ConformalSets, evaluate
from bayeslora.runs import load_run, predict_file, task_items
from bayeslora.runs.dev_predictions import calibrated_on_dev
from bayeslora.tasks import Splits, load_items
from bayeslora_cli.main import main
from conftest import byte_level_tokenizer, tiny_llama


def predictions(seed: int, items: int = 100, choices: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Overconfident predictions `[items, choices]`, right about every second time, and their labels `[items]`."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, choices, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return (3 * logits).softmax(dim=1), labels


@st.composite
def small_predictions(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to 30 items; weights of zero give padded choices, certain rows and ties."""
    items, choices = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    row = st.lists(st.sampled_from([0.0, 0.0, 1.0, 1.0, 2.0, 100.0]), min_size=choices, max_size=choices).filter(any)
    weights = torch.tensor(draw(st.lists(row, min_size=items, max_size=items)), dtype=torch.float64)
    labels = draw(st.lists(st.integers(0, choices - 1), min_size=items, max_size=items))
    return weights / weights.sum(dim=1, keepdim=True), torch.tensor(labels)


def quiet(*arguments: object, **options: object) -> ConformalSets:
    """`ConformalSets.calibrate` where too few items are part of the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ConformalSets.calibrate(*arguments, **options)  # type: ignore[arg-type]


# --- against a second implementation --------------------------------------------------------------------


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its probabilities."""

    def __init__(self, choices: int = 4) -> None:
        self.choices = choices
        self.classes_ = numpy.arange(choices)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, inputs: numpy.ndarray, labels: numpy.ndarray) -> "Given":
        return self

    def predict_proba(self, inputs: numpy.ndarray) -> numpy.ndarray:
        return inputs

    def predict(self, inputs: numpy.ndarray) -> numpy.ndarray:
        return inputs.argmax(axis=1)


class Ones(numpy.random.RandomState):
    """In place of uniform noise: MAPIE's APS then keeps the choice at the border, always."""

    def uniform(self, low: float = 0.0, high: float = 1.0, size: object = None) -> numpy.ndarray:
        return numpy.ones(size)  # type: ignore[call-overload]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize(("score", "theirs"), [("lac", LACConformityScore), ("aps", APSConformityScore)])
def test_sets_are_those_of_mapie(score: str, theirs: type, coverage: float, seed: int) -> None:
    probabilities, labels = predictions(seed, items=150)
    new, _ = predictions(seed + 100, items=200)
    mapie = SplitConformalClassifier(
        Given(), confidence_level=coverage, conformity_score=theirs(), prefit=True, random_state=Ones()
    ).conformalize(probabilities.numpy(), labels.numpy())
    _, expected = mapie.predict_set(new.numpy())
    rule = ConformalSets.calibrate(probabilities, labels, coverage, score)  # type: ignore[arg-type]
    assert rule.sets(new).numpy().tolist() == expected[:, :, 0].tolist()


@settings(max_examples=100, deadline=None)
@given(
    small_predictions(), small_predictions(), st.sampled_from([0.1, 0.5, 0.55, 0.9]), st.sampled_from(["lac", "aps"])
)
def test_sets_agree_with_a_loop(
    data: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor], coverage: float, score: str
) -> None:
    def cost(row: list[float], choice: int) -> float:
        if row[choice] == 0:
            return math.inf
        return 1 - row[choice] if score == "lac" else sum(p for p in row if p > row[choice])

    rows, labels = data[0].tolist(), data[1].tolist()
    costs = [*sorted(cost(row, label) for row, label in zip(rows, labels, strict=True)), math.inf]
    # Whole hundredths, so that no rounding decides the rank.
    rank = min(-(-(len(rows) + 1) * round(100 * coverage) // 100), len(costs))
    rule = quiet(*data, coverage, score)
    assert rule.threshold == pytest.approx(costs[rank - 1], abs=1e-12)
    expected = [
        [p > 0 and cost(row, c) <= costs[rank - 1] + 1e-9 for c, p in enumerate(row)] for row in other[0].tolist()
    ]
    # The weights are whole numbers, so costs are equal or far apart; 1e-9 only forgives rounding.
    forgiving = dataclasses.replace(rule, threshold=rule.threshold + 1e-9)
    assert forgiving.sets(other[0]).tolist() == expected


# --- the promise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("coverage", [0.7, 0.9])
@pytest.mark.parametrize("score", ["lac", "aps"])
def test_sets_cover_as_often_as_promised(score: str, coverage: float) -> None:
    repeats, items = 400, 39
    shares = torch.empty(repeats, dtype=torch.float64)
    for repeat in range(repeats):
        probabilities, labels = predictions(repeat, items=2 * items)
        rule = ConformalSets.calibrate(probabilities[:items], labels[:items], coverage, score)  # type: ignore[arg-type]
        shares[repeat] = evaluate(rule.sets(probabilities[items:]), labels[items:])["coverage"]
    error = shares.std().item() / math.sqrt(repeats)
    assert shares.mean().item() >= coverage - 3 * error
    # Scores without ties cover with probability rank / (items + 1) exactly: here 28 / 40 and 36 / 40.
    assert shares.mean().item() == pytest.approx(coverage, abs=4 * error)
    assert error < 0.01


def test_few_items_are_made_up_for() -> None:
    # With 4 items and coverage 0.7 the rank is 4, so 4 / 5 are covered; the plain 0.7 quantile would cover 3 / 5.
    repeats = 2000
    covered = 0.0
    for repeat in range(repeats):
        probabilities, labels = predictions(repeat, items=24)
        rule = ConformalSets.calibrate(probabilities[:4], labels[:4], 0.7)
        covered += evaluate(rule.sets(probabilities[4:]), labels[4:])["coverage"] / repeats
    assert covered == pytest.approx(0.8, abs=0.02)


def test_adaptive_sets_over_cover_where_the_top_choice_is_right_more_often() -> None:
    probabilities = torch.tensor([[0.9, 0.1]]).repeat(100, 1)
    labels = (torch.arange(100) >= 95).long()
    sets = ConformalSets.calibrate(probabilities, labels, 0.8, "aps").sets(probabilities)
    assert evaluate(sets, labels) == {"coverage": pytest.approx(0.95), "set_size": 1}


# --- by hand --------------------------------------------------------------------------------------------

# Probability of the label: 0.9, 0.8, ..., 0.1.
NINE = torch.stack([torch.arange(9, 0, -1) / 10, torch.arange(1, 10) / 10], dim=1).double()
NINE_LABELS = torch.zeros(9, dtype=torch.long)


@pytest.mark.parametrize(("coverage", "expected"), [(0.05, 0.1), (0.1, 0.1), (0.11, 0.2), (0.7, 0.7), (0.9, 0.9)])
def test_threshold_by_hand(coverage: float, expected: float) -> None:
    # The scores are 0.1, 0.2, ..., 0.9 and the rank is ceil(10 * coverage).
    rule = ConformalSets.calibrate(NINE, NINE_LABELS, coverage)
    assert rule.threshold == pytest.approx(expected)
    assert (rule.coverage, rule.score, rule.num_examples, rule.all_choices) == (coverage, "lac", 9, False)


def test_the_rank_is_taken_of_decimals() -> None:
    # 100 * 0.55 is 55.00000000000001 in floats, which would make it the 56th smallest score.
    scores = torch.arange(1, 100, dtype=torch.float64) / 100
    rule = ConformalSets.calibrate(torch.stack([1 - scores, scores], dim=1), torch.zeros(99, dtype=torch.long), 0.55)
    assert rule.threshold == pytest.approx(0.55)


def test_sets_by_hand() -> None:
    new = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.8, 0.2, 0.0]], dtype=torch.float64)
    lac = ConformalSets(threshold=0.66, coverage=0.9, score="lac", num_examples=9)
    assert lac.sets(new).tolist() == [[True, False, False], [True, True, False], [True, False, False]]
    aps = ConformalSets(threshold=0.6, coverage=0.9, score="aps", num_examples=9)
    assert aps.sets(new).tolist() == [[True, True, False], [True, True, False], [True, False, False]]


def test_least_ambiguous_sets_may_be_empty_and_adaptive_ones_never_are() -> None:
    even = torch.full((1, 4), 0.25)
    assert not ConformalSets(threshold=0.5, coverage=0.5, score="lac", num_examples=9).sets(even).any()
    assert ConformalSets(threshold=0.0, coverage=0.5, score="aps", num_examples=9).sets(even).all()


def test_evaluation_by_hand() -> None:
    sets = torch.tensor([[True, True, False], [False, False, False], [True, False, False], [False, True, True]])
    assert evaluate(sets, torch.tensor([0, 1, 1, 2])) == {"coverage": 0.5, "set_size": 1.25}
    assert evaluate(sets.numpy(), numpy.array([2, 2, 2, 0])) == {"coverage": 0.0, "set_size": 1.25}


# --- too few items, and choices that are not there ------------------------------------------------------


@pytest.mark.parametrize("score", ["lac", "aps"])
def test_too_few_items_give_all_choices_and_say_so(score: str) -> None:
    with pytest.warns(UserWarning, match=r"at least 9 calibration items, but there are 8"):
        rule = ConformalSets.calibrate(NINE[:8], NINE_LABELS[:8], 0.9, score)  # type: ignore[arg-type]
    assert rule.threshold == math.inf
    assert rule.all_choices
    new = torch.tensor([[0.99, 0.01, 0.0], [0.4, 0.3, 0.3]])
    assert rule.sets(new).tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("score", ["lac", "aps"])
def test_a_mask_keeps_choices_whose_probability_vanished(score: str) -> None:
    rule = quiet(NINE[:8], NINE_LABELS[:8], 0.9, score)
    vanished, mask = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, True, False]])
    assert rule.sets(vanished).tolist() == [[True, False, False]]
    assert rule.sets(vanished, mask).tolist() == [[True, True, False]]
    # As the right choice in the calibration it has a finite score with the mask, and none without it.
    many, labels = vanished.repeat(9, 1), torch.ones(9, dtype=torch.long)
    assert ConformalSets.calibrate(many, labels, 0.5, score, mask.repeat(9, 1)).threshold == 1  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"probability zero; pass choice_mask"):
        assert ConformalSets.calibrate(many, labels, 0.5, score).all_choices  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(small_predictions(), small_predictions(), st.integers(1, 3), st.sampled_from(["lac", "aps"]))
def test_padded_choices_change_nothing_and_enter_no_set(
    data: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor], more: int, score: str
) -> None:
    def padded(probabilities: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(probabilities, (0, more))

    rule, again = quiet(*data, 0.7, score), quiet(padded(data[0]), data[1], 0.7, score)
    assert rule == again
    assert rule.sets(padded(other[0])).tolist() == padded(rule.sets(other[0])).bool().tolist()


# --- inputs that do not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.5, 90, math.nan])
def test_a_coverage_is_a_share_below_one(coverage: float) -> None:
    with pytest.raises(ValueError, match=rf"coverage above 0 and below 1, but got {coverage}"):
        ConformalSets.calibrate(NINE, NINE_LABELS, coverage)


def test_wrong_calibration_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="'lac' or 'aps', but got 'raps'"):
        ConformalSets.calibrate(NINE, NINE_LABELS, score="raps")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shapes \[9, 2\] and \[8\]"):
        ConformalSets.calibrate(NINE, NINE_LABELS[:8])
    with pytest.raises(ValueError, match=r"row 0 .* sum 1\.8"):
        ConformalSets.calibrate(2 * NINE - 0.1, NINE_LABELS)
    with pytest.raises(TypeError, match="integer labels"):
        ConformalSets.calibrate(NINE, NINE_LABELS.double())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(9, 2), r"bool choice_mask of the probabilities' shape \[9, 2\], but got torch\.float32"),
        (torch.ones(9, 3, dtype=torch.bool), r"of shape \[9, 3\]"),
        (torch.tensor([[True, False]]).repeat(9, 1), r"probability zero where choice_mask is False, but row 0"),
    ],
)
def test_a_mask_fits_the_probabilities(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConformalSets.calibrate(NINE, NINE_LABELS, choice_mask=mask)


def test_a_label_is_one_of_its_items_choices() -> None:
    probabilities, mask = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[True, True, False]])
    with pytest.raises(ValueError, match="label of row 0 is 2"):
        ConformalSets.calibrate(probabilities, torch.tensor([2]), 0.4, choice_mask=mask)


def test_only_sets_and_fitting_labels_are_evaluated() -> None:
    sets = torch.tensor([[True, False]])
    with pytest.raises(TypeError, match=r"bool sets, but got torch\.float32"):
        evaluate(sets.float(), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"shapes \[1, 2\] and \[2\]"):
        evaluate(sets, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels in 0 to 1"):
        evaluate(sets, torch.tensor([2]))


# --- bayeslora predict --coverage -----------------------------------------------------------------------


def write_items(path: Path, count: int, *, choices: int = 3, label: bool = True) -> Path:
    words = ["sunlight and water", "iron", "wood", "a star", "the moon"]
    rows = [
        {
            "id": f"{path.stem}-{n}",
            "question": f"What do plants need to grow ({path.stem} {n})?",
            # Every third item has one choice less than the others.
            "choices": [words[(n + k) % 5] for k in range(choices - (n % 3 == 0))],
            **({"label": n % 2} if label else {}),
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a tiny model with 12 dev items."""
    folder = tmp_path_factory.mktemp("conformal")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=2048).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "data").mkdir()
    for part, count in (("train", 8), ("dev", 12), ("test", 3)):
        write_items(folder / "data" / f"{part}.jsonl", count)
    config = {
        "model": {"name": str(folder / "base"), "device": "cpu"},
        "task": {"name": str(folder / "data")},
        "method": {"class_path": "BayesianLora", "init_args": {"r": 2, "last_layers": 2, "prior_std": 0.3}},
        "train": {"max_steps": 2, "batch_size": 4},
        "num_samples": 3,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    main(["train", "--config", str(folder / "config.yaml"), "--output_dir", str(folder / "run")])
    return folder / "run"


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_predict_adds_setscalibrated_on_dev(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = write_items(tmp_path / "in.jsonl", 7, choices=4, label=False)
    output = tmp_path / "out.jsonl"
    main(["predict", str(run), "--input", str(bare), "--output", str(output), "--coverage", "0.6"])
    printed = capsys.readouterr().out

    loaded = load_run(run)
    dev = task_items(loaded.config.task).dev
    dev_rows = list(loaded.predict(dev).rows())
    assert len(dev_rows) == 12
    # ceil(13 * 0.6) = 8
    threshold = sorted(1 - row["probabilities"][row["label"]] for row in dev_rows)[7]
    rows = records(output)
    for row, item in zip(rows, load_items(bare), strict=True):
        expected = [index for index, p in enumerate(row["probabilities"]) if 1 - p <= threshold + 1e-7]
        assert row["set"] == expected
        assert row["set_choices"] == [item.choices[index] for index in expected]
    sizes = [len(row["set"]) for row in rows]
    assert 0 < sum(sizes) < sum(len(row["probabilities"]) for row in rows)
    assert f"coverage 60%: {sum(sizes) / 7:.2f} choices on average" in printed and f"{sizes.count(1)} with 1" in printed


def test_predict_calibrates_with_the_draws_it_predicts_with(run: Path) -> None:
    loaded = load_run(run)
    with_mean, with_samples = (calibrated_on_dev(loaded, 0.6, samples) for samples in (0, None))
    dev = task_items(loaded.config.task).dev
    rows = loaded.predict(dev, num_samples=0).rows()
    threshold = sorted(1 - row["probabilities"][row["label"]] for row in rows)[7]
    assert with_mean.threshold == pytest.approx(threshold, abs=1e-6)
    assert with_samples.threshold != with_mean.threshold


def test_predict_without_coverage_has_no_sets(run: Path, tmp_path: Path) -> None:
    bare = write_items(tmp_path / "in.jsonl", 2, label=False)
    rows = predict_file(run, bare, tmp_path / "out.jsonl")
    assert rows == records(tmp_path / "out.jsonl")
    assert all("set" not in row and "set_choices" not in row for row in rows)


def test_predict_warns_of_too_few_dev_items_and_gives_every_choice(run: Path, tmp_path: Path) -> None:
    bare = write_items(tmp_path / "in.jsonl", 4, label=False)
    with pytest.warns(UserWarning, match="at least 99 calibration items, but there are 12"):
        rows = predict_file(run, bare, tmp_path / "out.jsonl", coverage=0.99)
    assert [row["set_choices"] for row in rows] == [list(item.choices) for item in load_items(bare)]


@pytest.mark.parametrize("coverage", ["0", "1", "90"])
def test_predict_refuses_a_coverage_that_is_no_share_before_it_loads_anything(
    coverage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "nothing"
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(nothing), "--input", str(nothing), "--output", str(nothing), "--coverage", coverage])
    assert stopped.value.code == 1
    assert f"coverage above 0 and below 1, but got {float(coverage)}" in capsys.readouterr().err
    assert not nothing.exists()


def test_predict_needs_dev_items_for_a_coverage(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bayeslora.runs.dev_predictions.task_items", lambda config: Splits([], [], []))
    bare = write_items(tmp_path / "in.jsonl", 2)
    call = ["predict", str(run), "--input", str(bare), "--output", str(tmp_path / "o")]
    with pytest.raises(SystemExit) as stopped:
        main([*call, "--coverage", "0.9"])
    assert stopped.value.code == 1
    assert "has none; leave coverage out, or train on a task with a dev split" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    main(call)
    assert len(records(tmp_path / "o")) == 2
