"""Who may ask: a key that the client sends, compared with the server's."""

from __future__ import annotations

import hmac
import os

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from bayeslora.deploy.serve.errors import Refused

_OPEN = ("/healthz", "/readyz")


def key_of_environment(variable: str | None) -> str | None:
    """The key in an environment variable; None where no variable is named.

    Raises:
        ValueError: The variable is not set, or empty.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key:
        raise ValueError(
            f"api_key names the environment variable {variable}, which is not set; put the key into it before the "
            "server is started (the key itself does not belong on a command line)."
        )
    return key


class RequireKey:
    """Middleware that refuses requests without the key (401), as Authorization: Bearer, x-api-key or x-goog-api-key.

    Args:
        app: What is served.
        key: The key; None lets everybody in.
    """

    def __init__(self, app: ASGIApp, key: str | None):
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and self.key is not None and scope["path"] not in _OPEN:
            self._check(Headers(scope=scope))
        await self.app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        assert self.key is not None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        sent = bearer.strip() if scheme.lower() == "bearer" else ""
        sent = sent or headers.get("x-api-key") or headers.get("x-goog-api-key") or ""
        # Headers are bytes, which are read as Latin-1.
        if not hmac.compare_digest(sent.encode("latin-1"), self.key.encode()):
            came = "another one" if sent else "none"
            text = f"expected the server's API key, got {came}; send it as Authorization: Bearer <key>."
            raise Refused(401, "invalid_api_key", text, headers={"WWW-Authenticate": "Bearer"})
