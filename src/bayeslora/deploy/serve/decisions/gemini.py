"""Gemini's decisions: `{model, input, questions: {id: question}}`, answered by id with the top probability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayeslora.deploy.serve.decisions.systemone import SystemOne
from bayeslora.deploy.serve.decisions.wire import Asked, Wire, asking, refused
from bayeslora.deploy.serve.errors import Refused
from bayeslora.tasks.decisions import Answer
from bayeslora.tasks.decisions.questions import shown
from bayeslora.tasks.decisions.records import check_state

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Gemini(Wire):
    """The format of google-genai's client."""

    name = "gemini"
    wrong_body = 400

    def parse(self, body: Mapping[str, Any]) -> Asked:
        """As `Wire.parse`."""
        if "input" not in body:
            raise refused("input is missing; add it.", ("input",), "missing")
        state, questions = _text(body["input"], ("input",)), body.get("questions")
        asking((), lambda: check_state(state, "input"))
        own = (
            {"questions": {name: _question(name, value) for name, value in questions.items()}}
            if isinstance(questions, Mapping)
            else {}
        )
        return SystemOne().parse(dict(body) | {"state": state} | own)

    def answered(self, asked: Asked, answers: Mapping[str, Answer], model: str, tokens: int) -> dict[str, Any]:
        """As `Wire.answered`."""
        confident = {
            name: answer.to_dict(asked.extensions.answered) | {"confidence": max(answer.probabilities)}
            for name, answer in answers.items()
        }
        usage = {
            "total_input_tokens": tokens,
            "total_output_tokens": len(answers),
            "total_tokens": tokens + len(answers),
        }
        return {"model": model, "answers": confident, "usage": usage}

    def error(self, problem: Refused) -> dict[str, Any]:
        """`{error: {code, message, status}}`."""
        code = self.status(problem)
        return {"error": {"code": code, "message": str(problem), "status": _STATUS.get(code, "INTERNAL")}}


def _question(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    value = dict(value)
    value["instructions"] = _text(value.get("instructions"), ("questions", name, "instructions"))
    criteria = value.get("criteria")
    if value.get("type") == "noul" and isinstance(criteria, Mapping):
        value["criteria"] = {key.removesuffix("_description"): text for key, text in criteria.items()}
    return value


def _text(content: Any, path: tuple[str, ...]) -> Any:
    """A text, or contents of texts, as one text."""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind != "text":
            raise refused(f"expected content of type text, got {shown(kind)}; this model reads texts only.", path)
        texts.append(str(part.get("text", "")))
    return "\n".join(texts)
