"""Heads of typed questions over trained adapters on a tiny base: what is trained, kept, and what answers hang on."""

import io
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bayeslora.deploy.export.run import export_run
from bayeslora.deploy.hub import write_hub_folder
from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.methods.ensemble import DeepEnsemble
from bayeslora.methods.gauss_newton import GaussNewton
from bayeslora.methods.laplace import LaplaceLora
from bayeslora.methods.mc_dropout import MonteCarloDropout
from bayeslora.methods.one_pass import OnePass
from bayeslora.methods.snapshots import Snapshots
from bayeslora.models import load_base_model
from bayeslora.readouts.questions.files import heads_from_state, heads_state
from bayeslora.readouts.questions.reading import QuestionReading
from bayeslora.runs import load_run, predict_file
from bayeslora.runs.config import HeadConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.cross_fitting import reading_of
from bayeslora.runs.decisions import DecisionModel
from bayeslora.runs.distillation.student import distill
from bayeslora.runs.items import task_items
from bayeslora.scoring.heads import HeadScoring
from bayeslora.tasks import TaskError
from bayeslora.tasks.decisions import Question
from bayeslora.tasks.decisions.items import items_of
from bayeslora.tasks.decisions.records import parse_record
from bayeslora_cli.main import main
from decision_models import QUESTIONS, records, rows, tiny_base, trains, write


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


def fitted(base: str, method: Method, count: int = 12, **options: Any) -> DecisionModel:
    train = TrainConfig(epochs=2, learning_rate=5e-3)
    made = DecisionModel(
        base, device="cpu", dtype="float32", readout="heads", method=method, **{"train": train, **options}
    )
    return made.fit(records(count), progress=False)


@pytest.fixture(scope="module")
def model(base: str) -> DecisionModel:
    """Draws of a wide prior, so that they differ."""
    return fitted(base, BayesianLora(r=2, prior_std=1.0), num_samples=3)


def reading(model: DecisionModel) -> QuestionReading:
    assert model.adapted is not None
    found = reading_of(model.adapted.run.scoring)
    assert isinstance(found, QuestionReading)
    return found


# --- training ----------------------------------------------------------------------------------------------------


def test_training_lowers_the_cross_fitted_loss(base: str) -> None:
    train = TrainConfig(epochs=8, learning_rate=2e-2, logging_steps=1, save_steps=1000)
    method = Lora(r=4, target_modules="all-linear")
    made = fitted(base, method, 16, train=train)
    assert made.adapted is not None
    losses = [entry["nll"] for entry in made.adapted.run.metrics["history"]]
    assert sum(losses[-12:]) < 0.6 * sum(losses[:12])
    assert reading(made).layers == [2, 3, 4] and len(made.adapted.run.metrics["head"]) == 3


@pytest.mark.parametrize(
    "method",
    [DeepEnsemble(members=2, r=2), OnePass(r=2), MonteCarloDropout(r=2, lora_dropout=0.3), Snapshots(r=2, snapshots=2)],
    ids=lambda one: one.name,
)
def test_methods_with_something_beyond_an_adapter(base: str, method: Method, tmp_path: Path) -> None:
    made = fitted(base, method, num_samples=2)
    made.save(tmp_path / "m")
    found = made.decide("a state")
    assert DecisionModel.load(tmp_path / "m").decide("a state") == found
    assert all(answer.mutual_information > 0 for answer in found.values())


def test_no_item_is_read_by_a_head_that_has_seen_it(model: DecisionModel) -> None:
    items = items_of(records(12))
    fresh = QuestionReading([2, 3, 4], torch.nn.Identity(), reading(model).scoring)
    fresh.begin(items, 5, seed=0)
    features = torch.randn(len(items), 3, 3, 8, generator=torch.Generator().manual_seed(0))
    fresh.refit([(features, features)], torch.arange(len(items)))  # type: ignore[list-item]
    assert len(fresh._of_folds) == 5
    for fold, heads in enumerate(fresh._of_folds):
        for key, head in heads.items():
            own = fresh._examples[key]
            assert len(head.targets) == int((own.folds != fold).sum()) < len(own.folds) == 12
            left = [state for state, place in zip(own.states, own.folds.tolist(), strict=True) if place == fold]
            assert not set(left) & {state for state in own.states if state not in left} and left
    key, frozen = next(iter(fresh._frozen.items()))
    kept = fresh._examples[key].folds != 0
    own_features = features[fresh._examples[key].rows]
    wrong = frozen.targets.clone()
    wrong[~kept] = -7.0
    before, after = (
        head.moved(own_features, kept).predict(own_features) for head in (frozen, replace(frozen, targets=wrong))
    )
    assert torch.equal(before.samples, after.samples)


def test_weights_soft_labels_and_the_ranked_score_reach_the_loss(base: str) -> None:
    """As with codes: `bayeslora.training.cross_entropy.item_losses` takes them from the batch."""
    _, tokenizer = load_base_model(base, dtype="float32", device="cpu")
    made = rows(2)
    made[0] |= {"labels": {"kind": {"iron": 0.75, "wood": 0.25}}, "weight": 3}
    items = items_of([parse_record(row) for row in made])
    batch = HeadScoring(tokenizer, 512, ranked=0.5)(items)
    assert batch["ranked"].tolist() == [0.0, 0.0, 0.0, 0.5]
    assert batch["label_probabilities"][0].tolist() == [0.75, 0.25, 0.0]
    assert batch["weights"].tolist() == pytest.approx([2.0] + [2 / 3] * 3)
    with pytest.raises(RuntimeError, match="no heads read this batch"):
        batch.choice_logits(torch.nn.Identity())


def test_label_noise_is_estimated_where_it_is_asked_for(base: str) -> None:
    assert reading(fitted(base, Lora(r=2), label_noise=False)).noisy is False
    made = fitted(base, Lora(r=2))
    assert reading(made).noisy and made.config.label_noise


# --- answers -----------------------------------------------------------------------------------------------------


def test_answers_hang_on_state_and_question_alone(model: DecisionModel) -> None:
    first = model.decide("a state")
    assert all(answer.readout == "heads" and answer.novelty is not None for answer in first.values())
    assert all(answer.mutual_information > 1e-7 for answer in first.values())
    assert all(math.isclose(sum(answer.probabilities), 1, abs_tol=1e-6) for answer in first.values())
    for name, question in model.questions.items():
        assert model.decide("a state", {"q": question})["q"].probabilities == first[name].probabilities
    requests = [
        model.request("another, longer state"),
        model.request("a state", dict(reversed(model.questions.items()))),
    ]
    assert [*model.answers(requests)][1] == first
    mean = model.decide("a state", num_samples=0)
    assert all(answer.mutual_information == 0 for answer in mean.values())
    assert mean["kind"].probabilities != first["kind"].probabilities
    with pytest.raises(ValueError, match="num_samples"):
        model.decide("a state", num_samples=-1)


def test_options_are_known_by_their_keys(model: DecisionModel) -> None:
    question = model.questions["kind"]
    turned: Question = replace(question, options=question.options[::-1])
    found = model.decide("a state", {"kind": turned})["kind"]
    assert found.probabilities == pytest.approx(model.decide("a state")["kind"].probabilities[::-1], abs=1e-6)


def test_a_question_without_a_head_is_answered_by_the_codes_of_the_base_model(base: str, model: DecisionModel) -> None:
    other = {"o": {"type": "noul", "instructions": "Is it heavy?"}}
    plain = DecisionModel(base, device="cpu", dtype="float32", readout="codes", template=model.reader.template)
    found, expected = model.decide("a state", other)["o"], plain.decide("a state", other)["o"]
    assert found.readout == "codes" and found.probabilities == expected.probabilities


def test_a_batch_of_items_is_read_as_requests_are(model: DecisionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.adapted is not None
    run, taught = model.adapted.run, items_of(records(3, seed=5))
    found = run.predict(taught, 2, progress=False)
    for item, row, novelty in zip(
        taught, found.predictive.probabilities, found.further["novelty"].tolist(), strict=True
    ):
        answer = model.decide(item.state, {"q": item.asked}, num_samples=2)["q"]
        assert answer.probabilities == pytest.approx(row[: len(item.choices)].tolist(), abs=1e-5)
        assert answer.novelty == novelty
    monkeypatch.setattr("bayeslora.scoring.cloze.packs", lambda *rest: False)
    reading(model).forget()
    alone = run.predict(taught, 2, progress=False).predictive.probabilities
    torch.testing.assert_close(alone, found.predictive.probabilities, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "method",
    [LaplaceLora(r=2), GaussNewton(r=2), OnePass(r=2), MonteCarloDropout(r=2, lora_dropout=0.3)],
    ids=lambda one: one.name,
)
def test_posteriors_of_single_rows_are_read_in_single_rows(base: str, method: Method) -> None:
    """Of several questions in one row there is no gradient of each, and a mask of dropout that all share."""
    made = fitted(base, method, num_samples=2, train=TrainConfig(epochs=1))
    assert made.adapted is not None
    items = items_of(records(2, seed=5))
    together = made.decide(items[0].state)
    predicted = made.adapted.run.predict(items, 2, progress=False).predictive
    for item, row in zip(items, predicted.probabilities, strict=True):
        answer = made.decide(item.state, {"q": item.asked})["q"]
        if item.state == items[0].state:
            assert answer == together[item.name]
        if not method.draws_depend_on_batch:
            assert answer.probabilities == pytest.approx(row[: len(item.choices)].tolist(), abs=1e-5)


def test_the_server_answers_as_the_model(model: DecisionModel) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from fastapi.testclient import TestClient

    from bayeslora.deploy.serve.decisions.app import create_decision_app
    from bayeslora.deploy.serve.settings import Settings

    asked = {name: question.to_dict() for name, question in model.questions.items()}
    with TestClient(create_decision_app(model, "runs/tiny", Settings())) as client:
        found = client.post("/v1/systemone", json={"state": "a state", "questions": asked}).json()["answers"]
    assert found == {name: answer.to_dict() for name, answer in model.decide("a state").items()}
    assert all(answer["x_uncertainty"]["mutual_information"] > 0 for answer in found.values())


# --- what is kept ------------------------------------------------------------------------------------------------


def test_a_saved_model_answers_the_same_and_is_an_ordinary_run(model: DecisionModel, tmp_path: Path) -> None:
    model.calibrate(records(8, seed=9), coverage=0.5)
    try:
        model.save(tmp_path / "m")
        expected = model.decide("a state")
    finally:
        model.calibration = None
    again = DecisionModel.load(tmp_path / "m")
    assert again.decide("a state") == expected and expected["kind"].options_in_set is not None
    assert again.config == replace(model.config, device="cpu") and again.questions == model.questions
    assert again.trained_states == model.trained_states == {record.state_key for record in records(12)}
    assert not (tmp_path / "m" / "heads.safetensors").exists()
    run = load_run(tmp_path / "m")
    assert run.config.task.scoring == "heads" and run.folder == tmp_path / "m"
    again.save(tmp_path / "copy")
    assert DecisionModel.load(tmp_path / "copy").decide("a state") == expected


def test_without_learning_answers_are_those_of_heads_on_the_frozen_model(base: str) -> None:
    made = fitted(base, Lora(r=2), train=TrainConfig(epochs=1, learning_rate=1e-9))
    frozen = DecisionModel(base, device="cpu", dtype="float32", readout="heads").fit(records(12), progress=False)
    expected = frozen.decide("a state")
    for name, answer in made.decide("a state").items():
        assert answer.probabilities == pytest.approx(expected[name].probabilities, abs=1e-4)
        assert answer.novelty == pytest.approx(expected[name].novelty)


def test_heads_as_tensors_come_back(model: DecisionModel) -> None:
    state = heads_state(reading(model).heads, reading(model).state_novelty)
    heads, novelty = heads_from_state({**state, "something.else": torch.zeros(1)})
    assert novelty is not None and len(heads) == 1
    for again, own in zip(heads, reading(model).heads, strict=True):
        for key, head in own.items():
            features = head.kernels.points[:2]
            assert torch.equal(again[key].predict(features).samples, head.predict(features).samples)
    for damage, says in (({}, "has no head"), ({"head.0.0.fields": state["head.0.0.fields"]}, "are damaged")):
        with pytest.raises(ValueError, match=says):
            heads_from_state(damage)


# --- the command line --------------------------------------------------------------------------------------------


def test_train_evaluate_calibrate_and_decide(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = write(tmp_path / "records.jsonl", rows(20)), str(tmp_path / "run")
    main(trains(base, data, tmp_path / "run", "heads", "--head.average", "true"))
    assert len(reading(DecisionModel.load(run)).heads) == 2
    assert "bayeslora decide" in capsys.readouterr().out
    dev = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert dev["split"] == "dev" and set(dev["head"]) == {"Is it a metal?", "Which?", "How many?"}
    main(["evaluate", run])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_examples"] == 15
    main(["calibrate", run, "--data", str(write(tmp_path / "more.jsonl", rows(6, seed=4))), "--json"])
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO('{"state": "a state", "x_num_samples": -2}'))
    with pytest.raises(SystemExit):
        main(["decide", run])
    assert "num_samples" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO('{"state": "a state"}'))
    main(["decide", run])
    found = json.loads(capsys.readouterr().out)["answers"]
    assert found == {name: one.to_dict() for name, one in DecisionModel.load(run).decide("a state").items()}


def test_commands_that_such_a_run_is_not_for_say_what_is(
    model: DecisionModel,
    base: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(tmp_path / "run")
    model.save(run, metrics={"nll": 1.0})
    # Its tensors hold what the model reads in training records, which nobody wants to publish unasked.
    with pytest.raises(ValueError, match="no thing to publish"):
        write_hub_folder(run, tmp_path / "upload", "user/name")
    with pytest.raises(ValueError, match="answers typed questions"):
        distill(run, tmp_path / "student")
    with pytest.raises(ValueError, match="bayeslora decide RUN"):
        predict_file(run, write(tmp_path / "in.jsonl", rows(2)), tmp_path / "out.jsonl")
    with caplog.at_level(logging.WARNING, logger="bayeslora"):
        export_run(run, tmp_path / "export")
    assert "the adapter alone" in caplog.text
    main(
        [
            "review",
            run,
            "--input",
            str(write(tmp_path / "log.jsonl", rows(3, seed=8))),
            "--output",
            str(tmp_path / "top"),
        ]
    )
    said = capsys.readouterr().out
    assert "train again" in said and "--extend" not in said
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="bayeslora"), pytest.raises(SystemExit):
        main(
            ["train", "--extend", run, "--task.name", str(tmp_path / "log.jsonl"), "--output_dir", str(tmp_path / "x")]
        )
    assert "trained adapters" in capsys.readouterr().err and "heads on the frozen model" not in caplog.text


def test_an_interrupted_training_goes_on_with_its_heads(base: str, tmp_path: Path) -> None:
    data = write(tmp_path / "records.jsonl", rows(10))
    steps = ["--train.save_steps", "2", "--train.arguments", '{"save_total_limit": null}']
    main(trains(base, data, tmp_path / "whole", "heads", "--train.max_steps", "5", *steps))
    main(trains(base, data, tmp_path / "cut", "heads", "--train.max_steps", "5", *steps))
    (tmp_path / "cut" / "config.yaml").unlink()
    main(trains(base, data, tmp_path / "cut", "heads", "--train.max_steps", "5", *steps, "--resume"))
    one, other = (DecisionModel.load(tmp_path / name).decide("a state") for name in ("whole", "cut"))
    assert one == other


def test_questions_that_no_training_record_has_are_left_out_of_the_scores(
    base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = {
        "state": "a lump",
        "questions": {"o": {"type": "noul", "instructions": "Is it old?"}},
        "labels": {"o": True},
    }
    write(tmp_path / "train.jsonl", rows(6))
    write(tmp_path / "dev.jsonl", [*rows(2, seed=3), other])
    write(tmp_path / "test.jsonl", [other, *rows(1, seed=4)])
    main(trains(base, tmp_path, tmp_path / "run", "heads", "--train.choose_epoch", "true"))
    assert "1 of 7 dev items are left out" in caplog.text and "'Is it old?'" in caplog.text
    main(["evaluate", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_examples"] == 3
    main(["evaluate", str(tmp_path / "run"), "--input", str(tmp_path / "dev.jsonl")])
    assert json.loads((tmp_path / "run" / "evaluation" / "dev" / "metrics.json").read_text())["num_examples"] == 6


def test_what_cannot_be_trained_says_what_to_do(base: str, tmp_path: Path) -> None:
    made = [
        {"state": f"thing {number} {number % 7}", "questions": QUESTIONS, "labels": {"many": 1}} for number in range(14)
    ]
    with pytest.raises(TaskError, match="all 14 were drawn as test or dev"):
        task_items(TaskConfig(name=str(write(tmp_path / "copies.jsonl", made)), scoring="heads"))
    with pytest.raises(ValueError, match="set readout='codes', 'heads' or 'option_texts'"):
        DecisionModel(base, method=Lora())
    with pytest.raises(ValueError, match="labels of at least two states"):
        fitted(base, Lora(r=2), 1)
    with pytest.raises(TaskError, match="is no file of them"):
        task_items(TaskConfig(name="arc_easy", scoring="heads"))
    with pytest.raises(ValueError, match="folds"):
        RunConfig(head=HeadConfig(folds=1))
