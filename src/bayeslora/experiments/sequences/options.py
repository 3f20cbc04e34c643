"""What a procedure is told, its methods by their names; `--help` describes it without PEFT and torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bayeslora.experiments.comparison.options import AdapterConfig
from bayeslora.options.ranges import Count, Draws, Seed, Size
from bayeslora.runs.options import ModelConfig, RunOptions, TaskConfig, TrainConfig


@dataclass
class ChainOptions(RunOptions):
    """A chain of blocks (RAC-LoRA, arXiv 2410.08305): draw, train, merge, draw again.

    Args:
        model: The base model.
        task: The items.
        method: How to adapt the model in each block. Its mean is merged; the last block keeps its posterior.
        train: Optimisation of one block: each has these epochs or steps, its own optimizer and schedule.
        seed: Seed of the first block and of the sketches.
        num_samples: Posterior draws of a prediction; 0 predicts with the posterior mean.
        temperature_scaling: Divide the log-probabilities by a temperature fitted on dev, after each block.
        batch_size: Items per forward when predicting; a step of training has `train.batch_size`.
        blocks: Blocks of the chain; a finished chain goes on with more.
        sketch: The factor that is drawn from a Gaussian and frozen in a block, while the other starts at zero; null
            trains both (Chain of LoRA, arXiv 2401.04151).
        redraw: Whether each block has a sketch of its own; false keeps the first one (for comparison: the chain then
            never leaves that subspace).
    """

    blocks: Count = 4
    sketch: Literal["A", "B"] | None = "B"
    redraw: bool = True


def _default_rows() -> dict[str, str]:
    return {"lora": "Lora", "sd_lora": "SdLora", "bayesian_sd_lora": "BayesianSdLora"}


@dataclass
class ContinualOptions:
    """Methods x seeds on a sequence of tasks, one after the other, without rehearsal and without task ids.

    Args:
        model: The base model.
        sequence: The tasks by title, in the order in which they are learned. They share their scoring, and with
            classification one head.
        rows: Methods by title. Lora goes on with one adapter for all tasks, SdLora and BayesianSdLora begin a new
            direction with each task, and any other method starts each task at a LoRA adapter with its mean so far.
        adapter: Rank, scale and place of the adapters, the same for every method; the rank is that of one task.
        head: With classification: whether "every" task trains the head, or the "first" alone.
        train: Optimisation of one task.
        seeds: One pass over the sequence for each.
        num_samples: Posterior draws of a prediction.
        batch_size: Items per forward when predicting; a step of training has `train.batch_size`.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    sequence: dict[str, TaskConfig] = field(
        default_factory=lambda: {"arc_easy": TaskConfig(), "openbookqa": TaskConfig(name="openbookqa")}
    )
    rows: dict[str, str] = field(default_factory=_default_rows)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    head: Literal["every", "first"] = "every"
    train: TrainConfig = field(default_factory=TrainConfig)
    seeds: list[Seed] = field(default_factory=lambda: [0, 1, 2])
    num_samples: Draws = 10
    batch_size: Size = 8
