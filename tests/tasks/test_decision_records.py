"""Questions, labels and records of decisions, as people write them."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bayeslora.tasks import TaskError
from bayeslora.tasks.decisions import (
    Question,
    QuestionError,
    Record,
    is_decision_file,
    parse_question,
    parse_questions,
    read_records,
    read_target,
    split_records,
)

NOUL = {"type": "noul", "instructions": "Is it urgent?"}
CHOICE = {"type": "choice", "instructions": "Which team?", "criteria": {"billing": "Refunds", "it": None}}
SCORE = {"type": "score", "instructions": "How angry?", "criteria": ["calm", "cross", "furious"]}
QUESTIONS = {"urgent": NOUL, "team": CHOICE, "anger": SCORE}
TARGETS = {"urgent": (1.0, 0.0), "team": (0.0, 1.0), "anger": (0.0, 0.0, 1.0)}
GOLD = {"urgent": True, "team": "it", "anger": 2}


def written(folder: Path, rows: Sequence[Any], name: str = "records.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def asked(value: dict[str, Any]) -> Question:
    return parse_question(value)


# --- questions -----------------------------------------------------------------------------------------------------


def test_questions_of_each_type_keep_order_and_come_back_as_they_were() -> None:
    parsed = parse_questions(QUESTIONS)
    assert [question.keys for question in parsed.values()] == [("true", "false"), ("billing", "it"), ("0", "1", "2")]
    assert parse_questions({name: question.to_dict() for name, question in parsed.items()}) == parsed


def test_options_as_lists_mean_what_maps_mean() -> None:
    listed = [{"key": "billing", "description": "Refunds"}, {"key": "it"}]
    assert asked({**CHOICE, "criteria": listed}) == asked(CHOICE)
    levels = [{"level": index, "description": text} for index, text in enumerate(SCORE["criteria"])]
    assert asked({**SCORE, "criteria": levels}) == asked(SCORE)


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ({"type": "nul"}, ("type",), "did you mean 'noul'"),
        ({"type": None}, ("type",), "type should be one of"),
        ({"instructions": "  "}, ("instructions",), "what is asked"),
        ({"criteria": {"maybe": "x"}}, ("criteria",), '"true" and "false"'),
        ({"type": "choice", "criteria": {"a": None}}, ("criteria",), "2 to 255 options, but it has 1"),
        ({"type": "choice", "criteria": {str(n): None for n in range(256)}}, ("criteria",), "but it has 256"),
        ({"type": "choice", "criteria": ["a", "b", "a"]}, ("criteria", 2), "'a' is there twice"),
        ({"type": "choice", "criteria": {"a": None, "a ": None}}, ("criteria", 1), "'a' is there twice"),
        ({"type": "choice"}, ("criteria",), "map of labels"),
        ({"type": "score", "criteria": {"0": "a", "1": "b"}}, ("criteria",), "a map has no order"),
        ({"type": "score", "criteria": ["calm", None]}, ("criteria", 1), "should have a text"),
        ({"type": "score", "criteria": ["calm", "calm"]}, ("criteria", 1), "twice"),
    ],
)
def test_wrong_questions_say_where_and_what_to_do(change: dict[str, Any], path: tuple[Any, ...], says: str) -> None:
    with pytest.raises(QuestionError, match=says) as raised:
        parse_questions({"q": {**NOUL, **change}})
    assert raised.value.path == ("q", *path)
    assert "question 'q'" in str(raised.value)


def test_confidence_is_zero_for_uniform_and_one_for_certain_answers() -> None:
    for value in QUESTIONS.values():
        question = asked(value)
        count = len(question.options)
        assert question.confidence([1 / count] * count) == pytest.approx(0, abs=1e-12)
        assert question.confidence([1.0, *[0.0] * (count - 1)]) == 1
    # Half of the mass a level away from the mode: (1/2) / (2/3) of the uniform deviation is lost.
    assert asked(SCORE).confidence([0.5, 0.5, 0.0]) == pytest.approx(0.25)


# --- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "value", "target"),
    [
        (NOUL, True, (1, 0)),
        (NOUL, "no", (0, 1)),
        (NOUL, 0.25, (0.25, 0.75)),
        (NOUL, {"type": "noul", "noul": 0.25}, (0.25, 0.75)),
        (NOUL, {"true": 0.3, "false": 0.7}, (0.3, 0.7)),
        (CHOICE, "it", (0, 1)),
        (CHOICE, {"billing": 0.25, "it": 0.75}, (0.25, 0.75)),
        (CHOICE, {"it": 1.0}, (0, 1)),
        (CHOICE, {"label": "it", "probabilities": {"billing": 0.4, "it": 0.6}}, (0.4, 0.6)),
        (CHOICE, {"label": "it"}, (0, 1)),
        (CHOICE, [0.5, 0.5], (0.5, 0.5)),
        (SCORE, 2, (0, 0, 1)),
        (SCORE, "2", (0, 0, 1)),
        (SCORE, "cross", (0, 1, 0)),
        (SCORE, {"expected": 1.5}, (0, 0.5, 0.5)),
        (SCORE, {"probabilities": {"0": 0.1, "1": 0.2, "2": 0.7}}, (0.1, 0.2, 0.7)),
    ],
)
def test_labels_in_every_spelling(question: dict[str, Any], value: Any, target: tuple[float, ...]) -> None:
    assert read_target(asked(question), value) == pytest.approx(target)


@pytest.mark.parametrize(
    ("question", "value"),
    [
        (NOUL, "perhaps"),
        (NOUL, 1.5),
        (NOUL, float("nan")),
        (CHOICE, "billng"),
        (CHOICE, {"billing": 0.9, "it": 0.9}),
        (CHOICE, {"other": 1.0}),
        (CHOICE, [1.0]),
        (SCORE, 3),
        (SCORE, -1),
        (SCORE, True),
        (SCORE, {"confidence": 0.3}),
    ],
)
def test_what_is_no_label_is_an_error(question: dict[str, Any], value: Any) -> None:
    with pytest.raises(QuestionError, match=r"should"):
        read_target(asked(question), value)


# --- records -------------------------------------------------------------------------------------------------------


def spelled(name: str) -> dict[str, Any]:
    row = {"state": "It is down!", "questions": QUESTIONS}
    if name == "inside":
        return {**row, "questions": {key: {**value, "label": GOLD[key]} for key, value in QUESTIONS.items()}}
    if name == "ground_truth":
        return {**row, "questions": {key: {**value, "ground_truth": GOLD[key]} for key, value in QUESTIONS.items()}}
    if name == "strings":
        return {
            "state": json.dumps({"body": "It is down!"}),
            **{key: json.dumps(value) for key, value in (("questions", QUESTIONS), ("gold", GOLD))},
        }
    if name == "probabilities":
        soft = {"urgent": {"true": 1.0}, "team": {"it": 1.0}, "anger": {"2": 1.0}}
        return {**row, "gold": {"probabilities": soft}}
    return {**row, name: GOLD}


@pytest.mark.parametrize(
    "name", ["labels", "expected", "gold", "answers", "targets", "inside", "ground_truth", "strings", "probabilities"]
)
def test_records_with_every_spelling_of_labels(tmp_path: Path, name: str) -> None:
    (record,) = read_records(written(tmp_path, [spelled(name)]), require_labels=True)
    assert record.targets == TARGETS
    assert record.state == ({"body": "It is down!"} if name == "strings" else "It is down!")


def test_one_question_a_row_in_json_and_csv(tmp_path: Path) -> None:
    rows = [
        {"state": "It is down!", "question": {**QUESTIONS[name], "id": name}, "answer": GOLD[name]}
        for name in QUESTIONS
    ]
    records = read_records(written(tmp_path, rows))
    assert {name: record.targets[name] for record in records for name in record.targets} == TARGETS
    path = tmp_path / "records.csv"
    path.write_text(
        "state,question,question_id,type,options,label\n"
        "It is down!,Is it urgent?,urgent,noul,,true\n"
        "It is down!,Which team?,team,choice,billing|it,it\n"
        'It is down!,How angry?,anger,score,"[""calm"", ""cross"", ""furious""]",2\n'
        "It is up.,Which team?,team,choice,billing|it,\n",
        encoding="utf-8",
    )
    assert is_decision_file(path)
    *labelled, unlabelled = read_records(path)
    assert {name: record.targets[name] for record in labelled for name in record.targets} == TARGETS
    assert unlabelled.targets == {}


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (
            '"billing, it"',
            'but it is "billing, it", which is one; write "billing | it", or a JSON list: ["billing", "it"]',
        ),
        ("billing", 'but it is "billing", which is one; write "billing | shipping", or a JSON list: ["billing", '),
    ],
)
def test_options_of_a_cell_that_are_one_are_told_how_to_be_written(tmp_path: Path, cell: str, said: str) -> None:
    path = tmp_path / "records.csv"
    path.write_text(f"state,question,type,options,label\nIt is down!,Which team?,choice,{cell},it\n", encoding="utf-8")
    with pytest.raises(TaskError, match="line 2: options should be two or more in a cell, separated by \\|") as caught:
        read_records(path)
    assert said in str(caught.value)


def test_items_that_happen_to_have_a_state_are_no_decisions(tmp_path: Path) -> None:
    row = {"state": "Ohio", "question": "Which is its capital?", "choices": ["Columbus", "Dayton"], "label": 0}
    assert not is_decision_file(written(tmp_path, [row])) and not is_decision_file(tmp_path / "none.jsonl")
    assert is_decision_file(written(tmp_path, [spelled("labels")]))


def test_questions_may_be_given_beside_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, [{"state": "It is down!", "labels": {"team": "it"}}])
    (record,) = read_records(path, parse_questions(QUESTIONS))
    assert record.targets == {"team": (0, 1)} and set(record.questions) == set(QUESTIONS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state": " "}, "state should be"),
        ({"state": {}}, "state should be"),
        ({"questions": {}}, "questions should be a map"),
        ({"questions": {"team": {**CHOICE, "type": "multi"}}}, "question 'team': type should be"),
        ({"questions": {"team": {**CHOICE, "criteria": {"it": None}}}}, "question 'team': .*it has 1"),
        ({"labels": {"team": "sales"}}, "question 'team': the label of this choice"),
        ({"labels": {"teem": "it"}}, "labels has a label for 'teem'"),
        ({"questions": "{broken"}, "field 'questions' should be JSON"),
        *(({"weight": value}, "weight should be a number above 0") for value in (0, -1, "much", True, float("inf"))),
    ],
)
def test_wrong_records_name_file_line_and_question(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    good = {"state": "It is up.", "questions": QUESTIONS, "labels": GOLD}
    path = written(tmp_path, [good, {**good, "state": "It is down!", **change}])
    with pytest.raises(TaskError, match=rf"records.jsonl, line 2: {says}"):
        read_records(path)


def test_weights_are_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = {"state": "a", "questions": QUESTIONS, "labels": GOLD}
    path = written(tmp_path, [good, {**good, "weight": 2}, {**good, "weight": "0.5", "split": "test"}])
    with caplog.at_level(logging.INFO, "bayeslora"):
        assert [record.weight for record in read_records(path)] == [1, 2, 0.5]
    assert "2 records have a weight" in caplog.text and "not read: split (1)" in caplog.text


def test_an_option_that_is_there_twice_in_the_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"state": "x", "questions": {"q": {"type": "choice", "criteria": {"a": null, "a": null}}}}\n')
    with pytest.raises(TaskError, match="line 1: 'a' is there twice"):
        read_records(path)


def test_what_is_read_and_what_is_not_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"state": "a", "questions": QUESTIONS, "labels": {"team": "it"}, "colour": 1},
        {"state": "b", "questions": QUESTIONS},
    ]
    with caplog.at_level(logging.INFO, "bayeslora"):
        records = read_records(written(tmp_path, rows))
    assert "2 records, 2 states, 6 questions, of which 1 have a label" in caplog.text
    assert "not read: colour (1)" in caplog.text
    with pytest.raises(TaskError, match="none of its 3 questions has one"):
        read_records(written(tmp_path, rows[1:]), require_labels=True)
    assert len(records) == 2


# --- splits --------------------------------------------------------------------------------------------------------


def record(state: Any, family: str | None = None) -> Record:
    return Record(state, parse_questions({"urgent": NOUL}), family=family)


def test_a_state_and_its_near_copies_stand_on_one_side() -> None:
    words = "please help me since the invoice of my account with number {} was charged two times on monday {}"
    states = [words.format(n, word) for word in ("alpha beta gamma delta", "one two three four") for n in range(20)]
    states += [f"state {chr(97 + n)} about {chr(110 - n % 13)} and nothing else {n * 'x '}" for n in range(60)]
    records = [record(state) for state in states] + [record(state) for state in states[40:70]]
    rest, held_out = split_records(records, 0.4)
    sides = [{item.state for item in part} for part in (rest, held_out)]
    assert not sides[0] & sides[1] and all(len(side) > 10 for side in sides)
    copies = [{state for state in side if "invoice" in state} for side in sides]
    assert [len(part) for part in copies] in ([40, 0], [0, 40], [20, 20])


def test_the_fields_order_of_a_state_and_the_family_do_not_matter_to_its_side() -> None:
    first, second = record({"a": 1, "b": "x"}), record({"b": "x", "a": 1})
    assert first.state_key == second.state_key
    records = [record(f"nothing like number {chr(97 + n)} at all", family=str(n % 4)) for n in range(24)]
    rest, held_out = split_records(records, 0.5)
    assert not {item.family for item in rest} & {item.family for item in held_out}
