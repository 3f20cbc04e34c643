"""Train, evaluate and predict: what the command line does, as functions of a config and a run folder.

A run folder holds `adapter/` (PEFT), `config.yaml` (enough to run again), `metrics.json`, and after an evaluation
`predictions.jsonl` and `reliability.png`.
"""

from bayeslora.runs.dev_predictions import calibrated_on_dev
from bayeslora.runs.finished import evaluate, load_run, predict_file, write_evaluation
from bayeslora.runs.items import task_items
from bayeslora.runs.prediction import Prediction, predict_items
from bayeslora.runs.run import Run
from bayeslora.runs.training import Trained, train

__all__ = [
    "Prediction",
    "Run",
    "Trained",
    "calibrated_on_dev",
    "evaluate",
    "load_run",
    "predict_file",
    "predict_items",
    "task_items",
    "train",
    "write_evaluation",
]
