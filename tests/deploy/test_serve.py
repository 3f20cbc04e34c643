"""The server on a tiny run, through real sockets; its page in a real browser."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

pytest.importorskip("fastapi", reason="the extra serve is not installed")

import uvicorn

from bayeslora.deploy.serve.app import create_app
from bayeslora.deploy.serve.batching import Batcher
from bayeslora.deploy.serve.bounds import BoundedBody
from bayeslora.deploy.serve.connections import MAX_WAITING, http_protocol
from bayeslora.deploy.serve.errors import Refused
from bayeslora.deploy.serve.predictor import Draws
from bayeslora.deploy.serve.security import allowed_hosts
from bayeslora.deploy.serve.settings import Settings
from bayeslora.methods import BayesianLora
from bayeslora.runs import Prediction, Run, load_run, predict_file, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.prediction import by_length
from bayeslora.tasks import Item
from bayeslora_cli.main import main
from conftest import byte_level_tokenizer, tiny_bert, tiny_llama, wordpiece_tokenizer

WORDS = ("sunlight and water", "iron", "wood", "a star", "the moon")


def rows(count: int, offset: int = 0) -> list[dict[str, Any]]:
    """Items of two to four choices and of several lengths."""
    return [
        {
            "id": f"item-{offset + n}",
            "question": f"What do plants {'need to ' * (n % 4)}grow ({offset + n})?",
            "choices": [WORDS[(n + k) % 5] for k in range(2 + n % 3)],
            "label": n % 2,
        }
        for n in range(count)
    ]


def unlabelled(count: int, offset: int = 0) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "label"} for row in rows(count, offset)]


ONE = {"question": "Which is a metal?", "choices": ["iron", "wood"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the upper layers of a tiny Llama, whose draws differ visibly."""
    world = tmp_path_factory.mktemp("world")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(world / "base")
    tokenizer.save_pretrained(world / "base")
    (world / "data").mkdir()
    for split, part in (("train", rows(8)), ("dev", rows(30, 100)), ("test", rows(4, 200))):
        (world / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    config = RunConfig(
        model=ModelConfig(name=str(world / "base"), device="cpu"),
        task=TaskConfig(name=str(world / "data"), max_length=256),
        method=BayesianLora(r=2, last_layers=2, prior_std=0.3),
        train=TrainConfig(max_steps=3, batch_size=4, learning_rate=0.02, arguments={"disable_tqdm": True}),
        num_samples=3,
        batch_size=4,
    )
    train(config, world / "run", evaluate_dev=False)
    return world / "run"


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return load_run(folder)


@contextmanager
def serving(
    run: Run, settings: Settings | None = None, hosts: Sequence[str] = ("*",), max_waiting: int = MAX_WAITING
) -> Iterator[httpx.Client]:
    """A client of a server that listens on a free port of this machine."""
    app = create_app(run, "runs/tiny", settings, hosts=hosts)
    http = http_protocol((settings or Settings()).timeout, max_waiting)
    config = uvicorn.Config(app, http=http, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
                wait_for(lambda: server.started)
                yield client
        finally:
            server.should_exit = True
            thread.join()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def client(run: Run) -> Iterator[httpx.Client]:
    """Small bounds, and time to gather."""
    settings = Settings(
        abstain_above=0.9,
        max_wait_ms=300,
        batch_size=8,
        max_body_bytes=4000,
        max_items=8,
        max_choices=5,
        max_characters=400,
        max_samples=6,
    )
    with serving(run, settings, hosts=allowed_hosts("127.0.0.1", None)) as client:
        yield client


def post(client: httpx.Client, items: Sequence[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/predict", json={"items": items, **options})
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


def assert_same(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]], tolerance: float = 1e-6) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        for name, value in other.items():
            numeric = isinstance(value, float) or (name == "probabilities")
            assert one[name] == (pytest.approx(value, abs=tolerance) if numeric else value), name


def metrics(client: httpx.Client) -> dict[str, float]:
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


# --- predictions -----------------------------------------------------------------------------------------------------


def test_the_records_are_those_of_bayeslora_predict(folder: Path, run: Run, tmp_path: Path) -> None:
    """Seven items in batches of four, with prediction sets and abstention."""
    source = tmp_path / "items.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in unlabelled(7, 300)))
    options = {"num_samples": 2, "abstain_above": 0.9, "coverage": 0.8}
    expected = predict_file(folder, source, tmp_path / "out.jsonl", **options)
    assert {row["abstain"] for row in expected} == {True, False}
    with serving(run, Settings(**options)) as client:
        assert_same(post(client, unlabelled(7, 300)), expected)
        assert_same(post(client, unlabelled(7, 300), num_samples=2, seed=0), expected)
        refused = client.post("/v1/predict", json={"items": [ONE], "seed": 1})
        assert refused.status_code == 422 and "calibrated with num_samples=2" in refused.json()["error"]["message"]


def test_auto_draws_are_those_of_bayeslora_predict(folder: Path, run: Run, tmp_path: Path) -> None:
    """As the server's setting, with prediction sets, and as a request's."""
    source = tmp_path / "items.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in unlabelled(5, 300)))
    expected = predict_file(folder, source, tmp_path / "out.jsonl", num_samples="auto", coverage=0.8)
    assert all(2 <= row["num_samples"] <= 3 for row in expected)
    with serving(run, Settings(num_samples="auto", coverage=0.8)) as client:
        assert_same(post(client, unlabelled(5, 300)), expected)
        assert client.get("/v1/model").json()["num_samples"] == "auto"
    bare = [{name: value for name, value in row.items() if not name.startswith("set")} for row in expected]
    with serving(run) as client:
        assert_same(post(client, unlabelled(5, 300), num_samples="auto"), bare)
        assert client.post("/v1/predict", json={"items": [ONE], "num_samples": "all"}).status_code == 422
    with pytest.raises(ValueError, match='a number or "auto"'):
        Settings(num_samples="all")  # type: ignore[arg-type]


def test_requests_share_a_forward_and_do_not_change_each_other(client: httpx.Client) -> None:
    requests = [
        {"items": unlabelled(2, 10), "seed": 5},
        {"items": unlabelled(3, 40), "seed": 5},
        {"items": unlabelled(1, 77), "seed": 5},
        {"items": unlabelled(2, 10), "seed": 6},
    ]
    alone = [post(client, **request) for request in requests]
    before = metrics(client)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda request: post(client, **request), requests))
    after = metrics(client)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["bayeslora_batch_items_sum"] == 8
    assert grown["bayeslora_batch_items_count"] == 2, "one forward for each seed"
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other, 1e-5)
    entropies = [[row["entropy"] for row in alone[index]] for index in (0, 3)]
    assert entropies[0] != pytest.approx(entropies[1], abs=1e-4), "other seeds are other draws"


def test_zero_samples_are_the_posterior_mean(client: httpx.Client, run: Run) -> None:
    (record,) = post(client, [ONE], num_samples=0)
    items = [Item("item-0", ONE["question"], tuple(ONE["choices"]), None)]
    assert_same([record], list(run.predict(items, 0).rows(0.9)))
    assert record["mutual_information"] == 0 and post(client, [ONE])[0]["mutual_information"] > 0


# --- batches ---------------------------------------------------------------------------------------------------------


class Computing:
    """Stands for the model: notes its batches, may be held, and cannot read an item "bad"."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, items: Sequence[Item], draws: Draws) -> list[dict[str, Any]]:
        self.batches.append([item.id for item in items])
        assert self.free.wait(10)
        if any(item.id == "bad" for item in items):
            raise Refused(422, "unreadable_item", "bad")
        return [{"id": item.id, "seed": draws.seed} for item in items]


def named(*names: str) -> list[Item]:
    return [Item(name, "?", ("a", "b"), None) for name in names]


def batched(scenario: Callable[[Batcher, Computing], Any], **options: Any) -> Computing:
    """Run a scenario on a batcher of its own."""

    async def whole() -> Computing:
        computing = Computing()
        usual = {"batch_size": 4, "max_wait": 0.05, "queue_items": 8, "order": by_length}
        batcher = Batcher(computing, **{**usual, **options})
        batcher.start()
        try:
            await scenario(batcher, computing)
        finally:
            computing.free.set()
            await batcher.close()
        return computing

    return asyncio.run(whole())


FIRST, OTHER = Draws(3, 0), Draws(3, 1)


def test_batches_are_full_or_have_waited_and_hold_one_kind_of_draws() -> None:
    async def scenario(batcher: Batcher, computing: Computing) -> None:
        answers = await asyncio.gather(
            batcher.submit(named("a", "b", "c"), FIRST),
            batcher.submit(named("x"), OTHER),
            batcher.submit(named("d", "e"), FIRST),
        )
        assert [[(row["id"], row["seed"]) for row in answer] for answer in answers] == [
            [("a", 0), ("b", 0), ("c", 0)],
            [("x", 1)],
            [("d", 0), ("e", 0)],
        ]

    assert batched(scenario).batches == [["a", "b", "c", "d"], ["x"], ["e"]]


def test_an_item_waits_for_others_but_not_for_ever() -> None:
    async def scenario(batcher: Batcher, computing: Computing) -> None:
        first = asyncio.create_task(batcher.submit(named("a"), FIRST))
        await asyncio.sleep(0.02)
        assert computing.batches == []
        await batcher.submit(named("b"), FIRST)
        await first

    assert batched(scenario, max_wait=0.2).batches == [["a", "b"]]


def test_requests_stay_apart_where_draws_depend_on_the_batch() -> None:
    async def scenario(batcher: Batcher, computing: Computing) -> None:
        await asyncio.gather(*(batcher.submit(named(name, name * 2), FIRST) for name in "ab"))

    assert batched(scenario, apart=True).batches == [["a", "aa"], ["b", "bb"]]


def test_short_items_go_first_and_come_back_in_their_order() -> None:
    async def scenario(batcher: Batcher, computing: Computing) -> None:
        items = [Item(str(n), "?" * (9 - n), ("a", "b"), None) for n in range(6)]
        assert [row["id"] for row in await batcher.submit(items, FIRST)] == list("012345")

    assert batched(scenario).batches == [["5", "4", "3", "2"], ["1", "0"]]


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def scenario(batcher: Batcher, computing: Computing) -> None:
        computing.free.clear()
        first = asyncio.create_task(batcher.submit(named(*"abcd"), FIRST))
        while not computing.batches:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(batcher.submit(named(*"efghi"), FIRST))
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="at most 8 waiting items, but 5 wait and 4 came") as refused:
            await batcher.submit(named(*"jklm"), FIRST)
        assert refused.value.status == 503 and int(refused.value.headers["Retry-After"]) >= 1
        computing.free.set()
        await asyncio.gather(first, second)
        assert batcher.queued == 0

    batched(scenario)


def test_who_gives_up_leaves_the_queue() -> None:
    async def scenario(batcher: Batcher, computing: Computing) -> None:
        computing.free.clear()
        first = asyncio.create_task(batcher.submit(named(*"abcd"), FIRST))
        while not computing.batches:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(batcher.submit(named(*"efg"), FIRST))
        third = asyncio.create_task(batcher.submit(named("h"), FIRST))
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert batcher.queued == 1
        computing.free.set()
        assert await third == [{"id": "h", "seed": 0}]

    assert batched(scenario).batches == [list("abcd"), ["h"]]


def test_a_request_that_fails_does_not_fail_its_neighbours() -> None:
    async def scenario(batcher: Batcher, computing: Computing) -> None:
        answers = await asyncio.gather(
            *(batcher.submit(named(name), FIRST) for name in ("a", "bad", "c")), return_exceptions=True
        )
        assert answers[0] == [{"id": "a", "seed": 0}] and answers[2] == [{"id": "c", "seed": 0}]
        assert isinstance(answers[1], Refused)
        assert batcher.running and await batcher.submit(named("d"), FIRST)

    assert batched(scenario).batches == [["a", "bad", "c"], ["a"], ["bad"], ["c"], ["d"]]


def test_a_batch_holds_as_much_as_has_room_and_a_larger_item_is_one_by_itself() -> None:
    async def scenario(batcher: Batcher, computing: Computing) -> None:
        await asyncio.gather(*(batcher.submit(named(name), FIRST) for name in ("aaa", "bb", "c", "dddddddd", "e", "f")))

    sized = {"batch_size": None, "size": lambda item: len(item.id), "room": 5, "max_wait": 0.01}
    assert batched(scenario, **sized).batches == [["aaa", "bb"], ["c"], ["dddddddd"], ["e", "f"]]


def test_closing_refuses_what_is_not_answered_yet() -> None:
    async def scenario(batcher: Batcher, computing: Computing) -> None:
        computing.free.clear()
        under_way = asyncio.create_task(batcher.submit(named(*"abcd"), FIRST))
        while not computing.batches:
            await asyncio.sleep(0.001)
        waiting = asyncio.create_task(batcher.submit(named("e"), FIRST))
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        for task in (under_way, waiting):
            with pytest.raises(Refused, match="shutting down"):
                await asyncio.wait_for(task, 5)
        computing.free.set()
        await closing
        assert not batcher.running

    batched(scenario)


# --- what is refused -------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Any, int, str, str | None]] = {
    "malformed": ('{"items": [', 422, "expected JSON, but it is malformed", "body"),
    "no body": ("", 422, "body is missing; add it", "body"),
    "not UTF-8": (b'{"items": "\xff\xfe"}', 400, "JSON in UTF-8", None),
    "too deep": ("[" * 3500, 400, "expected a body of JSON", None),
    "a list": ([], 422, "dictionary", "body"),
    "no items": ({}, 422, "items is missing; add it", "items"),
    "empty items": ({"items": []}, 422, "at least 1 item", "items"),
    "unknown field": ({"items": [ONE], "samples": 3}, 422, "samples is no field that is known", "samples"),
    "misspelt": (
        {"items": [{"question": "a", "choises": []}]},
        422,
        "items[0].choises is no field",
        "items[0].choises",
    ),
    "number": ({"items": [{**ONE, "question": 3}]}, 422, "expected a valid string, got 3", "items[0].question"),
    "surrogate": (
        '{"items": [{"question": "\\ud800", "choices": ["a", "b"]}]}',
        422,
        "items[0].question",
        "items[0].question",
    ),
    "surrogate name": ('{"items": [], "\\ud800": 1}', 422, "unable to parse", "body"),
    "surrogate path": (
        '{"items": [{"question": 1, "a": "\\ud800"}]}',
        422,
        "items[0].a is no field",
        "items[0].question",
    ),
    "negative seed": ({"items": [ONE], "seed": -1}, 422, "greater than or equal to 0, got -1", "seed"),
    "text seed": ({"items": [ONE], "seed": "1"}, 422, "expected a valid integer, got '1'", "seed"),
    **{
        f"draws {value!r}": (
            {"items": [ONE], "num_samples": value},
            422,
            f"num_samples: expected a whole number from 0 on, or 'auto', got {value!r}; correct it. The fields",
            "num_samples",
        )
        for value in ("aut", -1, 1.5, True)
    },
    "many samples": ({"items": [ONE], "num_samples": 7}, 422, "at most 6 samples, got 7; ask for fewer", "num_samples"),
    "many items": ({"items": [ONE] * 9}, 422, "at most 8 items, got 9; send them in several requests", "items"),
    "many choices": (
        {"items": [{**ONE, "choices": list("abcdef")}]},
        422,
        "at most 5 choices, got 6",
        "items[0].choices",
    ),
    "long question": (
        {"items": [{**ONE, "question": "a" * 401}]},
        422,
        "at most 400 characters, got 401",
        "items[0].question",
    ),
    "long choice": ({"items": [ONE, {**ONE, "choices": ["a", "b" * 401]}]}, 422, "got 401", "items[1].choices"),
    "no choices": ({"items": [{"question": "a"}]}, 422, "items[0] has no choices", "items[0].choices"),
    "one choice": ({"items": [{**ONE, "choices": ["a"]}]}, 422, "give at least two choices", "items[0]"),
    "empty choice": ({"items": [{**ONE, "choices": ["a", " "]}]}, 422, "texts that are not empty", "items[0]"),
    "equal choices": ({"items": [{**ONE, "choices": ["a", "a "]}]}, 422, "choices that all differ", "items[0]"),
    "empty question": ({"items": [{**ONE, "question": " "}]}, 422, "write the question", "items[0]"),
    "unreadable": ({"items": [{**ONE, "choices": ["\u00e9" * 200, "b"]}]}, 422, "raise max_length", "items"),
    "large": ({"items": [ONE] * 80}, 413, "at most 4000 bytes", None),
}


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_read_before_it_is_refused(announced: bool) -> None:
    """A connection closed on unread bytes is reset, and the client may never see the 413."""
    chunks = [{"type": "http.request", "body": b"x" * 60, "more_body": left > 0} for left in range(4, -1, -1)]
    headers = [(b"content-length", b"300")] if announced else []

    async def receive() -> Any:
        return chunks.pop(0)

    async def ask() -> None:
        await BoundedBody(None, 100, 5.0)({"type": "http", "headers": headers}, receive, None)  # type: ignore[arg-type]

    with pytest.raises(Refused, match="at most 100 bytes"):
        asyncio.run(ask())
    assert chunks == []


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_told_what_is_wrong(client: httpx.Client, case: str) -> None:
    body, status, part, field = WRONG[case]
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    response = client.post("/v1/predict", content=content, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["status"]) == (status, status)
    assert part in error["message"] and error.get("field") == field and "Traceback" not in response.text
    assert post(client, [ONE]), "it goes on"


def test_other_wrong_calls(client: httpx.Client) -> None:
    form = client.post("/v1/predict", content=json.dumps({"items": [ONE]}), headers={"Content-Type": "text/plain"})
    assert form.status_code == 415 and "Content-Type: application/json, got text/plain" in form.text
    chunks = (b" " * 1000 for _ in range(6))
    streamed = client.post("/v1/predict", content=chunks, headers={"Content-Type": "application/json"})
    assert streamed.status_code == 413
    missing, method = client.get("/v1/predictions"), client.get("/v1/predict")
    assert missing.status_code == 404 and "there is no /v1/predictions; expected /" in missing.text
    assert method.status_code == 405 and "does not take GET" in method.text and method.headers["allow"] == "POST"


def test_classes_of_a_head_come_in_any_order_and_no_others(tmp_path: Path) -> None:
    tokenizer = wordpiece_tokenizer()
    tiny_bert(vocab_size=len(tokenizer), num_labels=2).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lines = [json.dumps({"text": f"the sun {n}", "label": n % 2}) for n in range(24)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    columns = {"question_column": "text", "choices": ["bad", "good"]}
    config = RunConfig(
        model=ModelConfig(name=str(tmp_path / "base"), device="cpu"),
        task=TaskConfig(name=str(tmp_path / "train.jsonl"), scoring="classification", max_length=64, **columns),
        method=BayesianLora(r=2, target_modules=["query"]),
        train=TrainConfig(max_steps=1, arguments={"disable_tqdm": True}),
    )
    with serving(train(config, tmp_path / "run", evaluate_dev=False)) as client:
        assert client.get("/v1/model").json()["classes"] == 2
        (record,) = post(client, [{"question": "the moon"}])
        assert record["choice"] in ("bad", "good") and len(record["probabilities"]) == 2
        (other,) = post(client, [{"question": "the moon", "choices": ["good", "bad"]}])
        assert other["choice"] == record["choice"] and other["probabilities"] == record["probabilities"][::-1]
        odd = {"question": "the moon", "choices": ["bad", "good", "odd"]}
        answer = client.post("/v1/predict", json={"items": [odd]})
        assert answer.status_code == 422 and "the classes ['bad', 'good'], in any" in answer.json()["error"]["message"]
        assert "readonly" in client.get("/").text


# --- time ------------------------------------------------------------------------------------------------------------


class HeldRun(Run):
    """A run whose predictions wait until they may go on."""

    free: threading.Event
    started: threading.Event

    def predict(self, *arguments: Any, **options: Any) -> Prediction:
        self.started.set()
        assert self.free.wait(20)
        return super().predict(*arguments, **options)


@pytest.fixture
def held(run: Run, monkeypatch: pytest.MonkeyPatch) -> HeldRun:
    held = HeldRun(**vars(run))
    monkeypatch.setattr(HeldRun, "free", threading.Event(), raising=False)
    monkeypatch.setattr(HeldRun, "started", threading.Event(), raising=False)
    return held


def sent(client: httpx.Client, body: bytes, length: int | None = None) -> socket.socket:
    """A connection on which a request was begun."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=20)
    head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length or len(body)}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    return connection


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection; headers and body may come one after the other."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


BODY = json.dumps({"items": [ONE]}).encode()


def test_a_request_that_takes_too_long_is_answered_504_and_forgotten(held: HeldRun) -> None:
    with serving(held, Settings(timeout=0.3, batch_size=1, max_wait_ms=0)) as client:
        late = client.post("/v1/predict", json={"items": [ONE] * 3})
        assert late.status_code == 504 and "within 0.3 seconds" in late.json()["error"]["message"]
        assert metrics(client)["bayeslora_queue_items"] == 0
        held.free.set()
        wait_for(lambda: metrics(client)["bayeslora_batch_items_sum"] == 1)
        assert client.post("/v1/predict", json={"items": [ONE]}).status_code == 200
        assert metrics(client)["bayeslora_batch_items_sum"] == 2, "only the item under way was computed"


def test_a_client_that_went_away_costs_no_forward(held: HeldRun) -> None:
    with serving(held, Settings(batch_size=1, max_wait_ms=0)) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, client, [ONE])
        assert held.started.wait(10)
        with sent(client, BODY):
            wait_for(lambda: metrics(client)["bayeslora_queue_items"] == 1)
        wait_for(lambda: metrics(client)["bayeslora_queue_items"] == 0)
        held.free.set()
        assert first.result()
        assert metrics(client)["bayeslora_batch_items_sum"] == 1


def test_a_full_queue_is_503_with_the_time_to_come_back(held: HeldRun) -> None:
    settings = Settings(batch_size=1, max_wait_ms=0, queue_items=2, max_items=2)
    with serving(held, settings) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, client, [ONE])
        assert held.started.wait(10)
        second = pool.submit(post, client, [ONE])
        wait_for(lambda: metrics(client)["bayeslora_queue_items"] == 1)
        full = client.post("/v1/predict", json={"items": [ONE, ONE]})
        assert full.status_code == 503 and int(full.headers["Retry-After"]) >= 1
        held.free.set()
        assert first.result() and second.result()


def test_a_body_that_trickles_in_is_refused(run: Run) -> None:
    with serving(run, Settings(timeout=0.3)) as client, sent(client, BODY[:10], len(BODY)) as slow:
        answer = received(slow)
        assert answer.startswith(b"HTTP/1.1 408") and b"within 0.3 seconds" in answer


def half_a_head(client: httpx.Client) -> socket.socket:
    connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=20)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
    return connection


def test_a_head_that_does_not_end_is_refused(run: Run) -> None:
    with serving(run, Settings(timeout=0.3)) as client, half_a_head(client) as first, half_a_head(client) as second:
        second.sendall(b"host\r\n\r\n")
        assert second.recv(65536).startswith(b"HTTP/1.1 200")
        second.sendall(b"GET /healthz HTTP/1.1\r\n")
        for connection in (first, second):
            assert received(connection).rpartition(b'{"status":"ok"}')[2].startswith(b"HTTP/1.1 408")


def half_a_body(client: httpx.Client) -> socket.socket:
    return sent(client, BODY[:10], len(BODY))


@pytest.mark.parametrize("begin", [half_a_head, half_a_body])
def test_slow_clients_do_not_keep_others_out(held: HeldRun, begin: Callable[[httpx.Client], socket.socket]) -> None:
    """Beyond the bound the slowest is closed, and neither a new request nor one under way."""
    with serving(held, Settings(max_wait_ms=0), max_waiting=3) as client, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(post, client, [ONE])
        assert held.started.wait(10)
        slow = [begin(client) for _ in range(8)]
        for _ in range(3):
            assert httpx.get(client.base_url.join("/healthz"), trust_env=False).status_code == 200
        with suppress(ConnectionResetError):
            assert slow[0].recv(1) == b"", "closed without an answer"
        held.free.set()
        assert under_way.result()
        for connection in slow:
            connection.close()


def test_a_failure_has_an_id_and_its_traceback_is_in_the_log_only(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("the secret of /home/me")

    monkeypatch.setattr(Run, "predict", broken)
    with serving(run) as client, caplog.at_level(logging.ERROR, "bayeslora"):
        answer = client.post("/v1/predict", json={"items": [ONE]})
    error = answer.json()["error"]
    assert answer.status_code == 500 and "secret" not in answer.text and "RuntimeError" in error["message"]
    assert error["id"] in caplog.text and "the secret of /home/me" in caplog.text


# --- what else it says -----------------------------------------------------------------------------------------------


def test_health_model_and_schema(client: httpx.Client, run: Run) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    model = client.get("/v1/model").json()
    assert model["method"] == "bayesian_lora" and model["num_samples"] == 3 and model["abstain_above"] == 0.9
    assert model["limits"]["max_items"] == 8 and model["classes"] is None
    assert model["metrics"]["trainable_parameters"] == run.metrics["trainable_parameters"]
    schema = client.get("/openapi.json").json()
    record = schema["components"]["schemas"]["Record"]["properties"]
    assert "nats" in record["entropy"]["description"] and "nats" in record["mutual_information"]["description"]
    assert {"413", "422", "503", "504"} <= schema["paths"]["/v1/predict"]["post"]["responses"].keys()


def test_metrics_count_requests_errors_items_and_their_uncertainty(run: Run) -> None:
    with serving(run, Settings(abstain_above=0.9)) as client:
        records = post(client, unlabelled(5, 20))
        client.post("/v1/predict", json={})
        client.get("/secret/path")
        found = metrics(client)
    assert found['bayeslora_requests_total{path="/v1/predict",status="200"}'] == 1
    assert found['bayeslora_requests_total{path="/v1/predict",status="422"}'] == 1
    assert found['bayeslora_requests_total{path="other",status="404"}'] == 1
    assert found['bayeslora_request_seconds_count{path="/v1/predict"}'] == 2
    assert found["bayeslora_items_total"] == found["bayeslora_entropy_nats_count"] == 5
    assert found["bayeslora_entropy_nats_sum"] == pytest.approx(sum(row["entropy"] for row in records))
    assert 0 < found["bayeslora_abstained_items_total"] == sum(row["abstain"] for row in records)
    assert found["bayeslora_batch_items_count"] == 2 and found["bayeslora_queue_items"] == 0


def test_other_names_of_this_machine_and_other_pages_are_kept_out(client: httpx.Client) -> None:
    assert client.get("/", headers={"Host": "localhost:8000"}).status_code == 200
    assert client.get("/", headers={"Host": "rebound.example"}).status_code == 400
    preflight = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/v1/predict", headers=preflight)
    assert answer.status_code == 405 and not any(name.startswith("access-control") for name in answer.headers)
    for path in ("/", "/v1/model", "/nothing"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert allowed_hosts("0.0.0.0", None) == ["*"] and allowed_hosts("0.0.0.0", ["a.org"]) == ["a.org"]
    assert "[::1]" in allowed_hosts("::1", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_choices": 1}, "max_choices must be at least 2"),
        ({"queue_items": 5}, "queue_items must be at least 64"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"abstain_above": -1.0}, "abstain_above must be at least 0"),
        ({"allowed_hosts": ["a.*"]}, "allowed_hosts must be names"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**options)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match="1"):
            main(["serve", str(folder), "--port", port])
        assert f"cannot listen at 127.0.0.1 port {port}" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        main(["serve", str(tmp_path), "--port", "0"])
    assert "is not a finished run" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "bayeslora.deploy.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit, match="1"):
        main(["serve", str(folder)])
    assert 'pip install "bayeslora[serve]"' in capsys.readouterr().err


def test_sigterm_answers_the_request_under_way(folder: Path) -> None:
    """The server reads a request whose rest comes after the signal."""
    command = [sys.executable, "-c", "from bayeslora_cli.main import main; main()", "serve", str(folder)]
    command += ["--port", "0", "--host", "0.0.0.0"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            warning, greeting = (process.stdout.readline() for _ in range(2))
            assert "no authentication" in warning
            address = re.search(r"http://0\.0\.0\.0:(\d+)", greeting)
            assert address is not None, greeting
            with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", timeout=30, trust_env=False) as client:
                assert client.get("/readyz").status_code == 200
                with sent(client, BODY[:10], len(BODY)) as connection:
                    wait_for(lambda: client.get("/healthz").status_code == 200)
                    process.send_signal(signal.SIGTERM)
                    wait_for(lambda: not reachable(int(address[1])))
                    connection.sendall(BODY[10:])
                    answer = received(connection)
            assert answer.startswith(b"HTTP/1.1 200") and b"mutual_information" in answer
            assert process.wait(20) == 0
            assert process.stdout.read() == "ended\n"
        finally:
            process.kill()


def reachable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


# --- in a browser ----------------------------------------------------------------------------------------------------


def test_the_page_needs_no_network(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "runs/tiny" in page.text
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', page.text)
    assert addresses and not any(address.startswith(("http", "//")) for address in addresses)


class Page:
    """The page as a user sees it."""

    def __init__(self, browser: Any, client: httpx.Client):
        self.browser = browser
        browser.get(str(client.base_url))

    def __getitem__(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def ask(self, question: str, choices: Sequence[str]) -> None:
        for name, text in (("question", question), ("choices", "\n".join(choices))):
            self[name].clear()
            self[name].send_keys(text)
        self.browser.find_element("css selector", "button").click()
        wait_for(lambda: self["result"].is_displayed() or self["error"].is_displayed())

    def cells(self, selector: str) -> list[str]:
        return [cell.text for cell in self.browser.find_elements("css selector", f"#rows {selector}")]


def test_a_user_asks_in_a_browser(browser: Any, client: httpx.Client) -> None:
    page = Page(browser, client)
    page.ask("Which is a metal?", ["iron", "wood", "<b>glass</b>"])
    question = {"question": "Which is a metal?", "choices": ["iron", "wood", "<b>glass</b>"]}
    (expected,) = post(client, [question])
    assert page["answer"].text == f"{expected['choice']}: {100 * expected['confidence']:.1f} %"
    assert page.cells("th") == ["iron", "wood", "<b>glass</b>"]
    assert page.cells(".number") == [f"{100 * value:.1f} %" for value in expected["probabilities"]]
    tracks = browser.find_elements("css selector", "#rows .bar")
    widths = torch.tensor([float(bar.size["width"]) for bar in tracks])
    assert (widths / widths.sum()).tolist() == pytest.approx(expected["probabilities"], abs=0.02)
    assert page["entropy"].text == f"{expected['entropy']:.3f} nats" and page["most"].text == "1.099"
    assert page["information"].text == f"{expected['mutual_information']:.3f} nats"
    assert page["abstain"].text.startswith("Abstain" if expected["abstain"] else "Does not")
    assert browser.get_log("browser") == [], "no errors, no refused style or script"


def test_the_page_shows_what_the_server_refuses(browser: Any, client: httpx.Client) -> None:
    page = Page(browser, client)
    page.ask("Which is a metal?", ["iron", "iron"])
    assert "choices that all differ" in page["error"].text and not page["result"].is_displayed()


def test_the_page_shows_prediction_sets_and_follows_the_colour_scheme(browser: Any, run: Run) -> None:
    with serving(run, Settings(coverage=0.8)) as client:
        page = Page(browser, client)
        page.ask("Which is a metal?", ["iron", "wood", "glass"])
        (expected,) = post(client, [{"question": "Which is a metal?", "choices": ["iron", "wood", "glass"]}])
        inside = ["yes" if index in expected["set"] else "no" for index in range(3)]
        assert page.cells("td:nth-child(4)") == inside
        assert page["set"].text == (", ".join(expected["set_choices"]) or "none of them")
        assert not page["abstain"].is_displayed() and not browser.find_elements("id", "num_samples")
        colours = {}
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            colours[scheme] = browser.find_element("css selector", "body").value_of_css_property("background-color")
        assert colours["light"] == "rgba(255, 255, 255, 1)" and colours["dark"] == "rgba(22, 24, 27, 1)"


def test_replaced_settings_do_not_touch_the_run(run: Run) -> None:
    """The app belongs to its settings; the same run can be served in other ways."""
    before = replace(run.config)
    create_app(run, "runs/tiny", Settings(num_samples=1, batch_size=2))
    assert run.config == before
