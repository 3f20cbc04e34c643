"""A fitted decision model over HTTP: requests that come together are read together, and answered as alone."""

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from test_serve_decisions import serving

from bayeslora.runs.decisions import DecisionModel
from bayeslora.runs.decisions.requests import Request
from decision_models import QUESTIONS, records, tiny_base

UNKNOWN = {"type": "noul", "instructions": "Is this question new?"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecisionModel:
    base = tiny_base(tmp_path_factory.mktemp("base"))
    return DecisionModel(base, device="cpu", dtype="float32").fit(records(30), progress=False)


@pytest.fixture(scope="module")
def client(model: DecisionModel) -> Iterator[httpx.Client]:
    with serving(model) as address, httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
        yield client


class Held:
    """`DecisionModel.answers` of a model whose first call waits until `go`."""

    def __init__(self, model: DecisionModel):
        self.own, self.sizes = model.answers, list[int]()
        self.started, self.go = threading.Event(), threading.Event()

    def __call__(self, requests: Sequence[Request]) -> Any:
        self.sizes.append(len(requests))
        self.started.set()
        assert self.go.wait(10)
        if any("broken" in request.questions for request in requests):
            raise RuntimeError("this one cannot be read")
        return self.own(requests)


def together(client: httpx.Client, held: Held, bodies: Sequence[dict[str, Any]], waiting: int) -> list[httpx.Response]:
    """Answers to requests of which all but the first come, in their order, while the first is read."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        futures = [pool.submit(client.post, "/v1/systemone", json=bodies[0])]
        assert held.started.wait(10)
        deadline = time.monotonic() + 10
        for number, body in enumerate(bodies[1:], 1):
            futures.append(pool.submit(client.post, "/v1/systemone", json=body))
            while f"bayeslora_queue_items {min(number, waiting)}.0" not in client.get("/metrics").text:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        held.go.set()
        return [future.result() for future in futures]


def body(state: str, **questions: Any) -> dict[str, Any]:
    return {"state": state, "questions": questions or QUESTIONS}


def test_requests_that_come_together_share_a_forward_and_are_answered_as_alone(
    client: httpx.Client, model: DecisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [record.state for record in records(5, seed=3)]
    expected = [model.decide(state) for state in states]
    monkeypatch.setattr(model, "answers", held := Held(model))
    bodies = [*map(body, states), body("words " * 400)]
    *found, too_long = together(client, held, bodies, waiting=4)
    assert held.sizes[0] == 1 and max(held.sizes) == 3 and sum(held.sizes) == 5 and too_long.status_code == 413
    for response, alone in zip(found, expected, strict=True):
        assert response.status_code == 200, response.text
        for name, answer in response.json()["answers"].items():
            probabilities = answer.get("probabilities") or {"true": answer["noul"], "false": 1 - answer["noul"]}
            assert list(probabilities.values()) == pytest.approx(alone[name].probabilities, abs=1e-5)
            assert answer["x_novelty"] == alone[name].novelty and answer["x_readout"] == "heads"


def test_a_request_that_fails_hurts_no_other_and_codes_are_read_apart(
    client: httpx.Client, model: DecisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [record.state for record in records(5, seed=4)]
    monkeypatch.setattr(model, "answers", held := Held(model))
    bodies = [body(state) for state in states[:3]]
    bodies.insert(2, body(states[3], broken=QUESTIONS["kind"]))
    bodies.append(body(states[4], new=UNKNOWN))
    found = together(client, held, bodies, waiting=4)
    assert [response.status_code for response in found] == [200, 200, 500, 200, 200]
    assert found[-1].json()["answers"]["new"]["x_readout"] == "codes"
    assert held.sizes[0] == 1 and max(held.sizes) == 3 and sum(held.sizes[1:]) == 7


def test_the_tokens_of_a_request_are_those_that_are_read(client: httpx.Client, model: DecisionModel) -> None:
    state = records(1, seed=5)[0].state
    used = client.post("/v1/systemone", json=body(state)).json()["usage"]["input_tokens"]
    shown = [model.hidden.question_tokens(question) for question in model.questions.values()]
    assert used == len(model.reader.state_tokens(state)) + sum(map(len, shown))


def test_a_fitted_question_needs_no_codes(model: DecisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model has codes for 26 options; of a head nobody asks them."""
    monkeypatch.setattr(model.reader, "prompts", lambda *_: 1 / 0)
    assert model.request("a state").num_tokens > 0


# --- in a browser ----------------------------------------------------------------------------------------------------


def test_the_page_needs_no_network(client: httpx.Client) -> None:
    page = client.get("/")
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', page.text)
    assert addresses and not any(address.startswith(("http", "//")) for address in addresses)
    assert "sha256-" in page.headers["content-security-policy"]


def seen(browser: Any, selector: str) -> list[str]:
    return [found.text for found in browser.find_elements("css selector", selector)]


def decide(browser: Any) -> None:
    browser.find_element("css selector", "button").click()
    deadline = time.monotonic() + 20
    while not any(browser.find_element("id", name).is_displayed() for name in ("result", "error")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_user_decides_in_a_browser(browser: Any, model: DecisionModel) -> None:
    model.calibrate(records(25, seed=7), alpha=0.3, coverage=0.8)
    with serving(model) as address:
        browser.get(address)
        state = records(1, seed=6)[0].state
        browser.find_element("id", "state").send_keys(state)
        browser.find_element("css selector", "input[value=many]").click()
        browser.find_element("css selector", "summary").click()
        browser.find_element("id", "instructions").send_keys("Of what?")
        browser.find_element("css selector", "#kind option[value=choice]").click()
        browser.find_element("id", "options").send_keys("<b>clay</b>: burnt\ntin")
        decide(browser)
        own = {"type": "choice", "instructions": "Of what?", "criteria": {"<b>clay</b>": "burnt", "tin": None}}
        kept = {name: QUESTIONS[name] for name in ("metal", "kind")}
        expected = model.decide(state, kept | {"own": own})
        pictures = os.environ.get("BAYESLORA_SCREENSHOTS")
        if pictures:
            height = browser.execute_script("return document.body.scrollHeight")
            browser.set_window_size(900, height + 200)
            browser.save_screenshot(f"{pictures}/decisions.png")
        told = {"true": "yes", "false": "no"}
        assert seen(browser, "h2") == [
            f"{told.get(answer.key, answer.key)}: {100 * max(answer.probabilities):.1f} %"
            for answer in expected.values()
        ]
        assert seen(browser, "article tbody th") == ["yes", "no", "iron", "wood", "glass", "<b>clay</b>", "tin"]
        flat = [p for answer in expected.values() for p in answer.probabilities]
        assert seen(browser, "article .number") == [f"{100 * p:.1f} %" for p in flat]
        verdicts = [text.partition(":")[0].lower() for text in seen(browser, ".verdict")]
        assert verdicts == [answer.action for answer in expected.values()] and verdicts[-1] == "escalate"
        doubts = [text for text in seen(browser, "dd small") if text.startswith("entropy")]
        assert doubts[1].startswith(f"entropy {expected['kind'].entropy:.3f} nats, of at most 1.099")
        assert "not known" in seen(browser, "article:last-child dd output")
        assert len([text for text in seen(browser, "dt") if text == "Is it new?"]) == 3
        assert browser.get_log("browser") == [], "no errors, no refused style or script"
        browser.find_element("id", "options").clear()
        decide(browser)
        assert "criteria" in browser.find_element("id", "error").text
    model.calibration = None
