"""Cloudflare's Clef: System One's request, its answer in the envelope of that API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from bayeslora.deploy.serve.decisions.systemone import SystemOne
from bayeslora.deploy.serve.decisions.wire import Asked, refused
from bayeslora.deploy.serve.errors import Refused
from bayeslora.tasks.decisions import Answer


class Cloudflare(SystemOne):
    """System One in `{result, success, errors, messages}`; the path names the account and the model."""

    name = "cloudflare"
    wrong_body = 400
    prefix: ClassVar[str] = "/client/v4/accounts/"
    path: ClassVar[str] = "/client/v4/accounts/{account}/ai/run/{model:path}"

    def parse(self, body: Mapping[str, Any]) -> Asked:
        """As `Wire.parse`; whatever model it names, this one answers."""
        if body.get("images"):
            raise refused("expected a state in texts only, got images; this model reads none.", ("images",))
        return replace(super().parse(body), model=None)

    def answered(self, asked: Asked, answers: Mapping[str, Answer], model: str, tokens: int) -> dict[str, Any]:
        """As `Wire.answered`."""
        result = super().answered(asked, answers, model, tokens)
        return {"result": result, "success": True, "errors": [], "messages": []}

    def error(self, problem: Refused) -> dict[str, Any]:
        """`{result: null, success: false, errors: [{code, message}], messages: []}`, the status as the code."""
        place = ".".join(map(str, problem.path))
        message = f"{place}: {problem}" if place else str(problem)
        errors = [{"code": self.status(problem), "message": message}]
        return {"result": None, "success": False, "errors": errors, "messages": []}
