"""`train.choose_epoch`: which adapter a training leaves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from test_cli import data, tiny_base  # noqa: F401

from bayeslora.methods import BayesianLora, Lora
from bayeslora.methods.ivon import Ivon
from bayeslora.methods.laplace import LaplaceLora
from bayeslora.runs import load_run, task_items, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.epochs import EpochTrainer


@pytest.fixture
def config(tiny_base: Path, data: Path) -> RunConfig:  # noqa: F811
    return RunConfig(
        model=ModelConfig(name=str(tiny_base), device="cpu"),
        task=TaskConfig(name=str(data)),
        method=BayesianLora(r=2, last_layers=2, prior_std=0.3),
        # So fast that the dev items, which 12 others say nothing about, get worse and better.
        train=TrainConfig(epochs=3, batch_size=4, learning_rate=0.05, choose_epoch=True, lr_scheduler="constant"),
        num_samples=3,
    )


def adapter(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}


@pytest.mark.parametrize("method", [BayesianLora(r=2, last_layers=2, prior_std=0.3), Lora(r=2, last_layers=2)])
def test_the_adapter_is_that_of_the_epoch_with_the_lowest_dev_nll(config, method, tmp_path, monkeypatch):
    ends, evaluate = [], EpochTrainer.evaluate

    def noted(self, *args, **options):
        found = evaluate(self, *args, **options)
        ends.append((found["eval_dev_nll"], adapter(self.model)))
        return found

    monkeypatch.setattr(EpochTrainer, "evaluate", noted)
    run = train(replace(config, method=method), tmp_path / "run")
    scores = [score for score, _ in ends]
    assert len(scores) == 3 and len(set(scores)) == 3
    best = min(range(3), key=scores.__getitem__)
    # The last one is what a training without a choice leaves.
    assert best < 2
    assert run.metrics["epoch"] == best + 1 and [end["dev_nll"] for end in run.metrics["epochs"]] == scores
    for name, value in adapter(run.model).items():
        assert torch.equal(value, ends[best][1][name]) and not name.endswith("missing")
    assert run.metrics["nll"] == pytest.approx(scores[best], rel=1e-5)
    loaded = load_run(tmp_path / "run", device="cpu").predict(task_items(config.task).dev)
    assert loaded.metrics()["nll"] == pytest.approx(scores[best], rel=1e-4)


def test_before_a_posterior_is_fitted_the_mean_chooses(config, tmp_path):
    """Laplace's is fitted to the chosen adapter; without it there would be nothing to draw from."""
    method = LaplaceLora(r=2, last_layers=2)
    run = train(replace(config, method=method), tmp_path / "run")
    best = min(end["dev_nll"] for end in run.metrics["epochs"])
    assert run.predict(run.splits.dev, 0).metrics()["nll"] == pytest.approx(best, rel=1e-5)
    assert run.metrics["nll"] != pytest.approx(best, rel=1e-3)


def test_a_resumed_training_chooses_as_one_that_was_not_cut(config, tmp_path, monkeypatch):
    whole = train(config, tmp_path / "whole")
    evaluate, count = EpochTrainer.evaluate, []

    def killed(self, *args, **options):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return evaluate(self, *args, **options)

    monkeypatch.setattr(EpochTrainer, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut")
    # A folder may be moved before it is gone on with.
    (tmp_path / "cut").rename(tmp_path / "moved")
    resumed = train(config, tmp_path / "moved", resume=True)
    assert resumed.metrics["epoch"] == whole.metrics["epoch"]
    for name, value in adapter(resumed.model).items():
        torch.testing.assert_close(value, adapter(whole.model)[name], rtol=1e-4, atol=1e-5)


def test_scores_of_other_predictions_are_not_gone_on_with(config, tmp_path, monkeypatch):
    monkeypatch.setattr(EpochTrainer, "evaluate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    with pytest.raises(ValueError, match="num_samples is 3 there and 4 here"):
        train(replace(config, num_samples=4), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": Ivon(r=2)}, "whole training"),
        ({"train": TrainConfig(choose_epoch=True, save_steps=10)}, "save_steps"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused_before_the_training(config, change, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        train(replace(config, **change), tmp_path / "run")
