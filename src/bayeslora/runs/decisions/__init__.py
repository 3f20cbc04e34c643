"""Decision models: fitted on records of typed questions, asked, saved and loaded."""

from bayeslora.runs.decisions.config import DecisionConfig
from bayeslora.runs.decisions.files import is_decision_folder
from bayeslora.runs.decisions.model import DecisionModel
from bayeslora.runs.decisions.run import evaluate_decisions, is_decision_task, train_adapted, train_decisions

__all__ = [
    "DecisionConfig",
    "DecisionModel",
    "evaluate_decisions",
    "is_decision_folder",
    "is_decision_task",
    "train_adapted",
    "train_decisions",
]
