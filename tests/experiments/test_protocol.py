"""What a comparison chooses on dev, and the rows that it adds: rates beyond the grid, epochs, link, base, controls."""

import math
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from test_cli import data, tiny_base  # noqa: F401
from test_executors import Scripted

from bayeslora.experiments.comparison import Cell, Results
from bayeslora.experiments.comparison.config import CompareConfig, ProtocolConfig, RowConfig
from bayeslora.experiments.comparison.derived import NOISE_SCALES
from bayeslora.experiments.comparison.growth import grown
from bayeslora.experiments.comparison.report.rows import task_rows
from bayeslora.experiments.comparison.report.tables import cost_table
from bayeslora.experiments.comparison.runner import compare
from bayeslora.experiments.comparison.selection import next_rate
from bayeslora.methods import BayesianLora, Lora
from bayeslora.methods.bayesian_head import BayesianHead
from bayeslora.methods.ivon import Ivon
from bayeslora.methods.laplace import LaplaceLora
from bayeslora.methods.mc_dropout import MonteCarloDropout
from bayeslora.metrics import nll
from bayeslora.runs import load_run, task_items
from bayeslora.runs.config import TaskConfig, TrainConfig, describe
from bayeslora.runs.differences import at_defaults
from bayeslora.scoring import Cloze
from bayeslora_cli.main import main

# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "tried", "expected"),
    [
        (3e-3, [3e-4, 1e-3, 3e-3], 1e-2),
        (3e-4, [3e-4, 1e-3, 3e-3], 1e-4),
        (1e-3, [3e-4, 1e-3, 3e-3], None),
        (2e-3, [5e-4, 1e-3, 2e-3], 1e-2),
        (10.0, [1.0, 10.0], None),
    ],
)
def test_the_next_rate_is_the_next_half_decade(best, tried, expected):
    assert next_rate(best, tried) == expected


class Peaked(Scripted):
    """The dev score is best at the rate 0.03."""

    def cell(self, planned) -> Cell:
        cell = super().cell(planned)
        right = 0.9 - 0.1 * abs(math.log(planned.learning_rate / 0.03))
        for part in cell.predictions.values():
            for row in part.probabilities:
                place = max(range(3), key=row.__getitem__)
                row[:] = [right if n == place else (1 - right) / 2 for n in range(3)]
        return cell


def scripted(data: Path, **protocol) -> CompareConfig:  # noqa: F811
    fields = {"choose_epochs": False, "length_powers": [], "base_rows": False, **protocol}
    return CompareConfig(
        tasks={"plants": TaskConfig(name=str(data))},
        rows={"lora": RowConfig(Lora()), "fixed": RowConfig(Lora(), learning_rates=[0.1])},
        protocol=ProtocolConfig(**fields),
        seeds=[0, 1],
    )


def rates(results: Results, row: str) -> list[float]:
    return [cell.learning_rate for cell in results.cells("selection", method=row)]


def test_a_row_whose_best_rate_is_at_the_edge_goes_on_until_it_is_not(data, tmp_path, capsys):  # noqa: F811
    results = compare(scripted(data), tmp_path, {}, Peaked)
    assert sorted(rates(results, "lora")) == [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    assert {cell.learning_rate for cell in results.cells("final", method="lora")} == {0.03}
    # A row with one rate has none to choose.
    assert rates(results, "fixed") == []
    assert "at the edge of those tried; trying 0.01" in capsys.readouterr().err
    again = compare(scripted(data), tmp_path, {}, Peaked)
    assert Scripted.last.log == [] and [c.key for c in again.cells()] == [c.key for c in results.cells()]


@pytest.mark.parametrize(("limit", "tried"), [(0, 3), (1, 4)])
def test_the_number_of_further_rates_is_bounded(data, tmp_path, limit, tried):  # noqa: F811
    results = compare(scripted(data, further_rates=limit), tmp_path, {}, Peaked)
    assert len(rates(results, "lora")) == tried
    assert {cell.learning_rate for cell in results.cells("final", method="lora")} == {max(rates(results, "lora"))}


# --- what is chosen, on a tiny model ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory, tiny_base, data) -> tuple[Path, Results]:  # noqa: F811
    folder = tmp_path_factory.mktemp("protocol")
    content = {
        "model": {"name": str(tiny_base), "device": "cpu"},
        "tasks": {"plants": {"name": str(data)}},
        "adapter": {"r": 2, "last_layers": 2},
        "rows": {
            "lora": {"method": {"class_path": "Lora"}, "temperature": True, "controls": ["score_noise"]},
            "bayesian_lora": {
                "method": {"class_path": "BayesianLora", "init_args": {"prior_std": 0.3}},
                "temperature": True,
                "controls": ["one_pass", "adaptive_draws"],
            },
        },
        "train": {"epochs": 2, "batch_size": 6, "logging_steps": 1},
        "learning_rates": [0.01],
        "protocol": {"length_powers": [0.0, 0.5]},
        "seeds": [0],
        "num_samples": 3,
        "cost_examples": 2,
    }
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    main(["compare", "--config", str(path), "--output_dir", str(folder / "out")])
    return folder / "out", Results.read(folder / "out" / "results.jsonl")


def test_the_rows_are_those_of_the_config_the_base_and_what_is_derived(compared):
    _, results = compared
    own = {"base", "lora", "bayesian_lora"}
    readings = {*own, "bayesian_lora, one pass", "bayesian_lora, adaptive draws", "lora, score noise"}
    readings |= {f"{title}, mean per token" for title in (*own, "bayesian_lora, one pass")}
    assert set(results.methods("final")) == {*readings, *(f"{title} + temperature" for title in readings)}
    assert [cell.derived_from is None for cell in results.cells("final")].count(True) == 3


def probabilities(cell: Cell, split: str = "test") -> numpy.ndarray:
    return cell.predictions[split].padded()


def by_hand(folder: Path, run_name: str, power: float, samples: int) -> numpy.ndarray:
    run = load_run(folder / "runs" / run_name, device="cpu")
    run.scoring = Cloze(run.scoring.tokenizer, length_power=power)
    return run.predict(task_items(run.config.task).test, samples).predictive.probabilities.numpy()


def test_all_rows_have_the_link_that_the_base_model_is_best_with_on_dev(compared):
    folder, results = compared
    (chosen,) = results.cells("selection")
    tried = chosen.details["length_powers"]
    assert chosen.method == "base" and set(tried) == {"0", "0.5"}
    power = chosen.details["length_power"]
    assert tried[f"{power:g}"] == min(tried.values())
    for name in ("base-0.01-0", "lora-0.01-0", "bayesian_lora-0.01-0"):
        assert load_run(folder / "runs" / f"plants-{name}", device="cpu").config.task.length_power == power
    # As if the model had been read with that power.
    dev = task_items(TaskConfig(name=load_run(folder / "runs" / "plants-base-0.01-0").config.task.name)).dev
    run = load_run(folder / "runs" / "plants-base-0.01-0", device="cpu")
    expected = run.predict(dev).predictive.probabilities.numpy()
    numpy.testing.assert_allclose(probabilities(chosen, "dev"), expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("title", "run", "samples"),
    [
        ("base, mean per token", "plants-base-0.01-0", 0),
        ("bayesian_lora, mean per token", "plants-bayesian_lora-0.01-0", 3),
        ("bayesian_lora, one pass, mean per token", "plants-bayesian_lora-0.01-0", 0),
    ],
)
def test_the_mean_per_token_is_read_off_the_same_scores(compared, title, run, samples):
    folder, results = compared
    (cell,) = results.cells("final", method=title)
    assert cell.details["reading"] == "mean per token" and cell.num_samples == samples
    numpy.testing.assert_allclose(probabilities(cell), by_hand(folder, run, 1.0, samples), rtol=2e-3, atol=1e-5)


def test_one_pass_is_the_prediction_without_draws(compared):
    folder, results = compared
    power = results.cells("selection")[0].details["length_power"]
    (cell,) = results.cells("final", method="bayesian_lora, one pass")
    expected = by_hand(folder, "plants-bayesian_lora-0.01-0", power, 0)
    numpy.testing.assert_allclose(probabilities(cell), expected, rtol=2e-3, atol=1e-5)
    assert not any(cell.predictions["test"].mutual_information)


def test_adaptive_draws_are_those_that_an_item_needs_and_the_table_has_their_mean(compared):
    folder, results = compared
    (cell,) = results.cells("final", method="bayesian_lora, adaptive draws")
    run = load_run(folder / "runs" / "plants-bayesian_lora-0.01-0", device="cpu")
    expected = run.predict(task_items(run.config.task).test, "auto")
    numpy.testing.assert_allclose(probabilities(cell), expected.predictive.probabilities.numpy(), rtol=2e-3, atol=1e-5)
    assert cell.num_samples == pytest.approx(expected.num_samples, abs=1e-4) and 1 <= cell.num_samples <= 3
    own = results.cells("final", method="bayesian_lora")[0]
    assert cell.predict_seconds not in (own.predict_seconds, own.deterministic_seconds)
    table = cost_table(task_rows(results, "plants"))
    draws = table.rows["bayesian_lora, adaptive draws"][table.heads.index("draws") - 1]
    assert draws.text == f"{round(cell.num_samples, 2):g}"


@pytest.mark.parametrize(
    ("method", "draws"), [(Lora(), 3), (MonteCarloDropout(), 3), (LaplaceLora(), 3), (BayesianLora(), 1)]
)
def test_adaptive_draws_of_a_method_without_independent_ones_are_refused(method, draws):
    with pytest.raises(ValueError, match=r"rows\.a\.controls: adaptive_draws needs predictions of several independent"):
        CompareConfig(rows={"a": RowConfig(method, controls=["adaptive_draws"])}, num_samples=draws)


def test_score_noise_flattens_short_answers_more(compared):
    _, results = compared
    plain, noisy = (results.cells("final", method=title)[0] for title in ("lora", "lora, score noise"))
    assert noisy.details["score_noise"] in NOISE_SCALES and noisy.derived_from == "lora"
    assert not numpy.allclose(probabilities(plain), probabilities(noisy), atol=1e-3)
    assert probabilities(noisy).max(1).mean() < probabilities(plain).max(1).mean()


def test_the_base_model_is_the_same_with_every_row_and_trains_nothing(compared, tiny_base):  # noqa: F811
    folder, results = compared
    (base,) = results.cells("final", method="base")
    assert base.trainable_parameters == base.extra_parameters == 0
    run = load_run(folder / "runs" / "plants-lora-0.01-0", device="cpu")
    with torch.no_grad(), run.model.disable_adapter():
        expected = run.predict(task_items(run.config.task).test).predictive.probabilities.numpy()
    numpy.testing.assert_allclose(probabilities(base), expected, rtol=1e-3, atol=1e-5)


def test_a_cell_says_which_epoch_it_is_of(compared):
    _, results = compared
    (cell,) = results.cells("final", method="lora")
    scores = {end["epoch"]: end["dev_nll"] for end in cell.details["epochs"]}
    assert len(scores) == 2 and cell.details["epoch"] == min(scores, key=scores.__getitem__)
    labels = results.items("plants", "dev").label_array()
    found = probabilities(cell, "dev")
    assert nll(found / found.sum(1, keepdims=True), labels) == pytest.approx(min(scores.values()), rel=1e-3)
    assert "epoch" not in results.cells("final", method="base")[0].details


# --- configs ----------------------------------------------------------------------------------------------------------


def test_what_a_row_trains_and_reads():
    config = CompareConfig(
        tasks={"a": TaskConfig(), "b": TaskConfig(name="sst2", scoring="classification")},
        rows={
            "lora": RowConfig(Lora()),
            "last": RowConfig(BayesianLora(), train={"choose_epoch": False}),
            "ivon": RowConfig(Ivon()),
            "head": RowConfig(BayesianHead()),
        },
    )
    assert config.titles("a") == ["base", "lora", "last", "ivon", "head"]
    assert config.titles("b") == ["lora", "last", "ivon", "head"]
    assert [config.has_rate(title) for title in config.rows] == [False, True, True, True, False]
    assert [len(config.grid(title)) for title in config.rows] == [1, 3, 3, 3, 1]
    chosen = {title: config.run("a", title, 0, 1e-3).train.choose_epoch for title in config.rows}
    assert chosen == {"base": False, "lora": True, "last": False, "ivon": False, "head": False}
    assert config.length_powers("a") and not config.length_powers("b")
    assert config.run("a", "lora", 0, 1e-3, 0.5).task.length_power == 0.5
    own = CompareConfig(tasks={"a": TaskConfig(length_power=0.7)})
    assert not own.length_powers("a") and own.run("a", "lora", 0, 1e-3).task.length_power == 0.7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": ProtocolConfig(base_rows=False)}, "base_rows is false"),
        ({"train": TrainConfig(save_steps=5)}, "save_steps is set"),
        (
            {
                "tasks": {"a": TaskConfig(), "b": TaskConfig(scoring="classification")},
                "rows": {"lora": RowConfig(Lora(), controls=["score_noise"])},
            },
            r"rows\.lora\.controls: score_noise .* 'classification' on task 'b'",
        ),
        (
            {"tasks": {"a": TaskConfig()}, "rows": {"head": RowConfig(BayesianHead(), controls=["score_noise"])}},
            "'options' on task 'a'",
        ),
    ],
)
def test_parts_that_exclude_each_other_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        CompareConfig(**change)


def test_a_file_without_a_protocol_means_none_of_it(tmp_path):
    plain = CompareConfig(protocol=ProtocolConfig.plain())
    older = describe(plain)
    del older["protocol"]
    assert grown(older, describe(plain), at_defaults(plain), tmp_path)["protocol"] == describe(plain)["protocol"]
    new = CompareConfig()
    with pytest.raises(ValueError, match=r"protocol\.further_rates is 0 there and 3 here"):
        grown(older, describe(new), at_defaults(new), tmp_path)
