"""Items of concurrent requests share forwards, which run one after the other in one thread that owns the model.

An item is whatever the model answers at once: one of `bayeslora predict`, or a whole request to a decision model.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from bayeslora.deploy.serve.errors import Refused

Item = TypeVar("Item")
Record = TypeVar("Record")


@dataclass(eq=False)
class _Job(Generic[Item, Record]):
    """The items of one request."""

    items: Sequence[Item]
    kind: Hashable
    arrived: float
    done: asyncio.Future[list[Record]]
    records: dict[int, Record] = field(default_factory=dict)

    def receive(self, index: int, record: Record) -> None:
        self.records[index] = record
        if len(self.records) == len(self.items) and not self.done.done():
            self.done.set_result([self.records[number] for number in range(len(self.items))])

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True)
class _Place(Generic[Item, Record]):
    """One item in the queue."""

    job: _Job[Item, Record]
    index: int

    @property
    def item(self) -> Item:
        return self.job.items[self.index]


class Batcher(Generic[Item, Record]):
    """A bounded queue of items and the task that takes batches from it. `start` and `close` it in its event loop.

    A batch is the oldest item and the next ones of the same kind. It waits until it is full, but not longer than
    `max_wait` from the oldest item's arrival; while the thread is busy, items gather without waiting.

    Args:
        compute: Records of a batch of items of one kind; called in the thread.
        batch_size: Items of a batch at most; None: as many as fit.
        size: How large an item is.
        room: How large a batch is at most; a larger item is a batch by itself.
        max_wait: Seconds.
        queue_items: Items that may wait.
        order: Of the items of a request, as their indices.
        apart: Requests never share a batch.
        unit: What an item is called.
        observe: Called with the items and the seconds of each batch.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item], Any], list[Record]],
        *,
        batch_size: int | None,
        max_wait: float,
        queue_items: int,
        size: Callable[[Item], int] = lambda item: 0,
        room: int = 0,
        order: Callable[[Sequence[Item]], list[int]] = lambda items: list(range(len(items))),
        apart: bool = False,
        unit: str = "items",
        observe: Callable[[int, float], None] = lambda items, seconds: None,
    ):
        self._compute = compute
        self._batch_size = batch_size
        self._size, self._room, self._order, self._unit = size, room, order, unit
        self._max_wait = max_wait
        self._queue_items = queue_items
        self._apart = apart
        self._observe = observe
        self._queue: deque[_Place[Item, Record]] = deque()
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bayeslora-model")
        self._task: asyncio.Task[None] | None = None
        self._seconds_per_item = 0.0

    @property
    def queued(self) -> int:
        """Items that wait."""
        return len(self._queue)

    @property
    def running(self) -> bool:
        """Whether batches are being taken."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin to take batches."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Take no more batches, and wait for the thread; what is not answered yet is refused (503)."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for place in self._queue:
            place.job.fail(_shutting_down())
        self._queue.clear()
        await asyncio.to_thread(self._thread.shutdown)

    async def submit(self, items: Sequence[Item], kind: Hashable = None) -> list[Record]:
        """Records of `items`, in their order. If the caller is cancelled, its items leave the queue.

        Raises:
            Refused: The queue is full (503), or the model cannot read an item (422).
        """
        self.check_room(len(items))
        loop = asyncio.get_running_loop()
        job: _Job[Item, Record] = _Job(items, kind, time.monotonic(), loop.create_future())
        self._queue.extend(_Place(job, index) for index in self._order(items))
        self._arrival.set()
        try:
            return await job.done
        finally:
            self._drop(job)

    def check_room(self, items: int) -> None:
        """Whether so many more may wait.

        Raises:
            Refused: The queue is full (503).
        """
        if len(self._queue) + items <= self._queue_items:
            return
        seconds = max(1, round(self._seconds_per_item * len(self._queue)))
        text = (
            f"expected at most {self._queue_items} waiting {self._unit}, but {len(self._queue)} wait and {items} came; "
            f"try again in {seconds} s."
        )
        raise Refused(503, "queue_full", text, headers={"Retry-After": str(seconds)})

    def _drop(self, job: _Job[Item, Record]) -> None:
        if any(place.job is job for place in self._queue):
            self._queue = deque(place for place in self._queue if place.job is not job)

    async def _work(self) -> None:
        while True:
            await self._run(await self._gather())

    async def _gather(self) -> list[_Place[Item, Record]]:
        """The next batch, taken from the queue."""
        while True:
            batch, full = self._next()
            if full or (batch and self._apart):
                break
            left = None if not batch else batch[0].job.arrived + self._max_wait - time.monotonic()
            if left is not None and left <= 0:
                break
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except TimeoutError:
                continue
        taken = set(map(id, batch))
        self._queue = deque(place for place in self._queue if id(place) not in taken)
        return batch

    def _next(self) -> tuple[list[_Place[Item, Record]], bool]:
        """The oldest item, and the next ones that can share its forward; and whether no other one would fit."""
        batch: list[_Place[Item, Record]] = []
        left = self._room
        for place in self._fitting():
            left -= self._size(place.item)
            if batch and (left < 0 or len(batch) == self._batch_size):
                return batch, True
            batch.append(place)
        return batch, bool(batch) and (left < 0 or len(batch) == self._batch_size)

    def _fitting(self) -> Iterable[_Place[Item, Record]]:
        for place in self._queue:
            first = self._queue[0].job
            if place.job is first or (not self._apart and place.job.kind == first.kind):
                yield place

    async def _run(self, batch: list[_Place[Item, Record]]) -> None:
        """Compute a batch; if that fails, each request by itself, so that one cannot fail another."""
        items, kind = [place.item for place in batch], batch[0].job.kind
        started = time.perf_counter()
        try:
            loop = asyncio.get_running_loop()
            records = await loop.run_in_executor(self._thread, self._compute, items, kind)
        except asyncio.CancelledError:
            for place in batch:
                place.job.fail(_shutting_down())
            raise
        except Exception as error:
            jobs = list(dict.fromkeys(place.job for place in batch))
            if len(jobs) == 1:
                jobs[0].fail(error)
            else:
                for job in jobs:
                    await self._run([place for place in batch if place.job is job])
            return
        seconds = time.perf_counter() - started
        self._seconds_per_item = seconds / len(batch)
        self._observe(len(batch), seconds)
        for place, record in zip(batch, records, strict=True):
            place.job.receive(place.index, record)


def _shutting_down() -> Refused:
    return Refused(503, "shutting_down", "the server is shutting down; ask another one, or later.")
