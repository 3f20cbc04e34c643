"""Differences item by item, what is informative, and what was chosen: on predictions whose answers are known."""

import math
from pathlib import Path

import numpy
import pytest
import torch

from bayeslora.experiments.comparison import Cell, Header, Items, Predictions, Results
from bayeslora.experiments.comparison.report.content import Report, build_report
from bayeslora.experiments.comparison.report.paired import difference, hits, losses, verdict
from bayeslora.experiments.comparison.report.rows import task_rows
from bayeslora.experiments.comparison.report.terminal import scores_text
from bayeslora.metrics import ece_floor, expected_calibration_error

ITEMS, SEEDS, CHOICES = 200, (0, 1, 2), 3


def items(task: str, split: str) -> Items:
    ids = [f"{split}-{n}" for n in range(ITEMS)]
    return Items(task=task, split=split, ids=ids, labels=[n % CHOICES for n in range(ITEMS)], choices=[CHOICES] * ITEMS)


def predicted(sharpness: float, seed: int) -> Predictions:
    """The score of the right choice is higher by `sharpness` on average, and each seed has noise of its own."""
    source = numpy.random.default_rng([seed, int(100 * sharpness)])
    scores = source.normal(size=(ITEMS, CHOICES))
    scores[numpy.arange(ITEMS), numpy.arange(ITEMS) % CHOICES] += sharpness
    return Predictions.from_arrays(torch.from_numpy(scores).softmax(-1), torch.zeros(ITEMS), [CHOICES] * ITEMS)


def cell(task: str, method: str, seed: int, sharpness: float, **changes) -> Cell:
    fields = {
        "task": task,
        "method": method,
        "seed": seed,
        "learning_rate": 1e-3,
        "stage": "final",
        "num_samples": 0,
        "train_seconds": 1.0,
        "predict_seconds": 1.0,
        "trainable_parameters": 5,
        "predictions": {split: predicted(sharpness, seed) for split in ("dev", "test")},
    }
    return Cell(**fields | changes)


def written(path: Path, tasks: dict[str, dict[str, float]], *more: Cell) -> Results:
    """For each task the sharpness of each row."""
    with Results.open(path, Header.now({}, "cpu")) as writing:
        for task, rows in tasks.items():
            writing.append(*(items(task, split) for split in ("dev", "test")))
            writing.append(*(cell(task, row, seed, value) for row, value in rows.items() for seed in SEEDS))
        writing.append(*more)
    return Results.read(path)


OURS, THEIRS = "bayesian_lora + temperature", "lora + temperature"
ROWS = {"base": 0.5, "base + temperature": 0.5, THEIRS: 1.5, OURS: 2.0}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    path = tmp_path_factory.mktemp("paired") / "results.jsonl"
    return written(path, {"one": ROWS, "two": ROWS, "poor": {**ROWS, THEIRS: 0.5, OURS: 0.5}})


@pytest.fixture(scope="module")
def report(results) -> Report:
    return build_report(results, resamples=20)


def test_a_difference_averages_seeds_before_it_counts_items(results):
    labels, values = numpy.arange(ITEMS) % CHOICES, {losses: [], hits: []}
    for task in ("one", "two"):
        by_seed = {losses: [], hits: []}
        for seed in SEEDS:
            own, other = (
                next(c for c in results.cells("final", task, row) if c.seed == seed).predictions["test"].padded()
                for row in (OURS, THEIRS)
            )
            by_seed[losses].append(numpy.log(other[range(ITEMS), labels] / own[range(ITEMS), labels]))
            by_seed[hits].append((own.argmax(1) == labels) * 1.0 - (other.argmax(1) == labels))
        for per_item, found in by_seed.items():
            values[per_item] += list(numpy.mean(found, axis=0))
    for per_item, expected in values.items():
        found = difference([task_rows(results, task) for task in ("one", "two")], OURS, THEIRS, per_item)
        assert found.mean == pytest.approx(numpy.mean(expected))
        assert found.error == pytest.approx(numpy.std(expected, ddof=1) / math.sqrt(2 * ITEMS))
        assert found.extent == "400 items x 3 seeds" and found.z == pytest.approx(found.mean / found.error)


def test_a_task_that_does_not_beat_the_base_model_is_said_and_left_out(results, report):
    verdicts = {task: verdict(task_rows(results, task)) for task in results.tasks()}
    assert {task: found.informative for task, found in verdicts.items()} == {"one": True, "two": True, "poor": False}
    assert verdicts["one"].best == OURS
    (sentence,) = report.uninformative
    assert sentence.startswith("poor is not informative") and sentence in scores_text(report)
    assert list(report.summary.rows) == ["one", "two", "poor (not informative)"]
    assert {entries[-1].text for entries in report.paired.rows.values()} == {"400 items x 3 seeds"}


def test_our_method_against_the_baseline_in_words(results, report):
    (sentence,) = report.differences
    found = difference([task_rows(results, task) for task in ("one", "two")], OURS, THEIRS, losses)
    assert found.z < -3
    assert sentence == (
        f"{OURS} against {THEIRS}: NLL {found.mean:+.3f} ± {found.error:.3f} over 400 items x 3 seeds "
        f"(z {found.z:+.1f})."
    )
    assert sentence in scores_text(report)
    assert f"pooled, against {THEIRS}, item by item" in scores_text(report)


def test_without_a_base_row_nothing_is_judged(tmp_path):
    results = written(tmp_path / "results.jsonl", {"one": {"lora": 0.5, "other": 0.5}})
    assert verdict(task_rows(results, "one")) is None
    found = build_report(results, resamples=20)
    assert found.uninformative == [] and list(found.paired.rows) == ["other"]


def test_another_link_has_a_table_of_its_own(tmp_path):
    read = {"details": {"reading": "mean per token"}}
    more = [
        cell("one", f"lora, mean per token{end}", seed, 1.0, derived_from="lora", **read)
        for end in ("", " + temperature")
        for seed in SEEDS
    ]
    report = build_report(written(tmp_path / "results.jsonl", {"one": {"lora": 0.5}}, *more), resamples=20)
    tables = {block.title: block for block in report.sections[0].blocks if block.kind == "table"}
    assert list(tables[f"Scores on the {ITEMS} test items"].rows) == ["lora"]
    assert list(tables["Read by the mean per token, as in the papers"].rows) == ["lora", "lora + temperature"]
    assert list(tables["Cost, mean over seeds"].rows) == ["lora"]


def test_what_was_chosen_is_said(tmp_path):
    def tried(rate: float, sharpness: float, **changes) -> Cell:
        return cell("one", "lora", 0, sharpness, stage="selection", learning_rate=rate, **changes)

    ends = [{"epoch": 1.0, "dev_nll": 1.0}, {"epoch": 2.0, "dev_nll": 1.1}]
    powers = {"length_power": 0.5, "length_powers": {"0": 1.3, "0.5": 1.2}}
    more = [
        cell("one", "base", 0, 0.5, stage="selection", trainable_parameters=0, details=powers),
        tried(1e-3, 1.0),
        tried(3e-3, 2.0),
        tried(1e-2, 0.0, trainable_parameters=0, predictions={}, details={"diverged": "nan"}),
        *(
            cell("one", "lora", seed, 2.0, learning_rate=3e-3, details={"epoch": epoch, "epochs": ends})
            for seed, epoch in zip(SEEDS, (1.0, 2.0, 1.0), strict=True)
        ),
        cell("one", "edged", 0, 1.0, stage="selection"),
        cell("one", "edged", 0, 0.1, stage="selection", learning_rate=3e-3),
        cell("one", "edged", 0, 1.0),
    ]
    report = build_report(written(tmp_path / "results.jsonl", {"one": {}}, *more), resamples=20)
    table = report.sections[0].blocks[-1]
    assert table.heads == ["method", "0.001", "0.003", "0.01", "epochs"]
    assert "base" not in table.rows
    lora, edged = ([entry.text for entry in table.rows[title]] for title in ("lora", "edged"))
    assert lora[2:] == ["diverged", "1, 2, 1 of 2"] and table.rows["lora"][1].mark == "best"
    assert "(edge)" not in "".join(lora) and edged[0].endswith("(edge)")
    assert any("to the power 0.5" in note and "0: 1.300, 0.5: 1.200" in note for note in table.notes)
    assert "1, 2, 1 of 2" in scores_text(report) and "to the power 0.5; NLL" in scores_text(report)


# --- the floor of the ECE ---------------------------------------------------------------------------------------------


def test_the_floor_is_the_mean_ece_of_labels_drawn_from_the_predictions():
    source = numpy.random.default_rng(0)
    scores = source.normal(size=(300, 4)) * 1.5
    probabilities = numpy.exp(scores) / numpy.exp(scores).sum(1, keepdims=True)
    drawn = []
    for _ in range(400):
        labels = (probabilities.cumsum(1) > source.random((300, 1))).argmax(1)
        drawn.append(expected_calibration_error(probabilities, labels))
    error = numpy.std(drawn) / math.sqrt(400)
    assert ece_floor(probabilities, draws=2000) == pytest.approx(numpy.mean(drawn), abs=4 * error)
    assert ece_floor(probabilities) == ece_floor(probabilities)
    assert ece_floor(numpy.array([[1.0, 0.0]] * 50)) == pytest.approx(0, abs=1e-9)


def test_the_floor_stands_beside_the_ece(report):
    table = next(block for block in report.sections[0].blocks if block.title.startswith("Scores"))
    place = table.heads.index("ECE floor")
    assert table.heads[place - 1].startswith("ECE")
    assert all(0.02 < float(entries[place - 1].text) < 0.12 for entries in table.rows.values())
