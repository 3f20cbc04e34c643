"""num_samples "auto": an item's numbers are its own, what dev teaches is kept, and methods that cannot say so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_conformal import run, write_items  # noqa: F401

from bayeslora.deploy.serve.predictor import Predictor
from bayeslora.deploy.serve.settings import Settings
from bayeslora.methods.lora import Lora
from bayeslora.methods.mc_dropout import MonteCarloDropout
from bayeslora.prediction.sequential import Adaptive
from bayeslora.runs import evaluate, load_run, predict_file, task_items, train
from bayeslora.runs.beginning import check_config
from bayeslora.runs.config_files import read_config
from bayeslora.runs.dev_predictions import calibrated_on_dev
from bayeslora.runs.generate import generate_records
from bayeslora.runs.run import Run
from bayeslora.tasks import Splits
from bayeslora_cli.main import main


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


@pytest.fixture(scope="module")
def trained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run whose config says auto."""
    folder = tmp_path_factory.mktemp("auto") / "run"
    config = read_config(run / "config.yaml")
    train(replace(config, num_samples="auto", temperature_scaling=True), folder)
    return folder


def test_a_run_trained_with_auto_is_scored_so_and_predicts_so_by_default(trained, tmp_path, monkeypatch, caplog):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    loaded = load_run(folder)
    assert loaded.config.num_samples == "auto" and loaded.config.most_samples == 10 == loaded.config.samples_used()
    asked, own = [], Run.predict
    monkeypatch.setattr(
        Run, "predict", lambda self, items, *rest, **more: asked.append(len(items)) or own(self, items, *rest, **more)
    )
    metrics = evaluate(folder)
    # What dev teaches was kept by the training.
    assert asked == [3] and 1 <= metrics["num_samples"] <= 10
    dev = task_items(loaded.config.task).dev
    found, explicit, full = loaded.predict(dev), loaded.predict(dev, "auto"), loaded.predict(dev, 10)
    assert found.num_samples == explicit.num_samples == loaded.metrics["num_samples"] and full.num_samples == 10
    assert found.metrics()["nll"] == pytest.approx(loaded.metrics["nll"], abs=1e-6)
    caplog.clear()
    calibrated_on_dev(loaded, 0.5)
    assert asked == [3, 12, 12, 12] and "computed again" not in caplog.text
    assert Predictor(loaded, Settings()).default.num_samples == "auto"
    assert Predictor(loaded, Settings(num_samples=4)).default.num_samples == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": MonteCarloDropout(r=2, last_layers=2)}, "depend on what else is in the batch; give a number"),
        (
            {"dev_examples": 1},
            "learns from dev items how much draws differ, .* has 1; give a number",
        ),
        ({"scoring": "text"}, "is for items with choices, but this run writes texts; give a number"),
    ],
)
def test_auto_in_a_config_is_refused_before_training_where_it_means_nothing(run, changes, expected):  # noqa: F811
    config = replace(read_config(run / "config.yaml"), num_samples="auto")
    for name, value in changes.items():
        setattr(config if name == "method" else config.task, name, value)
    with pytest.raises(ValueError, match=expected):
        check_config(config, config.task.dev_examples or 12)


def test_methods_without_draws_are_trained_with_auto_as_ever(run):  # noqa: F811
    check_config(replace(read_config(run / "config.yaml"), num_samples="auto", method=Lora()), 0)


def test_what_is_asked_for_must_be_a_number_or_auto(run):  # noqa: F811
    with pytest.raises(ValueError, match="num_samples must be a whole number or 'auto' or an Adaptive, got 'autos'"):
        load_run(run).predict([], "autos")


def test_a_text_is_written_with_all_draws_and_auto_is_refused(trained, capsys):
    with pytest.raises(ValueError, match=r"auto.* is for items with choices.*give a number"):
        generate_records(load_run(trained), [{"prompt": "a"}], "auto")
    (record,) = generate_records(load_run(trained), [{"prompt": "a"}], threshold=0.1, max_new_tokens=1)
    assert record["num_samples"] == 10
    with pytest.raises(SystemExit):
        main(["generate", str(trained), "--prompt", "a", "--num_samples", "auto"])
    assert "give a number" in capsys.readouterr().err
