"""Typed questions over HTTP on a tiny model: every wire format, and the official clients where they are installed."""

import gzip
import json
import string
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

import uvicorn
from tokenizers import AddedToken

from bayeslora.deploy.serve.decisions.app import create_decision_app
from bayeslora.deploy.serve.decisions.encodings import decoded
from bayeslora.deploy.serve.errors import Refused
from bayeslora.deploy.serve.settings import Settings
from bayeslora.runs.decisions import DecisionModel
from conftest import byte_level_tokenizer, tiny_llama

STATE = "The invoice was charged twice."
NOUL = {"type": "noul", "instructions": "Refund?"}
CHOICE = {"type": "choice", "instructions": "Team?", "criteria": {"billing": "Refunds", "it": None, "팀": "🙂"}}
SCORE = {"type": "score", "instructions": "Anger?", "criteria": ["calm", "cross", "furious"]}
QUESTIONS = {"a": NOUL, "b": CHOICE, "c": SCORE}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecisionModel:
    """A tiny Llama with 300 codes."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_level_tokenizer(260)
    labels = [*string.ascii_uppercase, *(a + b for a in string.ascii_uppercase for b in string.ascii_uppercase)]
    tokenizer.add_tokens([AddedToken(f" {label}", normalized=False) for label in labels[:300]])
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=16384).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return DecisionModel(str(folder), device="cpu", dtype="float32", orders=1)


@contextmanager
def serving(model: DecisionModel, **settings: Any) -> Iterator[str]:
    """The address of a server on a free port of this machine."""
    app = create_decision_app(model, "runs/tiny", Settings(**settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(model: DecisionModel) -> Iterator[str]:
    with serving(model, max_body_bytes=60_000) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
        yield client


def ask(client: httpx.Client, body: Any, path: str = "/v1/systemone", **options: Any) -> httpx.Response:
    return client.post(path, json=body, **options)


def answers(client: httpx.Client, questions: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = ask(client, {"state": STATE, "questions": questions, **more})
    assert response.status_code == 200, response.text
    return response.json()["answers"]


# --- System One ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/systemone", "/api/alpha/decisions", "/v1/decisions", "/v1beta/decisions"])
def test_every_path_answers_a_system_one_request(client: httpx.Client, model: DecisionModel, path: str) -> None:
    response = ask(client, {"model": "jev-latest", "state": STATE, "questions": QUESTIONS, "unknown": 1}, path)
    body, expected = response.json(), model.decide(STATE, QUESTIONS)
    assert body["model"] == "tiny" and response.headers["x-typesafe-request-id"]
    assert body["usage"] == {"input_tokens": model.request(STATE, QUESTIONS).num_tokens, "output_tokens": 3}
    assert {name: answer.to_dict() for name, answer in expected.items()} == body["answers"]
    assert set(body["answers"]["b"]["probabilities"]) == set(CHOICE["criteria"])
    assert body["answers"]["c"]["legend"] == {"0": "calm", "1": "cross", "2": "furious"}
    assert sum(body["answers"]["b"]["probabilities"].values()) == pytest.approx(1)


def test_renaming_batching_and_reordering_move_no_digit(client: httpx.Client) -> None:
    first = answers(client, QUESTIONS)
    renamed = answers(client, {f"{name} 🙂": value for name, value in reversed(QUESTIONS.items())})
    assert {name: renamed[f"{name} 🙂"] for name in first} == first
    assert answers(client, {"b": CHOICE})["b"] == first["b"]


def test_extensions_begin_with_x_and_can_be_left_out(client: httpx.Client) -> None:
    plain = answers(client, QUESTIONS, x_extensions=False)
    assert not [field for answer in plain.values() for field in answer if field.startswith("x_")]
    assert answers(client, QUESTIONS)["a"]["x_uncertainty"]["entropy"] > 0
    assert set(plain["a"]) == {"type", "noul"}


WRONG_EXTENSIONS = [
    ("x_num_samples", "10"),
    ("x_num_samples", 2.5),
    ("x_num_samples", True),
    ("x_num_samples", -1),
    ("x_num_samples", 65),
    ("x_seed", [1]),
    ("x_seed", -1),
    ("x_seed", 2**63),
    ("x_extensions", "false"),
    ("x_extensions", 0),
]


@pytest.mark.parametrize(("name", "value"), WRONG_EXTENSIONS)
def test_extensions_of_a_wrong_type_are_errors_in_each_clients_format(
    client: httpx.Client, name: str, value: Any
) -> None:
    one = ask(client, {"state": STATE, "questions": QUESTIONS, name: value})
    assert one.status_code == 422 and one.json()["detail"][0]["loc"] == ["body", name]
    listed = [{"type": "predicate", "instructions": "Refund?"}]
    openai = ask(client, {"input": STATE, "questions": listed, name: value}, "/v1/decisions")
    assert openai.status_code == 400 and openai.json()["error"]["param"] == name
    gemini = ask(client, {"input": STATE, "questions": {"a": NOUL}, name: value}, "/v1/decisions")
    assert gemini.status_code == 400 and gemini.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert all(name in response.text for response in (one, openai, gemini))


def test_where_nothing_is_drawn_the_number_of_samples_and_the_seed_alter_no_answer(client: httpx.Client) -> None:
    plain = answers(client, QUESTIONS)
    assert answers(client, QUESTIONS, x_num_samples=1, x_seed=2**63 - 1) == plain
    assert answers(client, QUESTIONS, x_num_samples=None, x_seed=None, x_extensions=None) == plain


def test_two_hundred_and_fifty_five_options_are_answered(client: httpx.Client) -> None:
    found = answers(client, {"q": {**CHOICE, "criteria": {f"q{n}": None for n in range(255)}}})["q"]
    assert len(found["probabilities"]) == 255 and all(p > 0 for p in found["probabilities"].values())


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"state": ""}, ["state"]),
        ({"state": None}, ["state"]),
        ({"questions": {}}, ["questions"]),
        ({"questions": {"q": {**NOUL, "type": "nul"}}}, ["questions", "q", "type"]),
        ({"questions": {"q": {**CHOICE, "criteria": {"it": None}}}}, ["questions", "q", "choice", "criteria"]),
        ({"questions": {"q": {**SCORE, "criteria": {"0": "a", "1": "b"}}}}, ["questions", "q", "score", "criteria"]),
        (
            {"questions": {"q": {**CHOICE, "criteria": {f"q{n}": None for n in range(256)}}}},
            ["questions", "q", "choice", "criteria"],
        ),
    ],
)
def test_wrong_requests_are_422_at_their_place(client: httpx.Client, change: dict[str, Any], loc: list[str]) -> None:
    response = ask(client, {"state": STATE, "questions": QUESTIONS, **change})
    assert response.status_code == 422
    (problem,) = response.json()["detail"]
    assert problem["loc"] == ["body", *loc] and problem["msg"] and problem["type"]


def test_other_errors_have_a_type_and_a_message(client: httpx.Client) -> None:
    cases: list[tuple[httpx.Response, int, str]] = [
        (ask(client, {"model": "other", "state": STATE, "questions": QUESTIONS}), 404, "not_found"),
        (ask(client, {"state": "a b c d " * 4000, "questions": QUESTIONS}), 413, "tokens_exceeded"),
        (ask(client, {"state": "x" * 70_000, "questions": QUESTIONS}), 413, "tokens_exceeded"),
        (client.post("/v1/nothing", json={}), 404, "not_found"),
    ]
    for response, status, kind in cases:
        assert response.status_code == status, response.text
        assert response.json()["detail"]["error_type"] == kind and response.json()["detail"]["message"]
    assert "tokens, but the model reads 16384" in cases[1][0].json()["detail"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"state": "a", "state": "b"}',
        b'{"state": "\\ud800", "questions": {}}',
        b'{"state": NaN}',
        b"\xff",
        b"[" * 5000,
    ],
)
def test_bodies_that_cannot_be_read_are_422(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/systemone", content=body)
    assert response.status_code == 422 and response.json()["detail"][0]["loc"] == ["body"]


def test_a_model_that_fails_is_a_500_in_the_clients_format(
    client: httpx.Client, model: DecisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "answers", lambda *args: 1 / 0)
    assert ask(client, {"state": STATE, "questions": QUESTIONS}).json()["detail"]["error_type"] == "unknown"
    body = {"model": "tiny", "input": STATE, "questions": [{"type": "predicate", "instructions": "Refund?"}]}
    response = ask(client, body, "/v1/decisions")
    assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"


def test_models_are_listed_for_both_kinds_of_client(client: httpx.Client) -> None:
    body = client.get("/v1/models").json()
    assert body["models"][0]["name"] == body["data"][0]["id"] == "tiny"
    assert "jev-latest" in [model["name"] for model in body["models"]]


def test_a_full_queue_is_503_and_says_when_to_come_back(model: DecisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go = threading.Event(), threading.Event()
    own = model.answers

    def slow(*args: Any) -> Any:
        started.set()
        go.wait(10)
        return own(*args)

    monkeypatch.setattr(model, "answers", slow)
    body = {"state": STATE, "questions": {"a": NOUL}}
    with (
        serving(model, queue_items=1, max_items=1) as address,
        httpx.Client(base_url=address, trust_env=False) as client,
    ):
        statuses: list[int] = []
        askers = [threading.Thread(target=lambda: statuses.append(ask(client, body).status_code)) for _ in range(2)]
        askers[0].start()
        assert started.wait(10)
        askers[1].start()
        while "bayeslora_queue_items 1.0" not in client.get("/metrics").text:
            time.sleep(0.005)
        refused = ask(client, body)
        go.set()
        for asker in askers:
            asker.join()
    assert (refused.status_code, refused.headers["retry-after"], statuses) == (503, "1", [200, 200])
    assert "1 waiting requests, but 1 wait" in refused.json()["detail"]["message"]


# --- keys and encodings --------------------------------------------------------------------------------------------


def test_the_key_is_asked_for_and_stands_in_an_environment_variable(
    model: DecisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="DECISION_KEY, which is not set"):
        create_decision_app(model, "tiny", Settings(api_key="DECISION_KEY"))
    monkeypatch.setenv("DECISION_KEY", "secret-ü")
    body = {"state": STATE, "questions": {"a": NOUL}}
    with serving(model, api_key="DECISION_KEY") as address, httpx.Client(base_url=address, trust_env=False) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            response = ask(client, body, headers=headers)
            assert response.status_code == 401
            assert response.json()["detail"]["error_type"] == "authentication_error"
        for name in ("x-api-key", "x-goog-api-key"):
            assert ask(client, body, headers={name: "secret-ü".encode()}).status_code == 200
        assert ask(client, body, headers={"authorization": "Bearer secret-ü".encode()}).status_code == 200
        google = client.post("/v1/decisions", json={}, headers={"x-goog-api-key": "wrong"})
        assert google.json()["error"]["status"] == "UNAUTHENTICATED"
        beta = client.post("/v1beta/decisions", json={}, headers={"authorization": "Bearer wrong"})
        assert beta.json()["error"]["status"] == "UNAUTHENTICATED"
        assert client.get("/healthz").status_code == 200


def test_compressed_bodies_are_read_and_bounded_by_what_they_hold(client: httpx.Client) -> None:
    body = json.dumps({"state": STATE, "questions": QUESTIONS}).encode()
    sent = client.post("/v1/systemone", content=gzip.compress(body), headers={"content-encoding": "gzip"})
    assert sent.json()["answers"] == answers(client, QUESTIONS)
    bomb = gzip.compress(b" " * 10_000_000)
    assert len(bomb) < 60_000
    for content, encoding, status in ((bomb, "gzip", 413), (b"nonsense", "gzip", 422), (body, "br", 415)):
        response = client.post("/v1/systemone", content=content, headers={"content-encoding": encoding})
        assert response.status_code == status and "detail" in response.json()
    assert (
        client.post("/v1/systemone", content=gzip.compress(body)[:-9], headers={"content-encoding": "gzip"}).status_code
        == 422
    )


def test_zstd_is_decoded_within_its_bound() -> None:
    zstd = pytest.importorskip("backports.zstd")
    assert decoded(zstd.compress(b"a" * 100), "zstd", 100) == b"a" * 100
    with pytest.raises(Refused, match="at most 99 bytes"):
        decoded(zstd.compress(b"a" * 100), "zstd", 99)
    with pytest.raises(Refused, match="its end is missing"):
        decoded(zstd.compress(bytes(range(200)))[:-5], "zstd", 1000)


# --- OpenAI and Gemini ---------------------------------------------------------------------------------------------

LISTED = [
    {"type": "predicate", "instructions": "Refund?", "name": "first"},
    {
        "type": "choice",
        "instructions": "Team?",
        "choices": [{"value": True}, {"value": "true"}, {"value": "it", "description": "IT"}],
    },
    {
        "type": "score",
        "instructions": "Anger?",
        "levels": [{"label": "calm"}, {"label": "cross", "description": "a bit"}],
    },
]


def test_openai_asks_a_list_and_is_answered_in_order(client: httpx.Client) -> None:
    body = ask(client, {"model": "jev-latest", "input": STATE, "questions": LISTED}, "/v1/decisions").json()
    predicate, choice, score = body["answers"]
    assert (predicate["type"], predicate["name"]) == ("predicate", "first") and 0 < predicate["probability"] < 1
    assert predicate["probability"] == answers(client, {"a": NOUL})["a"]["noul"]
    assert [one["value"] for one in choice["probabilities"]] == [True, "true", "it"] and choice["choice"] in (
        True,
        "true",
        "it",
    )
    assert [(one["value"], one["label"]) for one in score["probabilities"]] == [(0, "calm"), (1, "cross")]
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + 3


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/decisions", {"input": "", "questions": LISTED}, "input should be a text"),
        ("/v1/decisions", {"input": " ", "questions": {"state": NOUL}}, "input should be a text"),
        ("/v1beta/decisions", {"questions": {"state": NOUL}}, "input is missing"),
        ("/v1beta/decisions", {"input": "a"}, "questions is missing"),
        ("/v1beta/decisions", {"input": "a", "questions": 3}, "questions should be a map"),
    ],
)
def test_a_state_is_called_input_where_the_client_calls_it_so(
    path: str, body: dict[str, Any], says: str, client: httpx.Client
) -> None:
    found = ask(client, body, path)
    assert found.status_code == 400 and found.json()["error"]["message"].startswith(says)


def test_openai_messages_of_text_and_json_are_the_state(client: httpx.Client) -> None:
    def first(value: Any) -> float:
        body = {"model": "tiny", "input": value, "questions": LISTED[:1]}
        return ask(client, body, "/v1/decisions").json()["answers"][0]["probability"]

    def parts(*content: Any) -> list[Any]:
        return [{"role": "user", "content": list(content)}]

    assert first(parts({"type": "input_text", "text": STATE})) == first(STATE)
    data = {"subject": "twice"}
    expected = ask(client, {"state": data, "questions": {"a": NOUL}}).json()["answers"]["a"]["noul"]
    assert first(parts({"type": "input_json", "data": data})) == expected != first(STATE)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"questions": [{**LISTED[1], "choices": [{"value": "a"}]}]}, "questions[0].choices"),
        (
            {"questions": [LISTED[0], {**LISTED[1], "choices": [{"value": "a"}, {"value": "a"}]}]},
            "questions[1].choices[1]",
        ),
        ({"questions": [{"type": "multi", "instructions": "?"}]}, "questions[0].type"),
        ({"questions": []}, "questions"),
        ({"questions": LISTED * 134}, "questions"),
        ({"input": ""}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
    ],
)
def test_openai_errors_name_the_parameter(client: httpx.Client, change: dict[str, Any], param: str) -> None:
    response = ask(client, {"model": "tiny", "input": STATE, "questions": LISTED, **change}, "/v1/decisions")
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param) and error["message"]


def test_gemini_asks_a_map_about_an_input(client: httpx.Client) -> None:
    told = {
        "type": "noul",
        "instructions": [{"type": "text", "text": "Refund?"}],
        "criteria": {"true_description": "Money"},
    }
    body = {
        "model": "models/jev-latest",
        "input": {"type": "text", "text": STATE},
        "questions": {**QUESTIONS, "a": told},
    }
    found = ask(client, body, "/v1/decisions").json()["answers"]
    own = answers(client, {**QUESTIONS, "a": {**NOUL, "criteria": {"true": "Money"}}})
    assert found["a"]["noul"] == own["a"]["noul"]
    assert found["b"]["confidence"] == max(own["b"]["probabilities"].values())
    wrong = ask(client, {**body, "questions": {"b": {**CHOICE, "criteria": {"x": "y"}}}}, "/v1beta/decisions")
    assert wrong.status_code == 400 and wrong.json()["error"]["status"] == "INVALID_ARGUMENT"


# --- the official clients ------------------------------------------------------------------------------------------


def test_the_typesafe_client_reads_every_answer(address: str) -> None:
    sdk = pytest.importorskip("typesafe_sdk")
    questions = {
        "a": sdk.Noul(instructions="Refund?"),
        "b": sdk.Choice(instructions="Team?", criteria={"billing": "Refunds", "it": None}),
        "c": sdk.Score(instructions="Anger?", criteria=["calm", "cross"]),
    }
    with sdk.TypeSafeClient(api_key="none", base_url=address) as client:
        found = client.system_one(state=STATE * 40, questions=questions, model="jev-latest")
    assert 0 < found.nouls["a"].noul < 1 and found.choices["b"].choice in ("billing", "it")
    assert 0 < found.scores["c"].score < 1
    assert "x_uncertainty" in found.raw_http_response.json()["answers"]["a"]


def test_the_openai_client_reads_every_answer(address: str) -> None:
    openai = pytest.importorskip("openai", minversion="3.57.0")
    client = openai.OpenAI(api_key="none", base_url=f"{address}/v1", max_retries=0)
    predicate, choice, _ = client.decisions.create(model="tiny", input=STATE, questions=LISTED).answers
    assert predicate.name == "first" and choice.choice in (True, "true", "it")
    with pytest.raises(openai.BadRequestError) as raised:
        client.decisions.create(model="tiny", input=STATE, questions=[{**LISTED[1], "choices": []}])
    assert raised.value.param == "questions[0].choices"


def test_the_gemini_client_reads_every_answer(address: str) -> None:
    genai = pytest.importorskip("google.genai", minversion="3.6.1")
    client = genai.Client(api_key="none", http_options={"base_url": address})
    criteria = {"billing": "Refunds", "it": "IT"}
    questions = {**QUESTIONS, "b": {**CHOICE, "criteria": criteria}}
    found = client.decisions.create(model="tiny", input=STATE, questions=questions).answers
    assert found["b"].choice in criteria and 0 < found["a"].noul < 1


@pytest.mark.parametrize("key", [None, "local-key"])
def test_the_conformance_suite_passes(model: DecisionModel, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    runner = pytest.importorskip("jevcompat.runner")
    monkeypatch.setenv("DECISION_KEY", "local-key")
    settings = {} if key is None else {"api_key": "DECISION_KEY"}
    with serving(model, **settings) as address:
        report = runner.run(address, key=key)
    assert [one.id for one in report.results if one.status == "fail"] == []
    skipped = {one.id for one in report.results if one.status == "skip"}
    off = {"auth.bearer", "auth.missing", "auth.invalid"}
    assert report.conformant and skipped == (off if key is None else {"auth.ignored-when-off"})


def test_the_evaluation_tool_reads_the_answers(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = pytest.importorskip("jev_eval.cli")
    monkeypatch.setenv("JEV_API_KEY", "local")
    monkeypatch.setenv("TYPESAFE_AI_BASE_URL", f"{address}/v1")
    rows = [{"state": f"{STATE} {n}", "labels": {"team": "ab"[n % 2], "urgent": n % 3 == 0}} for n in range(12)]
    data, cache = tmp_path / "labelled.jsonl", tmp_path / "cache.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = ["-q", "team:choice(a,b)", "-q", "urgent:noul"]
    assert cli.main(["run", "--data", str(data), *questions, "--cache", str(cache), "--model", "tiny"]) == 0
    assert len(cache.read_text().splitlines()) >= 12
    assert cli.main(["report", "--cache", str(cache)]) == 0


def test_the_command_line_tells_a_decision_folder_and_a_base_model(model: DecisionModel, tmp_path: Path) -> None:
    from bayeslora.deploy.serve.server import _app

    model.save(tmp_path / "run")
    for name in (str(tmp_path / "run"), model.config.model):
        assert "/v1/systemone" in {route.path for route in _app(name, Settings(), ["*"], "cpu").routes}  # type: ignore[attr-defined]
