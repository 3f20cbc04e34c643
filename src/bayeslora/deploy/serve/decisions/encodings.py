"""Compressed bodies: what is decoded is bounded, not only what is sent."""

from __future__ import annotations

import zlib
from importlib import import_module
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bayeslora.deploy.serve.errors import Refused


class DecodedBody:
    """Middleware that decodes gzip and zstd; it stands behind `BoundedBody`, which has the whole body.

    Args:
        app: What is served.
        max_bytes: Of a decoded body; more is 413.
    """

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        encoding = Headers(scope=scope).get("content-encoding", "").strip().lower() if scope["type"] == "http" else ""
        if encoding in ("", "identity"):
            return await self.app(scope, receive, send)
        message = await receive()
        body = decoded(message.get("body", b""), encoding, self.max_bytes)
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return first.pop() if first else await receive()

        return await self.app(scope, again, send)


def decoded(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The bytes that a compressed body holds; no more than `max_bytes` of them are ever made.

    Raises:
        Refused: It is too large (413), damaged (422), or of an encoding that is not known here (415).
    """
    decoder = _decoder(encoding)
    try:
        out: bytes = decoder.decompress(body, max_bytes + 1)
    except Exception as error:  # zlib.error, ZstdError: each library has its own.
        raise Refused(422, "damaged_body", f"expected a body in {encoding}, but {error}; send it again.") from error
    if len(out) > max_bytes:
        text = f"expected a body of at most {max_bytes} bytes when decoded, got more; send shorter states."
        raise Refused(413, "body_too_large", text)
    if not decoder.eof:
        raise Refused(
            422, "damaged_body", f"expected a whole body in {encoding}, but its end is missing; send it again."
        )
    return out


def _decoder(encoding: str) -> Any:
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(31)
    for module in ("compression.zstd", "backports.zstd") if encoding == "zstd" else ():
        try:
            return import_module(module).ZstdDecompressor()
        except ModuleNotFoundError:
            continue
    remedy = 'pip install "bayeslora[serve]" on the server for zstd' if encoding == "zstd" else "use gzip or zstd"
    came = f"expected a body in gzip, zstd or as it is, got Content-Encoding {encoding[:40]!r}"
    text = f"{came}; {remedy}, or send it plain."
    raise Refused(415, "unknown_encoding", text, headers={"Accept-Encoding": "gzip"})
