"""Learning-rate sweeps: the grid, the curvature, what is trained, chosen, resumed and extended."""

import json
import math
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from test_cli import data, fails, tiny_base  # noqa: F401
from torch import nn

from bayeslora.experiments.comparison import Results
from bayeslora.experiments.comparison.selection import best_rate
from bayeslora.experiments.learning_rates import SweepConfig, log_grid
from bayeslora.experiments.learning_rates.config import wider_bound
from bayeslora.experiments.learning_rates.curvature import largest_eigenvalue, largest_hessian_eigenvalue
from bayeslora.experiments.learning_rates.picture import sweep_picture
from bayeslora.experiments.learning_rates.table import sweep_table
from bayeslora.metrics import nll
from bayeslora.runs import going_on
from bayeslora.runs.config_files import parse_config
from bayeslora.system.console import aligned
from bayeslora.training.trainer import NonFiniteLossError
from bayeslora_cli.main import main


def test_the_grid_has_four_rates_a_decade():
    found = log_grid(1e-4, 1e-2)
    assert found == [0.0001, 0.0001778, 0.0003162, 0.0005623, 0.001, 0.001778, 0.003162, 0.005623, 0.01]
    assert log_grid(0.5, 0.5) == [0.5]
    assert log_grid(1, 10, 2) == [1, 2, 4, 8]
    assert SweepConfig(lowest=1, highest=2, ratio=2).learning_rates == [1, 2]
    assert SweepConfig(learning_rates=[3.0]).learning_rates == [3.0]


def test_few_digits_of_the_ratio_do_not_lose_the_highest_rate():
    """The grid of docs/guides/learning_rate_sweep.md ended at 0.05624."""
    assert log_grid(1e-4, 1e-1, 1.7783)[-2:] == [0.05624, 0.1]
    assert log_grid(1e-3, 1e-2, 3.1623) == [0.001, 0.003162, 0.01]
    assert log_grid(1e-4, 3.2e-2, 3.1623)[-1] == 0.03162


@pytest.mark.parametrize("ratio", [10**0.25, 1.78, 3.1623, 2, 10])
@pytest.mark.parametrize("edge", ["lowest", "highest"])
def test_a_wider_grid_keeps_the_rates_that_are_there(edge, ratio):
    """With the default ratio a lowest rate of 3.162e-05, as once was said, has 9.999e-05 in the place of 0.0001."""
    config = SweepConfig(lowest=1e-4, highest=1e-2, ratio=ratio)
    bound = wider_bound(config, edge)
    wider = SweepConfig(**{"lowest": 1e-4, "highest": 1e-2, "ratio": ratio, edge: bound}).learning_rates
    inside = wider[2:] if edge == "lowest" else wider[:-2]
    assert inside == config.learning_rates


@pytest.mark.parametrize("bounds", [(0, 1, 2), (2, 1, 2), (1, 2, 1)])
def test_a_grid_of_nothing_is_refused(bounds):
    with pytest.raises(ValueError, match="expected 0 < lowest"):
        log_grid(*bounds)


# --- curvature --------------------------------------------------------------------------------------------------------


def test_the_largest_eigenvalue_of_a_quadratic_is_known():
    """Also where a negative one is larger in absolute value, and where a parameter has no part in the loss."""
    values = torch.tensor([3.0, -7.0, 1.0, *torch.linspace(-1, 1, 40)])
    basis = torch.linalg.qr(torch.randn(43, 43, generator=torch.Generator().manual_seed(0)))[0]
    matrix = basis @ values.diag() @ basis.mT
    point, unused = nn.Parameter(torch.zeros(43)), nn.Parameter(torch.zeros(2, 2))

    def losses():
        yield 0.25 * point @ matrix @ point
        yield 0.25 * point @ matrix @ point

    assert largest_eigenvalue(losses, [point, unused], 1e-6) == pytest.approx(3, rel=1e-3)


def test_the_eigenvalue_of_a_model_is_that_of_its_whole_hessian(tiny_base):  # noqa: F811
    from bayeslora.methods import BayesianLora
    from bayeslora.models import load_base_model
    from bayeslora.scoring import Cloze
    from bayeslora.tasks import Item
    from conftest import perturb, seeded

    base, tokenizer = load_base_model(str(tiny_base), device="cpu")
    with seeded(0):
        model = BayesianLora(r=1, last_layers=1).adapt(base, "causal_lm")
    perturb(model)
    items = [Item(str(n), f"Which one ({n})?", ("iron", "wood", "glass"), n % 3) for n in range(5)]
    scoring = Cloze(tokenizer)
    found = largest_hessian_eigenvalue(model, lambda: [scoring(items[:3]), scoring(items[3:])], 1e-4)
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names, sizes = list(parameters), [p.numel() for p in parameters.values()]

    def loss(flat):
        pieces = [part.view_as(parameters[name]) for name, part in zip(names, flat.split(sizes), strict=True)]
        for name, value in zip(names, pieces, strict=True):
            owner, _, last = name.rpartition(".")
            module = model.get_submodule(owner)
            module._parameters.pop(last, None)
            module.__dict__.pop(last, None)
            module._parameters[last] = value
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return nn.functional.cross_entropy(scoring(items).choice_logits(model), scoring(items)["labels"])

    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    hessian = torch.autograd.functional.hessian(loss, flat)
    assert found == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-2)


# --- the sweep --------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, tiny_base: Path, data: Path) -> Path:  # noqa: F811
    content = {
        "model": {"name": str(tiny_base), "device": "cpu"},
        "tasks": {"plants": {"name": str(data)}},
        "adapter": {"r": 2, "last_layers": 1},
        "rows": {"lora": {"method": {"class_path": "Lora"}}, "full, top": {"method": {"class_path": "FullFineTuning"}}},
        "train": {"max_steps": 2, "batch_size": 4, "save_steps": 1000},
        "lowest": 0.001,
        "highest": 0.1,
        "ratio": 10,
        "hint_examples": 3,
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def sweep(config: Path, output: Path, *options: str) -> dict:
    main(["sweep", "--config", str(config), "--output_dir", str(output), *options])
    return json.loads((output / "sweep.json").read_text())


def test_a_sweep_diverges_resumes_extends_and_writes_its_winners(config, tmp_path, monkeypatch, capsys):
    trained, original = [], going_on.train

    def train(run, folder, **options):
        trained.append((run.method.name, run.train.learning_rate))
        if run.train.learning_rate == 0.1 and run.method.name == "lora":
            raise NonFiniteLossError("the loss became nan at step 1")
        return original(run, folder, **options)

    monkeypatch.setattr(going_on, "train", train)
    output = tmp_path / "out"
    record = sweep(config, output)
    printed = capsys.readouterr().out
    lora, full = record["rows"]
    assert [point["diverged"] for point in lora["points"]] == [False, False, True]
    assert [point["diverged"] for point in full["points"]] == [False, False, False]
    assert lora["best"] in (0.001, 0.01) and "test" not in Results.read(output / "results.jsonl").cells()[0].predictions
    for row in (lora, full):
        scores = {p["learning_rate"]: p["nll"] for p in row["points"] if not p["diverged"]}
        assert row["best"] == min(scores, key=scores.__getitem__)
        assert row["hint"] == pytest.approx(1 / row["largest_eigenvalue"])
        assert (row["edge"] is not None) == (row["best"] in (0.001, 0.1)) == (row["remedy"] is not None)
        winner = parse_config(output / row["winner"])
        assert winner.train.learning_rate == row["best"] and winner.method.last_layers == 1
        assert f"bayeslora train --config {output / row['winner']}" in printed
    assert full["winner"] == "winner-full_top.yaml"
    assert full["relative_hint"] == pytest.approx(lora["best"] * full["hint"] / lora["hint"])
    assert (output / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert aligned((output / "sweep.md").read_text().strip()) in printed
    # Nothing is trained again, the diverged run neither; a wider grid only adds.
    first = list(trained)
    assert sweep(config, output) == record and trained == first
    wider = sweep(config, output, "--highest", "1")
    assert trained[len(first) :] == [("lora", 1.0), ("full_fine_tuning", 1.0)]
    assert [p["learning_rate"] for p in wider["rows"][0]["points"]] == [0.001, 0.01, 0.1, 1.0]


def test_another_training_is_refused(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(going_on, "train", lambda *_, **__: (_ for _ in ()).throw(NonFiniteLossError("nan")))
    record = sweep(config, tmp_path / "out", "--hint", "false")
    assert [row["best"] for row in record["rows"]] == [None, None]
    assert "every rate diverged. Run the same command with --lowest 1e-05;" in capsys.readouterr().out
    assert "train.max_steps" in fails(
        capsys, "sweep", "--config", config, "--output_dir", tmp_path / "out", "--train.max_steps", 5
    )


def test_a_grid_that_is_written_out_grows_where_it_stands(config, tmp_path, monkeypatch):
    """--lowest has no effect on it."""
    monkeypatch.setattr(going_on, "train", lambda *_, **__: (_ for _ in ()).throw(NonFiniteLossError("nan")))
    content = yaml.safe_load(config.read_text()) | {"learning_rates": [0.2, 0.3]}
    content["rows"]["full, top"]["learning_rates"] = [0.02]
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    lora, full = sweep(config, tmp_path / "out", "--hint", "false")["rows"]
    assert lora["remedy"] == "Add 0.02 to learning_rates and run again; only the new rates are trained."
    assert full["remedy"].startswith("Add 0.002 to rows.full, top.learning_rates")


def record_of(best: float, edge: str | None) -> dict:
    points = [{"learning_rate": r, "diverged": False, "accuracy": 0.5, "nll": 1.0, "ece": 0.1} for r in (0.01, 0.1)]
    row = {"task": "t", "row": "lora", "points": points, "best": best, "edge": edge, "remedy": "Go on."}
    hints = {"largest_eigenvalue": 5.0, "hint": 0.2, "relative_hint": best}
    return {"seed": 0, "select_by": "nll", "rows": [row | hints]}


def test_a_best_rate_at_the_edge_says_how_to_go_on():
    assert "the best rate 0.1 is the highest that was tried" in sweep_table(record_of(0.1, "highest"))
    assert "beyond it. Go on." in sweep_table(record_of(0.1, "highest"))
    assert "Go on." not in sweep_table(record_of(0.1, None))
    assert sweep_picture(record_of(0.1, None)).startswith(b"\x89PNG")


def test_best_rate_is_the_least_nll_or_the_best_accuracy():
    """Accuracy and NLL disagree here: a confident mistake costs much."""
    from bayeslora.experiments.comparison import Cell, Header, Items, Predictions

    items = Items(task="t", split="dev", ids=["a", "b", "c"], labels=[0, 0, 0], choices=[2, 2, 2])

    def cell(rate: float, first: list[float]) -> Cell:
        predictions = Predictions([[p, 1 - p] for p in first], [0.0] * 3)
        fields = {"num_samples": 0, "train_seconds": 1.0, "predict_seconds": 1.0, "trainable_parameters": 1}
        return Cell(
            task="t",
            method="m",
            seed=0,
            learning_rate=rate,
            stage="selection",
            predictions={"dev": predictions},
            **fields,
        )

    cells = [cell(0.1, [0.9, 0.9, 0.001]), cell(0.2, [0.6, 0.45, 0.45])]
    results = Results(Path("x"), Header.now({}, "cpu"), [items, *cells])
    assert best_rate(results, "t", "m", 0, [0.1, 0.2, 0.3], "nll") == 0.2
    assert best_rate(results, "t", "m", 0, [0.1, 0.2, 0.3], "accuracy") == 0.1
    with pytest.raises(RuntimeError, match="no selection cell"):
        best_rate(results, "t", "m", 0, [0.3], "nll")
    expected = -numpy.log([0.6, 0.45, 0.45]).mean()
    assert nll(cells[1].predictions["dev"].padded(), items.label_array()) == pytest.approx(expected)
    assert math.isfinite(expected)
