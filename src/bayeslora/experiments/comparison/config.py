"""What a comparison is made of; the YAML file and the command line are generated from these classes."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from bayeslora.adapters.placement import Placement, Targets
from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.options.plain import Plain
from bayeslora.options.ranges import Count, Draws, Positive, Rate, Seed, Size, check_options
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.training.arguments import check_arguments

__all__ = ["AdapterConfig", "CompareConfig", "RowConfig"]

_OF_EACH_RUN = {"learning_rate": "learning_rates", "seed": "seeds"}


@dataclass
class AdapterConfig:
    """The adapters of every method in the comparison.

    Args:
        r: Rank.
        lora_alpha: Scale of the update is lora_alpha / r.
        target_modules: Names of the linear layers to adapt, or "all-linear"; default: PEFT's choice (query and value).
        last_layers: Adapt only this many layers, counted from the top; default: all.
        placement: Adapt the upper share of the layers: "top_half" or "top_quarter".
        modules_to_save: Further modules to train and save whole.
    """

    r: Size = 8
    lora_alpha: Positive = 16
    target_modules: Targets = None
    last_layers: Count | None = None
    placement: Placement = "all"
    modules_to_save: list[str] | None = None


@dataclass
class RowConfig:
    """One row of the table.

    Args:
        method: The method, with options of its own.
        train: Fields of the training that differ from the comparison's, such as {label_smoothing: 0.05}.
        learning_rates: A grid of its own; default: the comparison's.
        temperature: Whether a further row "<title> + temperature" has a temperature fitted on dev; it costs nothing.
    """

    method: Method
    train: dict[str, Plain] = field(default_factory=dict)
    learning_rates: list[Rate] | None = None
    temperature: bool = False


def _default_rows() -> dict[str, RowConfig]:
    return {"lora": RowConfig(Lora(), temperature=True), "bayesian_lora": RowConfig(BayesianLora())}


@dataclass
class CompareConfig:
    """Methods x tasks x seeds under one protocol.

    Args:
        model: The base model.
        tasks: Tasks to train on, by title; each is trained, selected and tested apart.
        out_of_distribution: Tasks, by title, whose test items every adapter also predicts, unless it was trained on
            that task; read with the scoring of the task trained on.
        out_of_distribution_from: Titles of the tasks whose adapters predict them; default: all.
        rows: Rows of the table by title.
        adapter: Rank, scale and planned of the adapters, the same for every method.
        train: Optimisation, the same for every method but for its learning rate and what its row says.
        learning_rates: Grid from which each row's rate is chosen on the dev split of each task, with the first seed.
        select_by: Dev score that decides: nll or accuracy (ties: the lower nll).
        seeds: One final run for each: initialisation, data order, draws.
        num_samples: Posterior draws of a prediction.
        batch_size: Items per forward when predicting; a step of training has `train.batch_size`.
        cost_examples: Test items on which the cost of a prediction is measured, without the trunk cache.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: dict[str, TaskConfig] = field(default_factory=lambda: {"arc_easy": TaskConfig()})
    out_of_distribution: dict[str, TaskConfig] = field(default_factory=dict)
    out_of_distribution_from: list[str] | None = None
    rows: dict[str, RowConfig] = field(default_factory=_default_rows)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    learning_rates: list[Rate] = field(default_factory=lambda: [1e-3])
    select_by: Literal["nll", "accuracy"] = "nll"
    seeds: list[Seed] = field(default_factory=lambda: [0, 1, 2])
    num_samples: Draws = 10
    batch_size: Size = 8
    cost_examples: Count = 16

    def __post_init__(self) -> None:
        """Check what would fail only hours later.

        Raises:
            ValueError: A value is out of its range or of another type, also in the training of a row, a list is empty
                or has a value twice, a row's training has an unknown field, or `out_of_distribution_from` names no
                task.
        """
        check_options(self)
        for name in ("tasks", "rows", "learning_rates", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty.")
        for name in ("seeds", "learning_rates"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must not have a value twice, got {getattr(self, name)}.")
        if missing := sorted(set(self.out_of_distribution_from or ()) - set(self.tasks)):
            raise ValueError(f"out_of_distribution_from: {missing[0]!r} is no task; there are {sorted(self.tasks)}.")
        for title, row in self.rows.items():
            self._check_training(title, row)
        check_arguments(self.train.arguments, instead=_OF_EACH_RUN)

    def _check_training(self, title: str, row: RowConfig) -> None:
        known, name = set(TrainConfig.__dataclass_fields__) - {"learning_rate"}, f"rows.{title}.train"
        if "learning_rate" in row.train:
            raise ValueError(
                f"{name}.learning_rate: each row's rate is chosen on dev from a grid; for this one alone write "
                f"rows.{title}.learning_rates: [{row.train['learning_rate']}]."
            )
        if unknown := sorted(set(row.train) - known):
            raise ValueError(f"row {title!r}: {name} has no field {unknown[0]!r}; it has {sorted(known)}.")
        check_options(train := replace(self.train, **row.train), name)
        check_arguments(train.arguments, f"{name}.arguments", instead=_OF_EACH_RUN)

    def grid(self, title: str) -> list[float]:
        """The learning rates to choose from for a row."""
        rates = self.rows[title].learning_rates or self.learning_rates
        # A head in closed form has none to choose.
        return rates if self.rows[title].method.adapts else rates[:1]

    def outside(self, task: str) -> dict[str, TaskConfig]:
        """The out-of-distribution tasks, by title, that adapters trained on the task of this title predict."""
        if self.out_of_distribution_from is not None and task not in self.out_of_distribution_from:
            return {}
        own = self.tasks[task].name
        return {title: other for title, other in self.out_of_distribution.items() if other.name != own}

    def run(self, task: str, title: str, seed: int, learning_rate: float) -> RunConfig:
        """One training run of a row, on the task of this title; a head reads it with scoring "options"."""
        row = self.rows[title]
        method = copy.copy(row.method)
        for name, value in asdict(self.adapter).items():
            setattr(method, name, value)
        train = replace(self.train, **row.train, learning_rate=learning_rate)
        return RunConfig(
            model=self.model,
            task=self.tasks[task] if method.adapts else replace(self.tasks[task], scoring="options"),
            method=method,
            train=train,
            seed=seed,
            num_samples=self.num_samples,
            batch_size=self.batch_size,
        )
