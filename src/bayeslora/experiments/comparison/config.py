"""What a comparison is made of; the YAML file and the command line are generated from these classes."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, replace

from bayeslora.experiments.comparison.options import (
    AdapterConfig,
    CompareOptions,
    Control,
    ProtocolConfig,
    RowOptions,
)
from bayeslora.experiments.comparison.records import BASE, TEMPERED, control_title
from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.options.ranges import check_options
from bayeslora.runs.config import RunConfig, TaskConfig, TrainConfig
from bayeslora.scoring import get_scoring
from bayeslora.training.arguments import check_arguments

__all__ = ["AdapterConfig", "CompareConfig", "Control", "ProtocolConfig", "RowConfig", "default_rows"]

_OF_EACH_RUN = {"learning_rate": "learning_rates", "seed": "seeds"}


@dataclass
class RowConfig(RowOptions):
    """One row of the table; the method, which is a name in `RowOptions`, is an object here."""

    method: Method  # type: ignore[assignment]

    def titles(self, title: str) -> list[str]:
        """Those of the row called `title`, of its controls and of their temperatures, without the mean per token."""
        titles = [title, *(control_title(title, control) for control in self.controls)]
        return [*titles, *(f"{one}{TEMPERED}" for one in titles if self.temperature)]


def default_rows() -> dict[str, RowConfig]:
    """LoRA and Bayesian-LoRA, each with a temperature too."""
    return {
        "lora": RowConfig(Lora(), temperature=True),
        "bayesian_lora": RowConfig(BayesianLora(), temperature=True),
    }


def _base_row() -> RowConfig:
    """LoRA of no steps, whose update is zero."""
    return RowConfig(Lora(), train={"epochs": 0.0, "max_steps": None}, temperature=True)


@dataclass
class CompareConfig(CompareOptions):
    """Methods x tasks x seeds under one protocol; the fields are those of `CompareOptions`."""

    rows: dict[str, RowConfig] = field(default_factory=default_rows)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check what would fail only hours later.

        Raises:
            ValueError: A value is out of its range or of another type, also in the training of a row, a list is empty
                or has a value twice, a row's training has an unknown field, a control is for another scoring or method,
                `out_of_distribution_from` names no task, or parts of the protocol exclude each other or something else.
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
            self._check_controls(title, row)
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

    def _check_controls(self, title: str, row: RowConfig) -> None:
        for task in self.tasks:
            if "score_noise" in row.controls and (scoring := self.scoring(task, title)) != "cloze":
                raise ValueError(
                    f"rows.{title}.controls: score_noise is for scoring cloze, whose choices have a length, but the "
                    f"row has {scoring!r} on task {task!r}; leave it out of the controls."
                )

        stops = row.method.draws_in_turn and not row.method.draws_depend_on_batch and self.num_samples > 1
        if "adaptive_draws" in row.controls and not stops:
            raise ValueError(
                f"rows.{title}.controls: adaptive_draws needs predictions of several independent draws, of which an "
                f"item could have fewer, but with num_samples {self.num_samples} the method {row.method.name!r} has "
                "none; leave it out of the controls."
            )

    def scoring(self, task: str, title: str) -> str:
        """How a row reads the items of a task."""
        row, own = self.rows[title], self.tasks[task].scoring
        if not row.method.adapts:
            return "option_texts" if get_scoring(own).of_decisions else "options"
        return row.scoring or own

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
        if (scoring := self.scoring(task, title)) != read.scoring:
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
