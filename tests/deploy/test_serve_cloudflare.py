"""Cloudflare's envelope around System One, by itself and by clef-evals where that is installed."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from test_serve_decisions import serving

from bayeslora.runs.decisions import DecisionModel
from decision_models import QUESTIONS, tiny_base

PATH = "/client/v4/accounts/mine/ai/run/@cf/cloudflare/clef"
STATE = "a state"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecisionModel:
    return DecisionModel(tiny_base(tmp_path_factory.mktemp("base")), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def address(model: DecisionModel) -> Iterator[str]:
    with serving(model) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
        yield client


def test_an_answer_is_system_ones_in_an_envelope(client: httpx.Client) -> None:
    body = {"model": "clef-flash", "state": STATE, "questions": QUESTIONS}
    response = client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    plain = client.post("/v1/systemone", json={**body, "model": "jev-latest"}).json()
    assert response.json() == {"result": plain, "success": True, "errors": [], "messages": []}


@pytest.mark.parametrize(
    ("change", "says"),
    [({"state": ""}, "state: "), ({"questions": {}}, "questions: "), ({"images": [{}]}, "images: "), (None, "JSON")],
    ids=["empty-state", "no-question", "images", "no-json"],
)
def test_errors_stand_in_the_envelope(client: httpx.Client, change: dict[str, Any] | None, says: str) -> None:
    body = {"state": STATE, "questions": QUESTIONS}
    response = client.post(PATH, content=b"{") if change is None else client.post(PATH, json=body | change)
    found = response.json()
    assert response.status_code == 400 and found["success"] is False and found["result"] is None
    assert found["errors"][0]["code"] == 400 and says in found["errors"][0]["message"]


def test_a_wrong_key_is_refused_in_the_envelope(model: DecisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECISION_KEY", "local-key")
    with serving(model, api_key="DECISION_KEY") as address:
        response = httpx.post(f"{address}{PATH}", json={"state": STATE, "questions": QUESTIONS}, trust_env=False)
    assert response.status_code == 401 and response.json()["errors"][0]["code"] == 401


def test_clef_evals_reads_every_answer(address: str, model: DecisionModel) -> None:
    clef = pytest.importorskip("clef_evals")
    from clef_evals.client import ClefClient
    from clef_evals.models import Choice, Noul, Score

    config = clef.ClefConfig(account_id="mine", api_token="local", base_url=f"{address}/client/v4", timeout=30)
    asked = {
        "metal": Noul(instructions="Is it a metal?"),
        "kind": Choice(instructions="Which?", criteria={"iron": "Fe", "wood": "trees"}),
        "many": Score(instructions="How many?", criteria=["none", "one", "two"]),
    }
    with ClefClient(config) as client:
        found = client.run(STATE, asked)
    expected = model.decide(STATE, {name: question.to_payload() for name, question in asked.items()})
    assert found.answers["metal"].probability == expected["metal"].probabilities[0]
    assert (
        found.answers["kind"].choice == expected["kind"].key and found.answers["many"].score == expected["many"].level
    )
