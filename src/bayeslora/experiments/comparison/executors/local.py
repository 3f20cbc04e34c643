"""One cell after the other in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora.experiments.comparison.executors.base import Executor

if TYPE_CHECKING:
    from bayeslora.experiments.comparison.cells import Outcome
    from bayeslora.experiments.comparison.config import CompareConfig
    from bayeslora.experiments.comparison.items import ComparedItems
    from bayeslora.experiments.comparison.planned_cells import PlannedCell
    from bayeslora.runs.config import ModelConfig


class LocalExecutor(Executor):
    """Computes a cell when its outcome is asked for."""

    name = "local"
    slots = 1

    def __init__(self, config: CompareConfig, output: Path, items: ComparedItems):
        from bayeslora.experiments.comparison.cells import CellComputer

        self._computer = CellComputer(config, output, items)
        self._submitted: list[PlannedCell] = []

    @property
    def device(self) -> str:
        """The GPU, or the number of CPU threads."""
        return device_in_words(self._computer.config.model)

    def submit(self, planned: PlannedCell) -> None:
        """Note it."""
        self._submitted.append(planned)

    def next(self) -> Outcome:
        """Compute the first that was submitted."""
        return self._computer.attempt(self._submitted.pop(0))

    def close(self) -> None:
        """Forget what was not computed."""
        self._submitted.clear()


def device_in_words(model: ModelConfig) -> str:
    """The device that a model of this config runs on, for the header of a results file.

    Raises:
        ValueError: It is not here.
    """
    import torch

    from bayeslora.system.devices import choose_device

    if choose_device(model.device).type == "cuda":
        return f"cuda: {torch.cuda.get_device_name()}"
    return f"cpu: {torch.get_num_threads()} threads"
