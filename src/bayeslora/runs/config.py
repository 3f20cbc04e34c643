"""What a run is made of; the command line and the YAML files are generated from these classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from bayeslora.methods import BayesianLora, Method
from bayeslora.options.ranges import Draws, check_options
from bayeslora.runs.options import (
    USUAL_DRAWS,
    DistillConfig,
    HeadConfig,
    ModelConfig,
    RunOptions,
    TaskConfig,
    TrainConfig,
)
from bayeslora.scoring import SCORINGS

__all__ = [
    "DistillConfig",
    "HeadConfig",
    "ModelConfig",
    "RunConfig",
    "TaskConfig",
    "TrainConfig",
    "describe",
    "describe_method",
]


@dataclass
class RunConfig(RunOptions):
    """One training run.

    The other fields are those of `RunOptions`; the method, which is a name there, is an object here, and the draws are
    known.
    """

    method: Method = field(default_factory=BayesianLora)  # type: ignore[assignment]
    num_samples: Literal["auto"] | Draws = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check the values, also of a method and of parts that were changed since they were built.

        Raises:
            ValueError: One is out of its range or of another type.
        """
        if self.num_samples is None:
            self.num_samples = _usual_draws(self.task, self.method)
        check_options(self)

    @property
    def most_samples(self) -> int:
        """Posterior draws of a prediction: `num_samples`, of "auto" the number that no item gets more than."""
        return USUAL_DRAWS if self.num_samples == "auto" else self.num_samples

    def samples_used(self, num_samples: int | None = None) -> int:
        """Of how many draws a prediction with all of them is made that is asked for so many; default: the run's."""
        return self.method.effective_num_samples(self.most_samples if num_samples is None else num_samples)


def _usual_draws(task: TaskConfig, method: Method) -> int:
    """Of a prediction: the mean below heads, which know the features of the mean and not how a draw of weights shifts
    those of all items alike (studies/methods/readout/below/draws.py)."""
    heads = task.scoring in SCORINGS.names() and SCORINGS.get(task.scoring).by_heads
    return 0 if heads and method.draws_in_turn and not method.draws_depend_on_batch else USUAL_DRAWS


def describe_method(method: Method) -> dict[str, Any]:
    """A method as a config file has it, with every argument; a method of a default has no other text of its own."""
    kind = type(method)
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": method.arguments}


def describe(config: Any) -> Any:
    """A config as JSON: dicts of its fields, methods as config files have them."""
    if isinstance(config, Method):
        return describe_method(config)
    if is_dataclass(config):
        return {field.name: describe(getattr(config, field.name)) for field in fields(config)}
    if isinstance(config, Mapping):
        return {name: describe(value) for name, value in config.items()}
    return config
