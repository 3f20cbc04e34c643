"""Cells as tasks of a Ray cluster."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bayeslora.experiments.comparison.executors.base import Executor

if TYPE_CHECKING:
    from bayeslora.experiments.comparison.cells import CellComputer, Outcome
    from bayeslora.experiments.comparison.config import CompareConfig
    from bayeslora.experiments.comparison.items import ComparedItems
    from bayeslora.experiments.comparison.planned_cells import PlannedCell

RETRIES = 3
"""How often a cell whose worker or node died is run again before it counts as failed."""


class RayExecutor(Executor):
    """Computes each cell as a task of a Ray cluster; a cell whose worker died is run again.

    Every node needs the same packages, base model, data files and, for the runs' adapters and checkpoints, the output
    folder at the same path. Only this process writes the results file.

    Args:
        config: The comparison.
        output: Its folder.
        items: What is trained on and predicted.
        address: Of the cluster: "auto" is the one this machine belongs to, "host:6379" or "ray://host:10001" another,
            "local" starts one on this machine that ends with the comparison. A Ray that this process has joined
            already is used as it is.
        cpus: CPUs of a cell, and its threads.
        gpus: GPUs of a cell; a part of one lets several cells share it.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: There is no cluster at `address`.
        RuntimeError: Ray cannot be joined or started.
        ValueError: No node of the cluster has the CPUs and GPUs of one cell.
    """

    name = "ray"
    options: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "address": (
            "auto",
            'Ray cluster: "auto" (the one of this machine), host:6379, ray://host:10001, or "local" (start one).',
        ),
        "cpus": (1.0, "CPUs of a cell, and its threads."),
        "gpus": (0.0, "GPUs of a cell; may be a part of one."),
    }

    def __init__(
        self,
        config: CompareConfig,
        output: Path,
        items: ComparedItems,
        address: str = "auto",
        cpus: float = 1,
        gpus: float = 0,
    ):
        self._ray = _import_ray()
        self._cpus, self._gpus = cpus, gpus
        self._joined_here = not self._ray.is_initialized()
        if self._joined_here:
            _join(self._ray, address)
        try:
            self._check_room()
        except ValueError:
            self.close()
            raise
        task = self._ray.remote(_attempt)
        self._task = task.options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False)
        # In a tuple Ray hands on the reference, so that a worker fetches the comparison once and not with each cell.
        self._comparison = (uuid.uuid4().hex, self._ray.put((config, output.absolute(), items)), os.getcwd())
        self._running: dict[Any, PlannedCell] = {}

    @property
    def device(self) -> str:
        """The resources of a cell."""
        return f"ray: {self._cpus:g} CPUs and {self._gpus:g} GPUs for each cell"

    @property
    def slots(self) -> int:
        """Twice what fits into the cluster now: no worker waits for this process, and an autoscaler sees the demand."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return max(1, 2 * sum(self._room(node) for node in nodes))

    def submit(self, planned: PlannedCell) -> None:
        """Start a task."""
        self._running[self._task.remote(self._comparison, planned)] = planned

    def next(self) -> Outcome:
        """The outcome of the task that ends first; a failed one where Ray has given it up."""
        from bayeslora.experiments.comparison.cells import Outcome

        (reference,), _ = self._ray.wait(list(self._running), num_returns=1)
        planned = self._running.pop(reference)
        try:
            outcome: Outcome = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Outcome.failed(planned, error)
        return outcome

    def close(self) -> None:
        """Stop the tasks that run, and leave the cluster."""
        for reference in getattr(self, "_running", ()):
            self._ray.cancel(reference, force=True)
        if self._joined_here:
            self._ray.shutdown()

    def _check_room(self) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(self._room(node) for node in nodes):
            have = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise ValueError(
                f"a cell needs {self._cpus:g} CPUs and {self._gpus:g} GPUs, and no node of the Ray cluster has them "
                f"(there are nodes with {have}); set --ray_cpus and --ray_gpus."
            )

    def _room(self, node: Mapping[str, float]) -> int:
        """How many cells a node holds."""
        wanted = {"CPU": self._cpus, "GPU": self._gpus}
        return min((int(node.get(name, 0) / count) for name, count in wanted.items() if count), default=1)


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ImportError('--executor ray needs Ray: pip install "bayeslora[ray]"') from error
    return ray


def _join(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    except ConnectionError as error:
        raise ConnectionError(
            f"there is no Ray cluster at {address!r}; start one by `ray start --head`, name another by --ray_address, "
            "or use this machine alone: --ray_address local."
        ) from error
    # Ray raises a bare Exception where its own processes take too long to start.
    except Exception as error:
        raise RuntimeError(f"Ray could not be joined or started at {address!r}: {error}") from error


_computers: dict[str, CellComputer] = {}
"""In a worker: that of the comparison under way, whose cells share what the frozen layers computed."""


def _attempt(comparison: tuple[str, Any, str], planned: PlannedCell) -> Outcome:
    """A task: the outcome of a planned cell."""
    from bayeslora.experiments.comparison.cells import CellComputer

    key, reference, folder = comparison
    if key not in _computers:
        _computers.clear()
        # Paths in the config may be relative.
        if os.path.isdir(folder):
            os.chdir(folder)
        _computers[key] = CellComputer(*_import_ray().get(reference))
    return _computers[key].attempt(planned)
