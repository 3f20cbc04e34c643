"""Codes over trained adapters on a tiny base: what is trained, what is kept, and what answers depend on."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import bayeslora
from bayeslora import sampling
from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.methods.bayesian_head import BayesianHead
from bayeslora.methods.ensemble import DeepEnsemble
from bayeslora.methods.one_pass import OnePass
from bayeslora.methods.snapshots import Snapshots
from bayeslora.metrics import ranked_probability_score
from bayeslora.models import load_base_model
from bayeslora.runs import load_run
from bayeslora.runs.config import RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.decisions import DecisionModel
from bayeslora.runs.items import task_items
from bayeslora.scoring import get_scoring
from bayeslora.scoring.codes import CodeBatch, CodeReader, CodeScoring, Template, TooLongError, rotations
from bayeslora.scoring.codes.items import ShuffledItems
from bayeslora.tasks import TaskError
from bayeslora.tasks.decisions import Record, parse_question
from bayeslora.tasks.decisions.items import DecisionItem, items_of, read_splits
from bayeslora.tasks.decisions.records import parse_record
from bayeslora.training.cross_entropy import item_losses, ranked_probability_scores
from bayeslora_cli.main import main
from conftest import perturb, seeded
from decision_models import rows, tiny_base, trains, write

NOUL = {"type": "noul", "instructions": "Is it?"}
KIND = {"type": "choice", "instructions": "W?", "criteria": {"iron": None, "wood": "w", "glass": None}}
MANY = {"type": "score", "instructions": "M?", "criteria": ["a", "b", "c", "d"]}
ASKED = {"metal": NOUL, "kind": KIND}


def short(count: int, seed: int = 0, questions: dict[str, Any] = ASKED) -> list[dict[str, Any]]:
    made = rows(count, seed)
    labels = [{name: row["labels"][name] for name in questions} for row in made]
    return [
        {"state": row["state"][:12], "questions": questions, "labels": own}
        for row, own in zip(made, labels, strict=True)
    ]


def records(count: int, seed: int = 0, questions: dict[str, Any] = ASKED) -> list[Record]:
    return [parse_record(row) for row in short(count, seed, questions)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


def fitted(base: str, method: Method, taught: Sequence[Record], **options: Any) -> DecisionModel:
    train = {"epochs": 1, "learning_rate": 5e-3, **options.pop("train", {})}
    model = DecisionModel(
        base, device="cpu", dtype="float32", readout="codes", method=method, train=TrainConfig(**train), **options
    )
    return model.fit(taught, progress=False)


@pytest.fixture(scope="module")
def model(base: str) -> DecisionModel:
    """Draws of a wide prior, so that they differ."""
    return fitted(base, BayesianLora(r=2, prior_std=1.0), records(4), num_samples=3)


def nll(model: DecisionModel, taught: Sequence[Record]) -> float:
    rows = list(model.labelled(taught))
    return -sum(math.log(row.answer.probabilities[row.target.index(1)]) for row in rows) / len(rows)


# --- training ----------------------------------------------------------------------------------------------------


def test_training_lowers_the_nll(base: str) -> None:
    taught = records(3, questions={"metal": NOUL})
    before = DecisionModel(base, device="cpu", dtype="float32", readout="codes")
    train = {"epochs": 40, "learning_rate": 1e-2, "save_steps": 1000}
    after = fitted(base, Lora(r=4, target_modules="all-linear"), taught, train=train, shuffles=1)
    assert nll(after, taught) < nll(before, taught)
    history = after.adapted.run.metrics["history"]  # type: ignore[union-attr]
    assert history[-1]["nll"] < 0.7 * history[0]["nll"]


@pytest.mark.parametrize("method", [DeepEnsemble(members=2, r=2), OnePass(r=2)], ids=lambda one: one.name)
def test_methods_with_something_beyond_an_adapter(base: str, method: Method, tmp_path: Path) -> None:
    made = fitted(base, method, records(2), num_samples=2, train={"epochs": 2})
    made.save(tmp_path / "m")
    found = made.decide("a state")
    assert DecisionModel.load(tmp_path / "m").decide("a state") == found
    assert all(answer.mutual_information > 0 for answer in found.values())


def test_options_stand_in_another_order_each_epoch_the_same_for_a_seed() -> None:
    items = items_of(records(6, questions={"many": {**MANY, "criteria": list("abcdefgh")}}))

    def orders(seed: int, epoch: float, shuffles: int | None = None) -> list[tuple[int, ...] | None]:
        dataset = ShuffledItems(items, seed, shuffles)
        dataset.on_epoch_begin(None, type("State", (), {"epoch": epoch})(), None)
        return [dataset[index].order for index in range(len(dataset))]

    assert all(sorted(order or ()) == list(range(8)) for order in orders(0, 0))
    assert len(set(orders(0, 0))) == 6
    assert orders(0, 1.5) == orders(0, 1.0) != orders(0, 0)
    assert orders(0, 1.0) != orders(1, 1.0)
    assert orders(0, 2.0, shuffles=2) == orders(0, 0) != orders(0, 1.0, shuffles=2)


@pytest.mark.parametrize("method", [Lora(r=2), Snapshots(r=2, snapshots=2)])
def test_a_training_sees_every_epoch_of_the_orders(method: Method, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    own = CodeScoring.__call__
    monkeypatch.setattr(CodeScoring, "__call__", lambda self, items: (seen.extend(items), own(self, items))[1])
    fitted(base, method, records(3), train={"epochs": 2, "batch_size": 6})
    found = {(item.id, epoch): item.order for epoch in range(2) for item in seen[6 * epoch :][:6]}
    dataset = ShuffledItems(items_of(records(3)), 0)
    for dataset.epoch in range(2):
        assert all(found[item.id, dataset.epoch] == item.order for item in (dataset[index] for index in range(6)))


# --- batches -----------------------------------------------------------------------------------------------------


def code_scoring(base: str, **options: Any) -> tuple[Any, CodeScoring]:
    network, tokenizer = load_base_model(base, dtype="float32", device="cpu")
    return network, CodeScoring(tokenizer, 512, **options)


def of_question(question: dict[str, Any], **options: Any) -> DecisionItem:
    asked = parse_question(question)
    return DecisionItem("one", "a state", asked.keys, 0, state="a state", asked=asked, **options)


def test_a_batch_reads_what_the_reader_reads_also_in_draws(base: str) -> None:
    network, scoring = code_scoring(base, orders=3)
    reader = CodeReader(network, scoring.tokenizer, orders=3)
    items = [of_question(question) for question in (NOUL, KIND, MANY)]
    expected = [reader("a state", [item.asked])[0].float() for item in items]
    batch = scoring(items)
    assert batch.rows_per_item == 3 and batch.batch_size == 3
    with torch.no_grad():
        for row, want in zip(batch.choice_logits(network).log_softmax(-1), expected, strict=True):
            torch.testing.assert_close(row[: len(want)], want, atol=1e-5, rtol=0)
            assert (row[len(want) :] == -torch.inf).all()
        adapted = perturb(BayesianLora(r=2).adapt(network, "causal_lm"))
        with sampling(adapted, 2, seed=0):
            both = batch.choice_logits(adapted)
        with sampling(adapted, 2, seed=0):
            alone = scoring(items[1:2]).choice_logits(adapted)
    torch.testing.assert_close(both[[1, 4]].softmax(-1)[:, :3], alone.softmax(-1), atol=1e-5, rtol=0)


def test_an_order_moves_options_and_not_their_logits_names(base: str) -> None:
    """Logits are in the options' own order: of a rotated item they are those of the rotated options, put back."""
    network, scoring = code_scoring(base, orders=1)
    order = (2, 0, 1)
    criteria = list(KIND["criteria"].items())
    turned = {**KIND, "criteria": dict(criteria[index] for index in order)}
    with torch.no_grad():
        found = scoring([of_question(KIND, order=order)]).choice_logits(network)[0]
        same = scoring([of_question(turned)]).choice_logits(network)[0]
    torch.testing.assert_close(found[list(order)], same)
    assert (found - same).abs().max() > 1e-3


def test_soft_labels_weights_and_the_ranked_score_make_the_loss(base: str) -> None:
    made = [
        {"state": "one", "questions": {"k": KIND}, "labels": {"k": {"iron": 0.75, "wood": 0.25}}, "weight": 3},
        {"state": "two", "questions": {"m": MANY}, "labels": {"m": 2}},
    ]
    items = items_of([parse_record(row, None, str(index)) for index, row in enumerate(made)])
    assert [item.weight for item in items] == [1.5, 0.5] and [item.label for item in items] == [0, 2]
    network, scoring = code_scoring(base, ranked=2.0)
    batch = scoring(items)
    logits = batch.choice_logits(network)
    assert batch.targets is not None
    soft, hard = logits[0, :3].log_softmax(-1), logits[1].log_softmax(-1)
    score = ranked_probability_score(hard.exp()[None].detach(), torch.tensor([2]))
    expected = [1.5 * -(0.75 * soft[0] + 0.25 * soft[1]), 0.5 * (-hard[2] + 2 * score)]
    torch.testing.assert_close(item_losses(batch, logits, batch.targets), torch.stack(expected))
    plain = CodeScoring(scoring.tokenizer, 512)(items)
    torch.testing.assert_close(item_losses(plain, logits, batch.targets)[1], 0.5 * -hard[2])


def test_the_ranked_score_of_the_loss_is_that_of_the_metrics() -> None:
    with seeded(0):
        logits, soft = torch.randn(5, 4), torch.softmax(torch.randn(5, 4), -1)
    labels = torch.tensor([0, 3, 1, 2, 2])
    for targets in (labels, soft):
        found = ranked_probability_scores(logits, targets).mean()
        assert float(found) == pytest.approx(ranked_probability_score(logits.softmax(-1), targets), abs=1e-6)
    narrow = torch.cat([logits, torch.full((5, 3), -torch.inf)], 1)
    torch.testing.assert_close(ranked_probability_scores(narrow, labels), ranked_probability_scores(logits, labels))


def test_weights_and_ranked_scores_reach_the_training(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from bayeslora.training import trainer

    seen: list[CodeBatch] = []
    own = trainer.item_losses
    monkeypatch.setattr(trainer, "item_losses", lambda batch, *rest: (seen.append(batch), own(batch, *rest))[1])
    taught = [replace(record, weight=1.0 + index) for index, record in enumerate(records(2))]
    fitted(base, Lora(r=2), taught)
    assert sorted(seen[0]["weights"].tolist()) == pytest.approx([2 / 3] * 2 + [4 / 3] * 2)


# --- answers -----------------------------------------------------------------------------------------------------


def test_answers_hang_on_state_and_question_alone(model: DecisionModel) -> None:
    asked = {"metal": NOUL, "kind": KIND, "new": MANY}
    first = model.decide("a state", asked)
    assert all(answer.readout == "codes" and answer.novelty is not None for answer in first.values())
    assert all(answer.mutual_information > 1e-6 for answer in first.values())
    assert model.decide("a state", {"other": KIND})["other"] == first["kind"]
    requests = [model.request("b", asked), model.request("a state", dict(reversed(asked.items())))]
    together = list(model.answers(requests))
    assert together[1] == first
    mean = model.decide("a state", asked, num_samples=0)
    assert all(answer.mutual_information == 0 for answer in mean.values())
    more = model.decide("a state", asked, num_samples=4)
    assert mean["kind"].probabilities != first["kind"].probabilities != more["kind"].probabilities
    with pytest.raises(ValueError, match="num_samples"):
        model.decide("a state", num_samples=-1)
    assert model.decide("a state", asked, seed=model.config.seed) == first
    assert model.decide("a state", asked, seed=model.config.seed + 1) != first
    with pytest.raises(ValueError, match="seed"):
        model.decide("a state", seed=-1)


def test_the_mean_in_one_pass_is_the_mean_of_a_batch(model: DecisionModel) -> None:
    assert model.adapted is not None
    items = items_of(records(2))
    found = model.adapted.run.predict(items, 0, progress=False).predictive.probabilities
    for item, row in zip(items, found, strict=True):
        answer = model.decide(item.state, {"q": item.asked}, num_samples=0)["q"]
        assert answer.probabilities == pytest.approx(row[: len(item.choices)].tolist(), abs=1e-5)


def test_a_saved_model_answers_the_same_and_is_an_ordinary_run(model: DecisionModel, base: str, tmp_path: Path) -> None:
    model.calibrate(records(8, seed=9), coverage=0.5)
    try:
        model.save(tmp_path / "m")
        expected = model.decide("a state")
    finally:
        model.calibration = None
    again = DecisionModel.load(tmp_path / "m")
    assert again.decide("a state") == expected and expected["kind"].options_in_set is not None
    assert again.config == replace(model.config, device="cpu") and again.questions == model.questions
    assert again.trained_states == model.trained_states == {record.state_key for record in records(4)}
    run = load_run(tmp_path / "m")
    assert run.config.task.scoring == "codes" and run.folder == tmp_path / "m"
    network, _ = load_base_model(base, dtype="float32", device="cpu")
    assert isinstance(PeftModel.from_pretrained(network, tmp_path / "m" / "adapter"), PeftModel)
    again.save(tmp_path / "copy")
    assert DecisionModel.load(tmp_path / "copy").decide("a state") == expected


def test_its_template_and_length_are_those_of_the_training(base: str, tmp_path: Path) -> None:
    template = Template(answer="Code:")
    made = fitted(base, Lora(r=2), records(1), template=template, orders=1, max_length=300)
    made.save(tmp_path / "m")
    again = DecisionModel.load(tmp_path / "m")
    assert again.reader.template == template and again.reader.orders == 1 and again.reader.max_length == 300
    with pytest.raises(TooLongError):
        again.decide("long " * 100)


def test_the_server_answers_as_the_model(model: DecisionModel) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from fastapi.testclient import TestClient

    from bayeslora.deploy.serve.decisions.app import create_decision_app
    from bayeslora.deploy.serve.settings import Settings

    with TestClient(create_decision_app(model, "runs/tiny", Settings())) as client:
        body = {"state": "a state", "questions": ASKED}
        found = client.post("/v1/systemone", json=body).json()["answers"]
    assert found == {name: answer.to_dict() for name, answer in model.decide("a state", ASKED).items()}
    assert found["kind"]["x_uncertainty"]["mutual_information"] > 0


# --- the command line --------------------------------------------------------------------------------------------


def test_train_evaluate_calibrate_review_and_decide(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = write(tmp_path / "records.jsonl", short(14)), str(tmp_path / "run")
    main(trains(base, data, tmp_path / "run", "codes"))
    assert "bayeslora decide" in capsys.readouterr().out
    splits = read_splits(str(data))
    stored = json.loads((tmp_path / "run" / "decision.json").read_text())
    assert set(stored["trained_states"]) == {record.state_key for record in splits["train"]}
    dev = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert dev["split"] == "dev" and dev["num_examples"] == 2 * len(splits["dev"])
    main(["evaluate", run])
    assert "bayeslora decide" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["num_examples"] == 2 * len(splits["test"]) > 0
    main(["calibrate", run, "--data", str(write(tmp_path / "more.jsonl", short(6, seed=4))), "--json"])
    capsys.readouterr()
    main(["review", run, "--input", str(tmp_path / "more.jsonl"), "--json"])
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO('{"state": "a state"}'))
    main(["decide", run])
    found = json.loads(capsys.readouterr().out)["answers"]
    assert found == {name: one.to_dict() for name, one in DecisionModel.load(run).decide("a state").items()}
    main(trains(base, data, tmp_path / "run", "codes", "--overwrite"))
    assert not (tmp_path / "run" / "calibration.json").exists()


def test_near_copies_are_in_one_split(tmp_path: Path) -> None:
    text = "the parcel with the lamp has not come and nobody answers the telephone at the shop"
    made = [{**row, "state": f"{text} {'abc'[index % 3]}"} for index, row in enumerate(short(9))]
    splits = read_splits(str(write(tmp_path / "records.jsonl", [*made, *short(12, seed=3)])))
    homes = [part for part, own in splits.items() if any(text in record.state for record in own)]
    assert len(homes) == 1 and sum(map(len, splits.values())) == 21


def test_a_folder_has_its_own_splits_and_no_state_in_two(tmp_path: Path) -> None:
    for part, seed in (("train", 0), ("dev", 1), ("test", 2)):
        write(tmp_path / f"{part}.jsonl", [*short(3, seed), *short(1, 7)])
    splits = read_splits(str(tmp_path))
    assert {part: len(own) for part, own in splits.items()} == {"train": 4, "dev": 3, "test": 3}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--extend", "elsewhere"], "there is no decision model in elsewhere"),
        (["--task.template", '{"answer": "{code}"}'], "should have no gap"),
        (["--task.template", '{"reply": ""}'], "a template has the texts"),
    ],
)
def test_options_that_do_not_go_with_codes(
    base: str, tmp_path: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "records.jsonl", short(4))
    with pytest.raises(SystemExit):
        main(trains(base, data, tmp_path / "run", "codes", *options))
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run" / "decision.json").exists()


def test_what_cannot_be_trained_says_what_to_do(base: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="BayesianHead trains no adapter"):
        DecisionModel(base, readout="codes", method=BayesianHead())
    with pytest.raises(ValueError, match="set readout='codes'"):
        DecisionModel(base, method=Lora())
    with pytest.raises(ValueError, match="give one, such as method="):
        DecisionModel(base, device="cpu", readout="codes").fit(records(1))
    wide = {"w": {**KIND, "criteria": {f"o{number}": None for number in range(27)}}}
    many = [parse_record({"state": "s", "questions": wide, "labels": {"w": "o3"}})]
    with pytest.raises(ValueError, match="only 26 codes"):
        fitted(base, Lora(r=2), many)
    with pytest.raises(TaskError, match="is no file of them"):
        task_items(TaskConfig(name="arc_easy", scoring="codes"))
    with pytest.raises(ValueError, match="holds what it was fitted on"):
        fitted(base, Lora(r=2), records(1)).extend(records(1))


def test_items_of_another_task_are_refused(base: str) -> None:
    _, scoring = code_scoring(base)
    with pytest.raises(ValueError, match="reads records of typed decisions"):
        scoring([bayeslora.tasks.Item("x", "Which?", ("a", "b"), 0)])
    assert get_scoring("codes") is CodeScoring and rotations(2, 2) == [[0, 1], [1, 0]]


def test_a_config_holds_how_codes_are_trained() -> None:
    task = TaskConfig(scoring="codes", orders=3, shuffles=4, ranked=0.5, template={"answer": "A:"})
    assert RunConfig(task=task).task == task
    with pytest.raises(ValueError, match="ranked"):
        RunConfig(task=TaskConfig(ranked=-1.0))
