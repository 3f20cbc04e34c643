"""Where the cells of a comparison are computed: the same records from a Ray cluster, also when a worker is killed."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from peft import PeftModel

from bayeslora.cli import main
from bayeslora.comparison import Cell, Results
from bayeslora.comparison.cells import Outcome
from bayeslora.comparison.config import CompareConfig, RowConfig
from bayeslora.comparison.items import ComparedItems
from bayeslora.comparison.places import Place, is_ready, wanted_places
from bayeslora.comparison.runner import _Progress
from bayeslora.methods import Lora, Training
from bayeslora.methods.base import State
from test_cli import data, tiny_base  # noqa: F401


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

    def finish(self, model: PeftModel, training: Training) -> State:
        if self.always or not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().finish(model, training)


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
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), before.get("PYTHONPATH", "")])
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


def same_numbers(one: Cell, other: Cell) -> bool:
    return (one.predictions, one.details, one.history) == (other.predictions, other.details, other.history)


def test_a_cluster_gives_the_same_records_and_runs_the_cell_of_a_killed_worker_again(
    cluster,
    tmp_path,
    tiny_base,
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
