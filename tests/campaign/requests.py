"""Wrong requests to the HTTP servers: each is answered 4xx with the field and a remedy."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from campaign.decisions import base_with_codes
from campaign.outcome import Attempt, judged
from campaign.world import World

_DECISION_PATHS = ("/v1/systemone", "/v1/decisions")
_ONE = {"question": "Which is a metal?", "choices": ["iron", "wood"]}


def wrong_requests(world: World, run: Path, count: int, source: random.Random) -> Iterator[Attempt]:
    """`count` requests to a run's server and to one of decisions, in this process."""
    from starlette.testclient import TestClient

    from bayeslora import DecisionModel, load_run
    from bayeslora.deploy.serve.app import create_app
    from bayeslora.deploy.serve.decisions.app import create_decision_app

    model = DecisionModel(str(base_with_codes(world.folder / "codes")), readout="codes", device="cpu")
    quiet: dict[str, Any] = {"raise_server_exceptions": False}
    with (
        TestClient(create_app(load_run(run), "campaign"), **quiet) as items,
        TestClient(create_decision_app(model, "campaign"), **quiet) as decisions,
    ):
        for number in range(count):
            client, path, make = (
                (decisions, source.choice(_DECISION_PATHS), _decision)
                if number % 3 == 0
                else (items, "/v1/predict", _request)
            )
            what, content, field = make(source)
            answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
            said = answer.text if answer.status_code < 500 else f"Traceback (most recent call last) {answer.text}"
            status = 0 if answer.status_code < 400 else 2
            yield judged("request", f"{what} to {path} ({number})", status, f"error: {said}", [(field,)])


def _decision(source: random.Random) -> tuple[str, bytes, str]:
    """A System One request with one fault."""
    question: dict[str, Any] = {"type": "choice", "instructions": "Which?", "criteria": {"iron": None, "wood": None}}
    good = {"state": "It is iron.", "questions": {"kind": question}}
    if source.random() < 0.2:
        text = json.dumps(good)
        return "cut body", text[: source.randrange(len(text) - 1)].encode(), "JSON"
    name, value = source.choice(
        [
            ("state", ""),
            ("state", None),
            ("state", 7),
            ("state", "x " * 5000),
            ("questions", {}),
            ("questions", None),
            ("questions", "kind"),
            ("questions", {"kind": question | {"type": "multi"}}),
            ("questions", {"kind": question | {"criteria": {"iron": None}}}),
            ("questions", {"kind": question | {"criteria": {str(number): None for number in range(300)}}}),
            ("questions", {"kind": question | {"instructions": 7}}),
            ("questions", {"kind": None}),
            ("model", "nobody"),
        ]
    )
    return f"{name}={str(value)[:40]}", json.dumps(good | {name: value}).encode(), name


def _request(source: random.Random) -> tuple[str, bytes, str]:
    kind = source.choice(["field", "item", "body", "bytes"])
    if kind == "bytes":
        text = json.dumps({"items": [_ONE]})
        return "cut body", text[: source.randrange(len(text) - 1)].encode(), "body"
    if kind == "body":
        value = source.choice([[], 7, "text", None, {}, {"item": [_ONE]}])
        return f"body {value!r}", json.dumps(value).encode(), "items" if isinstance(value, dict) else "body"
    if kind == "item":
        name, value = source.choice(
            [
                ("question", 7),
                ("question", None),
                ("choices", []),
                ("choices", ["one"]),
                ("choices", ["same", "same"]),
                ("choices", "iron"),
                ("choices", [1, 2]),
                ("choices", [f"choice {n}" for n in range(5000)]),
                ("id", "x" * 5000),
                ("id", 7),
                ("label", 0),
                ("colour", "red"),
            ]
        )
        return f"item {name}", json.dumps({"items": [_ONE, _ONE | {name: value}]}).encode(), name
    name, values = source.choice(
        [
            ("num_samples", [-1, 1.5, "ten", 10**9]),
            ("seed", [-1, 2**70, "x"]),
            ("items", [[], None, {}, [None], ["x"]]),
            ("temperature", [1.0]),
        ]
    )
    value: Any = source.choice(values)
    return f"{name}={value!r}", json.dumps({"items": [_ONE]} | {name: value}).encode(), name
