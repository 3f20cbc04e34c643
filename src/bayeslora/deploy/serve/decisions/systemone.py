"""System One: `{model, state, questions: {id: question}}`, answered by id."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from bayeslora.deploy.serve.decisions.wire import Asked, Wire, asking, extensions, refused
from bayeslora.deploy.serve.errors import Refused
from bayeslora.tasks.decisions import Answer, parse_question
from bayeslora.tasks.decisions.questions import shown
from bayeslora.tasks.decisions.records import check_state

_TYPES = {401: "authentication_error", 403: "authentication_error", 404: "not_found", 408: "timeout", 504: "timeout"}


class SystemOne(Wire):
    """The format of TypeSafe's client and of those that took it over."""

    name = "systemone"

    def parse(self, body: Mapping[str, Any]) -> Asked:
        """As `Wire.parse`. Unknown fields are ignored; `x_extensions: false` asks for answers without `x_` fields."""
        for name in ("state", "questions"):
            if name not in body:
                raise refused(f"{name} is missing; add it.", (name,), "missing")
        asking((), lambda: check_state(body["state"]))
        questions = body["questions"]
        if not isinstance(questions, Mapping) or not questions:
            raise refused(f"questions should be a map of one or more, got {shown(questions)}; add one.", ("questions",))
        parsed = {
            name: asking(("questions", name, *_kind(value)), partial(parse_question, value))
            for name, value in questions.items()
        }
        return Asked(body["state"], parsed, body.get("model"), extensions=extensions(body))

    def answered(self, asked: Asked, answers: Mapping[str, Answer], model: str, tokens: int) -> dict[str, Any]:
        """As `Wire.answered`."""
        return {
            "model": model,
            "answers": {name: answer.to_dict(asked.extensions.answered) for name, answer in answers.items()},
            "usage": {"input_tokens": tokens, "output_tokens": len(answers)},
        }

    def error(self, problem: Refused) -> dict[str, Any]:
        """A list of places for a wrong body, else a type and a message."""
        if problem.status == 422:
            place = ["body", *problem.path]
            return {"detail": [{"loc": place, "msg": str(problem), "type": problem.content["code"]}]}
        kind = "tokens_exceeded" if problem.status == 413 else _TYPES.get(problem.status, "unknown")
        return {"detail": {"error_type": kind, "message": str(problem)}}


def _kind(value: Any) -> tuple[str, ...]:
    """The place of a question's fields has its type in it."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    return (kind,) if kind in ("noul", "choice", "score") else ()
