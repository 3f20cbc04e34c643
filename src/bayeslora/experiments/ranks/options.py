"""What a rank study is told, its method by its name; `bayeslora rank-study --help` needs no PEFT and torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bayeslora.models.kinds import Targets
from bayeslora.options.ranges import Count, Draws, Positive, Rate, Seed, Size
from bayeslora.runs.options import ModelConfig, TaskConfig, TrainConfig


@dataclass
class RankStudyOptions:
    """Ranks of one low-rank method beside full fine-tuning.

    Args:
        model: The base model.
        task: The items: a built-in task, or a file by its column names.
        method: The low-rank method; its own rank and scale do not count.
        ranks: Ranks, each a row.
        scale: lora_alpha / r of every rank.
        full: Whether full fine-tuning is a row.
        target_modules: Names of the linear layers to adapt, or "all-linear"; default: PEFT's choice (query and value).
        last_layers: Adapt, and in the full row train, only this many layers, counted from the top; default: all.
        train: Optimisation, the same for every row but for its learning rate.
        learning_rates: Grid of the low-rank rows, chosen on dev with the first seed, for each rank.
        full_learning_rates: Grid of full fine-tuning, which needs lower ones.
        select_by: Dev score that decides: nll or accuracy (ties: the lower nll).
        seeds: One final run of each row for each.
        num_samples: Posterior draws of a prediction.
        batch_size: Items per forward when predicting; a step of training has `train.batch_size`.
        explanation_column: Column of the task's file with a reference text for an item. Every row's runs then write a
            text for each test item that has one, and it is compared with the reference (causal models only).
        prompt: What the model is asked for such a text; "{question}" is the item's question.
        explanation_examples: Write texts for this many test items; default: all with a reference.
        max_new_tokens: Longest text, tokens.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    method: str = "Lora"
    ranks: list[Size] = field(default_factory=lambda: [1, 4, 16, 64])
    scale: Positive = 2.0
    full: bool = True
    target_modules: Targets = None
    last_layers: Count | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    learning_rates: list[Rate] = field(default_factory=lambda: [1e-3])
    full_learning_rates: list[Rate] = field(default_factory=lambda: [1e-4])
    select_by: Literal["nll", "accuracy"] = "nll"
    seeds: list[Seed] = field(default_factory=lambda: [0, 1, 2])
    num_samples: Draws = 10
    batch_size: Size = 8
    explanation_column: str | None = None
    prompt: str = "{question}\nExplain the answer in one sentence."
    explanation_examples: Count | None = None
    max_new_tokens: Count = 64
