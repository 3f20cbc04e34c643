"""What a procedure is made of; the YAML files and the command line are generated from these classes."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal

from bayeslora.experiments.comparison.config import AdapterConfig
from bayeslora.methods import Lora, Method
from bayeslora.methods.sd_lora import BayesianSdLora, SdLora
from bayeslora.options.ranges import Count, Draws, Seed, Size, check_options
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.training.arguments import check_arguments

__all__ = ["ChainConfig", "ContinualConfig"]

_SEEDS_APART = 10_000


@dataclass
class ChainConfig(RunConfig):
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

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is out of its range or of another type, or the method starts from a trained adapter.
        """
        super().__post_init__()
        check_arguments(self.train.arguments, instead={"seed": "seed"})
        if self.method.init_from is not None:
            raise ValueError(
                "a block starts at the merged model, not at another adapter; name what to start from in model.merge, "
                f"and leave method.init_from={self.method.init_from!r} out."
            )

    def block(self, number: int) -> RunConfig:
        """The run of one block, in a folder beside those of the blocks before it."""
        shared = {each.name: getattr(self, each.name) for each in fields(RunConfig)}
        shared["model"] = replace(self.model, merge=[*self.model.merge, *(f"../block{k}" for k in range(number))])
        shared["method"] = copy.copy(self.method)
        # Other draws and another order of the data in each block.
        shared["seed"] = self.seed + _SEEDS_APART * number
        return RunConfig(**shared)


def _default_rows() -> dict[str, Method]:
    return {"lora": Lora(), "sd_lora": SdLora(), "bayesian_sd_lora": BayesianSdLora()}


@dataclass
class ContinualConfig:
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
    rows: dict[str, Method] = field(default_factory=_default_rows)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    head: Literal["every", "first"] = "every"
    train: TrainConfig = field(default_factory=TrainConfig)
    seeds: list[Seed] = field(default_factory=lambda: [0, 1, 2])
    num_samples: Draws = 10
    batch_size: Size = 8

    def __post_init__(self) -> None:
        """Check what would fail only hours later.

        Raises:
            ValueError: A value is out of its range or of another type; there are less than two tasks, no rows or seeds,
                a seed twice, or tasks of two scorings.
        """
        check_options(self)
        check_arguments(self.train.arguments, instead={"seed": "seeds"})
        if len(self.sequence) < 2:
            raise ValueError("a sequence needs at least two tasks.")
        for name in ("rows", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must not have a value twice, got {self.seeds}.")
        scorings = sorted({task.scoring for task in self.sequence.values()})
        if len(scorings) > 1:
            raise ValueError(f"all tasks of a sequence need the same scoring, got {', '.join(scorings)}.")

    def run(self, row: str, task: str, seed: int, init_from: str | None) -> RunConfig:
        """The run of one task of the sequence."""
        method = copy.copy(self.rows[row])
        for name, value in asdict(self.adapter).items():
            setattr(method, name, value)
        method.init_from = init_from
        return RunConfig(
            model=self.model,
            task=self.sequence[task],
            method=method,
            train=self.train,
            seed=seed,
            num_samples=self.num_samples,
            batch_size=self.batch_size,
        )
