"""`bayeslora continual`: the matrices, forgetting, what each method starts from, and kills between and inside tasks."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_cli import items, tiny_base, tiny_encoder, write_items  # noqa: F401

from bayeslora.experiments.comparison.config import AdapterConfig
from bayeslora.experiments.comparison.results import Results
from bayeslora.experiments.sequences.config import ContinualConfig
from bayeslora.experiments.sequences.continual import run_continual
from bayeslora.experiments.sequences.forgetting import Passes, average_final, forgetting, when_learned
from bayeslora.experiments.sequences.report import write_continual_report
from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.methods.sd_lora import BayesianSdLora, SdLora
from bayeslora.metrics import summary
from bayeslora.runs import load_run, task_items
from bayeslora.runs.config import ModelConfig, TaskConfig, TrainConfig
from bayeslora_cli.main import main

ROWS: dict[str, Method] = {
    "lora": Lora(),
    "bayesian_lora": BayesianLora(prior_std=0.1),
    "sd_lora": SdLora(old_magnitudes="keep"),
    "bayesian_sd_lora": BayesianSdLora(prior_std=0.1),
}
TASKS = ("first", "second")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folders = {}
    for number, title in enumerate(TASKS):
        folder = tmp_path_factory.mktemp(title)
        for part, count in (("train", 8), ("test", 4 + number)):
            write_items(folder / f"{part}.jsonl", items(count, 100 * number + 50 * (part == "test")))
        folders[title] = str(folder)
    return folders


def config(base: Path, data: dict[str, str], scoring: Any = "cloze", **options: Any) -> ContinualConfig:
    train = TrainConfig(max_steps=4, save_steps=2, batch_size=4, learning_rate=0.02, logging_steps=1, cache_trunk=False)
    fields: dict[str, Any] = {
        "model": ModelConfig(name=str(base), device="cpu"),
        "sequence": {title: TaskConfig(name=folder, scoring=scoring) for title, folder in data.items()},
        "rows": ROWS,
        "adapter": AdapterConfig(r=2, lora_alpha=4, last_layers=2),
        "train": train,
        "seeds": [0],
        "num_samples": 3,
    }
    return ContinualConfig(**{**fields, **options})


def run(described: ContinualConfig, folder: Path) -> Results:
    return run_continual(described, folder, {"steps": described.train.max_steps, "seeds": described.seeds})


@pytest.fixture(scope="module")
def finished(tiny_base: Path, data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("continual")
    run(config(tiny_base, data), folder)
    return folder


def weights(folder: Path, row: str, stage: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "runs" / f"{row}-0" / stage / "adapter" / "adapter_model.safetensors")


def test_forgetting_by_hand() -> None:
    """Best earlier accuracy minus the last: of task 1 .9 - .5, of task 2 .7 (before it was learned) - .8."""
    matrix = numpy.array([[0.6, 0.7, 0.1], [0.9, 0.6, 0.2], [0.5, 0.8, 1.0]])
    assert forgetting(matrix) == pytest.approx((0.4 - 0.1) / 2)
    assert when_learned(matrix) == pytest.approx((0.6 + 0.6 + 1.0) / 3)
    assert average_final(matrix) == pytest.approx((0.5 + 0.8 + 1.0) / 3)


@pytest.mark.parametrize("row", ["lora", "bayesian_sd_lora"])
def test_matrix_holds_the_scores_of_each_run_on_each_task(row: str, finished: Path, data: dict[str, str]) -> None:
    passes = Passes.read(Results.read(finished / "results.jsonl"), row)
    assert passes.tasks == list(TASKS) and passes.seeds == [0]
    assert all(matrix.shape == (1, 2, 2) for matrix in passes.scores.values())
    for i, trained in enumerate(TASKS):
        loaded = load_run(finished / "runs" / f"{row}-0" / f"{i + 1} {trained}")
        for j, tested in enumerate(TASKS):
            part = task_items(TaskConfig(name=data[tested])).test
            assert len(part) == 4 + j
            labels = torch.tensor([item.label for item in part])
            expected = summary(loaded.predict(part).predictive.probabilities, labels)
            for metric, matrix in passes.scores.items():
                assert matrix[0, i, j] == pytest.approx(expected[metric], abs=2e-5), (metric, i, j)
    assert numpy.ptp(passes.scores["nll"]) > 0.01


def test_what_the_second_task_starts_from(finished: Path) -> None:
    configs = {
        row: yaml.safe_load((finished / "runs" / f"{row}-0" / "2 second" / "config.yaml").read_text()) for row in ROWS
    }
    starts = {row: Path(content["method"]["init_args"]["init_from"]) for row, content in configs.items()}
    assert all(starts[row] == finished / "runs" / f"{row}-0" / "1 first" for row in ("lora", "sd_lora"))
    assert starts["bayesian_lora"].name == "mean"
    # One adapter that goes on, against a frozen direction for each task.
    assert weights(finished, "lora", "2 second").keys() == weights(finished, "lora", "1 first").keys()
    for row in ("sd_lora", "bayesian_sd_lora"):
        first, second = (weights(finished, row, stage) for stage in ("1 first", "2 second"))
        directions = [key for key in second if key.endswith("lora_A.directions")]
        assert len(directions) == 4 and not any("directions" in key for key in first)
        if row == "sd_lora":
            for key in directions:
                learned = first[key.replace("directions", "mean")]
                assert torch.allclose(second[key], learned / learned.norm(), atol=1e-6)
        assert all(second[key].shape == (1, 2) for key in second if key.endswith("magnitudes"))


def test_report_and_picture(finished: Path) -> None:
    page = write_continual_report(finished).read_text()
    scores = Passes.read(Results.read(finished / "results.jsonl"), "sd_lora").scores
    assert page.startswith("# Continual learning: first → second")
    assert f"| after second | {scores['nll'][0, 1, 0]:.3f} | {scores['nll'][0, 1, 1]:.3f} |" in page
    assert f"{scores['accuracy'][0, 0, 0] - scores['accuracy'][0, 1, 0]:.3f}" in page
    assert all(f"### {row}" in page for row in ROWS)
    assert (finished / "matrices.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("row", ["lora", "bayesian_sd_lora"])
def test_a_killed_sequence_ends_as_if_it_had_not_been(
    row: str,
    finished: Path,
    tiny_base: Path,  # noqa: F811
    data: dict[str, str],
    tmp_path: Path,
) -> None:
    """Killed inside the second task, with a torn line; the first task is not trained again."""
    one = config(tiny_base, data, rows={row: ROWS[row]})
    stages = Path("runs") / f"{row}-0"
    shutil.copytree(finished / stages / "1 first", tmp_path / stages / "1 first")
    shutil.rmtree(tmp_path / stages / "1 first" / "checkpoints")
    inside = stages / "2 second" / "checkpoints" / "checkpoint-2"
    shutil.copytree(finished / inside, tmp_path / inside)
    lines = (finished / "results.jsonl").read_text().splitlines(keepends=True)
    kinds = [json.loads(line) for line in lines]
    kept = [
        line
        for line, record in zip(lines, kinds, strict=True)
        if record["kind"] != "cell" or (record["method"], record["task"]) == (row, "1 first")
    ]
    (tmp_path / "results.jsonl").write_text("".join(kept) + '{"kind": "cell", "ta')
    found = run(one, tmp_path)
    assert not (tmp_path / stages / "1 first" / "checkpoints").exists()
    expected = Results.read(finished / "results.jsonl")
    for cell in expected.cells(method=row):
        again = found.find(cell.task, row, 0, cell.learning_rate, "final")
        assert again is not None
        for split, predictions in cell.predictions.items():
            assert numpy.allclose(again.predictions[split].padded(), predictions.padded(), atol=1e-5), (
                cell.task,
                split,
            )


def test_the_order_cannot_change(
    finished: Path,
    tiny_base: Path,  # noqa: F811
    data: dict[str, str],
    tmp_path: Path,
) -> None:
    shutil.copy(finished / "results.jsonl", tmp_path)
    turned = config(tiny_base, {title: data[title] for title in reversed(TASKS)}, rows={"lora": Lora()})
    with pytest.raises(ValueError, match="order"):
        run(turned, tmp_path)


def test_a_head_of_the_first_task_stays(tiny_encoder: Path, tmp_path: Path) -> None:  # noqa: F811
    data = {}
    for title in TASKS:
        (tmp_path / title).mkdir()
        rows = [{"id": str(n), "question": f"What is {n}?", "label": n % 2} for n in range(4)]
        for part in ("train", "dev", "test"):
            write_items(tmp_path / title / f"{part}.jsonl", rows)
        data[title] = str(tmp_path / title)
    for head, same in (("first", True), ("every", False)):
        one = config(tiny_encoder, data, "classification", rows={"sd_lora": SdLora()}, head=head)
        for task in one.sequence.values():
            task.choices = ["no", "yes"]
        run(one, tmp_path / head)
        first, second = (weights(tmp_path / head, "sd_lora", f"{n + 1} {title}") for n, title in enumerate(TASKS))
        keys = [key for key in first if "classifier" in key]
        assert keys and all(torch.equal(first[key], second[key]) == same for key in keys)


def test_command_line_and_refusals(
    tiny_base: Path,  # noqa: F811
    data: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = {
        "model": {"name": str(tiny_base), "device": "cpu"},
        "sequence": {title: {"name": folder} for title, folder in data.items()},
        "rows": {"sd_lora": {"class_path": "SdLora", "init_args": {"old_magnitudes": "keep"}}},
        "adapter": {"r": 2, "last_layers": 1},
        "train": {"max_steps": 1},
        "seeds": [0],
    }
    (tmp_path / "continual.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    for _ in range(2):
        main(["continual", "--config", str(tmp_path / "continual.yaml"), "--output_dir", str(tmp_path / "out")])
    assert f"report: {tmp_path / 'out' / 'report.md'}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="two tasks"):
        ContinualConfig(sequence={"one": TaskConfig()})
    with pytest.raises(ValueError, match="same scoring"):
        ContinualConfig(sequence={"one": TaskConfig(), "two": TaskConfig(scoring="letter")})
