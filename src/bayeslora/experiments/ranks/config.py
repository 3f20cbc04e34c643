"""What a rank study is made of; the YAML file and the command line are generated from this class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bayeslora.experiments.comparison.config import AdapterConfig, CompareConfig, ProtocolConfig, RowConfig
from bayeslora.experiments.ranks.options import RankStudyOptions
from bayeslora.methods import Lora, Method
from bayeslora.methods.full_fine_tuning import FullFineTuning
from bayeslora.options.ranges import check_options
from bayeslora.runs.config import RunConfig


@dataclass
class RankComparison(CompareConfig):
    """A comparison whose rows differ in their rank.

    Args:
        ranks: Rank of each low-rank row, by its title.
        scale: lora_alpha / r of all of them.
    """

    ranks: dict[str, int] = field(default_factory=dict)
    scale: float = 2.0

    def run(
        self, task: str, title: str, seed: int, learning_rate: float, length_power: float | None = None
    ) -> RunConfig:
        """As the base class, with the row's rank; the full row trains all modules of its layers."""
        run = super().run(task, title, seed, learning_rate, length_power)
        if title in self.ranks:
            run.method.r = self.ranks[title]
            run.method.lora_alpha = self.scale * run.method.r
        else:
            run.method.target_modules = None
        return run


@dataclass
class RankStudyConfig(RankStudyOptions):
    """Ranks of one low-rank method beside full fine-tuning; the fields are those of `RankStudyOptions`."""

    method: Method = field(default_factory=Lora)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check what would fail only hours later.

        Raises:
            ValueError: A value is out of its range or of another type; ranks are missing or there twice; or texts are
                asked for of a model that writes none, or by a prompt without the question.
        """
        check_options(self)
        if not self.ranks or min(self.ranks) < 1 or len(set(self.ranks)) < len(self.ranks):
            raise ValueError(f"ranks must be different numbers of at least 1, got {self.ranks}.")
        if self.explanation_column is not None:
            if self.task.scoring == "classification":
                raise ValueError(
                    "explanation_column needs a model that writes text, but task.scoring is 'classification'; take "
                    "'cloze' or 'letter', or leave the column out."
                )
            if "{question}" not in self.prompt:
                raise ValueError(f'prompt must hold "{{question}}", got {self.prompt!r}.')

    @property
    def titles(self) -> list[str]:
        """Titles of the rows, the smallest rank first."""
        return [*self._ranks, *([self._full_title] if self.full else [])]

    @property
    def _ranks(self) -> dict[str, int]:
        return {f"rank {rank}": rank for rank in sorted(self.ranks)}

    @property
    def _full_title(self) -> str:
        return "full" if self.last_layers is None else f"full, top {self.last_layers} layers"

    def comparison(self) -> RankComparison:
        """The comparison that trains and tests all rows."""
        rows = {title: RowConfig(self.method) for title in self._ranks}
        if self.full:
            rows[self._full_title] = RowConfig(FullFineTuning(), learning_rates=self.full_learning_rates)
        fields: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("model", "train", "learning_rates", "select_by", "seeds", "num_samples", "batch_size", "scale")
        }
        return RankComparison(
            tasks={"task": self.task},
            rows=rows,
            adapter=AdapterConfig(target_modules=self.target_modules, last_layers=self.last_layers),
            ranks=self._ranks,
            protocol=ProtocolConfig.plain(),
            **fields,
        )
