"""A run on texts: perplexity, token calibration, and a record of each text."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from datasets import Dataset

from bayeslora.metrics.reliability_diagram import draw_reliability_curves
from bayeslora.runs.language_modelling.metrics import token_metrics, token_reliability
from bayeslora.runs.language_modelling.texts import TextRow, quiet_datasets, text_dataset
from bayeslora.runs.language_modelling.tokens import TokenPrediction, predict_tokens
from bayeslora.runs.run import Run
from bayeslora.training.sft import SFTConfig, SFTTrainer

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
    file: ClassVar[str] = "texts.jsonl"
    """Where an evaluation writes the records."""

    def metrics(self, run: Run) -> dict[str, Any]:
        """`token_metrics`, and how they came about."""
        return token_metrics(self.tokens, run.scoring.tokenizer) | {
            "num_samples": self.num_samples,
            "predict_seconds": round(self.seconds, 2),
            "dropped_texts": self.dropped,
        }

    def draw(self, path: Path, metrics: Mapping[str, Any]) -> None:
        """The picture of their calibration, token by token."""
        title = f"{Path(metrics['task']).name} ({metrics['split']})"
        draw_reliability_curves({panel_title(metrics): token_reliability(self.tokens)}, path, title, unit="tokens")

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


def panel_title(metrics: Mapping[str, Any]) -> str:
    """The method and its most important numbers, for a picture."""
    numbers = f"ECE {metrics['ece']:.3f}   perplexity {metrics['perplexity']:.2f}   accuracy {metrics['accuracy']:.1%}"
    return f"{metrics['method']}\n{numbers}"
