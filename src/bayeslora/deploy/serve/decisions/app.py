"""The app of a decision model: the clients' paths, and what stands before them."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import Scope

from bayeslora import __version__
from bayeslora.deploy.serve.bounds import BoundedBody
from bayeslora.deploy.serve.decisions.answering import Answering
from bayeslora.deploy.serve.decisions.cloudflare import Cloudflare
from bayeslora.deploy.serve.decisions.encodings import DecodedBody
from bayeslora.deploy.serve.decisions.gemini import Gemini
from bayeslora.deploy.serve.decisions.openai import OpenAI
from bayeslora.deploy.serve.decisions.systemone import SystemOne
from bayeslora.deploy.serve.decisions.wire import Asked, Wire, refused
from bayeslora.deploy.serve.errors import CatchErrors, Refused
from bayeslora.deploy.serve.in_time import in_time
from bayeslora.deploy.serve.keys import RequireKey, key_of_environment
from bayeslora.deploy.serve.metrics import CountRequests, Metrics
from bayeslora.deploy.serve.operations import add_operations
from bayeslora.deploy.serve.page import page, page_policy
from bayeslora.deploy.serve.security import SecurityHeaders
from bayeslora.deploy.serve.settings import Settings
from bayeslora.runs.decisions import DecisionModel
from bayeslora.tasks import TaskError
from bayeslora.tasks.reading.unique_keys import read_json_text

ALIASES = ("jev-latest", "jev-preview", "bayeslora")
"""Names that every server answers to, beside its own."""

_SYSTEM_ONE = ("/v1/systemone", "/api/alpha/decisions")
_BY_SHAPE = ("/v1/decisions", "/v1beta/decisions")
_GOOGLE = "/v1beta/"
_PATHS = ("/", *_SYSTEM_ONE, *_BY_SHAPE, "/v1/models", "/healthz", "/readyz", "/metrics", "/openapi.json")


def create_decision_app(
    model: DecisionModel, name: str, settings: Settings | None = None, *, hosts: Sequence[str] = ("*",)
) -> FastAPI:
    """An ASGI app that answers typed questions.

    Args:
        model: It belongs to the app from now on.
        name: What it is called: its folder, or the base model.
        settings: See `Settings`.
        hosts: Host headers that are served.

    Raises:
        ValueError: The environment variable of the API key is not set.
    """
    settings = settings or Settings()
    key, metrics = key_of_environment(settings.api_key), Metrics()
    answering = Answering(model, settings, metrics.observe_batch)
    metrics.watch_queue(lambda: answering.batcher.queued)
    served = name.rstrip("/").rpartition("/")[2] or name

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        answering.start()
        yield
        await answering.close()

    app = FastAPI(
        title="bayeslora",
        description="Typed decisions with uncertainty, by one model.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        middleware=[
            Middleware(CountRequests, metrics=metrics, paths=_PATHS),
            Middleware(SecurityHeaders),
            Middleware(CatchErrors, render=_render),
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            Middleware(RequireKey, key=key),
            Middleware(BoundedBody, max_bytes=settings.max_body_bytes, timeout=settings.timeout),
            Middleware(DecodedBody, max_bytes=settings.max_body_bytes),
        ],
    )
    app.add_exception_handler(HTTPException, _no_such_path)

    async def decide(request: Request) -> Response:
        body = _json_object(await request.body())
        wire = request.scope["bayeslora.wire"] = _wire_of(request.url.path, body)
        asked = wire.parse(body)
        _check_model(asked, served)
        answers, tokens = await in_time(answering(asked), request, settings.timeout)
        metrics.observe_records(
            {"entropy": one.entropy, "mutual_information": one.mutual_information} for one in answers.values()
        )
        content = wire.answered(asked, answers, served, tokens)
        return JSONResponse(content, headers={"x-typesafe-request-id": uuid.uuid4().hex})

    for path in (*_SYSTEM_ONE, *_BY_SHAPE, Cloudflare.path):
        app.add_api_route(path, decide, methods=["POST"], summary="Answers to typed questions about a state")

    @app.get("/v1/models", summary="Names that requests may have")
    async def models() -> dict[str, Any]:
        return _models(served)

    html, policy = page(_described(model, served), "decisions"), page_policy("decisions")

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    add_operations(app, metrics, lambda: answering.batcher.running, "questions are being answered")

    return app


def _described(model: DecisionModel, served: str) -> dict[str, Any]:
    """What the page says of a model."""
    calibration = model.calibration
    return {
        "name": served,
        "base_model": model.config.model,
        "states": len(model.trained_states),
        "questions": {name: question.to_dict() for name, question in model.questions.items()},
        **{name: getattr(calibration, name, None) for name in ("alpha", "delta", "coverage")},
    }


def _wire_of(path: str, body: Mapping[str, Any]) -> Wire:
    """OpenAI asks a list, Gemini a map about an input, System One a map about a state."""
    if path.startswith(Cloudflare.prefix):
        return Cloudflare()
    if path in _SYSTEM_ONE:
        return SystemOne()
    questions = body.get("questions")
    if isinstance(questions, list):
        return OpenAI()
    if path.startswith(_GOOGLE) and "state" not in body:
        return Gemini()
    return Gemini() if "input" in body and isinstance(questions, Mapping) else SystemOne()


def _render(scope: Scope, problem: Refused) -> Response:
    """An error in the format of its client, as far as that is known."""
    wire: Wire | None = scope.get("bayeslora.wire")
    if wire is None:
        headers = dict(scope["headers"])
        google = (
            scope["path"].startswith(_GOOGLE)
            or b"x-goog-api-key" in headers
            or b"google-genai" in headers.get(b"user-agent", b"")
        )
        by_client: Wire = (
            Gemini() if google else OpenAI() if b"OpenAI" in headers.get(b"user-agent", b"") else SystemOne()
        )
        wire = by_client if scope["path"] in _BY_SHAPE else _wire_of(scope["path"], {})
    return wire.refusal(problem)


def _json_object(body: bytes) -> Mapping[str, Any]:
    """What a body says.

    Raises:
        Refused: It is no JSON object of texts that can be encoded, or names something twice (422).
    """
    try:
        content = read_json_text(body)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except TaskError as error:
        raise refused(str(error), (), "repeated_key") from error
    except (ValueError, RecursionError) as error:
        text = f"expected JSON in UTF-8 with finite numbers, but it cannot be read ({error}); correct it."
        raise refused(text, (), "json_invalid") from error
    if not isinstance(content, dict):
        raise refused(f"expected a JSON object, got {type(content).__name__}; send one.", (), "json_invalid")
    return content


def _check_model(asked: Asked, served: str) -> None:
    if asked.model is not None and str(asked.model).removeprefix("models/") not in (served, *ALIASES):
        others = ", ".join(ALIASES)
        name = str(asked.model)[:100]
        text = f"there is no model {name!r}; send {served} (also called {others}), or leave it out."
        raise Refused(404, "model_not_found", text, path=("model",))


def _models(served: str) -> dict[str, Any]:
    now = datetime.now(UTC)
    named = [served, *ALIASES]
    description = "Typed decisions with uncertainty, served by bayeslora."
    return {
        "models": [{"name": one, "description": description, "release_date": f"{now:%Y-%m-%d}"} for one in named],
        "object": "list",
        "data": [
            {"id": one, "object": "model", "created": int(now.timestamp()), "owned_by": "bayeslora"} for one in named
        ],
    }


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: f"there is no {request.url.path[:200]}; expected one of {', '.join(_PATHS)}."}
    text[405] = f"{request.url.path[:200]} does not take {request.method}."
    problem = Refused(
        error.status_code, "not_found", text.get(error.status_code, str(error.detail)), headers=error.headers
    )
    return _render(request.scope, problem)
