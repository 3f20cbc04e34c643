"""Requests are answered one after the other in one thread, which owns the model; a bounded number of them waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from bayeslora.deploy.serve.errors import Refused

__all__ = ["Worker"]

Result = TypeVar("Result")


class Worker:
    """The thread, and its queue.

    Args:
        most: Requests that may wait.
    """

    def __init__(self, most: int):
        self._most, self._waiting, self._open = most, 0, True
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bayeslora-model")

    @property
    def queued(self) -> int:
        """Requests that are not answered yet."""
        return self._waiting

    @property
    def running(self) -> bool:
        """Whether requests are taken."""
        return self._open

    async def submit(self, compute: Callable[[], Result]) -> Result:
        """What `compute` gives in the thread; if the caller is cancelled before its turn, it never runs.

        Raises:
            Refused: The queue is full (503).
        """
        if self._waiting >= self._most or not self._open:
            text = f"expected at most {self._most} waiting requests, but so many wait; try again in a second."
            raise Refused(503, "queue_full", text, headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, compute)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """Take no more, and wait for the thread."""
        self._open = False
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)
