"""Wrong requests to the HTTP server: each is answered 4xx with the field and a remedy."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from campaign.outcome import Attempt, judged

_ONE = {"question": "Which is a metal?", "choices": ["iron", "wood"]}


def wrong_requests(run: Path, count: int, source: random.Random) -> Iterator[Attempt]:
    """`count` requests to one server in this process."""
    from starlette.testclient import TestClient

    from bayeslora import load_run
    from bayeslora.deploy.serve.app import create_app

    with TestClient(create_app(load_run(run), "campaign"), raise_server_exceptions=False) as client:
        for number in range(count):
            what, content, field = _request(source)
            answer = client.post("/v1/predict", content=content, headers={"Content-Type": "application/json"})
            said = answer.text if answer.status_code < 500 else f"Traceback (most recent call last) {answer.text}"
            status = 0 if answer.status_code < 400 else 2
            yield judged("request", f"{what} ({number})", status, f"error: {said}", [(field,)])


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
