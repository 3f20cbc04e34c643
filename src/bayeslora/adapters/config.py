"""Configs of PEFT adapters with random modules."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, get_type_hints

from peft import LoraConfig
from torch import nn

from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.adapters.random_module import RandomModule
from bayeslora.adapters.starts import check_start
from bayeslora.options.ranges import check_value
from bayeslora.posteriors.weights.base import WeightPosterior

FORMAT_VERSION = 2
"""Version of the adapter file format that this package writes; 1 is read too (docs/reference/file_format.md)."""

Part = Literal["lora_A", "lora_B", "lora_dropout"]
"""What of a LoRA layer can be random."""

Side = Literal["A", "B"]
"""Which of the two factors."""


class PeftType(str):
    """A PEFT type outside PEFT's own enum; transformers asks for `.value`."""

    @property
    def value(self) -> str:
        """Its name."""
        return str(self)


_UNSUPPORTED = {
    "use_dora": "DoRA renormalises the weights, which is not defined for several draws in one forward",
    "lora_bias": "a LoRA bias has no posterior",
    "target_parameters": "S draws for fused experts would be S copies of their stack; adapt the attention instead",
    "alora_invocation_tokens": "activated LoRA replaces the forward of the factors",
    "use_qalora": "QA-LoRA pools the inputs of the factors",
    "use_bdlora": "BD-LoRA replaces the factors",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA replaces the factors",
    "velora_config": "VeLoRA replaces the forward of the factors",
    "monteclora_config": "MonteCLoRA is another posterior over the same factors",
    "layer_replication": "replicated layers share their base weights, not their draws",
}


@dataclass
class RandomLoraConfig(LoraConfig):
    """Config of a LoRA adapter some of whose parts are random; every field of `peft.LoraConfig` works as there.

    A subclass names its factors' posterior in `family`; where that is not all of it, it has a `factor` of its own, and
    where dropout is random, a `randomised`.

    Raises:
        ValueError: A field of a subclass is out of its range, a newer file format, a start that a load does not repeat
            (`bayeslora.adapters.starts`), or an option of LoRA that cannot be combined with draws.
    """

    registered_type: ClassVar[PeftType]
    random_sides: ClassVar[tuple[Side, ...]] = ("A", "B")
    """Factors that are random; the other one stays deterministic."""

    format_version: int = FORMAT_VERSION
    base_fingerprint: dict[str, Any] | None = None
    """What the base model looked like; written by the library."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.registered_type
        self.fingerprint_is_own = self.base_fingerprint is None
        check_start(self)
        for name, hint in _own_hints(type(self)).items():
            check_value(getattr(self, name), hint, name)
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This adapter has format version {self.format_version}, this bayeslora reads up to version "
                f"{FORMAT_VERSION}; upgrade with `pip install -U bayeslora`."
            )
        self.format_version = FORMAT_VERSION  # That of what a save will write.
        for name, reason in _UNSUPPORTED.items():
            if getattr(self, name, None):
                raise ValueError(f"{type(self).__name__} does not support {name}: {reason}. Leave {name} unset.")

    def randomised(self, part: Part, module: nn.Module) -> RandomModule | None:
        """What takes the place of `module`, which PEFT made as this part of a layer; None: it stays as it is."""
        for side in self.random_sides:
            if part == f"lora_{side}" and isinstance(module, nn.Linear):
                return self.factor(side, module)
        return None

    def factor(self, side: Side, module: nn.Linear) -> RandomModule:
        """The random factor that begins where `module` does."""
        return RandomFactor(self.family(side, module.out_features, module.in_features), module.weight.data)

    def know_layer(self, layer: Any, adapter_name: str) -> None:
        """The random parts are in their LoRA layer, or have got another mean: take what depends on the layer."""

    @abstractmethod
    def family(self, side: Side, rows: int, columns: int) -> WeightPosterior:
        """q(W) of a factor `[rows, columns]`."""


def _own_hints(config: type[RandomLoraConfig]) -> dict[str, Any]:
    """Types and ranges of the fields that a config class has beside those of `peft.LoraConfig`."""
    inherited = get_type_hints(LoraConfig)
    found = get_type_hints(config, include_extras=True)
    return {field.name: found[field.name] for field in fields(config) if field.name not in inherited}
