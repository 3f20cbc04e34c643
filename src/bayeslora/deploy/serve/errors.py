"""Every refusal and failure as JSON: what was expected, what came, the remedy; never a traceback."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bayeslora.system.log import logger

_SHOWN = 5


class Refused(Exception):
    """An answer that is not 200.

    Args:
        status: HTTP status.
        code: Name of the reason.
        message: What was expected, what came, and the remedy.
        field: Where in the body.
        headers: Of the answer.
        path: The same place as its parts, where a client wants them.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        path: Sequence[str | int] = (),
    ):
        # What came is quoted in it, and need not be text that can be sent back.
        message = message.encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.status = status
        self.content: dict[str, Any] = {
            "status": status,
            "code": code,
            "message": message,
            **({"field": field} if field else {}),
        }
        self.headers = headers
        self.path = tuple(path)

    def response(self) -> Response:
        """The answer."""
        return JSONResponse({"error": self.content}, self.status, self.headers)


class CatchErrors:
    """Middleware: a refusal becomes its answer; any other error is logged with an id and answered 500 with that id.

    Args:
        app: What is served.
        render: The answer of a refusal in a scope.
    """

    def __init__(
        self, app: ASGIApp, render: Callable[[Scope, Refused], Response] = lambda scope, refusal: refusal.response()
    ):
        self.app, self.render = app, render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Refused as refusal:
            await self.render(scope, refusal)(scope, receive, send)
        except Exception as error:
            identifier = uuid.uuid4().hex[:12]
            logger.exception("error %s in %s %s", identifier, scope.get("method"), scope.get("path"))
            if started:
                raise
            await self.render(scope, _failure(identifier, error))(scope, receive, send)
        return None


def _failure(identifier: str, error: Exception) -> Refused:
    message = f"the server failed ({type(error).__name__}); its log says more under the id {identifier}."
    failure = Refused(500, "internal_error", message)
    failure.content["id"] = identifier
    return failure


def add_error_handlers(app: FastAPI) -> None:
    """Give the errors that FastAPI finds by itself the same form."""
    app.add_exception_handler(RequestValidationError, _of_wrong_body)
    app.add_exception_handler(HTTPException, _of_http)


async def _of_wrong_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if "application/json" not in request.headers.get("content-type", ""):
        came = request.headers.get("content-type", "no content type")
        return Refused(
            415, "not_json", f"expected the header Content-Type: application/json, got {came[:100]}; send JSON with it."
        ).response()
    problems = [_described(entry) for entry in error.errors()]
    message = "; ".join(message for _, message in problems[:_SHOWN])
    if len(problems) > _SHOWN:
        message += f"; and {len(problems) - _SHOWN} more"
    return Refused(
        422, "wrong_body", f"{message}. The fields are described at /openapi.json.", field=problems[0][0]
    ).response()


def _described(problem: Mapping[str, Any]) -> tuple[str, str]:
    """Where, and what was expected and what came."""
    field = _path(problem["loc"])
    kind, came = problem["type"], repr(problem.get("input"))
    came = came if len(came) <= 80 else came[:77] + "..."
    if kind == "json_invalid":
        reason = problem.get("ctx", {}).get("error", "")
        return "body", f"expected JSON, but it is malformed at character {problem['loc'][-1]}: {reason}"
    if kind == "missing":
        return field, f"{field} is missing; add it"
    if kind == "extra_forbidden":
        return field, f"{field} is no field that is known; correct its name or leave it out"
    expected = re.sub("^(Value error, |Input should (be|have) )", "", problem["msg"])
    return field, f"{field}: expected {expected}, got {came}; correct it"


def _path(location: Sequence[str | int]) -> str:
    """("body", "items", 0, "choices") as items[0].choices."""
    parts = location[1:] if location[:1] == ("body",) else location
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return path.lstrip(".") or "body"


_REMEDIES = {
    400: "expected a body of JSON in UTF-8, but it cannot be read; correct it.",
    404: "there is no {path}; expected /, /v1/predict, /v1/model, /healthz, /readyz, /metrics or /openapi.json.",
    405: "{path} does not take {method}; POST to /v1/predict and GET everything else.",
}


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = _REMEDIES.get(error.status_code, str(error.detail))
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = text.format(path=request.url.path[:200], method=request.method)
    return Refused(error.status_code, code, message, headers=error.headers).response()
