"""Items and tasks from local files: every layout that is read and every mistake that is named."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from bayeslora.tasks import Item, LocalFile, TaskError, load_items


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    values = {
        "id": f"q{number}",
        "question": f"Question {number}?",
        "choices": ["yes", "no"],
        "label": number % 2,
    }
    return values | changes


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(values | {"choices": json.dumps(values["choices"])} for values in rows)
    return path


# Layouts

EXPECTED = [Item("q0", "Question 0?", ("yes", "no"), 0), Item("q1", "Question 1?", ("yes", "no"), 1)]


def test_jsonl(tmp_path: Path) -> None:
    assert load_items(write_jsonl(tmp_path / "a.jsonl", [row(0), row(1)])) == EXPECTED


def test_json(tmp_path: Path) -> None:
    assert load_items(write_text(tmp_path / "a.json", json.dumps([row(0), row(1)]))) == EXPECTED


def test_parquet(tmp_path: Path) -> None:
    assert load_items(write_parquet(tmp_path / "a.parquet", [row(0), row(1)])) == EXPECTED


def test_csv_with_a_json_list(tmp_path: Path) -> None:
    choices = '"[""yes"", ""no""]"'
    text = f"id,question,choices,label\nq0,Question 0?,{choices},0\nq1,Question 1?,{choices},B\n"
    assert load_items(write_text(tmp_path / "a.CSV", text)) == EXPECTED


def test_csv_with_a_column_for_each_choice_keeps_texts_as_written(tmp_path: Path) -> None:
    text = "\ufeffquestion,A,B,C,answer\nWhich?,None,NA,1.50,C\n"
    path = write_text(tmp_path / "a.csv", text)
    items = load_items(path, choices_column="A, B, C", label_column="answer")
    assert items == [Item("a-0", "Which?", ("None", "NA", "1.50"), 2)]


def test_hub_style_choices(tmp_path: Path) -> None:
    choices = {"text": ["cat", "dog"], "label": ["1", "2"]}
    path = write_jsonl(tmp_path / "a.jsonl", [row(choices=choices, answerKey="2")])
    assert load_items(path, label_column="answerKey")[0].label == 1


def test_choices_for_the_whole_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "reviews.csv", "text,label\nGood film,positive\nBad film,negative\n")
    items = load_items(path, question_column="text", choices=("negative", "positive"))
    assert [(item.choices, item.label) for item in items] == [(("negative", "positive"), i) for i in (1, 0)]


def test_blank_lines_are_passed_over_and_still_counted(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.jsonl", f"\n{json.dumps(row(0))}\n\n{json.dumps(row(1, label=9))}\n")
    with pytest.raises(TaskError, match="line 4"):
        load_items(path)


# Labels


@pytest.mark.parametrize(
    ("label", "choices", "index"),
    [
        (1, ["cat", "dog"], 1),
        (1.0, ["cat", "dog"], 1),
        ("1", ["cat", "dog"], 1),
        ("B", ["cat", "dog"], 1),
        ("b", ["cat", "dog"], 1),
        (" dog ", ["cat", "dog"], 1),
        (1, ["0", "1"], 1),
        ("1.0", ["cat", "dog"], 1),
        ("01", ["cat", "dog"], 1),
        ("1990", ["1980", "1990"], 1),
        (1990, ["1980", "1990"], 1),
        (1990.0, ["1980", "1990"], 1),
        ("7.0", ["6", "7"], 1),
        (-1, ["-1", "x"], 0),
        (6.5, [3, 6.5], 1),
        (True, ["False", "True"], 1),
        (False, ["true", "false"], 1),
        ("de\u0301ny", ["approve", "d\u00e9ny"], 1),
        ("N/A", ["None", "N/A"], 1),
        ("A", ["A", "B"], 0),
        (None, ["cat", "dog"], None),
        ("", ["cat", "dog"], None),
        (float("nan"), ["cat", "dog"], None),
        (1, {"text": ["cat", "dog"], "label": ["1", "2"]}, 0),
        ("A", {"text": ["B", "A"], "label": ["A", "B"]}, 0),
        ("dog", {"text": ["cat", "dog"], "label": None}, 1),
        (1.0, {"text": ["cat", "dog"], "label": ["1", "2"]}, 0),
        ("b", ["a", "b"], 1),
        ("A", ["a", "b"], 0),
    ],
)
def test_label_forms(tmp_path: Path, label: Any, choices: Any, index: int | None) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(choices=choices, label=label)])
    assert load_items(path)[0].label == index


@pytest.mark.parametrize("label", [2, -1, 0.5, "C", "2", "-1", "bird", True, float("inf"), "\ufb06"])
def test_label_that_means_no_choice(tmp_path: Path, label: Any) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(0), row(1, choices=["cat", "dog"], label=label)])
    with pytest.raises(TaskError, match=r"a\.jsonl, line 2: field 'label' should be .*0 to 1.*A to B.*correct it"):
        load_items(path)


TWO_MEANINGS = [
    (4, ["1", "2", "3", "4", "5"], {"index": 4, "text": 3}),
    ("4", ["1", "2", "3", "4", "5"], {"index": 4, "text": 3}),
    (4.0, [3, 4, 5, 6.5, 7], {"index": 4, "text": 1}),
    (2, ["2", "1", "0"], {"index": 2, "text": 0}),
    ("A", ["B", "A"], {"letter": 0, "text": 1}),
]


@pytest.mark.filterwarnings("ignore:.*same question and choices")
@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_csv])
@pytest.mark.parametrize(("label", "choices", "meanings"), TWO_MEANINGS)
def test_label_that_means_two_choices(
    tmp_path: Path, write: Any, label: Any, choices: list[Any], meanings: dict[str, int]
) -> None:
    texts = [str(choice) for choice in choices]
    path = write(tmp_path / f"a.{write.__name__[6:]}", [row(choices=texts, label=label)])
    with pytest.raises(TaskError, match=r"(line|row) [12]: field 'label' should mean one choice.*option labels"):
        load_items(path)
    for labels, index in meanings.items():
        assert load_items(path, labels=labels)[0].label == index
        splits = LocalFile(path, dev=path, test=path, labels=labels).splits()
        assert splits.train[0].label == index


def test_a_letter_beside_its_choice_in_the_other_case_means_two_choices(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(choices=["b", "a"], label="A")])
    with pytest.raises(TaskError, match="the letter of 'b' and the text of 'a'"):
        load_items(path)


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        ("text", "B", r"should be the exact text of one of \['cat', 'dog'\], but it is 'B'"),
        ("index", "dog", "should be an index from 0 to 1, but it is 'dog'"),
        ("letter", "1", "should be a letter from A to B, but it is '1'"),
        ("number", "1", "labels should be one of auto, index, letter, text, but it is 'number'"),
    ],
)
def test_labels_are_read_as_said(tmp_path: Path, labels: Any, label: str, message: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(choices=["cat", "dog"], label=label)])
    with pytest.raises(TaskError, match=message):
        load_items(path, labels=labels)


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ("Approve", "did you mean 'approve'"),
        ("N/A", "leave the field empty where there is no label"),
        (2, "an index counts from 0"),
        (True, "true and false are the choices of these names alone"),
    ],
)
def test_the_rule_is_hinted_at(tmp_path: Path, label: Any, hint: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(choices=["approve", "deny"], label=label)])
    with pytest.raises(TaskError, match=hint):
        load_items(path)


@pytest.mark.parametrize("labels", [[0, 3], ["a", "dog"], [1, "2"]])
def test_labels_of_one_file_are_all_texts_or_all_positions(tmp_path: Path, labels: list[Any]) -> None:
    choices = ["dog", "x"] if "dog" in labels else ["2", "x"] if 1 in labels else ["1", "2", "3"]
    rows = [row(number, choices=choices, label=label) for number, label in enumerate(labels)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        TaskError, match=r"a\.jsonl: expected labels that are all texts .* or all positions.*option labels"
    ):
        load_items(path)


def test_letters_are_told_once_for_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bayeslora")
    rows = [row(number, choices=["cat", "dog"], label="b") for number in range(3)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    load_items(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: single letters are read as positions, such as the label 'b' as 'dog'"
    ]
    caplog.clear()
    load_items(path, labels="letter")
    load_items(write_jsonl(path, [row(choices=["a", "b"], label="b")]))
    assert not caplog.records


def test_optional_labels_are_passed_over_where_they_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = ["yes", "returns", None, "N/A"]
    path = write_jsonl(tmp_path / "a.jsonl", [row(number, label=label) for number, label in enumerate(labels)])
    assert [item.label for item in load_items(path, optional_label=True)] == [0, None, None, None]
    assert "2 labels cannot be read and are passed over; the first: line 2: field 'label'" in caplog.text
    caplog.clear()
    path = write_jsonl(path, [row(number, label=label) for number, label in enumerate(["yes", 1])])
    assert [item.label for item in load_items(path, optional_label=True)] == [None, None]
    assert "the labels are passed over: expected labels that are all texts" in caplog.text


def test_an_optional_label_that_cannot_be_read_is_named_by_its_line_and_column(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,class\nWhy?,it\nHow?,nonsense\n")
    load_items(path, question_column="text", label_column="class", choices=["billing", "it"], optional_label=True)
    assert "the first: line 3: column 'class' (option label_column) should be" in caplog.text


def test_label_may_be_missing_unless_required(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(0), row(1, label=None)])
    assert load_items(path)[1].label is None
    with pytest.raises(TaskError, match="line 2: field 'label' is missing"):
        load_items(path, require_label=True)


def test_label_column_may_be_absent_unless_required_or_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "Why?", "choices": ["a", "b"], "labels": 0}])
    assert load_items(path)[0].label is None
    with pytest.raises(TaskError, match=r"column 'label'.*did you mean 'labels'"):
        load_items(path, require_label=True)
    with pytest.raises(TaskError, match=r"column 'lables'.*did you mean 'labels'"):
        load_items(path, label_column="lables")


# Mistakes


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"end in \.jsonl, .*, but this ends in '\.jsonn'; did you mean '\.json"):
        load_items(tmp_path / "a.jsonn")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="expected a data file, but there is none"):
        load_items(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", "\n"), ("a.json", ""), ("a.json", "[]"), ("a.csv", ""), ("a.csv", "id\n")]
)
def test_empty_file(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(TaskError, match="at least one item, but the file is empty"):
        load_items(write_text(tmp_path / name, text))


def test_bad_json_line(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.jsonl", json.dumps(row()) + '\n{"question": \n')
    with pytest.raises(TaskError, match=r"line 2: .*not valid JSON.*The other lines are untouched"):
        load_items(path)


def test_json_line_that_is_not_an_object(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="line 1: expected a JSON object, but it holds list"):
        load_items(write_jsonl(tmp_path / "a.jsonl", [["Why?"]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "line 1: .*not valid JSON"),
        ("{}", "list of objects, but it holds dict"),
        ("[1]", "row 1: .*int"),
    ],
)
def test_bad_json_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_items(write_text(tmp_path / "a.json", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,A,B\nWhy, oh why?,a,b\n", "line 2: expected 3 fields as in the header, but there are 4"),
        ("question,A,A\nWhy?,a,b\n", "line 1: expected column names that all differ"),
        ("question;A;B\nWhy?;a;b\n", "line 1: expected column names with commas between them, but there is ';'"),
        ("question\tA\tB\nWhy?\ta\tb\n", r"but there is '\\t' between them; save the file with commas"),
        ('question,A,B\n"Why?"x,a,b\n', "line 2: expected comma-separated values"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_items(write_text(tmp_path / "a.csv", text), choices_column="A,B")


def test_csv_fields_may_be_long(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = write_text(tmp_path / "a.csv", f"question,A,B\n{'x' * 200_000},a,b\n")
    assert len(load_items(path, choices_column="A,B")[0].question) == 200_000
    assert csv.field_size_limit() == limit


def test_an_unclosed_quote_is_told_at_the_row_that_opens_it(tmp_path: Path) -> None:
    rows = "\n".join(f"Why {number}?,a,b" for number in range(20_000))
    path = write_text(tmp_path / "a.csv", f'question,A,B\nWhy?,a,b\n"Why?,a,b\n{rows}\n')
    with pytest.raises(TaskError, match=r"line 3: expected comma-separated values, but unexpected end .*the quotes"):
        load_items(path, choices_column="A,B")


def test_bad_parquet(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="expected a Parquet file"):
        load_items(write_text(tmp_path / "a.parquet", "question"))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"question": "Où?"}'.encode("latin-1"))
    with pytest.raises(TaskError, match="save the file as UTF-8"):
        load_items(path)


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        ({"question_column": "qestion"}, "'qestion'.*did you mean 'question'"),
        ({"choices_column": "choises"}, "'choises'.*did you mean 'choices'"),
        ({"id_column": "idx"}, "'idx'.*did you mean 'id'"),
    ],
)
def test_unknown_column(tmp_path: Path, names: dict[str, Any], wrong: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row()])
    with pytest.raises(TaskError, match=r"a\.jsonl: expected a column " + wrong) as caught:
        load_items(path, **names)
    assert "the columns are id, question, choices, label" in str(caught.value)
    assert f"(option {next(iter(names))})" in str(caught.value)


def test_all_wrong_columns_are_told_at_once_with_their_options(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.csv", "text,first,second,team\n?,a,b,a\n")
    with pytest.raises(TaskError) as caught:
        load_items(path, choices_column="A,second", id_column="number", require_label=True)
    for part in ("'question' (option question_column)", "'A' (option choices_column)", "'label' (option label_column)"):
        assert part in str(caught.value)
    assert "'number' (option id_column)" in str(caught.value) and "'second' (" not in str(caught.value)
    assert "the columns are text, first, second, team" in str(caught.value)


def test_columns_by_other_names_are_recognised_and_errors_in_rows_name_them(tmp_path: Path) -> None:
    rows = [{"prompt": "?", "options": ["a", "b"], "answer": "a", "note": ""}, {"prompt": "", "options": ["a", "b"]}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(TaskError, match="perhaps question_column prompt, choices_column options, label_column answer "):
        load_items(path, require_label=True)
    names = {"question_column": "prompt", "choices_column": "options", "label_column": "answer"}
    with pytest.raises(TaskError, match=r"line 2: .*column 'prompt' \(option question_column\) should be a text"):
        load_items(path, **names)
    write_jsonl(path, [rows[0], rows[0] | {"answer": "c"}])
    with pytest.raises(TaskError, match=r"line 2: column 'answer' \(option label_column\) should be"):
        load_items(path, **names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": ""}, "field 'question' should be a text"),
        ({"question": None}, "field 'question' should be a text"),
        ({"choices": []}, "field 'choices' should be a tuple of two or more"),
        ({"choices": ["a", ""]}, "field 'choices' should be texts that are not empty"),
        ({"choices": ["a", None]}, "field 'choices' should be texts that are not empty"),
        ({"choices": ["a", "b", "a"]}, "field 'choices' should be choices that all differ"),
        ({"choices": ["a", ["b"]]}, "field 'choices' should hold texts"),
        ({"choices": "a, b"}, r"field 'choices' should be a list of texts.*write a JSON list"),
        ({"choices": None}, "field 'choices' should be a list of texts"),
        ({"id": "q0"}, "field 'id' .*'q0' is also the id on line 1"),
    ],
)
def test_wrong_field_names_its_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row(0), row(1, **changes)])
    with pytest.raises(TaskError, match=rf"a\.jsonl, line 2: .*{message}"):
        load_items(path)


def test_choices_given_twice(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row()])
    with pytest.raises(TaskError, match="given for the whole file, but it has a column 'choices' too"):
        load_items(path, choices=("a", "b"))
    with pytest.raises(TaskError, match="put it in a list"):
        load_items(path, choices="ab")


# Tasks from files


def test_one_file_splits_in_three(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pets.jsonl", [row(number) for number in range(200)])
    splits = LocalFile(path).splits()
    sets = [{item.id for item in part} for part in (splits.train, splits.dev, splits.test)]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 200
    assert all(len(part) > 15 for part in sets)
    assert LocalFile(path).splits() == splits


def test_added_rows_leave_the_others_where_they_were(tmp_path: Path) -> None:
    rows = [row(number) for number in range(100)]
    before = LocalFile(write_jsonl(tmp_path / "pets.jsonl", rows)).splits()
    after = LocalFile(write_jsonl(tmp_path / "pets.jsonl", [row(999), *rows])).splits()
    assert {item.id for item in after.test} - {"q999"} == {item.id for item in before.test}


def test_a_file_for_each_split(tmp_path: Path) -> None:
    paths = [tmp_path / part / "data.jsonl" for part in ("train", "dev", "test")]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        write_jsonl(path, [row(number, id=None)])
    splits = LocalFile(*paths, name="pets").splits()
    parts = (splits.train, splits.dev, splits.test)
    assert [item.id for part in parts for item in part] == ["pets-0", "pets-dev-0", "pets-test-0"]


def test_every_item_needs_a_label(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pets.jsonl", [row(0), row(1, label=None)])
    with pytest.raises(TaskError, match="line 2: field 'label'"):
        LocalFile(path).splits()


def test_too_few_items_to_split(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pets.jsonl", [row()])
    with pytest.raises(TaskError, match=r"would be empty .*give a file for each split"):
        LocalFile(path).splits()


def test_no_dev_items_when_none_are_asked_for(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pets.jsonl", [row(number) for number in range(60)])
    assert LocalFile(path).splits(dev_fraction=0).dev == []


def test_repeats_between_train_and_test_warn(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [row(number) for number in range(60)])
    test = write_jsonl(tmp_path / "test.jsonl", [row(3), row(100)])
    with pytest.warns(UserWarning, match="of 2 test items 1 have the same question") as caught:
        LocalFile(train, test=test).splits()
    assert caught[0].filename == __file__


def test_a_column_of_groups_keeps_rows_together(tmp_path: Path) -> None:
    rows = [row(number, passage=f"p{number % 30}") for number in range(300)]
    path = write_jsonl(tmp_path / "pets.jsonl", rows)
    splits = LocalFile(path, group_column="passage").splits()
    groups = [{item.group for item in part} for part in (splits.train, splits.dev, splits.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 30 and all(groups)
    assert LocalFile(path).splits().train != splits.train
    with pytest.raises(TaskError, match=r"expected a column 'page' \(option group_column\)"):
        LocalFile(path, group_column="page").splits()
    assert load_items(path, group_column="page", optional_label=True)[0].group is None
    test = write_jsonl(tmp_path / "test.jsonl", [row(999, passage="p3"), row(998, passage="p31")])
    with pytest.warns(UserWarning, match="of 2 test items 1 share their passage with a train or dev item"):
        LocalFile(path, test=test, group_column="passage").splits()


def test_repeats_between_train_and_dev_warn(tmp_path: Path) -> None:
    rows = [row(number, question=f"Question {number // 2}?") for number in range(300)]
    with pytest.warns(UserWarning, match="of .* dev items") as caught:
        splits = LocalFile(write_jsonl(tmp_path / "pets.jsonl", rows)).splits()
    known = {item.question for item in splits.train}
    again = sum(item.question in known for item in splits.dev)
    assert again > 5
    expected = f"of {len(splits.dev)} dev items {again} have the same question and choices as a train item"
    assert expected in str(caught[0].message) and "option group_column" in str(caught[0].message)


def test_sound_files_do_not_warn(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pets.jsonl", [row(number) for number in range(60)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LocalFile(path).splits()


def test_parse_reads_one_row(tmp_path: Path) -> None:
    assert LocalFile(tmp_path / "pets.jsonl").parse({"question": "Why?", "choices": ["a", "b"], "label": "B"}, 4) == (
        Item("pets-4", "Why?", ("a", "b"), 1)
    )
