"""Heads over adapters: no item is read by a head that saw its label, and a run keeps what it predicts with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from test_cli import data  # noqa: F401
from test_head import made_up
from transformers import TrainerCallback

from bayeslora.deploy.export import export_run
from bayeslora.deploy.hub import write_hub_folder
from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.methods.full_fine_tuning import FullFineTuning
from bayeslora.methods.laplace import LaplaceLora
from bayeslora.methods.mc_dropout import MonteCarloDropout
from bayeslora.methods.tfb import Tfb
from bayeslora.readouts.contrasts import Contrasts
from bayeslora.readouts.head import Head, fit_head
from bayeslora.readouts.linear import LinearHeads, cross_fitted
from bayeslora.readouts.option_reading import over_adapters
from bayeslora.readouts.over_adapters import folds_of
from bayeslora.runs import load_run, train, training
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.cross_fitting import reading_of
from bayeslora.tasks import Item, load_items
from bayeslora_cli.main import main
from conftest import byte_level_tokenizer, tiny_llama


@pytest.fixture(scope="module")
def deep_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers: the head reads the fourth, and adapters lie in the third and fourth."""
    folder = tmp_path_factory.mktemp("deep")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=2048, num_hidden_layers=6).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(base: Path, task: Path, method: Method, **training: Any) -> RunConfig:
    return RunConfig(
        model=ModelConfig(name=str(base), device="cpu"),
        task=TaskConfig(name=str(task), scoring="options"),
        method=method,
        train=TrainConfig(**{"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1} | training),
        num_samples=3,
    )


def test_linear_heads_are_the_posterior_mean_with_a_graph() -> None:
    features, labels = made_up(60)
    head = fit_head(features, labels)
    leaves = {name: block.clone().requires_grad_() for name, block in features.hidden.items()}
    own = replace(features, hidden=leaves)
    logits = LinearHeads.of([head]).logits(own, torch.zeros(60, dtype=torch.long))
    scale = head.scales.noise * head.noise.temperature
    contrasts = head.utilities(features).mean[..., 0] / scale
    expected = Contrasts(features.mask).utilities(contrasts).float().masked_fill(~features.mask, -torch.inf)
    torch.testing.assert_close(logits.detach(), expected, rtol=1e-3, atol=1e-4)
    logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).sum().backward()
    gradient = leaves["useful"].grad
    assert gradient is not None and torch.isfinite(gradient).all() and float(gradient.abs().max()) > 0


def test_an_item_is_read_by_a_head_that_never_saw_its_label() -> None:
    features, labels = made_up(60)
    head, folds = fit_head(features, labels), torch.arange(60) % 5
    wrong = labels.clone()
    wrong[folds == 2] = (labels[folds == 2] + 1) % 2
    before = cross_fitted(head, features, labels, folds).logits(features, folds)
    after = cross_fitted(head, features, wrong, folds).logits(features, folds)
    assert torch.equal(before[folds == 2], after[folds == 2])
    assert not torch.allclose(before[folds == 1], after[folds == 1], atol=1e-3)


def test_items_of_a_group_or_with_one_question_share_a_fold() -> None:
    asked = [Item(str(one), f"Question {one % 20}", ("a", "b"), 0, group=None) for one in range(60)]
    folds = folds_of(asked, 5, seed=0)
    assert torch.equal(folds[:20], folds[20:40]) and folds.bincount().tolist() == [12] * 5
    grouped = [replace(item, question=f"{item.id}?", group=str(number % 3)) for number, item in enumerate(asked)]
    assert folds_of(grouped, 5, seed=0).bincount().tolist() == [20] * 3
    assert not torch.equal(folds, folds_of(asked, 5, seed=1))
    with pytest.raises(ValueError, match="at least two different questions"):
        folds_of([asked[0], asked[20]], 5, seed=0)


METHODS = (Lora, BayesianLora, LaplaceLora, Tfb)
"""Without draws, with draws in training, and with what is fitted after it."""


@pytest.mark.parametrize("method", [kind(r=2, last_layers=2) for kind in METHODS])
def test_a_run_is_loaded_as_it_was_trained(method: Method, deep_base: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    run = train(config(deep_base, data, method), tmp_path / "run")
    reading = reading_of(run.scoring)
    assert reading is not None and reading.layers == [3, 4] and not reading.folds
    adapted = {name.split("layers.")[1][0] for name, each in run.model.named_parameters() if each.requires_grad}
    assert adapted == {"2", "3"}
    test = load_items(data / "test.jsonl")
    found = run.predict(test, progress=False)
    again = load_run(tmp_path / "run").predict(test, progress=False)
    torch.testing.assert_close(again.predictive.samples, found.predictive.samples, rtol=1e-5, atol=1e-5)
    assert len(found.predictive.samples) == max(1, method.effective_num_samples(3))
    assert torch.equal(again.further["novelty"], found.further["novelty"])
    alone = run.predict(test[2:3], progress=False).predictive.probabilities[0]
    torch.testing.assert_close(alone, found.predictive.probabilities[2], rtol=1e-4, atol=1e-5)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["split"] == "dev" and metrics["trainable_parameters"] > 0
    assert {"layer 2, mean", "adapted layer 4, mean"} <= set(metrics["head"]["weights"])


def test_one_row_for_each_choice_gives_the_same(
    deep_base: Path,
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for packed in (True, False):
        monkeypatch.setattr("bayeslora.scoring.cloze.packs", lambda *_, packed=packed: packed)
        run = train(config(deep_base, data, Lora(r=2, last_layers=2)), tmp_path / str(packed))
        found.append(run.predict(load_items(data / "test.jsonl"), progress=False).predictive.probabilities)
    torch.testing.assert_close(*found, rtol=0, atol=0.01)


def test_a_killed_training_goes_on_with_the_heads_of_its_epoch(
    deep_base: Path,
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Twelve items in batches of four: the checkpoint at step 2 lies within the first epoch."""
    method = Lora(r=2, last_layers=2)
    whole = train(config(deep_base, data, method), tmp_path / "whole")
    killed = config(deep_base, data, method, save_steps=2)

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    own = training.item_trainer

    def with_kill(*arguments: Any) -> Any:
        trainer = own(*arguments)
        trainer.add_callback(Kill())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "item_trainer", with_kill)
        with pytest.raises(KeyboardInterrupt):
            train(killed, tmp_path / "killed")
    again = train(killed, tmp_path / "killed", resume=True)
    test = load_items(data / "test.jsonl")
    one, other = (run.predict(test, progress=False).predictive.samples for run in (whole, again))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "scoring", "draws"),
    [
        (BayesianLora(), "options", 0),
        (BayesianLora(), "heads", 0),
        (BayesianLora(), "cloze", 10),
        (BayesianLora(), "codes", 10),
        (MonteCarloDropout(), "options", 10),
        (LaplaceLora(), "options", 10),
    ],
)
def test_draws_of_weights_are_not_taken_below_heads_unless_asked_for(method: Method, scoring: str, draws: int) -> None:
    task = TaskConfig(scoring=scoring)
    assert RunConfig(task=task, method=method).num_samples == draws
    assert RunConfig(task=task, method=method, num_samples=7).num_samples == 7
    assert RunConfig(task=task, method=method, num_samples="auto").most_samples == 10


def test_adapters_above_what_is_read_are_refused(deep_base: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    train(replace(config(deep_base, data, Lora(r=2), max_steps=1), task=TaskConfig(name=str(data))), tmp_path / "all")
    with pytest.raises(ValueError, match="adapters must lie below"):
        train(config(deep_base, data, Lora(init_from=str(tmp_path / "all"))), tmp_path / "run")
    with pytest.raises(ValueError, match="changes the weights themselves"):
        train(config(deep_base, data, FullFineTuning(last_layers=1)), tmp_path / "run")


def test_what_is_exported_published_and_said_on_the_card(deep_base: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"name": str(deep_base), "device": "cpu"},
                "task": {"name": str(data), "scoring": "options"},
                "method": {"class_path": "Lora", "init_args": {"r": 2, "last_layers": 2}},
                "train": {"epochs": 1, "batch_size": 4},
            }
        )
    )
    main(["train", "--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "run")])
    main(["evaluate", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["split"] == "test"
    for format in ("mean", "merged"):
        export_run(tmp_path / "run", tmp_path / format, format=format)
        assert (tmp_path / format / "head.safetensors").is_file() and (tmp_path / format / "export.json").is_file()
    with safe_open(tmp_path / "mean" / "head.safetensors", "pt") as file:
        assert "weight.adapted layer 4, mean" in file.keys() and "adapter on" in file.metadata()["formula"]  # noqa: SIM118
    with pytest.raises(ValueError, match="no thing to publish"):
        write_hub_folder(tmp_path / "run", tmp_path / "hub", "user/name")
    assert "read by a head" in (tmp_path / "run" / "adapter" / "README.md").read_text()


def test_what_adapters_learned_by_heart_is_trusted_no_more_than_the_frozen_layer() -> None:
    (features, labels), (others, their_labels) = made_up(60), made_up(200, seed=1)
    right = torch.nn.functional.one_hot(labels, features.mask.shape[1]).unsqueeze(-1)
    learned = features.hidden["useless"] + 3 * right  # Others' labels are in none of its numbers.
    seen = replace(features, hidden={**features.hidden, "adapted useless": learned})
    unseen = replace(others, hidden={**others.hidden, "adapted useless": others.hidden["useless"]})
    frozen, by_evidence = fit_head(features, labels), fit_head(seen, labels)
    moved = over_adapters(frozen, seen, labels)
    assert list(moved.scaling.scales) == ["useful", "adapted useless", "constant"]
    assert moved.scales is frozen.scales and moved.noise is frozen.noise

    def nll(head: Head) -> float:
        chosen = head.predict(unseen).predictive.log_probabilities.gather(-1, their_labels.unsqueeze(-1))
        return -float(chosen.mean())

    assert nll(moved) - nll(frozen) < 0.3 * (nll(by_evidence) - nll(frozen))
