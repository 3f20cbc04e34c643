"""The page "A decision model of your own in ten minutes": its commands and Python run as they stand, on a tiny base."""

import io
import json
import shlex
from pathlib import Path

import pytest
from test_documentation import DOCS, blocks

from bayeslora.runs.decisions import is_decision_folder
from bayeslora_cli.main import main
from decision_models import QUESTIONS, rows, tiny_base, write

PAGE = DOCS / "start" / "decisions.md"
STATE = "It is down again!"


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of the page; `< file` is its standard input."""
    words = shlex.split(line, comments=True)
    assert words.pop(0) == "bayeslora"
    if "<" in words:
        place = words.index("<")
        monkeypatch.setattr("sys.stdin", io.StringIO(Path(words[place + 1]).read_text()))
        words = words[:place]
    main(words)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the base model is another; the server and its client are tested with the endpoints."""
    base = tiny_base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    # The page's question `team` is the generated `kind` by another name.
    questions = {"team" if name == "kind" else name: value for name, value in QUESTIONS.items()}
    for name, count, seed in (("records", 30, 0), ("labelled", 45, 1), ("log", 12, 2)):
        made = rows(count, seed)
        for row in made:
            row["questions"] = questions
            row["labels"]["team"] = row["labels"].pop("kind")
        write(tmp_path / f"{name}.jsonl", made)
    Path("request.json").write_text(json.dumps({"state": STATE, "questions": questions}))
    names: dict[str, object] = {}
    ran = []
    for language, text in blocks(PAGE):
        text = text.replace("offline:smollm2", base)
        if language == "python" and "typesafe_sdk" not in text:
            exec(compile(text, str(PAGE), "exec"), names)
        for line in text.splitlines() if language == "console" else ():
            if not line.startswith("bayeslora serve"):
                run(line, monkeypatch)
                ran.append(line.split()[1])
    assert ran == ["train", "decide", "calibrate", "review", "train"]
    assert all(map(is_decision_folder, ("runs/triage", "runs/triage-python", "runs/triage-2")))
    assert names["answers"]["team"].key in QUESTIONS["kind"]["criteria"]  # type: ignore[index]
    assert json.loads(Path("runs/triage/calibration.json").read_text())["alpha"] == 0.05
    assert Path("to_label.jsonl").read_text().count("\n") == 12 and "drift" in capsys.readouterr().out
