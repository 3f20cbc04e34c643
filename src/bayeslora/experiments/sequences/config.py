"""What a procedure is made of; the YAML files and the command line are generated from these classes."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, fields, replace

from bayeslora.experiments.sequences.options import ChainOptions, ContinualOptions
from bayeslora.methods import BayesianLora, Lora, Method
from bayeslora.methods.sd_lora import BayesianSdLora, SdLora
from bayeslora.options.ranges import check_options
from bayeslora.runs.config import RunConfig
from bayeslora.training.arguments import check_arguments

_SEEDS_APART = 10_000


@dataclass
class ChainConfig(ChainOptions, RunConfig):
    """A chain of blocks; the fields are those of `ChainOptions`, with the method as an object."""

    method: Method = field(default_factory=BayesianLora)

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
class ContinualConfig(ContinualOptions):
    """Methods x seeds on a sequence of tasks; the fields are those of `ContinualOptions`, with methods as objects."""

    rows: dict[str, Method] = field(default_factory=_default_rows)  # type: ignore[assignment]

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
