"""Typed decisions: questions with closed sets of answers about a state, and records of them."""

from bayeslora.tasks.decisions.answers import Answer
from bayeslora.tasks.decisions.labels import hard_label, read_target
from bayeslora.tasks.decisions.questions import (
    Choice,
    Noul,
    Option,
    Question,
    QuestionError,
    Score,
    parse_question,
    parse_questions,
)
from bayeslora.tasks.decisions.records import Record, is_decision_file, read_records
from bayeslora.tasks.decisions.splits import split_records

__all__ = [
    "Answer",
    "Choice",
    "Noul",
    "Option",
    "Question",
    "QuestionError",
    "Record",
    "Score",
    "hard_label",
    "is_decision_file",
    "parse_question",
    "parse_questions",
    "read_records",
    "read_target",
    "split_records",
]
