"""A run on texts: perplexity, token calibration, and a record of each text."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from bayeslora.metrics.reliability_diagram import draw_reliability_curves
from bayeslora.runs.config import TaskConfig
from bayeslora.runs.evaluation_files import TEXT_EVALUATION_PARTS
from bayeslora.runs.language_modelling.metrics import token_metrics, token_reliability
from bayeslora.runs.language_modelling.quiet import quiet_datasets
from bayeslora.runs.language_modelling.texts import TextRow, text_dataset, text_splits
from bayeslora.runs.language_modelling.tokens import TokenPrediction, predict_tokens
from bayeslora.runs.prediction import write_rows
from bayeslora.runs.run import Run
from bayeslora.system.files import write_json
from bayeslora.system.folders import replaced_together
from bayeslora.training.sft import SFTConfig, SFTTrainer

__all__ = ["TextPrediction", "evaluate_texts", "predict_texts", "write_text_evaluation"]

_PREPARATION = ("assistant_only_loss", "completion_only_loss", "chat_template_path", "eos_token", "truncation_mode")
"""Fields of SFTConfig that decide which tokens of a text are targets."""


@dataclass(frozen=True)
class TextPrediction:
    """Texts with the predictions of their target tokens, in the same order."""

    ids: Sequence[str]
    tokens: Sequence[TokenPrediction]
    num_samples: int
    seconds: float
    dropped: int
    """Texts of which truncation left no target token."""

    def metrics(self, run: Run) -> dict[str, Any]:
        """`token_metrics`, and how they came about."""
        return token_metrics(self.tokens, run.scoring.tokenizer) | {
            "num_samples": self.num_samples,
            "predict_seconds": round(self.seconds, 2),
            "dropped_texts": self.dropped,
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One record per text for texts.jsonl; nats."""
        for name, each in zip(self.ids, self.tokens, strict=True):
            nll = -each.log_likelihood("mixture") / len(each.targets)
            yield {
                "id": name,
                "num_tokens": len(each.targets),
                "nll": nll,
                "perplexity": math.exp(nll),
                "joint_log_likelihood": each.log_likelihood("joint"),
                "accuracy": float(each.correct.double().mean()),
                "entropy": float(each.entropy.mean()),
                "mutual_information": float(each.mutual_information.mean()),
            }


def predict_texts(run: Run, rows: Sequence[TextRow], num_samples: int | None = None) -> TextPrediction:
    """Predict the target tokens of texts, which are those that training would count in its loss.

    Args:
        run: Of task.scoring text.
        rows: The texts.
        num_samples: Draws; default: the run's.

    Raises:
        ValueError: There are no texts, or none with a target token.
    """
    config = run.config
    samples = config.samples_used(num_samples)
    data = _prepared(run, rows)
    if not len(data):
        raise ValueError(f"none of the {len(rows)} texts has a target token; raise task.max_length, or check the rows.")
    started = time.perf_counter()
    tokens = predict_tokens(run.model, data.to_list(), samples, config.seed, batch_size=config.batch_size)
    seconds = time.perf_counter() - started
    return TextPrediction(data["id"], tokens, len(tokens[0].samples) if samples else 0, seconds, len(rows) - len(data))


def _prepared(run: Run, rows: Sequence[TextRow]) -> Dataset:
    """The rows as a trainer prepares them, unpacked."""
    config, tokenizer = run.config, run.scoring.tokenizer
    chosen = {name: value for name, value in config.train.arguments.items() if name in _PREPARATION}
    with tempfile.TemporaryDirectory() as folder, quiet_datasets():
        arguments = SFTConfig(
            output_dir=folder,
            max_length=run.scoring.max_length,
            report_to=[],
            bf16=False,
            gradient_checkpointing=False,
            seed=config.seed,
            use_cpu=next(run.model.parameters()).device.type == "cpu",
            **chosen,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)
        chat = tokenizer.chat_template is not None and not config.task.raw
        trainer = SFTTrainer(
            model=run.model,
            args=arguments,
            train_dataset=text_dataset(rows, chat=chat),
            processing_class=tokenizer,
        )
    prepared: Any = trainer.train_dataset
    return prepared


def evaluate_texts(run: Run, task: TaskConfig, split: str, num_samples: int | None, target: Path) -> dict[str, Any]:
    """What `bayeslora.runs.evaluate` does for a run on texts: metrics.json, texts.jsonl and reliability.png.

    Raises:
        ValueError: The split is empty.
    """
    rows = getattr(text_splits(task), split)
    if not rows:
        raise ValueError(f"task {task.name!r} has no {split} texts.")
    prediction = predict_texts(run, rows, num_samples)
    metrics = run.scored(task.name, split, prediction.metrics(run))
    write_text_evaluation(target, prediction, metrics)
    return metrics


def write_text_evaluation(target: Path, prediction: TextPrediction, metrics: dict[str, Any]) -> None:
    """metrics.json, texts.jsonl and reliability.png, all or none; for the only writer of the folder."""
    with replaced_together(target, TEXT_EVALUATION_PARTS) as aside:
        write_rows(aside / "texts.jsonl", prediction.rows())
        draw_reliability_curves(
            {panel_title(metrics): token_reliability(prediction.tokens)},
            aside / "reliability.png",
            title=f"{Path(metrics['task']).name} ({metrics['split']})",
            unit="tokens",
        )
        write_json(aside / "metrics.json", metrics)


def panel_title(metrics: dict[str, Any]) -> str:
    """The method and its most important numbers, for a picture."""
    numbers = f"ECE {metrics['ece']:.3f}   perplexity {metrics['perplexity']:.2f}   accuracy {metrics['accuracy']:.1%}"
    return f"{metrics['method']}\n{numbers}"
