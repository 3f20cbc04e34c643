"""How far a comparison is, in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["Progress"]

logger = logging.getLogger("bayeslora")


class Progress:
    """Logs each cell and an estimate of the time left, from how fast those so far were computed."""

    def __init__(self, total: int, log: Callable[..., None] = logger.info, clock: Callable[[], float] = time.monotonic):
        self.total, self.done, self.computed = total, 0, 0
        self.log, self.clock, self.started = log, clock, clock()

    def skip(self) -> None:
        """One cell was in the file."""
        self.done += 1

    def step(self, name: str, line: str, seconds: float = 0.0) -> None:
        """One cell has ended."""
        self.done += 1
        self.computed += 1
        left = (self.total - self.done) * (self.clock() - self.started) / self.computed
        self.log("[%d/%d] %s: %s  (%.0f s; about %s left)", self.done, self.total, name, line, seconds, _words(left))


def _words(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
