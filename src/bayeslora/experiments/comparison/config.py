"""What a comparison is made of; the YAML file and the command line are generated from these classes."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Literal, Self

from bayeslora.adapters.placement import Placement, Targets
from bayeslora.experiments.comparison.records import BASE
from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.options.plain import Plain
from bayeslora.options.ranges import Count, Draws, Positive, Range, Rate, Seed, Size, check_options
from bayeslora.prediction.length_power import LENGTH_POWERS
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.scoring import SCORINGS
from bayeslora.training.arguments import check_arguments

__all__ = ["AdapterConfig", "CompareConfig", "Control", "ProtocolConfig", "RowConfig"]

Control = Literal["one_pass", "score_noise"]
"""Further rows from the same trained adapters."""

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
        controls: Further rows from the same trained adapters, each with a temperature too where this row has one:
            "one_pass" is the method's prediction without draws ("<title>, one pass"); "score_noise" (scoring cloze)
            adds Gaussian noise of standard deviation a / length to the scores of the choices, a chosen on dev
            ("<title>, score noise"): what noise gains without any posterior.
        scoring: How this row reads the tasks; default: as they say. With "options" heads are read, over the adapters of
            the method, which lie below the layer that is read (docs/guides/readout.md); BayesianHead always has it.
    """

    method: Method
    train: dict[str, Plain] = field(default_factory=dict)
    learning_rates: list[Rate] | None = None
    temperature: bool = False
    controls: list[Control] = field(default_factory=list)
    scoring: Annotated[str, SCORINGS] | None = None


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


def _default_rows() -> dict[str, RowConfig]:
    return {
        "lora": RowConfig(Lora(), temperature=True),
        "bayesian_lora": RowConfig(BayesianLora(), temperature=True),
    }


def _base_row() -> RowConfig:
    """LoRA of no steps, whose update is zero."""
    return RowConfig(Lora(), train={"epochs": 0.0, "max_steps": None}, temperature=True)


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
    rows: dict[str, RowConfig] = field(default_factory=_default_rows)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    learning_rates: list[Rate] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3])
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    select_by: Literal["nll", "accuracy"] = "nll"
    seeds: list[Seed] = field(default_factory=lambda: [0, 1, 2])
    num_samples: Draws = 10
    batch_size: Size = 8
    cost_examples: Count = 16

    def __post_init__(self) -> None:
        """Check what would fail only hours later.

        Raises:
            ValueError: A value is out of its range or of another type, also in the training of a row, a list is empty
                or has a value twice, a row's training has an unknown field, `out_of_distribution_from` names no
                task, or parts of the protocol exclude each other or something else.
        """
        check_options(self)
        if self.protocol.base_rows and BASE not in self.rows and any(map(self.has_base, self.tasks)):
            self.rows = {BASE: _base_row(), **self.rows}
        for name in ("tasks", "rows", "learning_rates", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty.")
        for name in ("seeds", "learning_rates"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must not have a value twice, got {getattr(self, name)}.")
        if missing := sorted(set(self.out_of_distribution_from or ()) - set(self.tasks)):
            raise ValueError(f"out_of_distribution_from: {missing[0]!r} is no task; there are {sorted(self.tasks)}.")
        self._check_protocol()
        for title, row in self.rows.items():
            self._check_training(title, row)
        check_arguments(self.train.arguments, instead=_OF_EACH_RUN)

    def _check_protocol(self) -> None:
        protocol = self.protocol
        if len(protocol.length_powers) > 1 and not protocol.base_rows:
            raise ValueError(
                "protocol.length_powers are chosen from with the base model, but protocol.base_rows is false; set it "
                "to true, or give one length power or none."
            )
        if protocol.choose_epochs and self.train.save_steps is not None:
            raise ValueError(
                "protocol.choose_epochs saves at each epoch's end, but train.save_steps is set; leave that out, or set "
                "protocol.choose_epochs to false."
            )

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

    def has_rate(self, title: str) -> bool:
        """Whether a row has a learning rate; a head in closed form and a row of no steps have none."""
        row = self.rows[title]
        train = replace(self.train, **row.train)
        return row.method.adapts and bool(train.epochs or train.max_steps)

    def grid(self, title: str) -> list[float]:
        """The learning rates to begin choosing from for a row; one that stands for none where it has none."""
        rates = self.rows[title].learning_rates or self.learning_rates
        return rates if self.has_rate(title) else rates[:1]

    def has_base(self, task: str) -> bool:
        """Whether the base model can answer the items of a task: a new head has learned nothing."""
        return self.tasks[task].scoring in ("cloze", "letter")

    def titles(self, task: str) -> list[str]:
        """The rows of a task."""
        return [title for title in self.rows if title != BASE or self.has_base(task) or not self.protocol.base_rows]

    def length_powers(self, task: str) -> list[float]:
        """From which values the length power of a task is chosen; empty: it has its own."""
        chosen = self.tasks[task].scoring == "cloze" and self.tasks[task].length_power in (1, "auto")
        return self.protocol.length_powers if chosen else []

    def outside(self, task: str) -> dict[str, TaskConfig]:
        """The out-of-distribution tasks, by title, that adapters trained on the task of this title predict."""
        if self.out_of_distribution_from is not None and task not in self.out_of_distribution_from:
            return {}
        own = self.tasks[task].name
        return {title: other for title, other in self.out_of_distribution.items() if other.name != own}

    def run(
        self, task: str, title: str, seed: int, learning_rate: float, length_power: float | None = None
    ) -> RunConfig:
        """One training run of a row, on the task of this title.

        Args:
            task: Title of the task.
            title: Title of the row.
            seed: Of the run.
            learning_rate: Peak learning rate.
            length_power: The one that was chosen for the task; None: the task's own.
        """
        row, read = self.rows[title], self.tasks[task]
        method = copy.copy(row.method)
        for name, value in asdict(self.adapter).items():
            setattr(method, name, value)
        train = replace(self.train, **row.train, learning_rate=learning_rate)
        if self.protocol.choose_epochs and self.has_rate(title) and not method.of_whole_training:
            train = replace(train, **{"choose_epoch": True, **row.train})
        scoring = row.scoring if method.adapts else "options"
        if scoring is not None and scoring != read.scoring:
            # What belongs to the task's own scoring is left at its default.
            read = replace(read, scoring=scoring, length_power=1.0, chat_template="auto")
        elif length_power is not None:
            read = replace(read, length_power=length_power)
        return RunConfig(
            model=self.model,
            task=read,
            method=method,
            train=train,
            seed=seed,
            num_samples=self.num_samples,
            batch_size=self.batch_size,
        )
