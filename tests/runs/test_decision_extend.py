"""More records for a decision model: as if all had been there from the start, and the old model stays as it is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bayeslora.runs.decisions import DecisionModel
from bayeslora.tasks.decisions import Choice
from bayeslora_cli.main import main
from decision_models import QUESTIONS, records, rows, tiny_base, write


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


def fitted(base: str, some: Any) -> DecisionModel:
    return DecisionModel(base, device="cpu", dtype="float32").fit(some, progress=False)


def test_extending_is_training_on_both_files(base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kind = records(1)[0].questions["kind"]
    turned = Choice(kind.instructions, tuple(reversed(kind.options)))
    old = [replace(one, weight=2.0) if index % 3 else one for index, one in enumerate(records(30))]
    # Labels of "many" are too few in each of the two, and enough in both.
    old = [
        replace(one, targets={k: v for k, v in one.targets.items() if k != "many" or n < 15})
        for n, one in enumerate(old)
    ]
    new = [
        replace(
            one,
            questions=one.questions | {"kind": turned},
            targets=one.targets | {"kind": tuple(reversed(one.targets["kind"])), "many": (0.2, 0.3, 0.5)},
        )
        for one in records(12, seed=1)
    ]
    new.append(replace(old[0], targets=old[0].targets))
    whole = fitted(base, [*old, *new])
    first = fitted(base, old)
    first.save(tmp_path / "old")
    extended = DecisionModel.load(tmp_path / "old").extend(new, progress=False)
    assert len(first.heads.by_signature) == 2 and len(extended.heads.by_signature) == 3
    for record in records(4, seed=2):
        for one, other in zip(extended.decide(record.state).values(), whole.decide(record.state).values(), strict=True):
            assert one.question == other.question and one.novelty == other.novelty
            assert one.probabilities == pytest.approx(other.probabilities, rel=1e-5)
    assert extended.trained_states == whole.trained_states and len(extended.trained_states) == 42
    assert extended.examples is not None and extended.examples.records == 43
    extended.save(tmp_path / "new")
    again = DecisionModel.load(tmp_path / "new")
    assert again.decide("iron") == extended.decide("iron") and again.examples is not None
    assert again.examples.to_dict() == extended.examples.to_dict()


def test_a_failed_fit_leaves_the_model_as_it_was(base: str) -> None:
    model = fitted(base, records(30))
    before = model.decide("iron")
    with pytest.raises(ValueError, match="at least 25 labels"):
        model.fit(records(3), progress=False)
    assert model.decide("iron") == before and len(model.trained_states) == 30
    with pytest.raises(ValueError, match="fit one on all records together"):
        DecisionModel(base, device="cpu").extend(records(3))


def test_extend_by_command(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = write(tmp_path / "old.jsonl", rows(30)), write(tmp_path / "new.jsonl", rows(5, seed=1))
    run, further = str(tmp_path / "run"), str(tmp_path / "further")
    main(["train", "--task.name", str(old), "--model.name", base, "--model.device", "cpu", "--output_dir", run])
    main(["calibrate", run, "--data", str(write(tmp_path / "more.jsonl", rows(20, seed=2)))])
    kept = {file.name: file.read_bytes() for file in Path(run).iterdir()}
    capsys.readouterr()
    extend = ["train", "--extend", run, "--task.name", str(new), "--output_dir"]
    main([*extend, further])
    assert "30 records of before, 5 new" in capsys.readouterr().out and "calibrate again" in caplog.text
    metrics = json.loads((tmp_path / "further" / "metrics.json").read_text())
    assert (metrics["records"], metrics["records_before"], metrics["model"]) == (35, 30, base)
    assert metrics["leave_one_out"]["kind"]["labels"] == 35
    assert {file.name: file.read_bytes() for file in Path(run).iterdir()} == kept
    for call, says in (
        ([*extend, run], "is there already"),
        ([*extend, str(tmp_path / "x"), "--seed", "3"], "has seed 0, but 3 was asked for"),
    ):
        with pytest.raises(SystemExit):
            main(call)
        assert says in capsys.readouterr().err
    main([*extend, run, "--overwrite"])
    assert DecisionModel.load(run).decide("iron") == DecisionModel.load(further).decide("iron")
    assert set(DecisionModel.load(run).questions) == set(QUESTIONS)
    (tmp_path / "run" / "examples.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"examples\.safetensors is missing"):
        DecisionModel.load(run)
    content = json.loads((tmp_path / "run" / "decision.json").read_text())
    del content["examples"]
    (tmp_path / "run" / "decision.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="earlier versions do not"):
        DecisionModel.load(run).extend(new)
