"""num_samples "auto": an item's numbers are its own, what dev teaches is kept, and methods that cannot say so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_conformal import run, write_items  # noqa: F401

from bayeslora.methods.lora import Lora
from bayeslora.methods.mc_dropout import MonteCarloDropout
from bayeslora.prediction.sequential import Adaptive
from bayeslora.runs import evaluate, load_run, predict_file, task_items
from bayeslora.runs.run import Run
from bayeslora.tasks import Splits


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(run, tmp_path / "run"))


def with_draws(folder: Path, number: int = 10) -> Run:
    loaded = load_run(folder)
    loaded.config.num_samples = number
    return loaded


def test_an_item_does_not_depend_on_what_else_is_predicted_and_has_the_draws_of_all(copied):
    loaded = with_draws(copied)
    items = task_items(loaded.config.task).dev
    together = loaded.predict(items, Adaptive(error=0.2))
    counts = together.further["num_samples"]
    assert counts.min() < counts.max() <= 10
    for number in (int(counts.argmin()), int(counts.argmax())):
        alone = loaded.predict([items[number]], Adaptive(error=0.2)).predictive
        own = together.predictive.probabilities[number][: len(items[number].choices)]
        assert torch.allclose(alone.probabilities[0], own, atol=1e-5)
        fixed = loaded.predict([items[number]], int(counts[number])).predictive
        assert torch.allclose(fixed.mutual_information[0], together.predictive.mutual_information[number], atol=1e-5)
    assert together.metrics()["num_samples"] == together.num_samples == float(counts.double().mean())


def test_priors_are_learned_once_and_are_stale_with_another_number_of_draws(copied, monkeypatch):
    first = with_draws(copied).settling()
    asked, own = [], Run.predict
    monkeypatch.setattr(
        Run, "predict", lambda self, items, *rest, **more: asked.append(1) or own(self, items, *rest, **more)
    )
    again = with_draws(copied)
    assert again.settling() == first == again.settling() and not asked
    assert with_draws(copied, 4).settling().most == 4 and asked == [1]


def test_predictions_and_scores_say_the_draws_of_each_item(copied, tmp_path):
    rows = predict_file(copied, write_items(tmp_path / "in.jsonl", 3), tmp_path / "out.jsonl", num_samples="auto")
    assert all(isinstance(row["num_samples"], int) for row in rows)
    metrics = evaluate(copied, split="dev", num_samples="auto", output_dir=tmp_path / "dev")
    written = [json.loads(line) for line in (tmp_path / "dev" / "predictions.jsonl").read_text().splitlines()]
    assert metrics["num_samples"] == pytest.approx(sum(row["num_samples"] for row in written) / len(written))


def test_an_evaluation_keeps_the_draws_of_dev_beside_what_it_writes(copied, monkeypatch):
    evaluate(copied, num_samples="auto", examples=2)
    asked, own = [], Run.predict
    monkeypatch.setattr(
        Run, "predict", lambda self, items, *rest, **more: asked.append(len(items)) or own(self, items, *rest, **more)
    )
    evaluate(copied, num_samples="auto", examples=2)
    assert asked == [2]


@pytest.mark.parametrize(
    "damaged", ["{", "[1]", '{"a": 1}', '{"key": [1], "content": 1}', '{"key": null, "content": 1}']
)
def test_a_damaged_file_of_draws_costs_a_prediction_and_nothing_else(copied, damaged):
    expected = with_draws(copied).settling()
    kept = (copied / "dev_draws.json").read_text()
    (copied / "dev_draws.json").write_text(damaged)
    assert with_draws(copied).settling() == expected
    assert (copied / "dev_draws.json").read_text() == kept


def test_few_dev_items_for_the_stated_error_are_a_word(copied, caplog):
    loaded = with_draws(copied)
    number = len(task_items(loaded.config.task).dev)
    loaded.settling(Adaptive(error=1 / (number + 1)))
    assert f"{number} dev items, too few" in caplog.text and f"{number + 1} dev items or more" in caplog.text
    caplog.clear()
    loaded.settling(Adaptive(error=1 / number))
    assert not caplog.text


def test_methods_without_draws_predict_as_ever_and_dropout_and_no_dev_are_refused(copied, monkeypatch):
    loaded = with_draws(copied)
    assert replace(loaded, config=replace(loaded.config, method=Lora())).settling() is None
    with pytest.raises(ValueError, match="depend on what else is in the batch; give a number"):
        replace(loaded, config=replace(loaded.config, method=MonteCarloDropout())).settling()
    monkeypatch.setattr("bayeslora.runs.adaptive.task_items", lambda task: Splits([], [], []))
    with pytest.raises(ValueError, match="learns from dev items"):
        loaded.settling()
