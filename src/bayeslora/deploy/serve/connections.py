"""Connections on which the client is slow: they end in time, and they never keep out those that are not."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_WAITING = 400
"""With the requests of a full queue (512), below the 1,024 files that many systems let a process open."""

_GRACE = 0.5
"""Seconds in which a request that was sent before the server was told to end may still come in."""

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _TimedConnection(H11Protocol):
    """A connection that counts as waiting while the server is not at work on a whole request of it.

    It waits from its beginning, and again once a request is answered: for a request's head and body, or for the client
    to read. The head has to arrive within `timeout` seconds (`BoundedBody` sees to the body, uvicorn to connections
    without a request after the first). Beyond `max_waiting` connections that wait, the one that has waited longest is
    closed: a client that sends its request at once never is that one.
    """

    waiting: dict[_TimedConnection, None]
    timeout: float
    max_waiting: int

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._await_head()
        self._count()

    def data_received(self, data: bytes) -> None:
        """A head that came whole meets its deadline; one that began has one."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_deadline()
        elif self._between_requests:
            self._await_head()
        self._count()

    def on_response_complete(self) -> None:
        """Wait for the next request, and for the client to read the answer to this one."""
        super().on_response_complete()
        self._count()

    def pause_writing(self) -> None:
        """The client does not read: wait for it."""
        super().pause_writing()
        self._count()

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._count()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count no more."""
        super().connection_lost(exc)
        self._stop_deadline()
        self.waiting.pop(self, None)

    def shutdown(self) -> None:
        """End once the request under way, or one that is just coming in, is answered."""
        self.loop.call_later(_GRACE, self._end)

    def _end(self) -> None:
        if self in self.connections:
            super().shutdown()

    @property
    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _count(self) -> None:
        """Enter the waiting connections or leave them."""
        if not (self._between_requests or self.cycle.more_body or self.flow.write_paused):
            self.waiting.pop(self, None)
        elif self not in self.waiting:
            self.waiting[self] = None
            if len(self.waiting) > self.max_waiting:
                longest = next(iter(self.waiting))
                del self.waiting[longest]
                longest.transport.abort()

    def _await_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.timeout, self._too_late)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_TOO_SLOW)
            self.transport.close()


def http_protocol(timeout: float, max_waiting: int = MAX_WAITING) -> type[asyncio.Protocol]:
    """What `uvicorn.Config` takes as `http`: HTTP/1.1 whose slow clients keep nobody out.

    Args:
        timeout: Seconds in which the head of a request has to arrive, else 408.
        max_waiting: Connections that may wait for their client.
    """
    bounds: dict[str, Any] = {"waiting": {}, "timeout": timeout, "max_waiting": max_waiting}
    return type("TimedConnection", (_TimedConnection,), bounds)
