"""A head through the command line and Python: its run folder holds all that later predictions need."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_cli import data, fails, tiny_base  # noqa: F401

from bayeslora import BayesianHead
from bayeslora.deploy.export import export_run
from bayeslora.deploy.hub import write_hub_folder
from bayeslora.experiments.intruder_dimensions import diagnose
from bayeslora.runs import load_run
from bayeslora.runs.generate import generate_records
from bayeslora.tasks import Item, load_items
from bayeslora_cli.main import main


def content(base: Path, items: Path) -> dict[str, Any]:
    return {
        "model": {"name": str(base), "device": "cpu"},
        "task": {"name": str(items), "scoring": "options"},
        "method": {"class_path": "BayesianHead"},
    }


@pytest.fixture(scope="module")
def folder(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    place = tmp_path_factory.mktemp("head")
    (place / "config.yaml").write_text(yaml.safe_dump(content(tiny_base, data)))
    main(["train", "--config", str(place / "config.yaml"), "--output_dir", str(place / "run")])
    return place


def test_train_says_what_was_chosen(folder: Path) -> None:
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    chosen = metrics["head"]
    assert set(chosen["weights"]) == set(chosen["effective_parameters"]) >= {"layer 1, mean", "likelihood"}
    assert chosen["temperature"] > 0 and chosen["noise_variance"] > 0 and chosen["wrong_labels"] == 0
    assert metrics["split"] == "dev" and metrics["nll"] > 0 and metrics["train_examples"] == 12
    assert not (folder / "run" / "adapter").exists()


def test_evaluate_and_predict(folder: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    main(["evaluate", str(folder / "run")])
    rows = [json.loads(line) for line in (folder / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert 0 <= row["mutual_information"] <= row["entropy"] and row["variance"] > 0 and 0 <= row["novelty"] <= 1
    output = tmp_path / "out.jsonl"
    main(["predict", str(folder / "run"), "--input", str(data / "test.jsonl"), "--output", str(output)])
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["probabilities"] for row in again] == [row["probabilities"] for row in rows]


def test_python_is_the_command_line(folder: Path, tiny_base: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    items = load_items(data / "train.jsonl")
    head = BayesianHead(str(tiny_base)).fit(items)
    test = load_items(data / "test.jsonl")
    expected = load_run(folder / "run").predict(test).predictive.samples
    torch.testing.assert_close(head.predict(test).predictive.samples, expected, rtol=0, atol=1e-6)
    head.save(tmp_path / "saved")
    loaded = BayesianHead.load(tmp_path / "saved")
    assert torch.equal(loaded.predict(test).predictive.samples, head.predict(test).predictive.samples)
    assert loaded.chosen == head.chosen and loaded.config.model == head.config.model
    with pytest.raises(FileExistsError, match="overwrite"):
        head.save(tmp_path / "saved")
    with pytest.raises(RuntimeError, match="not fitted"):
        _ = BayesianHead(str(tiny_base)).run
    with pytest.raises(ValueError, match="needs labels"):
        head.fit([replace(items[0], label=None)])


def test_a_prior_is_one_more_block_and_goes_with_the_run(
    folder: Path,
    tiny_base: Path,  # noqa: F811
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    items, test = load_items(data / "train.jsonl"), load_items(data / "test.jsonl")
    head = BayesianHead(str(tiny_base), prior=folder / "run").fit(items[:6])
    assert "prior" in head.chosen["weights"]
    head.save(tmp_path / "with")
    again = load_run(tmp_path / "with").predict(test).predictive.samples
    assert torch.equal(again, head.predict(test).predictive.samples)
    with pytest.raises(ValueError, match="has a prior itself"):
        BayesianHead(str(tiny_base), prior=tmp_path / "with").fit(items[:6])
    with pytest.raises(ValueError, match="no head in"):
        BayesianHead(str(tiny_base), prior=tmp_path / "nowhere").fit(items[:6])


def test_the_share_of_random_labels_may_be_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["train", "--config", str(folder / "config.yaml"), "--output_dir", str(tmp_path / "run")]
    main([*given, "--method.label_noise", "0.15"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["head"]["wrong_labels"] == 0.15
    assert load_run(tmp_path / "run").config.method.label_noise == 0.15
    assert "label_noise" in fails(capsys, *given[:-1], tmp_path / "other", "--method.label_noise", "1.5")


def test_no_run_is_replaced_unasked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("train", "--config", folder / "config.yaml", "--output_dir", folder / "run")
    assert "finished run" in fails(capsys, *arguments)


def test_scoring_and_method_belong_together(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cloze = ("--task.scoring", "cloze", "--output_dir", tmp_path / "run")
    said = fails(capsys, "train", "--config", folder / "config.yaml", *cloze)
    assert "belong together" in said and "--task.scoring options --method BayesianHead" in said


def test_what_a_plain_server_cannot_take_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter that a plain server could load"):
        export_run(folder / "run", tmp_path / "export")
    with pytest.raises(ValueError, match="no thing to publish"):
        write_hub_folder(folder / "run", tmp_path / "hub", "user/name")
    with pytest.raises(ValueError, match="nothing to diagnose"):
        diagnose(folder / "run")
    with pytest.raises(ValueError, match="nothing was trained to write text"):
        generate_records(load_run(folder / "run"), [{"prompt": "Who?"}])
    BayesianHead.load(folder / "run").export(tmp_path / "head.safetensors")
    assert (tmp_path / "head.safetensors").stat().st_size < 100_000


def test_a_server_says_what_predict_says(folder: Path, data: Path) -> None:  # noqa: F811
    client = pytest.importorskip("fastapi.testclient", reason="the extra serve is not installed")
    from bayeslora.deploy.serve.app import create_app

    run, item = load_run(folder / "run"), load_items(data / "test.jsonl")[0]
    with client.TestClient(create_app(run, "run")) as http:
        asked = {"items": [{"id": item.id, "question": item.question, "choices": list(item.choices)}]}
        (record,) = http.post("/v1/predict", json=asked).json()["predictions"]
    assert not len(run.reader._store), "a server keeps nothing of what it was asked"  # type: ignore[attr-defined]
    (expected,) = run.predict([item]).rows()
    assert record == {name: pytest.approx(value) for name, value in expected.items() if name != "label"}
    assert {"variance", "novelty"} <= record.keys()


def test_a_plan_says_that_there_is_nothing_to_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to plan" in fails(capsys, "plan", folder / "config.yaml", "--gpu_memory", "8 GB")


@pytest.mark.parametrize(("reads", "block"), [("hidden", "layer 1, mean"), ("likelihood", "likelihood")])
def test_a_head_may_read_less(reads: Any, block: str, tiny_base: Path, data: Path) -> None:  # noqa: F811
    items = load_items(data / "train.jsonl")
    head = BayesianHead(str(tiny_base), reads=reads).fit(items)
    assert block in head.chosen["weights"]
    assert ("likelihood" in head.chosen["weights"]) == (reads == "likelihood") == (len(head.chosen["weights"]) == 1)
    assert head.predict(items[:2]).further["novelty"].shape == (2,)


def test_a_comparison_has_rows_for_heads_beside_cloze(tiny_base: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    """Each row is read in its own way, and the link of cloze is no affair of heads."""
    lora = {"class_path": "Lora"}
    described = {
        "model": {"name": str(tiny_base), "device": "cpu"},
        "tasks": {"own": {"name": str(data), "scoring": "cloze"}},
        "rows": {
            "head": {"method": {"class_path": "BayesianHead"}},
            "below": {"method": lora, "scoring": "options"},
            "cloze": {"method": lora},
        },
        "adapter": {"r": 2, "last_layers": 1},
        "train": {"epochs": 1, "batch_size": 6},
        "learning_rates": [0.001],
        "protocol": {"further_rates": 0, "base_rows": False, "length_powers": [0.5]},
        "seeds": [0],
        "cost_examples": 2,
    }
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(described))
    for _ in range(2):  # The second one finds the cells.
        main(["compare", "--config", str(tmp_path / "compare.yaml"), "--output_dir", str(tmp_path / "out")])
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    cells = {line["method"]: line for line in lines if line["kind"] == "cell" and line["stage"] == "final"}
    assert set(cells) == {"head", "below", "cloze", "cloze, mean per token"}
    assert all(len(cell["predictions"]["test"]["probabilities"]) == 6 for cell in cells.values())
    assert cells["head"]["trainable_parameters"] == 0 < cells["below"]["trainable_parameters"]


def test_fixed_choices_have_frequencies_of_their_own(tiny_base: Path, tmp_path: Path) -> None:  # noqa: F811
    """Nine in ten are yes, whatever is asked: the head says so, also of choices in another order."""
    items = [Item(str(one), f"Is {one * 37 % 101} nice?", ("yes", "no"), int(one % 10 == 0)) for one in range(40)]
    head = BayesianHead(str(tiny_base)).fit(items)
    assert head.config.task.classes is None and head.run.config.task.classes == ["yes", "no"]
    head.save(tmp_path / "run")
    other = Item("other", "Is 500 nice?", ("no", "yes"), None)
    for one in (head, BayesianHead.load(tmp_path / "run")):
        assert one.predict([other]).predictive.probabilities[0, 1] > 0.75
