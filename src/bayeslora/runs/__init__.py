"""Train, evaluate and predict: what the command line does, as functions of a config and a run folder.

A run folder holds `adapter/` (PEFT), `config.yaml` (enough to run again), `metrics.json`, and after an evaluation
`predictions.jsonl` and `reliability.png`.
"""

from typing import TYPE_CHECKING

from bayeslora.options.late import late

if TYPE_CHECKING:
    from bayeslora.runs.dev_predictions import calibrated_on_dev as calibrated_on_dev
    from bayeslora.runs.distillation.student import distill as distill
    from bayeslora.runs.evaluation import evaluate as evaluate
    from bayeslora.runs.evaluation import write_evaluation as write_evaluation
    from bayeslora.runs.file_prediction import predict_file as predict_file
    from bayeslora.runs.finished import load_run as load_run
    from bayeslora.runs.items import task_items as task_items
    from bayeslora.runs.prediction import Prediction as Prediction
    from bayeslora.runs.prediction import predict_items as predict_items
    from bayeslora.runs.run import Run as Run
    from bayeslora.runs.training import Trained as Trained
    from bayeslora.runs.training import train as train

__all__ = [
    "Prediction",
    "Run",
    "Trained",
    "calibrated_on_dev",
    "distill",
    "evaluate",
    "load_run",
    "predict_file",
    "predict_items",
    "task_items",
    "train",
    "write_evaluation",
]

_HOME = {
    "Prediction": "prediction",
    "Run": "run",
    "Trained": "training",
    "calibrated_on_dev": "dev_predictions",
    "distill": "distillation.student",
    "evaluate": "evaluation",
    "load_run": "finished",
    "predict_file": "file_prediction",
    "predict_items": "prediction",
    "task_items": "items",
    "train": "training",
    "write_evaluation": "evaluation",
}
"""The file of each name: a config class is in this folder too, and `--help` need not wait for trainers and pictures."""

__getattr__ = late(__name__, _HOME)
