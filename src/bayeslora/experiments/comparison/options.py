"""What a comparison is told, its methods by their names: plain data; `--help` needs no PEFT and torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from bayeslora.models.kinds import Placement, Targets
from bayeslora.options.plain import Plain
from bayeslora.options.ranges import Count, Draws, Positive, Range, Rate, Seed, Size
from bayeslora.options.registry import NameIn
from bayeslora.prediction.length_power import LENGTH_POWERS
from bayeslora.runs.options import ModelConfig, TaskConfig, TrainConfig

Control = Literal["one_pass", "adaptive_draws", "score_noise"]
"""Further rows from the same trained adapters."""


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
class RowOptions:
    """One row of the table.

    Args:
        method: The method, with options of its own.
        train: Fields of the training that differ from the comparison's, such as {label_smoothing: 0.05}.
        learning_rates: A grid of its own; default: the comparison's.
        temperature: Whether a further row "<title> + temperature" has a temperature fitted on dev; it costs nothing.
        controls: Further rows from the same trained adapters, each with a temperature too where this row has one:
            "one_pass" is the method's prediction without draws ("<title>, one pass"); "adaptive_draws" gives each item
            draws until its answer is settled ("<title>, adaptive draws"; docs/guides/adaptive_samples.md);
            "score_noise" (scoring cloze) adds Gaussian noise of standard deviation a / length to the scores of the
            choices, a chosen on dev ("<title>, score noise"): what noise gains without any posterior.
        scoring: How this row reads the tasks; default: as they say. With "options" heads are read, over the adapters of
            the method, which lie below the layer that is read (docs/guides/readout.md); BayesianHead always has it.
    """

    method: str
    train: dict[str, Plain] = field(default_factory=dict)
    learning_rates: list[Rate] | None = None
    temperature: bool = False
    controls: list[Control] = field(default_factory=list)
    scoring: Annotated[str, NameIn("bayeslora.scoring.SCORINGS")] | None = None


@dataclass
class ProtocolConfig:
    """What is chosen on dev, by the same rule for every row, and what stands beside the rows.

    Args:
        further_rates: A row whose best learning rate is the lowest or the highest of its grid tries the next half
            decade, and so on, at most this many; 0: none. A grid of one rate is never left.
        choose_epochs: Whether each run leaves the adapter of the epoch's end with the lowest NLL on dev
            (train.choose_epoch). Methods whose posterior comes from the whole training keep its end.
        length_powers: With scoring cloze: values of k, one of which all rows of a task are trained and read with: that
            of the lowest NLL on dev of the base model with a temperature, which no row's training has a part in. One
            value: that one. Empty: each task's own length_power; a task that has another one than 1 keeps it in any
            case.
        mean_per_token: Whether all rows are also read by the mean per token (k = 1, as in the papers), in a table of
            its own, where k is another one.
        base_rows: Rows "base" and "base + temperature", the model without any training, on tasks that it can answer
            without a new head.
    """

    further_rates: Annotated[int, Range(0, 20)] = 3
    choose_epochs: bool = True
    length_powers: list[Annotated[float, Range(-2, 4)]] = field(default_factory=lambda: [*LENGTH_POWERS])
    mean_per_token: bool = True
    base_rows: bool = True

    @classmethod
    def plain(cls) -> Self:
        """Nothing beyond the rows as they stand, their grids and the last step: what files without a protocol mean."""
        return cls(further_rates=0, choose_epochs=False, length_powers=[], base_rows=False)


def _default_rows() -> dict[str, RowOptions]:
    return {
        "lora": RowOptions("Lora", temperature=True),
        "bayesian_lora": RowOptions("BayesianLora", temperature=True),
    }


@dataclass
class CompareOptions:
    """Methods x tasks x seeds under one protocol.

    Args:
        model: The base model.
        tasks: Tasks to train on, by title; each is trained, selected and tested apart.
        out_of_distribution: Tasks, by title, whose test items every adapter also predicts, unless it was trained on
            that task; read with the scoring of the task trained on.
        out_of_distribution_from: Titles of the tasks whose adapters predict them; default: all.
        rows: Rows of the table by title.
        adapter: Rank, scale and place of the adapters, the same for every method.
        train: Optimisation, the same for every method but for its learning rate and what its row says.
        learning_rates: Grid from which each row's rate is chosen on the dev split of each task, with the first seed.
        protocol: What else is chosen on dev, and the rows of the base model.
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
    rows: dict[str, RowOptions] = field(default_factory=_default_rows)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    learning_rates: list[Rate] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3])
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    select_by: Literal["nll", "accuracy"] = "nll"
    seeds: list[Seed] = field(default_factory=lambda: [0, 1, 2])
    num_samples: Draws = 10
    batch_size: Size = 8
    cost_examples: Count = 16
