"""A deep ensemble of LoRA adapters (arXiv 1612.01474), trained at once and kept in one file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from bayeslora.adapters import RandomLoraConfig, Side, register
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.methods.base import Method
from bayeslora.models.kinds import ModelKind
from bayeslora.options.from_config import options_of
from bayeslora.options.ranges import Size
from bayeslora.posteriors.weights.point import MembersWeights
from bayeslora.system.log import logger


@register("ENSEMBLE_LORA")
@dataclass
class EnsembleConfig(RandomLoraConfig):
    """Config of an ensemble of LoRA adapters; every field of `peft.LoraConfig` works as there, and:

    Args:
        members: K, the number of adapters.

    Raises:
        ValueError: `members` is not positive, an initialisation of which there is only one, or another option of LoRA
            that cannot be combined.
    """

    members: Size = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.init_lora_weights, bool):
            raise ValueError(
                "an ensemble needs a random start for each member, so init_lora_weights must be True (PEFT's default), "
                f"got {self.init_lora_weights!r}."
            )

    def factor(self, side: Side, module: nn.Linear) -> RandomFactor:
        """Each member's A starts at random as PEFT's does, its B where PEFT's does (zero)."""
        factor = RandomFactor(self.family(side, module.out_features, module.in_features), module.weight.data)
        if side == "A":
            with torch.no_grad():
                for member in factor.parameters_by_name["members"][1:]:
                    nn.init.kaiming_uniform_(member, a=5**0.5)
        return factor

    def family(self, side: Side, rows: int, columns: int) -> MembersWeights:
        """The members of a factor `[rows, columns]`."""
        return MembersWeights(rows, columns, members=self.members)


@options_of(EnsembleConfig)
class DeepEnsemble(Method):
    """K LoRA adapters that start apart, are trained side by side, and whose probabilities are averaged.

    Lakshminarayanan et al., arXiv 1612.01474, without their adversarial training. A training forward runs all members
    on the same batch and the loss is their mean, so each gets the gradient that it would get alone, divided by K, which
    AdamW does not see. The members see the same order of the data and differ by their first A (and by dropout's masks);
    clipping acts on the gradient of all together, and `modules_to_save`, such as a new head, are shared.

    A prediction always takes every member once, whatever the number of samples or the seed. In eval mode without
    `bayeslora.sampling`, and so when merged, the model is its first member: a mean of factors is no trained model.
    """

    name = "ensemble"
    members: int

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.train_samples = self.members

    def adapt(self, model: nn.Module, kind: ModelKind) -> PeftModel:
        """As the base class; with `init_from` all members start at that adapter."""
        if self.init_from is not None:
            logger.warning(
                "all %d members start at the adapter %s; only dropout in that adapter can make them differ",
                self.members,
                self.init_from,
            )
        return super().adapt(model, kind)

    def trainer_options(self, learning_rate: float, total_steps: int, num_examples: int) -> dict[str, Any]:
        """All members in each forward."""
        return {"train_samples": self.train_samples}

    def effective_num_samples(self, num_samples: int) -> int:
        """Always K."""
        return self.members
