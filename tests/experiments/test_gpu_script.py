"""The script for a GPU, taken through all its steps on the processor: that it runs, resumes and stops in time."""

import json
import sys
import time
from pathlib import Path

import pytest

from bayeslora_cli.main import main as cli

sys.path.insert(0, str(Path(__file__).parents[2]))
from studies.gpu import run

TIMES = [name for name in run.STEPS if name.startswith(("training_step", "prediction"))]
EAGER = [name for name in run.STEPS if not name.endswith("compiled")]
"""Tracing takes longer than all others together; `--dry_run` itself takes the compiled steps too."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def in_this_process(command: list[str], seconds: float) -> bool:
        assert command[:3] == [sys.executable, "-m", "bayeslora"] and seconds > 60
        cli(command[3:])
        return True

    found = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "_within", in_this_process)
        assert run.main(["--output_dir", str(found), "--dry_run", "--minutes", "60", "--steps", *EAGER]) == 0
    return found


def test_each_step_leaves_a_file_with_its_surroundings(folder):
    for name in EAGER:
        record = json.loads((folder / f"{name}.json").read_text("utf-8"))
        assert record["step"] == name and record["dry_run"] is True
        assert {"command", "device", "torch", "transformers", "peft", "bayeslora"} <= record.keys()
    cells = (folder / "comparison" / "results.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line).get("method") for line in cells} >= {"lora", "bayesian_lora"}


@pytest.mark.parametrize("name", [name for name in TIMES if name in EAGER])
def test_times_are_over_those_of_plain_lora(folder, name):
    rows = json.loads((folder / f"{name}.json").read_text("utf-8"))["rows"]
    assert next(iter(rows.values()))["ratio"] == 1.0
    assert len(rows) >= 2 and all(row["median_seconds"] > 0 for row in rows.values())


def test_a_step_that_is_there_is_not_taken_again_and_none_begins_without_time(folder, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert run.main(["--output_dir", str(folder), "--dry_run", "--minutes", "0", "--steps", *EAGER]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert run.main(["--output_dir", str(tmp_path), "--dry_run", "--minutes", "0"]) == 3
    assert not list(tmp_path.iterdir()) and "training_step_eager" in capsys.readouterr().out


def test_a_comparison_is_ended_when_the_time_is_up():
    began = time.monotonic()
    assert not run._within([sys.executable, "-c", "import time; time.sleep(60)"], 1.0)
    assert time.monotonic() - began < 30
    assert run._within([sys.executable, "-c", ""], 60.0)


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        run.main(["--output_dir", str(tmp_path)])
    assert "--dry_run" in capsys.readouterr().err
