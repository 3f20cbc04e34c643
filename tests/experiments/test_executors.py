"""Where the cells of a comparison are computed: the same records from a Ray cluster, also when a worker is killed."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from test_cli import data, tiny_base  # noqa: F401

from bayeslora.experiments.comparison import Cell, Predictions, Results
from bayeslora.experiments.comparison.cells import Outcome
from bayeslora.experiments.comparison.config import CompareConfig, ProtocolConfig, RowConfig
from bayeslora.experiments.comparison.executors import Executor, RayExecutor
from bayeslora.experiments.comparison.items import ComparedItems
from bayeslora.experiments.comparison.planned_cells import PlannedCell
from bayeslora.experiments.comparison.runner import compare
from bayeslora.methods import Lora, TrainingResult
from bayeslora.methods.base import State
from bayeslora.runs.config import TaskConfig
from bayeslora.system.console import Progress
from bayeslora_cli.main import main


class KilledOnce(Lora):
    """Takes its process with it when it has trained, as the kernel does when memory ends; not where `marker` exists.

    Args:
        marker: File that says that it has happened.
        always: Whether it happens every time.
    """

    name = "killed_once"

    def __init__(self, marker: str = "", always: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.marker, self.always = marker, always

    def fit_posterior(self, model: PeftModel, training: TrainingResult) -> State:
        if self.always or not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit_posterior(model, training)


def written(path: Path, base: Path, data: Path, marker: Path) -> Path:  # noqa: F811
    content = {
        "model": {"name": str(base), "device": "cpu"},
        "tasks": {"plants": {"name": str(data)}},
        "adapter": {"r": 2, "last_layers": 2},
        "rows": {
            "lora": {"method": {"class_path": "Lora"}, "temperature": True},
            "killed once": {
                "method": {"class_path": "test_executors.KilledOnce", "init_args": {"marker": str(marker)}},
                "learning_rates": [0.02],
            },
        },
        # A warm cache of the trunk has other roundings than a cold one, and workers have theirs.
        "train": {"max_steps": 2, "batch_size": 4, "cache_trunk": False},
        "learning_rates": [0.0001, 0.05],
        "seeds": [0],
        "protocol": {"further_rates": 0, "choose_epochs": False, "length_powers": [], "base_rows": False},
        "num_samples": 2,
        "cost_examples": 2,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of two CPUs on this machine, whose workers can import these tests."""
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


# --- which cell when, with outcomes made up ---------------------------------------------------------------------------


class Scripted(Executor):
    """Two planned cells at a time; the last that was submitted ends first, and some fail."""

    device, slots = "nothing", 2
    failing: tuple[str, ...] = ()

    def __init__(self, config: CompareConfig, output: Path, items: ComparedItems):
        self.items, self.running, self.log = items, list[PlannedCell](), list[str]()
        Scripted.last = self

    def submit(self, planned: PlannedCell) -> None:
        self.running.append(planned)
        assert len(self.running) <= self.slots
        self.log.append(f"+ {planned.title} {planned.stage} {planned.learning_rate:g} {planned.seed}")

    def next(self) -> Outcome:
        planned = self.running.pop()
        self.log.append(f"- {planned.title} {planned.stage} {planned.learning_rate:g} {planned.seed}")
        if planned.stage in self.failing:
            return Outcome.failed(planned, RuntimeError("no luck"))
        return Outcome(planned=planned, cells=[self.cell(planned)], scores="fine", seconds=1.0)

    def close(self) -> None:
        assert not self.running

    def cell(self, planned: PlannedCell) -> Cell:
        # The higher the rate the better on dev.
        splits = self.items.splits[planned.task]
        parts = {"dev": splits.dev} if planned.stage == "selection" else {"dev": splits.dev, "test": splits.test}
        right = 0.4 + planned.learning_rate
        rows = {
            name: [[right if n == item.label else (1 - right) / 2 for n in range(3)] for item in items]
            for name, items in parts.items()
        }
        return Cell(
            task=planned.task,
            method=planned.title,
            seed=planned.seed,
            learning_rate=planned.learning_rate,
            stage=planned.stage,
            num_samples=0,
            train_seconds=1.0,
            predict_seconds=1.0,
            trainable_parameters=1,
            predictions={name: Predictions(part, [0.0] * len(part)) for name, part in rows.items()},
        )


@pytest.fixture
def small(data: Path) -> CompareConfig:  # noqa: F811
    return CompareConfig(
        tasks={"plants": TaskConfig(name=str(data))},
        rows={"chosen": RowConfig(Lora(), learning_rates=[0.1, 0.3, 0.2]), "fixed": RowConfig(Lora())},
        learning_rates=[1e-3],
        protocol=ProtocolConfig.plain(),
        seeds=[0, 1],
    )


def test_a_final_cell_waits_for_the_selection_of_its_row_alone_and_takes_its_best_rate(small, tmp_path):
    results = compare(small, tmp_path, {}, Scripted)
    log = Scripted.last.log
    assert log[:2] == ["+ chosen selection 0.1 0", "+ chosen selection 0.3 0"]
    # The other row has no selection and goes on meanwhile.
    assert "+ fixed final 0.001 0" in log[: log.index("- chosen selection 0.1 0")]
    ended = [index for index, line in enumerate(log) if line.startswith("- chosen selection")]
    begun = [index for index, line in enumerate(log) if line.startswith("+ chosen final")]
    assert len(ended) == 3 and max(ended) < min(begun)
    assert {cell.learning_rate for cell in results.cells("final", method="chosen")} == {0.3}
    assert len(results.cells("final")) == 4


def test_failed_cells_cost_themselves_and_what_waits_for_them(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "failing", ("selection",))
    with pytest.raises(RuntimeError, match=r"5 cells failed: .*no luck.*no selection cell of 'chosen'"):
        compare(small, tmp_path, {}, Scripted)
    assert len(Results.read(tmp_path / "results.jsonl").cells("final", method="fixed")) == 2
    monkeypatch.setattr(Scripted, "failing", ())
    assert len(compare(small, tmp_path, {}, Scripted).cells()) == 7
    assert not any("fixed" in line for line in Scripted.last.log)


def test_the_time_left_is_that_of_all_workers_together(capsys):
    now = [0.0]
    progress = Progress("compare", 10, "cells", clock=lambda: now[0])
    progress.skip()
    # Two workers: four cells of 10 minutes each in 20 minutes.
    for minutes in (600, 600, 1200, 1200):
        now[0] = minutes
        progress.ended("cell: fine", 600)
    assert capsys.readouterr().err.splitlines()[-1] == "[5/10] cell: fine  (10 min; about 25 min left)"


# --- a cluster --------------------------------------------------------------------------------------------------------


def same_numbers(one: Cell, other: Cell) -> bool:
    return (one.predictions, one.details, one.history) == (other.predictions, other.details, other.history)


def test_a_cluster_gives_the_same_records_and_runs_the_cell_of_a_killed_worker_again(
    cluster,
    tmp_path,
    tiny_base,  # noqa: F811
    data,  # noqa: F811
):
    marker = tmp_path / "was killed"
    config = written(tmp_path / "compare.yaml", tiny_base, data, marker)
    command = ["compare", "--config", str(config)]
    main([*command, "--output_dir", str(tmp_path / "ray"), "--executor", "ray"])
    assert marker.exists()
    found = Results.read(tmp_path / "ray" / "results.jsonl")
    main([*command, "--output_dir", str(tmp_path / "local")])
    expected = {cell.key: cell for cell in Results.read(tmp_path / "local" / "results.jsonl").cells()}
    assert len(expected) == 5 and {cell.key for cell in found.cells()} == set(expected)
    for cell in found.cells():
        assert same_numbers(cell, expected[cell.key]), cell.key
    assert "ray: 1 CPUs" in found.header.device
    # What is there is not computed again, wherever it came from.
    before = (tmp_path / "ray" / "results.jsonl").read_bytes()
    main([*command, "--output_dir", str(tmp_path / "ray")])
    assert (tmp_path / "ray" / "results.jsonl").read_bytes() == before


def test_a_cell_that_fits_nowhere_is_refused_at_once(cluster, small, tmp_path):
    with pytest.raises(
        ValueError, match=r"no node of the Ray cluster has them \(there are nodes with 2 CPUs and 0 GPUs"
    ):
        RayExecutor(small, tmp_path, ComparedItems(small), cpus=3)


def test_without_ray_the_extra_is_named(monkeypatch, small, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"bayeslora\[ray\]"):
        RayExecutor(small, tmp_path, ComparedItems(small))
