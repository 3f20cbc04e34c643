"""The main job on the real model and real items: SmolLM2-135M-Instruct and ARC-Easy, both from registry packages."""

import json
import math
from pathlib import Path

import pytest
import torch

from bayeslora import random_factors, sampling
from bayeslora.runs import load_run, predict_items, task_items
from bayeslora_cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on the upper two layers."""
    folder = tmp_path_factory.mktemp("run")
    options = {
        "task.train_examples": 16,
        "task.dev_examples": 4,
        "task.test_examples": 12,
        "method.last_layers": 2,
        # Eight steps are few: under little noise they show.
        "method.prior_std": 0.01,
        "method.posterior_std": 0.05,
        "train.epochs": 4,
        "train.batch_size": 8,
        "train.learning_rate": 0.01,
        "train.logging_steps": 2,
        "num_samples": 4,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    main(["train", "--output_dir", str(folder), "--method", "BayesianLora", *arguments])
    return folder


def test_training_on_real_items_learns(run):
    history = json.loads((run / "metrics.json").read_text())["history"]
    assert [entry["step"] for entry in history] == [2, 4, 6, 8]
    assert history[-1]["nll"] < history[0]["nll"] - 0.2
    for entry in history:
        assert entry["loss"] == pytest.approx(entry["nll"] + entry["kl"] / 16, rel=1e-4)


def test_evaluation_writes_calibrated_probabilities_of_real_test_items(run):
    main(["evaluate", str(run)])
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["num_examples"] == 12 and metrics["num_samples"] == 4 and metrics["spread"] > 0
    # The base model is right on half of ARC-Easy; guessing would give log 4 nats.
    assert metrics["nll"] < math.log(4) + 0.5
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(sum(row["probabilities"]) == pytest.approx(1, abs=1e-5) for row in rows)


def test_training_scores_dev_by_the_mean_alone_too(run):
    loaded = load_run(run)
    mean = loaded.metrics["one_pass"]
    found = loaded.predict(task_items(loaded.config.task).dev, 0).metrics()
    assert mean["num_samples"] == 0 and mean["nll"] == pytest.approx(found["nll"], abs=1e-6)
    assert mean["nll"] != json.loads((run / "metrics.json").read_text()).get("dev", loaded.metrics)["nll"]


def test_a_reloaded_run_predicts_as_before_and_its_draws_differ(run):
    loaded = load_run(run)
    items = task_items(loaded.config.task).test[:2]
    one, two = (predict_items(loaded.config, loaded.model, loaded.scoring, items) for _ in range(2))
    assert torch.equal(one.predictive.samples, two.predictive.samples)
    assert one.predictive.samples.std(0).max() > 1e-4
    with sampling(loaded.model, seed=5):
        draw = [factor.weight.clone() for factor in random_factors(loaded.model)]
    means = [factor.weight for factor in random_factors(loaded.model)]
    assert all((a - b).abs().max() > 0 for a, b in zip(draw, means, strict=True))


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert names["prediction"].probabilities.shape == (4, 4)
    assert "tensor" in capsys.readouterr().out
