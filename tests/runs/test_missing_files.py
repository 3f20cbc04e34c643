"""A file that is not there is said before a model is loaded, which may take minutes."""

from pathlib import Path

import pytest

from bayeslora.runs import evaluate, predict_file
from bayeslora.runs.decisions.review import review_file
from bayeslora.runs.decisions.run import calibrate_folder
from bayeslora.tasks import TaskError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run that nothing can load."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "decision.json").write_text("no JSON")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["evaluate", "evaluate a task", "predict", "calibrate", "review"])
def test_the_file_is_looked_at_first(name: str, folder: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    calls = {
        "evaluate": lambda: evaluate(folder, input=missing),
        "evaluate a task": lambda: evaluate(folder, task=str(missing)),
        "predict": lambda: predict_file(folder, missing, tmp_path / "out.jsonl"),
        "calibrate": lambda: calibrate_folder(folder, missing),
        "review": lambda: review_file(folder, missing),
    }
    with pytest.raises(TaskError, match=r"missing\.jsonl: expected a data file, but there is none"):
        calls[name]()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
