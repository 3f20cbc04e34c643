"""What whoever runs a server asks it: whether it lives, whether it works, and its numbers."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from bayeslora.deploy.serve.metrics import Metrics


def add_operations(app: FastAPI, metrics: Metrics, running: Callable[[], bool], work: str) -> None:
    """The paths /healthz, /readyz and /metrics.

    Args:
        app: What gets them.
        metrics: The numbers.
        running: Whether requests are being answered.
        work: What that is, for the description, such as "items are being predicted".
    """

    @app.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary=f"Whether {work}", responses={503: {"description": "Not now."}})
    async def readyz() -> Response:
        ready = running()
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @app.get("/metrics", summary="Prometheus' text format", response_class=Response)
    async def counters() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)
