"""Decision models on a tiny base: what heads learn, what they say of what they have not seen, and their files."""

import io
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bayeslora
from bayeslora.readouts.questions.head import QuestionHead
from bayeslora.readouts.questions.kernels import Kernels
from bayeslora.readouts.regression import Regression
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig
from bayeslora.runs.decisions import DecisionModel, is_decision_folder, train_decisions
from bayeslora.runs.decisions.calibration import Calibration, Labelled, fit_temperatures
from bayeslora.runs.decisions.examples import Examples
from bayeslora.scoring.codes import Template, TooLongError
from bayeslora.tasks import TaskError
from bayeslora.tasks.decisions import Answer, QuestionError, Record, parse_question, parse_questions
from bayeslora_cli.main import main
from decision_models import QUESTIONS, records, rows, tiny_base, write


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base: str) -> DecisionModel:
    return DecisionModel(base, device="cpu", dtype="float32").fit(records(90), progress=False)


def test_weights_of_records_count_relative_to_each_other() -> None:
    """Two states each stand there twice with opposite labels: the heavier one decides."""
    features = torch.randn(2, 1, 2, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(20, 0)
    targets = torch.eye(2).repeat(20, 1)
    states = [f"{row}" for row in range(40)]
    question = parse_question(QUESTIONS["metal"])

    def yes(weights: torch.Tensor | None) -> torch.Tensor:
        head = QuestionHead.fit(question, features, targets, states, weights, noisy=False)
        return head.predict(features[[0, 20]]).probabilities[:, 0]

    alike = yes(None)
    assert torch.equal(yes(torch.full((40,), 3.0, dtype=torch.float64)), alike)
    assert (alike - 0.5).abs().max() < 0.05
    heavy = torch.ones(40, dtype=torch.float64)
    heavy[0:20:2], heavy[21::2] = 30, 30
    found = yes(heavy)
    assert found[0] > 0.7 and found[1] < 0.3


def test_a_whole_weight_is_so_many_copies_of_a_record() -> None:
    """Given kernel and noise; labels of the heavy records differ from the others', and so do the two means."""
    generator = torch.Generator().manual_seed(0)
    features, new = torch.randn(12, 1, 2, 8, generator=generator), torch.randn(3, 1, 2, 8, generator=generator)
    targets = torch.eye(3)[[0] * 4 + [1] * 4 + [2] * 4]
    weights = torch.tensor([3.0] * 4 + [1.0] * 8, dtype=torch.float64)
    question = parse_question(QUESTIONS["kind"])
    states = [str(row) for row in range(12)]
    head = QuestionHead.fit(question, features, targets, states, weights, noisy=False)
    copies = torch.arange(12).repeat_interleave(weights.long())
    scaled = Kernels.of(features[copies])
    torch.testing.assert_close((head.kernels.mean, head.kernels.scale), (scaled.mean, scaled.scale))
    kernel = sum(w * k for w, k in zip(head.weights, head.kernels.between_points(), strict=True))
    centre = head.targets[copies].mean(0)
    # Weights are relative to their mean: a copy has the noise of weight one.
    noise = head.variance * weights.mean()
    whole = Regression.condition(kernel[copies][:, copies], head.targets[copies] - centre, noise)
    cross, own = head.kernels.to_points(new)
    mixed = sum(w * k for w, k in zip(head.weights, cross, strict=True))
    prior = (own * head.weights[:, None]).sum(0)[:, None, None]
    places = torch.arange(3).unsqueeze(1)
    by_copies = replace(head, centre=centre)._predictive(whole.predict(mixed[:, copies], prior, places))
    torch.testing.assert_close(head.predict(new).samples, by_copies.samples, atol=1e-6, rtol=0)
    assert (centre - head.targets.mean(0)).abs().max() > 0.1


def test_soft_labels_of_all_records_are_predicted_as_soft_ones() -> None:
    """However smooth they are, s2 is the noise of a label, and T is an ordinary one."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(150, 3, 2, 10, generator=generator)
    right = (features[:, 0, 0, 0] + features[:, 1, 1, 1]).double().sigmoid()
    targets = torch.stack([right, 1 - right], 1)
    states = [str(row) for row in range(150)]
    head = QuestionHead.fit(parse_question(QUESTIONS["metal"]), features, targets, states, noisy=False)
    found = head.predict(features).log_probabilities
    lost = float((targets * (targets.log() - found)).sum(-1).mean())
    assert lost < 0.3 * float((targets * (targets.log() + math.log(2))).sum(-1).mean())
    assert 0.2 < head.temperature < 3


def test_weights_reach_the_heads(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, fit = [], QuestionHead.fit
    monkeypatch.setattr(QuestionHead, "fit", lambda *a, **k: (found.append(a[4].tolist()), fit(*a, **k))[1])
    weighted = [replace(record, weight=1.0 + index) for index, record in enumerate(records(30))]
    DecisionModel(base, device="cpu", dtype="float32").fit(weighted, progress=False)
    assert found == [[1.0 + index for index in range(30)]] * 3


def test_a_zeroed_scale_is_no_head(model: DecisionModel, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    path = tmp_path / "m" / "heads.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"heads.0.scale": torch.zeros_like(tensors["heads.0.scale"])}, path)
    with pytest.raises(ValueError, match="scale of 0"):
        DecisionModel.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("decision.json", {"heads": [{}]}, "lacks 'variance'"),
        ("decision.json", {"config": 3}, "damaged"),
        ("decision.json", {"temperature": float("nan")}, r"heads\[0\]\.temperature must be"),
        ("decision.json", {"variance": -1}, r"heads\[0\]\.variance must be"),
        ("decision.json", {"share": "many"}, r"heads\[0\]\.share must be"),
        ("calibration.json", {"common": 0}, "common must be"),
        ("calibration.json", {"common": float("nan")}, "common must be"),
        ("calibration.json", {"temperatures": {"noul:2": -1}}, "temperatures.noul:2 must be"),
        ("calibration.json", {"policies": {"q": {"question": "?", "signal": "size", "certified": None}}}, "damaged"),
        ("calibration.json", {"alpha": 3}, "alpha must be"),
        ("heads.safetensors", {"heads.0.weights": torch.ones(9)}, "damaged"),
        ("heads.safetensors", {"heads.1.noise": None}, "lacks 'heads.1.noise'"),
        ("heads.safetensors", {"heads.0.targets": torch.tensor([[float("nan")]])}, "NaN"),
        ("heads.safetensors", None, "is missing"),
    ],
)
def test_what_is_stored_of_a_model_is_checked(
    model: DecisionModel, tmp_path: Path, name: str, change: Any, says: str
) -> None:
    model.save(tmp_path / "m")
    path = tmp_path / "m" / name
    if name == "calibration.json":
        path.write_text(json.dumps(Calibration().to_dict() | change))
    elif name == "decision.json":
        content = json.loads(path.read_text())
        (content if set(change) & set(content) else content["heads"][0]).update(change)
        path.write_text(json.dumps(content))
    elif change is None:
        path.unlink()
    else:
        tensors = load_file(path) | change
        save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        DecisionModel.load(tmp_path / "m")
    assert name in str(caught.value)


def accuracy(model: DecisionModel, test: list[Record]) -> float:
    right = [
        answer.best == r.label(name)
        for r in test
        for name, answer in model.decide(r.state, {name: r.questions[name] for name in r.targets}).items()
    ]
    return sum(right) / len(right)


def test_heads_learn_what_the_words_say_and_answer_with_all_that_is_known(model: DecisionModel) -> None:
    test = records(12, seed=1)
    assert accuracy(model, test) > 0.9
    answers = model.decide(test[0].state)
    assert list(answers) == list(QUESTIONS)
    for answer in answers.values():
        assert answer.readout == "heads" and sum(answer.probabilities) == pytest.approx(1)
        assert 0 <= answer.mutual_information <= answer.entropy and 0 <= (answer.novelty or 0) <= 1
        assert min(answer.probabilities) > 0
    assert all(head.nll < 0.5 for head in model.heads.by_signature.values())


def test_labels_without_a_pattern_are_not_pretended_to_have_one(base: str) -> None:
    train, generator = records(60), random.Random(0)
    shuffled = [replace(r, targets={"metal": (1.0, 0.0) if generator.random() < 0.5 else (0.0, 1.0)}) for r in train]
    knows_nothing = DecisionModel(base, device="cpu").fit(shuffled, progress=False)
    means = [max(knows_nothing.decide(r.state)["metal"].probabilities) for r in records(10, seed=1)]
    assert sum(means) / len(means) < 0.7


def test_a_question_is_known_by_its_content_and_its_options_by_their_names(model: DecisionModel) -> None:
    state = records(1, seed=2)[0].state
    plain = model.decide(state)["kind"]
    turned = {**QUESTIONS["kind"], "criteria": dict(reversed(QUESTIONS["kind"]["criteria"].items()))}
    found = model.decide(state, {"other": turned, "new": {"type": "noul", "instructions": "Unknown?"}})
    assert found["other"].question.keys == ("glass", "wood", "iron") and found["new"].readout == "codes"
    assert found["other"].by_key(found["other"].probabilities) == plain.by_key(plain.probabilities)
    assert found["new"].novelty is not None


def test_leave_one_out_is_a_refit_without_the_state(model: DecisionModel) -> None:
    head = next(iter(model.heads.by_signature.values()))
    states = [str(index // 2) for index in range(len(head.targets))]  # Two records a state leave together.
    fast = head.leave_one_out(states).probabilities
    kernel = (torch.stack(head.kernels.between_points()) * head.weights[:, None, None]).sum(0)
    centred = head.targets - head.centre
    out, rest = torch.tensor([6, 7]), torch.tensor([n for n in range(len(states)) if n not in (6, 7)])
    refit = Regression.condition(kernel[rest][:, rest], centred[rest], head.noise[rest])
    prior = kernel[out, out][:, None, None]
    slow = head._predictive(refit.predict(kernel[out][:, rest], prior, torch.arange(2).unsqueeze(1)))
    assert fast[out] == pytest.approx(slow.probabilities, abs=1e-8)


def test_other_states_are_new_and_those_of_training_are_not(model: DecisionModel) -> None:
    def novelty(state: Any) -> float:
        return next(iter(model.decide(state).values())).novelty or 0.0

    usual = [novelty(record.state) for record in records(10, seed=3)]
    strange = [novelty("WHAT IS THIS? 123456 &&&& " * n) for n in (2, 3, 4)]
    assert sum(usual) / len(usual) < 0.8 and min(strange) > 0.95


def test_wrong_labels_make_answers_less_sure_and_not_much_worse(base: str, model: DecisionModel) -> None:
    flipped, noisy = random.Random(5).sample(range(90), 14), []
    for index, record in enumerate(records(90)):
        true, false = record.targets["metal"]
        noisy.append(replace(record, targets={"metal": (false, true) if index in flipped else (true, false)}))
    doubtful = DecisionModel(base, device="cpu").fit(noisy, progress=False)
    test = [replace(r, targets={"metal": r.targets["metal"]}) for r in records(12, seed=1)]
    assert accuracy(doubtful, test) > 0.75

    def sureness(asked: DecisionModel) -> float:
        return sum(max(asked.decide(r.state)["metal"].probabilities) for r in test) / len(test)

    assert sureness(doubtful) < sureness(model) - 0.02


def test_a_saved_model_answers_the_same(model: DecisionModel, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model.save(folder)
    assert is_decision_folder(folder) and not is_decision_folder(tmp_path)
    state = records(1, seed=4)[0].state
    assert DecisionModel.load(folder).decide(state) == model.decide(state)
    with pytest.raises(FileExistsError):
        model.save(folder)
    with pytest.raises(ValueError, match="is a decision model, which has no items"):
        bayeslora.load_run(folder)
    (folder / "heads.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"heads\.safetensors is cut"):
        DecisionModel.load(folder)
    (folder / "decision.json").write_text("{}")
    with pytest.raises(ValueError, match=r"decision\.json lacks 'config'"):
        DecisionModel.load(folder)
    with pytest.raises(FileNotFoundError, match="no decision model"):
        DecisionModel.load(tmp_path)


def test_a_state_is_read_behind_the_questions_and_its_last_token_is_its_own(model: DecisionModel) -> None:
    instructions = "\n".join(question.instructions for question in model.questions.values())
    assert model.reader.template.show_state("iron") == f"Questions:\n{instructions}\n\nState:\niron"
    for head in model.heads.by_signature.values():
        assert head.kernels.points.shape[1] == 4
    own = DecisionModel(model.config, template=Template(state="{state} is it.\n")).fit(records(30), progress=False)
    assert own.reader.template.show_state("iron") == "iron is it.\n"


def test_a_model_of_before_answers_and_learns_from_what_was_read_then(model: DecisionModel, tmp_path: Path) -> None:
    """Three poolings, and of a state the mean alone, in the texts of then."""
    folder = tmp_path / "run"
    texts = Template(state="State:\n{state}\n\n", question="Question: {instructions}\n{options}\n")
    DecisionModel(model.config, template=texts).fit(records(90), progress=False).save(folder)
    tensors, kept = load_file(folder / "heads.safetensors"), load_file(folder / "examples.safetensors")
    layers = len(model.hidden.layers)
    linear, gaussian = range(3 * layers), range(4 * layers, 4 * layers + 3)
    for name, value in tensors.items():
        part = name.rpartition(".")[2] if "novelty" not in name else None
        if part == "points":
            tensors[name] = value[:, :3].contiguous()
        elif part in ("mean", "scale"):
            tensors[name] = value[:3].contiguous()
        elif part == "weights":
            tensors[name] = value[[*linear, *gaussian]]
    kept["states"] = kept["states"][:, :, 0].contiguous()
    save_file(tensors, folder / "heads.safetensors")
    save_file(kept, folder / "examples.safetensors")
    before = DecisionModel.load(folder)
    assert before.reader.template.show_state("iron") == "State:\niron\n\n"
    right = [
        before.decide(record.state)["metal"].probabilities[record.label("metal")] for record in records(20, seed=3)
    ]
    assert sum(right) / len(right) > 0.6
    extended = before.extend(records(5, seed=4), progress=False)
    assert {head.kernels.points.shape[1] for head in extended.heads.by_signature.values()} == {3}
    extended.save(tmp_path / "extended")
    assert DecisionModel.load(tmp_path / "extended").decide("iron") == extended.decide("iron")


def test_too_few_labels_are_codes_with_a_word_or_an_error(base: str, caplog: pytest.LogCaptureFixture) -> None:
    few = [replace(r, targets={"metal": r.targets["metal"]}) if n < 20 else r for n, r in enumerate(records(44))]
    mixed = DecisionModel(base, device="cpu").fit(few, progress=False)
    assert "'Which?' has 24 labels, fewer than 25" in caplog.text
    answers = mixed.decide(few[0].state)
    assert (answers["metal"].readout, answers["kind"].readout) == ("heads", "codes")
    with pytest.raises(ValueError, match="at least 25 labels to fit a head on, but the most that one has is 10"):
        DecisionModel(base, device="cpu").fit(records(10), progress=False)
    assert DecisionModel(base, device="cpu", readout="heads").fit(records(10), progress=False).heads.by_signature
    with pytest.raises(ValueError, match="learns nothing"):
        DecisionModel(base, device="cpu", readout="codes").fit(records(10))


def test_wrong_states_and_questions_say_so(model: DecisionModel) -> None:
    for state in ("", None, {}, 3):
        with pytest.raises(QuestionError, match="state should be"):
            model.decide(state)
    with pytest.raises(QuestionError, match=r"question 'q'.*has 1"):
        model.decide("a", {"q": {**QUESTIONS["kind"], "criteria": {"a": None}}})
    with pytest.raises(TooLongError, match="the model reads 512"):
        model.decide("words " * 400)


# --- calibration ---------------------------------------------------------------------------------------------------


def test_temperatures_of_few_labels_stay_near_the_common_one() -> None:
    noul, pair = parse_question(QUESTIONS["metal"]), parse_question({**QUESTIONS["kind"], "criteria": ["a", "b"]})
    generator = random.Random(0)

    def rows_of(question: Any, count: int) -> list[Labelled]:
        made = []
        for index in range(count):
            p = 0.99 if generator.random() < 0.5 else 0.01
            true = generator.random() < (0.8 if p > 0.5 else 0.2)
            made.append(Labelled(Answer(question, (p, 1 - p)), (1.0, 0.0) if true else (0.0, 1.0), str(index)))
        return made

    common, temperatures = fit_temperatures(rows_of(noul, 400) + rows_of(pair, 3))
    # 0.99 should be 0.8: log 99 / log 4 = 3.3.
    assert temperatures["noul:2"] == pytest.approx(3.3, rel=0.2)
    assert temperatures["choice:2"] == pytest.approx(common, rel=0.35) and 1.5 < common < 3.4
    tempered = Calibration(temperatures, common).apply({"q": Answer(noul, (0.99, 0.01))})["q"]
    assert tempered.probabilities[0] == pytest.approx(0.8, abs=0.05)


def test_a_calibrated_model_automates_what_it_certified_and_escalates_the_rest(
    model: DecisionModel, tmp_path: Path
) -> None:
    labelled = records(45, seed=7)
    try:
        model.calibrate(labelled, alpha=0.2, delta=0.1)
        assert model.calibration is not None
        actions = [a.action for r in labelled for a in model.decide(r.state).values()]
        assert actions.count("automate") > 40 and set(actions) <= {"automate", "escalate"}
        unknown = model.decide(labelled[0].state, {"new": {"type": "noul", "instructions": "Unknown?"}})["new"]
        assert unknown.action == "escalate" and unknown.to_dict()["x_action"] == "escalate"
        model.save(tmp_path / "run")
        loaded = DecisionModel.load(tmp_path / "run")
        assert loaded.calibration == model.calibration
        assert loaded.decide(labelled[0].state) == model.decide(labelled[0].state)
        stored = json.loads((tmp_path / "run" / "calibration.json").read_text())
        assert stored["confidence"]["noul"] == "|2 P(true) - 1|"
        with pytest.raises(ValueError, match="takes at least 22 labelled states, got 10"):
            model.calibrate(labelled[:10], alpha=0.1)
    finally:
        model.calibration = None


def test_states_of_the_training_calibrate_nothing(
    model: DecisionModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.save(tmp_path / "run")
    loaded = DecisionModel.load(tmp_path / "run")
    with pytest.raises(ValueError, match="label some that fit has not seen"):
        loaded.calibrate(records(90)[:50])
    with caplog.at_level("WARNING", "bayeslora"):
        loaded.calibrate([*records(90)[:50], *records(30, seed=7)])
    assert "50 of 80 calibration records have a state of training, and are left out" in caplog.text
    assert loaded.calibration == DecisionModel.load(tmp_path / "run").calibrate(records(30, seed=7)).calibration


def test_options_of_a_run_of_records_are_used_or_said(base: str, tmp_path: Path, caplog: Any) -> None:
    task = TaskConfig(str(write(tmp_path / "r.jsonl", rows(40))), train_examples=30, max_length=50, scoring="letter")
    config = RunConfig(ModelConfig(base, device="cpu"), task, num_samples=3)
    with pytest.raises(TooLongError), caplog.at_level("WARNING", "bayeslora"):
        train_decisions(config, tmp_path / "run")
    assert "options that are not read: num_samples, task.scoring" in caplog.text
    task = replace(task, max_length=1024, template={"state": "It is {state}."})
    metrics = train_decisions(replace(config, task=task), tmp_path / "run")
    assert metrics["records"] == 30
    assert DecisionModel.load(tmp_path / "run").reader.template.show_state("iron") == "It is iron."
    caplog.clear()
    with pytest.raises(ValueError, match="answers by heads, but letter was asked for"):
        train_decisions(replace(config, task=task), tmp_path / "further", extend=tmp_path / "run")
    task = replace(task, scoring=TaskConfig().scoring)
    train_decisions(replace(config, task=task), tmp_path / "further", extend=tmp_path / "run")
    assert "options that are not read: num_samples, task.template" in caplog.text


# --- the command line ----------------------------------------------------------------------------------------------


def test_train_decide_and_calibrate_by_command(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", rows(40))
    write(tmp_path / "data" / "test.jsonl", rows(12, seed=1) + rows(40)[:2])
    more = write(tmp_path / "more.jsonl", rows(30, seed=2))
    run = str(tmp_path / "run")
    common = ["--model.name", base, "--model.device", "cpu", "--output_dir", run]
    main(["train", "--task.name", str(tmp_path / "data"), *common])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (
        metrics["num_examples"] == 36 and metrics["accuracy"] > 0.7 and metrics["leave_one_out"]["kind"]["labels"] == 40
    )
    main(["calibrate", run, "--data", str(more), "--alpha", "0.3"])
    said = capsys.readouterr().out
    assert "temperatures: " in said and "sets of" not in said
    main(["calibrate", run, "--data", str(more), "--alpha", "0.3", "--coverage", "0.9"])
    sizes = json.loads((tmp_path / "run" / "calibration.json").read_text())["set_sizes"]
    line = f"sets of 0.9: {sizes['mean']:.2f} options in the mean, {sizes['single']:.0%} are single answers"
    assert line in capsys.readouterr().out and sizes["mean"] >= 1
    request = {"state": rows(1, seed=9)[0]["state"], "questions": {"k": QUESTIONS["kind"]}}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    main(["decide", run])
    answer = json.loads(capsys.readouterr().out)["answers"]["k"]
    monkeypatch.setattr("sys.stdin", io.StringIO("state: no JSON"))
    with pytest.raises(SystemExit):
        main(["decide", run])
    assert 'expected a request {"state": ...' in capsys.readouterr().err
    assert answer["x_readout"] == "heads" and answer["x_action"] in ("automate", "escalate")
    with pytest.raises(SystemExit):
        main(["train", "--task.name", str(tmp_path / "data"), *common])
    assert "is there already" in capsys.readouterr().err
    broken = write(tmp_path / "broken.jsonl", [*rows(3), {**rows(1)[0], "labels": {"kind": "gold"}}])
    with pytest.raises(SystemExit):
        main(["train", "--task.name", str(broken), *common[:-1], str(tmp_path / "other")])
    assert "broken.jsonl, line 4: question 'kind'" in capsys.readouterr().err


def test_the_package_offers_the_model_and_records_may_come_from_a_file(base: str, tmp_path: Path) -> None:
    bare = [{"state": row["state"], "labels": row["labels"]} for row in rows(30)]
    path = write(tmp_path / "bare.jsonl", bare)
    fitted = bayeslora.DecisionModel(base, device="cpu").fit(path, QUESTIONS, progress=False)
    assert fitted.questions == parse_questions(QUESTIONS)
    with pytest.raises(TaskError, match="line 1: questions should be a map"):
        bayeslora.DecisionModel(base, device="cpu").fit(path)


def test_records_are_answered_together_as_each_one_alone(model: DecisionModel) -> None:
    asked = [replace(one, targets=dict([*one.targets.items()][: n % 4])) for n, one in enumerate(records(13, seed=5))]
    unknown = parse_question({"type": "noul", "instructions": "Is it new?"})
    asked[3] = replace(asked[3], questions=asked[3].questions | {"new": unknown}, targets={"new": (1.0, 0.0)})
    for order in (asked, asked[::-1]):
        rows = iter(model.labelled(order))
        for record in order:
            alone = model.decide(record.state, {name: record.questions[name] for name in record.targets or ["metal"]})
            for name in record.targets:
                row = next(rows)
                assert (row.state, row.target) == (record.state_key, record.targets[name])
                assert row.answer.question == alone[name].question and row.answer.novelty == alone[name].novelty
                assert row.answer.probabilities == pytest.approx(alone[name].probabilities, rel=1e-4)
        assert next(rows, None) is None


def test_a_state_whose_questions_stand_in_records_of_their_own_is_read_once(model: DecisionModel) -> None:
    whole = records(4, seed=7)
    apart = [
        replace(one, questions={name: one.questions[name]}, targets={name: target})
        for name in QUESTIONS
        for one in whole
        for target in [one.targets[name]]
    ]
    read: list[Any] = []

    class Counted:
        def vectors(self, asked: Any) -> Any:
            read.extend(asked := list(asked))
            return model.hidden.vectors(asked)

    found, expected = (Examples.of(Counted(), each, progress=False) for each in (apart, whole))
    assert [len(questions) for _, questions in read] == [len(QUESTIONS)] * 8
    assert (found.records, expected.records) == (4 * len(QUESTIONS), 4)
    assert found.labels.keys() == expected.labels.keys()
    for key, labels in found.labels.items():
        assert labels.states == expected.labels[key].states
        assert torch.equal(labels.features, expected.labels[key].features)
        assert torch.equal(labels.targets, expected.labels[key].targets)
