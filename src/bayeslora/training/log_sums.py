"""What a trainer logs as means over steps, kept through a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bayeslora.system.files import write_json
from bayeslora.system.reading import read_json

_NAME = "log_sums.json"


class LogSums:
    """Sums of scalars since the last log, and the number of steps in them."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def __bool__(self) -> bool:
        return bool(self._sums)

    def clear(self) -> None:
        """Begin anew."""
        self._sums, self._steps = {}, 0

    def begin_step(self) -> None:
        """Count one step."""
        self._steps += 1

    def add(self, **parts: Tensor) -> None:
        """Add scalars of a micro-batch, such as the loss (nats)."""
        for name, value in parts.items():
            value = value.detach().float()
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)).to(value.device) + value

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over the steps; `reduce` is the mean over processes."""
        return {name: value / max(1, self._steps) for name, value in self._reduced(reduce).items()}

    def share(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Have the mean of all processes in each of them, for `save` by one; all of them must call it."""
        if self._sums:
            self._sums = {name: torch.tensor(value) for name, value in self._reduced(reduce).items()}

    def save(self, checkpoint: str | Path) -> None:
        """Write them to the folder of a checkpoint."""
        sums = {name: value.item() for name, value in self._sums.items()}
        write_json(Path(checkpoint) / _NAME, {"steps": self._steps, "sums": sums})

    def load(self, checkpoint: str | Path) -> None:
        """Go on with those of a checkpoint; with none where it has none."""
        self.clear()
        path = Path(checkpoint) / _NAME
        if path.is_file():
            content = read_json(path)
            self._steps = int(content["steps"])
            self._sums = {name: torch.tensor(value) for name, value in content["sums"].items()}

    def _reduced(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        names = sorted(self._sums)
        return dict(zip(names, reduce(torch.stack([self._sums[name] for name in names])).tolist(), strict=True))
