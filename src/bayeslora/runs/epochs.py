"""A training that leaves the adapter of the epoch's end with the lowest NLL on dev."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bayeslora.training.trainer import BayesianLoraTrainer

_SCORE = "eval_dev_nll"

EPOCH_FIELDS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": _SCORE,
    "greater_is_better": False,
}
"""Fields of TrainingArguments that the choice of an epoch needs."""


class EpochTrainer(BayesianLoraTrainer):
    """Evaluates dev at each epoch's end, and has at the end the adapter of the best one.

    Checkpoints hold the scores, so a resumed training chooses as one that was not interrupted.

    Args:
        dev_nll: Mean NLL of the dev items under the adapter as it is, nats per item.

    Attributes:
        evaluation_seconds: Time spent on the evaluations of this process; no part of the training's.
    """

    def __init__(self, *args: Any, dev_nll: Callable[[], float], **kwargs: Any):
        self._dev_nll = dev_nll
        self.evaluation_seconds = 0.0
        super().__init__(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The NLL on dev, in the log too."""
        started = time.perf_counter()
        scores = {_SCORE: self._dev_nll()}
        self.evaluation_seconds += time.perf_counter() - started
        self.log(dict(scores))
        return scores

    def _load_best_model(self) -> None:
        # As a resume reads a checkpoint, and from where the folder is now.
        self._load_from_checkpoint(str(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.best_global_step}"))


def epoch_record(trainer: Any) -> dict[str, Any]:
    """What metrics.json says: `epochs`, each end with its NLL on dev (nats), and `epoch`, the one that was chosen."""
    entries = [entry for entry in trainer.state.log_history if _SCORE in entry]
    if not entries:
        return {}
    best = next(entry for entry in entries if entry["step"] == trainer.state.best_global_step)
    ends = [{"epoch": round(entry["epoch"], 2), "dev_nll": entry[_SCORE]} for entry in entries]
    return {"epoch": round(best["epoch"], 2), "epochs": ends}
