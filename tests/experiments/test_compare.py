"""`bayeslora compare`: what it computes, what it reuses, and what a kill or a failing method costs."""

import json
import math
import shutil
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from test_cli import data, items, tiny_base, write_items  # noqa: F401

from bayeslora.experiments.comparison import Results
from bayeslora.experiments.comparison.config import CompareConfig, RowConfig
from bayeslora.methods import Lora
from bayeslora.metrics import nll
from bayeslora.options.parsing import config_parser, instantiate
from bayeslora.prediction.temperature import PRIOR_STD
from bayeslora.runs import going_on as computing
from bayeslora.runs import load_run, task_items
from bayeslora.runs.config import TaskConfig
from bayeslora_cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, data: Path) -> Path:  # noqa: F811
    """A comparison's config, which tests must leave as it is."""
    folder = tmp_path_factory.mktemp("compare")
    other = folder / "other"
    other.mkdir()
    write_items(other / "train.jsonl", items(3, 300))
    write_items(other / "dev.jsonl", items(2, 350))
    write_items(other / "test.jsonl", items(5, 400))
    content = {
        "model": {"name": str(tiny_base), "device": "cpu"},
        "tasks": {"plants": {"name": str(data)}},
        "out_of_distribution": {"others": {"name": str(other)}, "own": {"name": str(data)}},
        "adapter": {"r": 2, "last_layers": 2},
        "rows": {
            "lora": {"method": {"class_path": "Lora"}, "temperature": True},
            "bayesian_lora": {
                "method": {"class_path": "BayesianLora", "init_args": {"prior_std": 0.3}},
                "learning_rates": [0.02],
            },
        },
        "train": {"max_steps": 3, "batch_size": 4, "logging_steps": 1},
        "learning_rates": [0.0001, 0.05],
        "seeds": [0, 1],
        "protocol": {"further_rates": 0, "choose_epochs": False, "length_powers": [], "base_rows": False},
        "num_samples": 3,
        "cost_examples": 2,
    }
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def config(shared: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copy(shared, tmp_path))


@pytest.fixture(scope="module")
def finished(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the whole comparison, which tests must leave as it is."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    compare(shared, folder)
    return folder


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def compare(config: Path, output: Path) -> Results:
    main(["compare", "--config", str(config), "--output_dir", str(output)])
    return Results.read(output / "results.jsonl")


def test_every_row_has_every_seed_and_the_rate_with_the_better_dev_score(config, tmp_path, caplog):
    results = compare(config, tmp_path / "out")
    said = [record.message for record in caplog.records if "mostly the prior's" in record.message]
    assert len(said) == 1 and said[0].startswith("plants, lora: ")
    assert len(results.cells(method="lora + temperature")) == 2
    assert results.methods("final") == ["lora + temperature", "lora", "bayesian_lora"]
    labels = results.items("plants", "dev").label_array()
    selection = results.cells("selection")
    assert {(cell.method, cell.learning_rate, cell.seed) for cell in selection} == {
        ("lora", 0.0001, 0),
        ("lora", 0.05, 0),
    }
    scores = {cell.learning_rate: nll(normalised(cell, "dev"), labels) for cell in selection}
    chosen = min(scores, key=scores.__getitem__)
    for title, rate in (("lora", chosen), ("lora + temperature", chosen), ("bayesian_lora", 0.02)):
        cells = results.cells("final", method=title)
        assert [(cell.seed, cell.learning_rate) for cell in cells] == [(0, rate), (1, rate)]
    cell = results.cells("final", method="bayesian_lora")[0]
    assert set(cell.predictions) == {"dev", "test", "ood:others"}
    assert cell.num_samples == 3 and cell.deterministic_seconds is not None and cell.peak_memory_bytes
    assert cell.extra_parameters > 0 and results.cells("final", method="lora")[0].extra_parameters == 0
    assert max(cell.predictions["test"].mutual_information) > 0
    assert (tmp_path / "out" / "report.html").is_file()


def normalised(cell, split: str) -> numpy.ndarray:
    probabilities = cell.predictions[split].padded()
    return probabilities / probabilities.sum(1, keepdims=True)


def test_the_numbers_are_those_of_the_saved_adapter(finished):
    results = Results.read(finished / "results.jsonl")
    cell = results.cells("final", method="bayesian_lora")[1]
    run = load_run(finished / "runs" / "plants-bayesian_lora-0.02-1")
    test = task_items(run.config.task).test
    assert [item.id for item in test] == results.items("plants", "test").ids
    expected = run.predict(test).predictive.probabilities
    torch.testing.assert_close(torch.tensor(cell.predictions["test"].padded()).float(), expected, rtol=1e-4, atol=1e-5)


def test_the_temperature_row_has_the_temperature_of_the_largest_posterior_on_dev(finished):
    results = Results.read(finished / "results.jsonl")
    plain, scaled = (results.cells("final", method=name)[0] for name in ("lora", "lora + temperature"))
    labels = torch.tensor(results.items("plants", "dev").label_array())
    temperature = scaled.details["temperature"]
    assert scaled.derived_from == "lora" and temperature != 1
    logs = torch.tensor(normalised(plain, "dev")).log()
    expected = torch.softmax(torch.tensor(normalised(plain, "test")).log() / temperature, -1)
    numpy.testing.assert_allclose(scaled.predictions["test"].padded(), expected, rtol=1e-4)

    def log_posterior(t: float) -> float:
        likelihood = torch.softmax(logs / t, -1)[range(len(labels)), labels].log().sum()
        return float(likelihood) - (math.log(t) / PRIOR_STD) ** 2 / 2

    assert log_posterior(temperature) >= max(map(log_posterior, numpy.geomspace(0.1, 100, 200))) - 1e-3
    assert 0 < scaled.details["temperature_standard_error"] < temperature


def test_a_finished_comparison_trains_nothing_again(config, out, monkeypatch):
    before = (out / "results.jsonl").read_bytes()
    monkeypatch.setattr(computing, "train", lambda *_, **__: pytest.fail("trained again"))
    compare(config, out)
    assert (out / "results.jsonl").read_bytes() == before


def test_a_killed_comparison_ends_with_the_same_numbers(config, finished, tmp_path, monkeypatch):
    whole = Results.read(finished / "results.jsonl")
    trained, original = [], computing.train

    def killed(run, folder, **options):
        trained.append(folder)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return original(run, folder, **options)

    monkeypatch.setattr(computing, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(config, tmp_path / "killed")
    # A kill can also tear the line that was being written.
    with open(tmp_path / "killed" / "results.jsonl", "ab") as file:
        file.write(b'{"kind": "cell", "task": "pla')
    resumed = compare(config, tmp_path / "killed")
    assert len(trained) > 4
    cells = {cell.key: cell for cell in resumed.cells()}
    assert set(cells) == {cell.key for cell in whole.cells()}
    for cell in whole.cells():
        for split, predictions in cell.predictions.items():
            numpy.testing.assert_allclose(
                cells[cell.key].predictions[split].padded(), predictions.padded(), rtol=1e-3, atol=1e-5
            )


@pytest.mark.parametrize("torn", [0, 20])
def test_a_kill_between_the_cells_of_a_row_loses_nothing(config, out, monkeypatch, torn):
    """The derived cell is in the file, the one that it was derived from is not, or not whole."""
    path = out / "results.jsonl"
    whole = Results.read(path)
    lines = path.read_bytes().splitlines(keepends=True)
    derived = next(number for number, line in enumerate(lines) if b"+ temperature" in line)
    path.write_bytes(b"".join(lines[: derived + 1]) + lines[derived + 1][:torn])
    monkeypatch.setattr(computing, "train", lambda *_, **__: pytest.fail("trained again"))
    resumed = compare(config, out)
    assert path.read_bytes().startswith(b"".join(lines[: derived + 1]))
    assert [cell.key for cell in resumed.cells()] == [cell.key for cell in whole.cells()]


def test_a_failing_row_costs_only_itself_and_is_tried_again(config, tmp_path, monkeypatch, capsys):
    original = computing.train

    def failing(run, folder, **options):
        if run.method.name == "lora":
            raise RuntimeError("no luck")
        return original(run, folder, **options)

    monkeypatch.setattr(computing, "train", failing)
    with pytest.raises(SystemExit):
        compare(config, tmp_path / "out")
    assert "no luck" in capsys.readouterr().err
    assert len(Results.read(tmp_path / "out" / "results.jsonl").cells("final", method="bayesian_lora")) == 2
    monkeypatch.setattr(computing, "train", original)
    assert len(compare(config, tmp_path / "out").cells("final", method="lora")) == 2


def test_another_config_is_refused_with_what_differs(config, out, capsys):
    content = yaml.safe_load(config.read_text())
    content["train"]["max_steps"] = 4
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(SystemExit):
        compare(config, out)
    assert "train.max_steps" in capsys.readouterr().err


def test_rows_and_seeds_can_be_added_and_what_is_there_is_kept(config, out, monkeypatch):
    first = Results.read(out / "results.jsonl")
    content = yaml.safe_load(config.read_text())
    content["rows"] = {"map": {"method": {"class_path": "Lora"}, "train": {"weight_decay": 0.1}}}
    content["seeds"] = [0, 2]
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    trained, original = [], computing.train
    monkeypatch.setattr(
        computing, "train", lambda run, folder, **o: trained.append(folder.name) or original(run, folder, **o)
    )
    results = compare(config, out)
    assert len(trained) == 3 and all("map" in name for name in trained)
    assert [cell.key for cell in results.cells()][: len(first.cells())] == [cell.key for cell in first.cells()]
    assert list(results.header.config["rows"]) == ["lora", "bayesian_lora", "map"]
    assert results.header.config["seeds"] == [0, 1, 2]


def test_a_control_and_a_temperature_are_added_to_a_row_without_training(config, out, monkeypatch):
    before = (out / "results.jsonl").read_text().splitlines()
    content = yaml.safe_load(config.read_text())
    content["rows"]["bayesian_lora"] |= {"temperature": True, "controls": ["one_pass"]}
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setattr(computing, "train", lambda *_, **__: pytest.fail("trained again"))
    results = compare(config, out)
    after = (out / "results.jsonl").read_text().splitlines()
    assert after[1 : len(before)] == before[1:]
    added = [json.loads(line) for line in after[len(before) :]]
    assert sorted((cell["method"], cell["seed"]) for cell in added) == [
        (f"bayesian_lora{reading}", seed)
        for reading in (" + temperature", ", one pass", ", one pass + temperature")
        for seed in (0, 1)
    ]
    assert {cell.num_samples for cell in results.cells("final", method="bayesian_lora, one pass")} == {0}
    again = (out / "results.jsonl").read_bytes()
    compare(config, out)
    assert (out / "results.jsonl").read_bytes() == again


def test_a_base_that_is_quantised_is_another_comparison(config, out):
    content = yaml.safe_load(config.read_text())
    content["model"]["quantization"] = "torchao_int8"
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(SystemExit):
        compare(config, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "seeds must not be empty"),
        ({"seeds": [1, 1]}, "value twice"),
        ({"rows": {"lora": RowConfig(Lora(), train={"epoch": 3})}}, "no field 'epoch'"),
    ],
)
def test_a_config_that_would_fail_later_fails_at_once(change, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**change)


def test_the_adapters_are_the_same_for_every_row_and_rows_keep_their_own_training():
    config = CompareConfig(
        tasks={"a": TaskConfig(name="arc_easy")},
        rows={"one": RowConfig(Lora(r=3)), "two": RowConfig(Lora(lora_dropout=0.2), train={"weight_decay": 0.1})},
    )
    config.adapter.last_layers = 2
    one, two = (config.run("a", title, 0, 0.5) for title in ("one", "two"))
    assert one.method.r == two.method.r == 8 and one.method.last_layers == two.method.last_layers == 2
    assert two.method.lora_dropout == 0.2 and two.train.weight_decay == 0.1 and one.train.weight_decay == 0
    assert config.rows["one"].method.r == 3


def test_what_is_logged_of_the_results_is_json(finished):
    lines = (finished / "results.jsonl").read_text().splitlines()
    header = json.loads(lines[0])
    assert header["config"]["rows"]["bayesian_lora"]["method"]["init_args"]["prior_std"] == 0.3
    assert "output_dir" not in header["config"]


COMPARISONS = [*ROOT.glob("examples/compare/*.yaml"), *ROOT.glob("studies/**/comparison.yaml")]


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_comparison_that_is_shipped_can_be_read(path):
    parser = config_parser(CompareConfig)
    config = instantiate(parser, parser.parse_args(["--config", str(path)]), CompareConfig)
    for title in config.rows:
        run = config.run(next(iter(config.tasks)), title, config.seeds[0], config.grid(title)[0])
        assert run.method.last_layers == config.adapter.last_layers
