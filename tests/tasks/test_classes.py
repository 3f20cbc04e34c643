"""Classification: the classes of a task are texts, in whatever order the rows have them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from bayeslora import load_run
from bayeslora.experiments.comparison.config import CompareConfig, RowConfig
from bayeslora.experiments.comparison.items import ComparedItems
from bayeslora.methods import Lora
from bayeslora.runs import evaluate, predict_file, task_items, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.items import warn_of_unseen_classes, with_classes
from bayeslora.tasks import Item, TaskError
from bayeslora.tasks.classes import class_texts, renamed
from conftest import tiny_bert, wordpiece_tokenizer

ORDERS = [("sun", "moon", "star"), ("star", "sun", "moon"), ("moon", "star", "sun")]


def write_rows(path: Path, count: int, shift: int = 0, **changes: object) -> str:
    """The right choice is named in the text; the order of the choices changes from row to row."""
    with path.open("w") as file:
        for number in range(count):
            choices, right = ORDERS[(number + shift) % 3], ORDERS[0][number // 3 % 3]
            row = {"id": f"q{number}", "question": f"It is the {right}.", "choices": choices, "label": right, **changes}
            file.write(json.dumps(row) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, tokenizer = tmp_path_factory.mktemp("base"), wordpiece_tokenizer()
    tiny_bert(vocab_size=len(tokenizer), num_labels=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run_config(base: str, name: str) -> RunConfig:
    return RunConfig(
        model=ModelConfig(name=base, device="cpu"),
        task=TaskConfig(name=name, scoring="classification", max_length=32),
        method=Lora(r=4, target_modules=["query", "value"], last_layers=None),
        train=TrainConfig(epochs=3, batch_size=16, learning_rate=1e-2, arguments={"disable_tqdm": True}),
        num_samples=0,
    )


def test_a_head_learns_texts_and_predicts_rows_of_any_order(base: str, tmp_path: Path) -> None:
    config = run_config(base, write_rows(tmp_path / "data.jsonl", 180))
    trained = train(config, tmp_path / "run")
    assert trained.metrics["accuracy"] == 1.0
    classes = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["task"]["classes"]
    assert sorted(classes) == sorted(ORDERS[0]) and config.task.classes is None
    assert trained.metrics["classes"] == classes == list(task_items(config.task).train[0].choices)

    # Another file begins with another order: still the run's classes, and each record in its row's own order.
    other = write_rows(tmp_path / "other.jsonl", 9, shift=1)
    records = predict_file(tmp_path / "run", other, tmp_path / "out.jsonl")
    assert all(record["prediction"] == record["label"] for record in records)
    assert [record["choice"] for record in records] == [ORDERS[0][number // 3] for number in range(9)]
    assert evaluate(tmp_path / "run", task=write_rows(tmp_path / "test.jsonl", 90, shift=2))["accuracy"] == 1.0

    run = load_run(tmp_path / "run")
    rows = [Item(str(n), "It is the moon.", choices, None) for n, choices in enumerate(ORDERS)]
    found = run.predict([*rows, Item("two", "It is the moon.", ("moon", "star"), None)]).predictive.probabilities
    assert torch.allclose(found[1, [1, 2, 0]], found[0]) and torch.allclose(found[2, [2, 0, 1]], found[0])
    assert found[3, 0] > 0.7 and found[3, 2] == 0
    with pytest.raises(ValueError, match="the classes of this head are"):
        run.predict([Item("x", "It is fog.", ("fog", "moon"), None)])


def test_a_class_without_a_training_item_is_said(caplog: pytest.LogCaptureFixture) -> None:
    items = [Item("a", "?", ("sun", "moon", "fog"), 1), Item("b", "?", ("moon", "sun", "fog"), 0)]
    warn_of_unseen_classes(["moon"], items)
    assert not caplog.messages
    warn_of_unseen_classes(["sun", "moon", "fog"], items)
    assert "no training item has the label 'sun', 'fog': nothing is learned of them" in caplog.text


def test_items_with_choices_of_their_own_are_refused_before_training(base: str, tmp_path: Path) -> None:
    name = write_rows(tmp_path / "data.jsonl", 60)
    with open(name, "a") as file:
        file.write(json.dumps({"id": "odd", "question": "?", "choices": ["sun", "moon"], "label": "sun"}) + "\n")
    config = run_config(base, name)
    with pytest.raises(TaskError, match=r"'odd': with scoring classification.*option classes .*cloze or letter"):
        train(config, tmp_path / "run")
    named = with_classes(replace(config.task, classes=[*ORDERS[1], "fog"]), task_items(config.task).items)
    assert named.classes == ["star", "sun", "moon", "fog"]
    with pytest.raises(TaskError, match="with scoring classification"):
        with_classes(replace(config.task, classes=["sun", "moon"]), task_items(config.task).items)
    assert with_classes(replace(config.task, scoring="cloze"), []).classes is None


def test_classes_are_the_choices_of_the_first_item() -> None:
    some = [Item("1", "?", ("b", "a "), 0), Item("2", "?", ("a", " b"), 1)]
    assert class_texts(some) == ("b", "a")
    with pytest.raises(TaskError, match="all differ"):
        class_texts(some, ["a", "b", "a"])
    with pytest.raises(TaskError, match="all differ"):
        class_texts([])


def test_items_of_other_tasks_are_renamed_by_position() -> None:
    same, other = Item("1", "?", ("b", "a"), 0), Item("2", "?", ("x", "y"), 1)
    assert renamed([same, other], ["a", "b", "c"])[1] == replace(other, choices=("a", "b"))
    assert renamed([same], ["a", "b"]) == [same]
    with pytest.raises(TaskError, match="has 2 choices, but the head has 1 classes"):
        renamed([other], ["a"])


def test_a_comparison_knows_which_outside_items_have_labels(base: str, tmp_path: Path) -> None:
    """Of the same classes in another order they do; of other classes they are read as if they had these."""
    task = run_config(base, write_rows(tmp_path / "own.jsonl", 90)).task
    same = replace(task, name=write_rows(tmp_path / "same.jsonl", 90, shift=1))
    other = replace(task, name=write_rows(tmp_path / "other.jsonl", 90, choices=["fog", "rain"], label="rain"))
    config = CompareConfig(
        tasks={"own": task}, out_of_distribution={"same": same, "other": other}, rows={"lora": RowConfig(method=Lora())}
    )
    compared = ComparedItems(config)
    labelled = {record.split: record.labels is not None for record in compared.records("own")}
    assert labelled == {"dev": True, "test": True, "ood:same": True, "ood:other": False}
    outside = dict(compared.outside("own"))
    assert outside["same"] == task_items(same).test
    assert {item.choices for item in outside["other"]} == {compared.splits["own"].train[0].choices[:2]}
