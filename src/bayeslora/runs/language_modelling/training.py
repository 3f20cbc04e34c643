"""Training a run on texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from bayeslora.runs.building import build_model
from bayeslora.runs.config import RunConfig
from bayeslora.runs.language_modelling.evaluation import predict_texts
from bayeslora.runs.language_modelling.texts import quiet_datasets, text_dataset, text_splits
from bayeslora.runs.trainer import suited, trainer_fields
from bayeslora.runs.training import Trained, Training
from bayeslora.runs.writing import write_run
from bayeslora.scoring import Scoring
from bayeslora.system.log import logger
from bayeslora.training.sft import BayesianSFTTrainer, SFTConfig


def train_texts(
    config: RunConfig,
    output_dir: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    evaluate_dev: bool = True,
) -> Trained:
    """What `bayeslora.runs.train` does for task.scoring text: the same run folder, scored in tokens.

    Raises:
        ValueError: The method or an option is for items with choices, or there are no training texts.
        FileExistsError, RuntimeError, NonFiniteLossError: As `bayeslora.runs.train`.
    """
    _check(config)
    training = TextTraining(config, Path(output_dir), text_splits(config.task))
    return training.run(resume=resume, overwrite=overwrite, evaluate_dev=evaluate_dev)


class TextTraining(Training):
    """Of texts, as TRL prepares them."""

    unit = "text"
    counted = "token"

    def settle(self) -> None:
        """Texts leave nothing open."""

    def build(self) -> tuple[PeftModel, Scoring]:
        """The model to train, and its tokenizer."""
        return build_model(self.config, self.output)

    def trainer(self, model: PeftModel, scoring: Scoring) -> BayesianSFTTrainer:
        """TRL's, with the texts that it has prepared."""
        method, trainer = self.config.method, self._sft_trainer(model, scoring)
        tokens, rows = trainer.num_observations, len(trainer.train_dataset)  # type: ignore[arg-type]
        logger.info("target tokens of the training texts: %s", f"{tokens:,}")
        steps = suited(trainer.args, rows)
        # N and the number of steps are known only now that TRL has prepared the texts; train() reads both first.
        later = method.trainer_options(trainer.args.learning_rate, steps, tokens)
        for callback in later.pop("callbacks", ()):
            trainer.add_callback(callback)
        for name, value in later.items():
            assert hasattr(trainer, name), name
            setattr(trainer, name, value)
        return trainer

    def record(self, scoring: Scoring, trainer: Any) -> dict[str, Any]:
        """What the texts were prepared to."""
        return {"train_rows": len(trainer.train_dataset), "train_tokens": trainer.num_observations}

    def write(self, trained: Trained, evaluate_dev: bool) -> None:
        """Predict the tokens of dev, and write the folder."""
        if self.splits.dev and evaluate_dev:
            trained.metrics |= predict_texts(trained, self.splits.dev).metrics(trained) | {"split": "dev"}
        write_run(trained, self.output)

    def _sft_trainer(self, model: PeftModel, scoring: Scoring) -> BayesianSFTTrainer:
        config, tokenizer = self.config, scoring.tokenizer
        own = {
            "remove_unused_columns": True,
            "max_length": scoring.max_length,
            "bf16": False,
            "gradient_checkpointing": config.model.gradient_checkpointing,
            "label_smoothing_factor": config.train.label_smoothing,
        }
        fields = trainer_fields(config, self.output, model, SFTConfig, **own)
        with quiet_datasets():
            rows = text_dataset(self.splits.train, chat=tokenizer.chat_template is not None and not config.task.raw)
            return BayesianSFTTrainer(**fields, train_dataset=rows, processing_class=tokenizer)


def _check(config: RunConfig) -> None:
    method = config.method
    if method.needs_items or method.train_samples > 1:
        why = "reads items with choices" if method.needs_items else "takes several draws in a training forward"
        raise ValueError(
            f"the method {method.name!r} {why}, which task.scoring text does not support; use another method "
            "(BayesianLora, Lora, Blob, ...), with train_samples 1, or a task with choices."
        )
    if config.temperature_scaling:
        raise ValueError("temperature_scaling is about choices; leave it out with task.scoring text.")
