"""The app: its paths, and what stands before them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from bayeslora import __version__
from bayeslora.deploy.serve.batching import Batcher
from bayeslora.deploy.serve.bounds import BoundedBody, checked_items
from bayeslora.deploy.serve.errors import CatchErrors, add_error_handlers
from bayeslora.deploy.serve.in_time import in_time
from bayeslora.deploy.serve.keys import RequireKey, key_of_environment
from bayeslora.deploy.serve.metrics import CountRequests, Metrics
from bayeslora.deploy.serve.operations import add_operations
from bayeslora.deploy.serve.page import page, page_policy
from bayeslora.deploy.serve.predictor import Predictor
from bayeslora.deploy.serve.schemas import ErrorResponse, ModelResponse, PredictRequest, PredictResponse
from bayeslora.deploy.serve.security import SecurityHeaders
from bayeslora.deploy.serve.settings import Settings
from bayeslora.runs import Run
from bayeslora.runs.prediction import by_length

_PATHS = ("/", "/v1/predict", "/v1/model", "/healthz", "/readyz", "/metrics", "/openapi.json")
_REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"model": ErrorResponse, "description": "The body came too slowly."},
    413: {"model": ErrorResponse, "description": "The body is too large."},
    415: {"model": ErrorResponse, "description": "The content type is not application/json."},
    422: {"model": ErrorResponse, "description": "A field is wrong or exceeds a bound."},
    500: {"model": ErrorResponse, "description": "The server failed; its log says more under the id."},
    503: {"model": ErrorResponse, "description": "The queue is full; Retry-After says when to come back (seconds)."},
    504: {"model": ErrorResponse, "description": "The request took too long."},
}


def create_app(run: Run, name: str, settings: Settings | None = None, *, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """An ASGI app that serves `run`.

    Args:
        run: What `bayeslora.load_run` returned; its model belongs to the app from now on.
        name: What the run is called: its folder or Hub id.
        settings: See `Settings`; with a coverage the dev split is predicted now.
        hosts: Host headers that are served.

    Raises:
        ValueError: The prediction sets cannot be calibrated.
    """
    settings = settings or Settings()
    predictor, metrics = Predictor(run, settings), Metrics()
    batcher = Batcher(
        predictor,
        batch_size=predictor.batch_size,
        max_wait=settings.max_wait_ms / 1000,
        queue_items=settings.queue_items,
        order=by_length,
        apart=predictor.draws_depend_on_batch,
        observe=metrics.observe_batch,
    )
    metrics.watch_queue(lambda: batcher.queued)
    described = predictor.described(name)
    html, policy = page(described), page_policy()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.close()

    app = FastAPI(
        title="bayeslora",
        description="Multiple-choice predictions with uncertainty, by one trained run.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # Both pages load scripts from the network.
        redoc_url=None,
        middleware=[
            Middleware(CountRequests, metrics=metrics, paths=_PATHS),
            Middleware(SecurityHeaders),
            Middleware(CatchErrors),
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            Middleware(RequireKey, key=key_of_environment(settings.api_key)),
            Middleware(BoundedBody, max_bytes=settings.max_body_bytes, timeout=settings.timeout),
        ],
    )
    add_error_handlers(app)

    @app.post(
        "/v1/predict",
        response_model=PredictResponse,
        response_model_exclude_unset=True,
        responses=_REFUSALS,
        summary="Probabilities, entropy and mutual information (nats) of items",
    )
    async def predict(body: PredictRequest, request: Request) -> Any:
        draws = predictor.draws(body.num_samples, body.seed)
        items = checked_items(body.items, settings, choices=predictor.choices, classes=predictor.classes)
        records = await in_time(batcher.submit(items, draws), request, settings.timeout)
        metrics.observe_records(records)
        return {"predictions": records, **draws._asdict()}

    @app.get("/v1/model", response_model=ModelResponse, summary="The run, its scores and the bounds of a request")
    async def model() -> Any:
        return described

    add_operations(app, metrics, lambda: batcher.running, "items are being predicted")

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    return app
