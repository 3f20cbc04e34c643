"""A request to heads or codes over an adapter has the draws that it asks for, whatever is answered beside it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from test_serve_decisions import serving

from bayeslora.methods import BayesianLora
from bayeslora.runs.config import TrainConfig
from bayeslora.runs.decisions import DecisionModel
from decision_models import QUESTIONS, records, tiny_base

STATE = "a state"
DRAWS: list[tuple[int | None, int | None]] = [(None, None), (0, None), (2, None), (2, 7), (5, 7), (2, 2**63 - 1)]


@pytest.fixture(scope="module", params=["heads", "codes"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DecisionModel:
    """Draws of a wide prior, so that they differ."""
    readout: Literal["heads", "codes"] = request.param
    base = tiny_base(tmp_path_factory.mktemp("base"))
    method, train = BayesianLora(r=2, prior_std=1.0), TrainConfig(epochs=1, learning_rate=5e-3)
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "num_samples": 3, "orders": 1}
    return DecisionModel(base, readout=readout, method=method, train=train, **options).fit(records(8), progress=False)


@pytest.fixture(scope="module")
def client(model: DecisionModel) -> Iterator[httpx.Client]:
    with serving(model, max_samples=5) as address:
        yield httpx.Client(base_url=address, timeout=30, trust_env=False)


def body(num_samples: int | None, seed: int | None, state: str = STATE) -> dict[str, Any]:
    return {"state": state, "questions": QUESTIONS, "x_num_samples": num_samples, "x_seed": seed}


def answers(client: httpx.Client, content: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/systemone", json=content)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()["answers"]
    return found


def test_a_request_has_the_draws_that_it_asks_for(client: httpx.Client, model: DecisionModel) -> None:
    found = [answers(client, body(*draws)) for draws in DRAWS]
    for (num_samples, seed), own in zip(DRAWS, found, strict=True):
        expected = model.decide(STATE, QUESTIONS, num_samples=num_samples, seed=seed)
        assert own == {name: answer.to_dict() for name, answer in expected.items()}
    assert len({str(own) for own in found}) == len(DRAWS)
    assert all(answer["x_uncertainty"]["mutual_information"] == 0 for answer in found[1].values())
    assert answers(client, body(3, model.config.seed)) == found[0], "the run's own draws"


def test_neighbours_move_nothing(client: httpx.Client) -> None:
    bodies = [body(*draws, state=state) for draws in DRAWS for state in (STATE, "another, longer state")]
    alone = [answers(client, one) for one in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda one: answers(client, one), bodies))
    for found, expected in zip(together, alone, strict=True):
        for name, answer in expected.items():
            assert found[name]["x_uncertainty"] == pytest.approx(answer["x_uncertainty"], abs=1e-5)
            assert found[name].get("probabilities") == pytest.approx(answer.get("probabilities"), abs=1e-5)


def test_more_draws_than_the_server_allows_are_refused_in_each_clients_format(client: httpx.Client) -> None:
    one = client.post("/v1/systemone", json=body(6, None))
    assert one.status_code == 422 and one.json()["detail"][0]["loc"] == ["body", "x_num_samples"]
    listed = [{"type": "predicate", "instructions": "Is it a metal?"}]
    openai = client.post("/v1/decisions", json={"input": STATE, "questions": listed, "x_num_samples": 6})
    assert openai.status_code == 400 and openai.json()["error"]["param"] == "x_num_samples"
    assert all("x_num_samples should be at most 5 draws, got 6" in response.text for response in (one, openai))
