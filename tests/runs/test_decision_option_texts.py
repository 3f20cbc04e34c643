"""One head on the texts of options: questions that vary, new ones too, and what its answers depend on."""

import io
import json
import math
import random
import string
from pathlib import Path
from typing import Any

import pytest

from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.methods.bayesian_head import BayesianHead
from bayeslora.runs import evaluate
from bayeslora.runs.config import TrainConfig
from bayeslora.runs.cross_fitting import adapted_features
from bayeslora.runs.decisions import DecisionModel
from bayeslora.runs.decisions.calibration import OTHERS, Calibration, Labelled, calibrated, name_of
from bayeslora.runs.heads import HeadRun
from bayeslora.scoring.codes import TooLongError
from bayeslora.scoring.option_texts import OptionTexts
from bayeslora.tasks import TaskError
from bayeslora.tasks.decisions import Answer, Record, parse_question
from bayeslora.tasks.decisions.items import items_of
from bayeslora.tasks.decisions.records import parse_record
from bayeslora_cli.main import main
from decision_models import tiny_base, trains, write

METALS, WOODS = ("tin", "zinc", "lead", "iron", "gold"), ("oak", "elm", "ash", "fir", "yew")
NOUL = {"type": "noul", "instructions": "Is it one?"}
MANY = {"type": "choice", "instructions": "Which of these?", "criteria": {str(number): None for number in range(70)}}


def varying(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Records with two or three options of their own, of which the metal is right."""
    made = []
    for number in range(count):
        place = number + seed
        metal, *woods = METALS[place % 5], WOODS[place // 2 % 5], WOODS[(place // 3 + 2) % 5]
        options = list(dict.fromkeys([metal, *woods[: 1 + number % 2]]))[:: 1 if number % 3 else -1]
        question = {"type": "choice", "instructions": "Which?", "criteria": dict.fromkeys(options)}
        state = "".join(random.Random(place).choices(string.ascii_lowercase, k=12))
        made.append({"state": state, "questions": {"q": question}, "labels": {"q": metal}})
    return made


def records(count: int, seed: int = 0) -> list[Record]:
    return [parse_record(row) for row in varying(count, seed)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


def fitted(
    base: str, method: Method | None = None, taught: list[Record] | None = None, **options: Any
) -> DecisionModel:
    train = TrainConfig(epochs=1, learning_rate=5e-3) if method is not None else None
    asked = {"readout": "option_texts", "method": method, "train": train} | options
    return DecisionModel(base, device="cpu", dtype="float32", **asked).fit(taught or records(30), progress=False)


@pytest.fixture(scope="module")
def model(base: str) -> DecisionModel:
    return fitted(base)


def test_it_learns_from_questions_that_vary(model: DecisionModel) -> None:
    rows = list(model.labelled(records(20, seed=3)))
    nll = -sum(math.log(row.answer.probabilities[row.target.index(1)]) for row in rows) / len(rows)
    uniform = sum(math.log(len(row.target)) for row in rows) / len(rows)
    assert nll < 0.7 * uniform
    assert all(row.answer.readout == "option_texts" for row in rows)
    assert all(0 <= row.answer.novelty <= 1 for row in rows)  # type: ignore[operator]


def test_answers_hang_on_state_and_question_alone(model: DecisionModel) -> None:
    asked = {"a": varying(1)[0]["questions"]["q"], "b": varying(2)[1]["questions"]["q"], "c": NOUL, "many": MANY}
    assert model.adapted is not None
    run = model.adapted.run
    assert isinstance(run, HeadRun)
    kept = len(run.reader._store)
    first = model.decide("tin tin", asked)
    assert len(run.reader._store) == kept, "what was read of a request is not kept"
    for name, question in asked.items():
        assert model.decide("tin tin", {"other": question})["other"] == first[name]
    requests = [model.request("b", asked), model.request("tin tin", dict(reversed(asked.items())))]
    assert list(model.answers(requests))[1] == first
    assert first["c"].mutual_information > 0 and first["many"].mutual_information > 0
    assert len(first["many"].probabilities) == 70 and sum(first["many"].probabilities) == pytest.approx(1)
    turned = {**asked["b"], "criteria": dict(reversed(asked["b"]["criteria"].items()))}
    again, before = model.decide("tin tin", {"q": turned})["q"], first["b"]
    assert again.by_key(again.probabilities) == pytest.approx(before.by_key(before.probabilities), abs=1e-3)


@pytest.mark.parametrize("method", [None, Lora(r=2), BayesianLora(r=2, prior_std=1.0)], ids=["head", "lora", "drawn"])
def test_a_saved_model_answers_the_same(base: str, method: Method | None, tmp_path: Path) -> None:
    made = fitted(base, method, records(16), num_samples=3)
    asked = {"q": varying(1)[0]["questions"]["q"], "new": NOUL}
    made.save(tmp_path / "m")
    found, again = made.decide("a state", asked), DecisionModel.load(tmp_path / "m")
    assert again.decide("a state", asked) == found and again.config.readout == "option_texts"
    again.save(tmp_path / "copy")
    assert DecisionModel.load(tmp_path / "copy").decide("a state", asked) == found
    if isinstance(method, BayesianLora):
        drawn = [made.decide("a state", asked, num_samples=number)["q"] for number in (0, 3)]
        assert drawn[0].probabilities != drawn[1].probabilities


def test_what_is_read_of_requests_is_not_kept(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in memory, and not in the folder of the training, which is gone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = fitted(base, Lora(r=2), records(16))
    store = made.adapted.run.scoring.reads.frozen.reader._store  # type: ignore[union-attr, attr-defined]
    kept = len(store)
    made.decide("a state", {"q": NOUL})
    assert len(store) == kept and not list(tmp_path.iterdir())


def test_by_default_it_learns_where_no_question_has_labels_enough(base: str, tmp_path: Path) -> None:
    each = varying(26)
    for number, row in enumerate(each):
        row["questions"]["q"]["instructions"] = f"{number}?"
    model = DecisionModel(base, device="cpu", dtype="float32").fit([parse_record(row) for row in each], progress=False)
    assert model.config.readout == "option_texts" and isinstance(model.method, BayesianHead)
    with pytest.raises(ValueError, match="at least 25 labels"):
        DecisionModel(base, device="cpu", dtype="float32").fit([parse_record(row) for row in each[:24]], progress=False)
    data, run = str(write(tmp_path / "r.jsonl", each)), tmp_path / "run"
    main(["train", "--task.name", data, "--output_dir", str(run), "--model.name", base])
    found = json.loads((run / "metrics.json").read_text())["leave_one_out"]
    main(["evaluate", str(run), "--input", str(write(tmp_path / "more.jsonl", varying(6, seed=50))), "--json"])
    assert found["all questions"]["labels"] == 26 and found["all questions"]["nll"] < 0.6


@pytest.mark.parametrize("method", [None, Lora(r=2)], ids=["head", "lora"])
def test_distributions_and_weights_are_learned(base: str, method: Method | None) -> None:
    """Labels of the metals that are even ones say so; where the wood weighs more than the metal, it is the wood."""
    even, heavy = varying(40), varying(40) + varying(40)
    for row in even:
        share = 1 / len(row["questions"]["q"]["criteria"])
        row["labels"]["q"] = dict.fromkeys(row["questions"]["q"]["criteria"], share)
    for number, row in enumerate(heavy):
        row["weight"] = 10.0 if number < 40 else 1.0
        if number < 40:
            row["labels"]["q"] = next(key for key in row["questions"]["q"]["criteria"] if key in WOODS)
    metal = [
        sum(
            row.answer.probabilities[row.target.index(1)] - 1 / len(row.target)
            for row in fitted(base, method, [parse_record(row) for row in taught]).labelled(records(10, seed=60))
        )
        / 10
        for taught in (varying(40), even, heavy)
    ]
    assert metal[0] > 0.15 > 0.05 > abs(metal[1]) and metal[2] < -0.1


def test_a_prompt_that_does_not_fit_is_refused(base: str) -> None:
    made = fitted(base, taught=records(12), max_length=200)
    longest = {"type": "choice", "instructions": "W?", "criteria": {"a": None, "b" * 150: None}}
    with pytest.raises(TooLongError, match="but the model reads 200"):
        made.decide("a" * 60, {"q": longest})
    assert made.decide("a" * 60, {"q": NOUL})
    with pytest.raises(TooLongError):
        made.decide("a" * 300, {"q": NOUL})


def test_rows_of_a_request_are_what_is_read(model: DecisionModel) -> None:
    assert model.adapted is not None
    scoring, question = model.adapted.run.scoring, parse_question(varying(2)[1]["questions"]["q"])
    assert isinstance(scoring, OptionTexts)
    request = model.request("a state", {"q": question})
    context, options = scoring._encode(_item(question))
    assert [request.state + row for row in request.by_code["q"]] == [context + option for option in options]


def _item(question: Any) -> Any:
    from bayeslora.tasks.decisions.items import DecisionItem

    return DecisionItem("q", "state", question.keys, None, state="a state", asked=question)


def test_questions_that_vary_are_calibrated_together(base: str) -> None:
    made = fitted(base)
    made.calibrate(records(40, seed=100), alpha=0.1, delta=0.1, coverage=0.9)
    assert made.calibration is not None and list(made.calibration.policies) == list(made.calibration.sets) == [OTHERS]
    assert made.calibration.policies[OTHERS].question == "questions that vary"
    found = made.decide("new", {"q": varying(1, seed=3)[0]["questions"]["q"], "unlike": NOUL})
    assert {answer.action for answer in found.values()} <= {"automate", "escalate"}
    assert all(answer.options_in_set for answer in found.values())
    certified = made.calibration.policies[OTHERS].certified
    assert certified.units == 40 and certified.threshold is not None and certified.bound <= 0.1
    assert Calibration.from_dict(json.loads(json.dumps(made.calibration.to_dict()))) == made.calibration


def test_each_of_few_fixed_questions_has_a_promise_of_its_own() -> None:
    asked = [parse_question({"type": "noul", "instructions": name}) for name in ("a?", "b?")]
    rows = [
        Labelled(
            Answer(question, (0.6 + place / 100, 0.4 - place / 100)), (1.0, 0.0), f"{question.instructions}{place}"
        )
        for question, count in zip(asked, (30, 4), strict=True)
        for place in range(count)
    ]
    found = calibrated(rows, alpha=0.2, delta=0.2)
    assert list(found.policies) == [name_of(asked[0])]
    assert found.apply({"b": rows[-1].answer})["b"].action == "escalate"


def test_a_model_is_not_scored_on_states_that_it_was_fitted_on(base: str, tmp_path: Path) -> None:
    data, more = write(tmp_path / "r.jsonl", varying(30)), write(tmp_path / "more.jsonl", varying(36))
    model = DecisionModel(base, device="cpu", dtype="float32", readout="option_texts")
    model.fit(data, progress=False).save(tmp_path / "m")
    with pytest.raises(TaskError, match="fitted on all of them"):
        evaluate(tmp_path / "m", input=data)
    assert evaluate(tmp_path / "m", input=more)["num_examples"] == 6
    fitted(base, taught=records(12)).save(tmp_path / "python")
    with pytest.raises(ValueError, match=r"'records' is no file of them.*--input FILE"):
        evaluate(tmp_path / "python")


def test_the_server_answers_as_the_model(model: DecisionModel) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from fastapi.testclient import TestClient

    from bayeslora.deploy.serve.decisions.app import create_decision_app
    from bayeslora.deploy.serve.settings import Settings

    asked = {"a": varying(1)[0]["questions"]["q"], "c": NOUL}
    with TestClient(create_decision_app(model, "runs/tiny", Settings())) as client:
        body = {"state": "a state", "questions": asked}
        answers = client.post("/v1/systemone", json=body).json()["answers"]
        long = client.post("/v1/systemone", json={"state": "a" * 900, "questions": asked})
    assert answers == {name: answer.to_dict() for name, answer in model.decide("a state", asked).items()}
    assert answers["a"]["x_readout"] == "option_texts"
    assert long.status_code == 413, long.text


@pytest.mark.parametrize("method", ["BayesianHead", "Lora"])
def test_train_evaluate_calibrate_and_decide(
    base: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = write(tmp_path / "records.jsonl", varying(40)), str(tmp_path / "run")
    main([*trains(base, data, tmp_path / "run", "option_texts"), "--method", method])
    assert "bayeslora decide" in capsys.readouterr().out
    main(["evaluate", run])
    main(["calibrate", run, "--data", str(write(tmp_path / "more.jsonl", varying(12, seed=4))), "--json"])
    main(["review", run, "--input", str(tmp_path / "more.jsonl"), "--json"])
    capsys.readouterr()
    asked = {"q": varying(1)[0]["questions"]["q"]}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"state": "a state", "questions": asked})))
    main(["decide", run])
    found = json.loads(capsys.readouterr().out)["answers"]
    assert found == {name: one.to_dict() for name, one in DecisionModel.load(run).decide("a state", asked).items()}


@pytest.mark.parametrize("method", [None, Lora(r=2), BayesianLora(r=2, prior_std=1.0)], ids=["head", "lora", "drawn"])
def test_extending_is_a_fit_to_both(base: str, method: Method | None, tmp_path: Path) -> None:
    """Records with weights, distributions and more options come behind; an adapter stays as it was trained."""
    old, new = varying(26), varying(12, seed=50)
    for number, row in enumerate([*old, *new]):
        row["weight"] = 1.0 + number % 3
    new[0]["labels"]["q"] = dict.fromkeys(new[0]["questions"]["q"]["criteria"], 1 / 2)
    new[1]["questions"]["q"]["criteria"] = dict.fromkeys((*METALS, "oak"))
    new[2] = old[0] | {"labels": {"q": old[0]["labels"]["q"]}}
    parsed = [[parse_record(row) for row in part] for part in (old, new)]
    first = fitted(base, method, parsed[0], num_samples=3)
    asked = {"q": varying(1)[0]["questions"]["q"], "new": NOUL}
    before = first.decide("a state", asked)
    first.save(tmp_path / "old")
    loaded = DecisionModel.load(tmp_path / "old")
    extended = DecisionModel.load(tmp_path / "old").extend(parsed[1], progress=False)
    assert loaded.decide("a state", asked) == before and first.decide("a state", asked) == before
    items = items_of([*parsed[0], *parsed[1]])
    if method is None:
        whole = fitted(base, None, [*parsed[0], *parsed[1]])
    else:  # The same adapter, and what a training on all items does at its end.
        reading = loaded.adapted.run.scoring.reads  # type: ignore[union-attr, attr-defined]
        parts = adapted_features(loaded.adapted.run.model, loaded.adapted.run.scoring, items, 8)  # type: ignore[union-attr]
        reading.begin(items, 5, 0)
        reading.finish(*parts, loaded.adapted.run.config.head.average)  # type: ignore[union-attr]
        whole = loaded
    for state in ("a state", parsed[1][3].state):
        found, expected = extended.decide(state, asked), whole.decide(state, asked)
        for name, answer in found.items():
            assert answer.probabilities == pytest.approx(expected[name].probabilities, abs=2e-3)
        assert found["q"].probabilities != before["q"].probabilities
    assert extended.examples is not None and extended.examples.records == 38
    assert len(extended.trained_states) == len({one.state_key for one in items})
    if method is None:
        assert extended.decide("a state", asked)["q"].novelty == whole.decide("a state", asked)["q"].novelty
    extended.save(tmp_path / "new")
    again = DecisionModel.load(tmp_path / "new")
    assert again.decide("a state", asked) == extended.decide("a state", asked)
    records_before = extended.examples.records
    twice = again.extend(parsed[0][:3], progress=False)
    assert twice.examples is not None and twice.examples.records == records_before + 3


def test_fixed_options_stay_fixed_until_a_record_has_others(base: str) -> None:
    question = {"type": "choice", "instructions": "Which?", "criteria": {"tin": None, "oak": None}}
    rows = [
        {"state": f"{number} {'tin' if number % 2 else 'oak'}", "questions": {"q": question}, "labels": {"q": label}}
        for number, label in enumerate(["oak", "tin"] * 10)
    ]
    parsed = [parse_record(row) for row in rows]
    model = fitted(base, None, parsed[:12])
    more = fitted(base, None, parsed[:12]).extend(parsed[12:], progress=False)
    whole = fitted(base, None, parsed)
    assert more.adapted is not None and more.adapted.run.config.task.classes == ["tin", "oak"]
    assert more.decide("7 tin")["q"].probabilities == pytest.approx(whole.decide("7 tin")["q"].probabilities, abs=2e-3)
    model.extend(records(6), progress=False)
    whole = fitted(base, None, [*parsed[:12], *records(6)])
    assert model.adapted is not None and model.adapted.run.config.task.classes is None
    asked = {"q": question}
    found, expected = model.decide("7 tin", asked)["q"], whole.decide("7 tin", asked)["q"]
    assert found.probabilities == pytest.approx(expected.probabilities, abs=2e-3)


def test_an_extension_that_fails_leaves_the_model_as_it_was(base: str) -> None:
    question = {"type": "choice", "instructions": "Which?", "criteria": {"tin": None, "oak": None}}
    rows = [{"state": f"{n} tin", "questions": {"q": question}, "labels": {"q": "tin"}} for n in range(8)]
    model = fitted(base, Lora(r=2, last_layers=1), [parse_record(row) for row in rows], max_length=200)
    before = model.decide("7 tin")
    other = {"type": "choice", "instructions": "Which?", "criteria": {"tin": None, "o" * 250: None}}
    with pytest.raises(TooLongError):
        model.extend([parse_record({"state": "8", "questions": {"q": other}, "labels": {"q": "tin"}})], progress=False)
    assert model.decide("7 tin") == before


@pytest.mark.parametrize("method", ["BayesianHead", "Lora"])
def test_extend_by_command(
    base: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data, run, more = write(tmp_path / "records.jsonl", varying(40)), tmp_path / "run", tmp_path / "more"
    main([*trains(base, data, run, "option_texts"), "--method", method])
    new = str(write(tmp_path / "new.jsonl", varying(9, seed=80)))
    main(["calibrate", str(run), "--data", str(write(tmp_path / "c.jsonl", varying(12, seed=150)))])
    kept = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    extend = ["train", "--extend", str(run), "--task.name", new, "--output_dir"]
    capsys.readouterr()
    main([*extend, str(more)])
    assert "9 new" in capsys.readouterr().out and "calibrate again" in caplog.text
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == kept
    metrics = json.loads((more / "metrics.json").read_text())
    assert metrics["records"] == metrics["records_before"] + 9 and metrics["extends"] == str(run)
    assert "split" not in metrics and not (more / "calibration.json").exists()
    assert metrics["leave_one_out"]["all questions"]["labels"] == metrics["train_examples"] == metrics["records"]
    for call, says in (
        ([*extend, str(run)], "is there already"),
        ([*extend, str(tmp_path / "x"), "--task.scoring", "codes"], "but codes was asked for"),
        ([*extend, str(tmp_path / "x"), "--method", "LaplaceLora"], "but LaplaceLora was asked for"),
    ):
        with pytest.raises(SystemExit):
            main(call)
        assert says in capsys.readouterr().err
    main([*extend, str(run), "--overwrite", "--task.scoring", "option_texts", "--method", method])
    asked = {"q": varying(1)[0]["questions"]["q"]}
    assert DecisionModel.load(run).decide("iron", asked) == DecisionModel.load(more).decide("iron", asked)
    capsys.readouterr()
    main(["evaluate", str(more), "--input", str(write(tmp_path / "test.jsonl", varying(6, seed=200))), "--json"])
    assert (run / "adapter").is_dir() == (method == "Lora")
