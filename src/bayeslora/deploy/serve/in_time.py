"""Work for a request ends with the request: when its time is over, or its client has gone away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from bayeslora.deploy.serve.errors import Refused

Result = TypeVar("Result")


async def in_time(work: Coroutine[Any, Any, Result], request: Request, seconds: float) -> Result:
    """What `work` gives; it is cancelled when the time is over or the client has gone away.

    Raises:
        Refused: The time is over (504).
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((task, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise Refused(499, "client_gone", "the client went away before the answer.")
        text = (
            f"expected an answer within {seconds:g} seconds; send fewer items or ask for fewer samples, or try later."
        )
        raise Refused(504, "timeout", text)
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
