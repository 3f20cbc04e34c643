"""OpenAI's decisions: `{model, input, questions: [question]}`, answered in order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bayeslora.deploy.serve.decisions.wire import Asked, Wire, asking, extensions, refused
from bayeslora.deploy.serve.errors import Refused
from bayeslora.tasks.decisions import Answer, Question, parse_question
from bayeslora.tasks.decisions.questions import shown
from bayeslora.tasks.decisions.records import check_state

_MAX_QUESTIONS = 400


class OpenAI(Wire):
    """The format of OpenAI's client."""

    name = "openai"
    wrong_body = 400

    def parse(self, body: Mapping[str, Any]) -> Asked:
        """As `Wire.parse`."""
        if "input" not in body:
            raise refused("input is missing; add it.", ("input",), "missing")
        state = _input(body["input"])
        asking((), lambda: check_state(state, "input"))
        questions = body["questions"]
        if not 1 <= len(questions) <= _MAX_QUESTIONS:
            raise refused(f"expected 1 to {_MAX_QUESTIONS} questions, got {len(questions)}.", ("questions",))
        parsed, values = {}, {}
        for index, value in enumerate(questions):
            parsed[str(index)], values[str(index)] = _question(index, value)
        named = {str(index): value.get("name") for index, value in enumerate(questions)}
        return Asked(state, parsed, body.get("model"), values, named, extensions(body))

    def answered(self, asked: Asked, answers: Mapping[str, Answer], model: str, tokens: int) -> dict[str, Any]:
        """As `Wire.answered`."""
        names = asked.names
        listed = [
            {"name": names[name]} | _answer(answer, asked.values[name], asked.extensions.answered)
            for name, answer in answers.items()
        ]
        return {
            "model": model,
            "answers": listed,
            "usage": {
                "input_tokens": tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": len(answers),
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens + len(answers),
            },
        }

    def error(self, problem: Refused) -> dict[str, Any]:
        """`{error: {message, type, param, code}}`."""
        kind = {401: "authentication_error", 503: "server_error", 500: "server_error"}
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem.path).lstrip(".")
        content = {"message": str(problem), "type": kind.get(problem.status, "invalid_request_error")}
        return {"error": {**content, "param": path or None, "code": problem.content["code"]}}


def _input(value: Any) -> Any:
    """The state: a text as it is, of one user message its parts, else the messages."""
    if not isinstance(value, list):
        return value
    messages = [_message(index, message) for index, message in enumerate(value)]
    if len(messages) == 1 and isinstance(messages[0], Mapping) and messages[0].get("role") == "user":
        return messages[0]["content"]
    return messages


def _message(index: int, message: Any) -> Any:
    if not isinstance(message, Mapping) or "content" not in message:
        return message
    return {"role": message.get("role"), "content": _content(message["content"], ("input", index, "content"))}


def _content(parts: Any, path: tuple[str | int, ...]) -> Any:
    """Parts as one text, or as what their JSON says where they are nothing else."""
    if not isinstance(parts, list):
        return parts
    read = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("input_text", "output_text", "text"):
            read.append(part.get("text"))
        elif kind == "input_json":
            read.append(part.get("data"))
        else:
            expected = (
                f"expected parts of type input_text or input_json, got {shown(kind)}; this model reads texts only."
            )
            raise refused(expected, (*path, index))
    if len(read) == 1:
        return read[0]
    return "\n".join(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in read)


def _question(index: int, value: Any) -> tuple[Question, list[Any]]:
    """A question, and what the client calls its options."""
    place = ("questions", index)
    if not isinstance(value, Mapping):
        raise refused(f"a question should be a map, got {shown(value)}.", place)
    kind, asked = value.get("type"), {"instructions": _content(value.get("instructions"), (*place, "instructions"))}
    if kind == "predicate":
        return asking(place, lambda: parse_question({"type": "noul", **asked})), [True, False]
    if kind == "choice":
        options = _entries(value, "choices", "value", place)
        keys = [_key(option["value"], options) for option in options]
        listed = [{"key": key, "description": one.get("description")} for key, one in zip(keys, options, strict=True)]
        question = _asking(place, "choices", {"type": "choice", **asked, "criteria": listed})
        return question, [option["value"] for option in options]
    if kind == "score":
        levels = _entries(value, "levels", "label", place)
        texts = [_level(level) for level in levels]
        return _asking(place, "levels", {"type": "score", **asked, "criteria": texts}), [one["label"] for one in levels]
    raise refused(f"type should be predicate, choice or score, got {shown(kind)}; correct it.", (*place, "type"))


def _asking(place: tuple[str | int, ...], options: str, value: dict[str, Any]) -> Question:
    """A question whose criteria the client calls `options`."""
    try:
        question: Question = asking(place, lambda: parse_question(value))
    except Refused as error:
        raise refused(str(error), tuple(options if part == "criteria" else part for part in error.path)) from error
    return question


def _entries(value: Mapping[str, Any], name: str, needed: str, place: tuple[str | int, ...]) -> list[Mapping[str, Any]]:
    entries = value.get(name)
    if not isinstance(entries, list) or not all(isinstance(one, Mapping) and needed in one for one in entries):
        raise refused(f"{name} should be a list of maps with {needed!r}, got {shown(entries)}.", (*place, name))
    return entries


def _key(value: Any, options: list[Mapping[str, Any]]) -> str:
    """A name for a value; true and "true" are two."""
    if isinstance(value, str):
        return value
    text = json.dumps(value)
    return f"{text} (boolean)" if any(option["value"] == text for option in options) else text


def _level(level: Mapping[str, Any]) -> str:
    described = level.get("description")
    return f"{level['label']}: {described}" if described else str(level["label"])


def _answer(answer: Answer, values: list[Any], extensions: bool) -> dict[str, Any]:
    extra = answer.extensions() if extensions else {}
    if answer.question.kind == "noul":
        return {"type": "predicate", "probability": answer.probabilities[0]} | extra
    if answer.question.kind == "choice":
        listed = [{"value": value, "probability": p} for value, p in zip(values, answer.probabilities, strict=True)]
        choice = {"type": "choice", "choice": values[answer.best], "confidence": answer.confidence}
        return choice | {"probabilities": listed} | extra
    levels = [
        {"value": index, "label": label, "probability": p}
        for index, (label, p) in enumerate(zip(values, answer.probabilities, strict=True))
    ]
    return {"type": "score", "score": answer.level, "confidence": answer.confidence, "probabilities": levels} | extra
