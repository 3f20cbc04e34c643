"""What a method is: how it adapts a model, trains it and predicts with it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from bayeslora.predictive import Predictive, predict
from bayeslora.scoring import ChoiceBatch
from bayeslora.trunk import TrunkCache

__all__ = ["Method", "trainable_parameters"]

_TASK_TYPES = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}


class Method(ABC):
    """A way to adapt a base model with low-rank adapters.

    A subclass keeps each argument of its `__init__` as an attribute of the same name.

    Args:
        r: Rank of the adapters.
        lora_alpha: Scale of the update is lora_alpha / r.
        lora_dropout: Dropout probability on the adapters' input while training.
        target_modules: Names of the linear layers to adapt; default: PEFT's choice for the model (query and value).
        last_layers: Adapt only this many layers, counted from the top; default: all.
        modules_to_save: Further modules to train and save whole, such as a new head.
    """

    name: ClassVar[str]

    def __init__(
        self,
        r: int = 8,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        target_modules: list[str] | None = None,
        last_layers: int | None = None,
        modules_to_save: list[str] | None = None,
    ):
        self.r = r
        self.lora_alpha = lora_alpha
        self.lora_dropout = lora_dropout
        self.target_modules = target_modules
        self.last_layers = last_layers
        self.modules_to_save = modules_to_save

    @classmethod
    def argument_names(cls) -> list[str]:
        """Names of all arguments, those of the base classes included; each is also an attribute."""
        return [
            name
            for base in reversed(cls.__mro__)
            if base is not object and "__init__" in vars(base)
            for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
            if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]

    @property
    def arguments(self) -> dict[str, Any]:
        """What the method was built with, defaults included, for the run's config.yaml."""
        return {name: getattr(self, name) for name in self.argument_names()}

    @abstractmethod
    def config(self, **lora_options: Any) -> LoraConfig:
        """The PEFT config with these LoRA options."""

    def adapt(self, model: nn.Module, kind: Literal["causal_lm", "sequence_classification"]) -> PeftModel:
        """`model` with fresh adapters.

        Raises:
            ValueError: The target modules match nothing, or `last_layers` exceeds the model's layers.
        """
        return get_peft_model(model, self.config(**self._lora_options(model), task_type=_TASK_TYPES[kind]))

    def _lora_options(self, model: nn.Module) -> dict[str, Any]:
        return {
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": self.target_modules,
            "modules_to_save": self.modules_to_save,
            "layers_to_transform": self._layers(model),
        }

    def _layers(self, model: nn.Module) -> list[int] | None:
        if self.last_layers is None:
            return None
        config: Any = model.config
        total = int(config.get_text_config().num_hidden_layers)
        if not 0 < self.last_layers <= total:
            raise ValueError(f"last_layers must lie between 1 and the model's {total} layers, got {self.last_layers}.")
        return list(range(total - self.last_layers, total))

    def trainer_options(self, learning_rate: float, total_steps: int) -> dict[str, Any]:
        """Arguments for `BayesianLoraTrainer` beyond the usual ones."""
        return {}

    def predict(
        self,
        model: nn.Module,
        batch: ChoiceBatch,
        num_samples: int,
        seed: int,
        trunk_cache: TrunkCache | None = None,
    ) -> Predictive:
        """The predictive distribution of `batch`."""
        return predict(model, batch, num_samples=num_samples, seed=seed, trunk_cache=trunk_cache)

    def samples_used(self, num_samples: int) -> int:
        """How many posterior samples a prediction asked for `num_samples` is made of; 0: a point estimate."""
        return num_samples


def trainable_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
