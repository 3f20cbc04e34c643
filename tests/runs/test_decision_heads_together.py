"""Heads over adapters read many states in one forward, mean and draws: each has the numbers that it has alone."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.methods.ensemble import DeepEnsemble
from bayeslora.methods.laplace import LaplaceLora
from bayeslora.runs.config import TrainConfig
from bayeslora.runs.decisions import DecisionModel
from bayeslora.runs.decisions.requests import Request
from bayeslora.tasks.decisions import Answer
from decision_models import QUESTIONS, records, tiny_base

STATES = ["a state", "b" * 100, "a", {"a": "state"}, "another state", "b" * 100, "c" * 250, "b" * 90]
METHODS: list[tuple[Method, int]] = [
    (BayesianLora(r=2, prior_std=1.0), 0),
    (BayesianLora(r=2, prior_std=1.0), 3),
    (DeepEnsemble(members=2, r=2), 2),
    (Lora(r=2), 2),
]


def fitted(folder: Any, method: Method) -> DecisionModel:
    options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "readout": "heads", "num_samples": 2}
    train = TrainConfig(epochs=1, learning_rate=5e-3)
    return DecisionModel(tiny_base(folder), method=method, train=train, **options).fit(records(8), progress=False)


@pytest.fixture(scope="module", params=METHODS, ids=lambda each: f"{each[0].name}-{each[1]}")
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DecisionModel, Callable[[Any, int], Request]]:
    """A model, and its requests with a number of questions."""
    method, samples = request.param
    model = fitted(tmp_path_factory.mktemp("base"), method)

    def make(state: Any, questions: int) -> Request:
        return model.request(state, dict(list(QUESTIONS.items())[:questions]), samples)

    return model, make


def counted(model: DecisionModel, requests: list[Request]) -> list[int]:
    """Tokens of each prediction for these requests."""
    assert model.adapted is not None
    method, tokens = type(model.adapted.run.config.method), list[int]()
    own = method.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "predict", lambda *args: tokens.append(args[2]["input_ids"].shape[1]) or own(*args))
        list(model.answers(requests))
    return tokens


def assert_same(found: dict[str, Answer], expected: dict[str, Answer]) -> None:
    assert found.keys() == expected.keys()
    for name, answer in expected.items():
        assert found[name].probabilities == pytest.approx(answer.probabilities, abs=1e-5)
        assert found[name].mutual_information == pytest.approx(answer.mutual_information, abs=1e-5)
        assert found[name].novelty == answer.novelty


def test_many_states_in_any_order_have_the_numbers_of_each_one_alone(asked: Any) -> None:
    model, make = asked
    requests = [make(state, 1 + place % 3) for place, state in enumerate(STATES)]
    expected = [next(model.answers([request])) for request in requests]
    model.hidden.together = 400
    generator = random.Random(0)
    for _ in range(2):
        order = generator.sample(range(len(requests)), len(requests))
        for place, found in zip(order, model.answers(requests[place] for place in order), strict=True):
            assert_same(found, expected[place])
    assert 1 < len(counted(model, requests)) < 0.7 * len(requests)
    assert max(counted(model, requests)) <= 400


def test_requests_with_other_draws_share_no_forward(tmp_path: Any) -> None:
    model = fitted(tmp_path, BayesianLora(r=2, prior_std=1.0))
    draws = [(2, 0), (2, 0), (2, 1), (0, 1), (3, 1), (2, 0)]
    requests = [model.request("a state", QUESTIONS, *each) for each in draws]
    for request, found in zip(requests, model.answers(requests), strict=True):
        assert_same(found, next(model.answers([request])))
    kinds = [str(found) for found in model.answers(requests)]
    assert kinds[0] == kinds[1] == kinds[5] and len(set(kinds)) == 4


@pytest.mark.parametrize("method", [BayesianLora(r=2, prior_std=1.0), LaplaceLora(r=2)], ids=lambda one: one.name)
def test_models_that_read_no_rows_are_asked_one_by_one(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    model = fitted(tmp_path, method)
    requests = [model.request(state, QUESTIONS) for state in STATES[:4]]
    expected = list(model.answers(requests))
    monkeypatch.setattr("bayeslora.scoring.cloze.packs", lambda *rest: False)
    model.adapted.reading.forget()  # type: ignore[union-attr]
    for found, one in zip(model.answers(requests), expected, strict=True):
        for name, answer in one.items():
            assert found[name].probabilities == pytest.approx(answer.probabilities, abs=1e-4)


def test_a_row_is_read_as_many_as_it_has_parts(tmp_path: Any) -> None:
    """More questions than a row has room for, and a state that is too long to share one."""
    model = fitted(tmp_path, BayesianLora(r=2, prior_std=1.0))
    requests = [model.request(state, QUESTIONS) for state in STATES]
    expected = list(model.answers(requests))
    model.hidden.room = model.hidden.together = 120
    for found, one in zip(model.answers(requests), expected, strict=True):
        assert_same(found, one)
