"""Which states of a log are worth a label, and whether a log has drifted from the training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from bayeslora.runs.decisions import DecisionModel, evaluate_decisions
from bayeslora.runs.decisions.drift import drift
from bayeslora.runs.decisions.review import review
from bayeslora.tasks.decisions import read_records
from bayeslora_cli.main import main
from decision_models import QUESTIONS, records, rows, tiny_base, write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecisionModel:
    base = tiny_base(tmp_path_factory.mktemp("base"))
    return DecisionModel(base, device="cpu", dtype="float32").fit(records(60), progress=False)


def test_worth_is_the_mean_rank_by_information_and_novelty(model: DecisionModel) -> None:
    strange = replace(records(1)[0], state="WHAT IS THIS? 123456 &&&& " * 3, targets={}, id="strange")
    log = [*records(12, seed=3), strange]
    found = review(model, log, progress=False)
    assert len(found.candidates) == found.drift.states == 13
    worths = [one.worth for one in found.candidates]
    assert worths == sorted(worths, reverse=True) and 0 < worths[-1] < worths[0] < 1
    for one in found.candidates:
        informed = np.mean(
            [(o.information < one.information) + (o.information == one.information) / 2 for o in found.candidates]
        )
        newer = np.mean([(o.novelty < one.novelty) + (o.novelty == one.novelty) / 2 for o in found.candidates])
        assert one.worth == pytest.approx((informed + newer) / 2)
        answers = model.decide(one.state, QUESTIONS)
        information = sum(answer.mutual_information for answer in answers.values())
        assert one.information == pytest.approx(information, rel=1e-4)
    assert "strange" in [one.id for one in found.candidates[:4]]
    assert review(model, log, 2, progress=False).candidates == found.candidates[:2]
    with pytest.raises(ValueError, match="top must be at least 1"):
        review(model, log, 0)


def test_a_state_is_listed_once_with_all_that_was_asked_about_it(
    model: DecisionModel, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = records(2, seed=4)
    metal, kind = ({name: one.questions[name]} for name in ("metal", "kind"))
    long = " ".join(f"word{n}" for n in range(10))
    log = [
        records(60)[0],
        replace(one, questions=metal, targets={}),
        replace(one, questions=kind, targets={}),
        replace(one, questions={"metal": one.questions["many"]}, targets={}),
        replace(other, state=f"{long} on day 1"),
        replace(other, state=f"{long} on day 2"),
        replace(other, state="too long " * 400, id="endless"),
    ]
    found = review(model, log, progress=False)
    assert "1 of 7 review records have a state of training" in caplog.text
    assert "the record 'endless' is left out" in caplog.text
    by_state = {candidate.state: candidate for candidate in found.candidates}
    assert set(by_state) == {one.state, f"{long} on day 1"}
    assert list(by_state[one.state].answers) == ["metal", "kind", "metal (3)"] and by_state[one.state].seen == 3
    assert by_state[f"{long} on day 1"].seen == 2 and found.drift.states == 2


def test_a_model_that_was_not_fitted_reviews_nothing(model: DecisionModel) -> None:
    with pytest.raises(ValueError, match="zero-shot model knows neither"):
        review(DecisionModel(model.config), records(2))


def test_drift_keeps_its_level_where_the_threshold_is_known_from_few_states() -> None:
    """Of 40 training states the share beyond their quantile is itself uncertain: a plain binomial forgets that."""
    generator = np.random.default_rng(0)
    found, plain = [], []
    for _ in range(600):
        reference, new = np.sort(generator.normal(size=40)), generator.normal(size=300)
        novelties = (np.searchsorted(reference, new, side="right") / 40).tolist()
        test = drift(novelties, 40)
        found.append(test.p)
        plain.append(binom.sf(test.beyond - 1, 300, 0.05))
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(found) <= level) < level + 3 * (level * (1 - level) / 600) ** 0.5
    assert np.mean(np.array(plain) <= 0.05) > 0.2
    moved = drift([1.0] * 60 + [0.5] * 240, 40)
    assert moved.p < 0.05 and moved.share == 0.2 and moved.expected == pytest.approx(2 / 41)
    assert drift([], 40).p == 1.0 and drift([], 40).to_dict()["share"] is None
    # 0.95 of 20 is 19: the one that lies farthest out is beyond, 19 of 20 are not.
    assert drift([0.95, 1.0], 20).beyond == 1 and drift([1.0], 20).p == pytest.approx(1 / 21)
    with pytest.raises(ValueError, match="one or more training states"):
        drift([0.5], 0)


def test_drift_is_said_wherever_records_are_read(model: DecisionModel, caplog: pytest.LogCaptureFixture) -> None:
    usual = records(12, seed=5)
    strange = [replace(record, state=f"WHAT IS THIS? {'123456 &&&& ' * 3} {n}") for n, record in enumerate(usual)]
    assert evaluate_decisions(model, usual)["drift"]["p"] > 0.01
    scores = evaluate_decisions(model, strange)["drift"]
    assert scores["beyond"] == scores["states"] == 12 and scores["p"] < 1e-6
    try:
        model.calibrate(usual)
        assert "not like those of the training" not in caplog.text
        model.calibrate(strange)
        assert "not like those of the training: drift: 12 of 12" in caplog.text
    finally:
        model.calibration = None


def test_review_by_command_writes_records_to_be_labelled(
    model: DecisionModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save(tmp_path / "run")
    log = write(tmp_path / "log.jsonl", [{"state": row["state"]} for row in rows(6, seed=6)])
    output = tmp_path / "label.jsonl"
    call = ["review", str(tmp_path / "run"), "--input", str(log), "--output", str(output), "--top", "3"]
    main(call)
    shown = capsys.readouterr().out
    assert "most in doubt" in shown and "of 6 new states" in shown and len(shown.split("\n\n")[0].splitlines()) == 4
    listed = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(listed) == 3 and all(set(row["labels"]) == set(QUESTIONS) for row in listed)
    listed[0]["labels"]["kind"] = "wood"
    labelled = read_records(write(tmp_path / "labelled.jsonl", listed))
    assert [list(record.targets) for record in labelled] == [["kind"], [], []]
    with pytest.raises(SystemExit):
        main(call)
    assert "is there already" in capsys.readouterr().err
    main([*call, "--overwrite", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["drift"]["states"] == 6 and len(record["states"]) == 3
