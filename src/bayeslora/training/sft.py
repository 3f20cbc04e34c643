"""TRL's SFTTrainer with the ELBO; needs `pip install "bayeslora[sft]"`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bayeslora.adapters.random_module import RandomModule
from bayeslora.training.trainer import ELBOTrainerMixin

try:
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    raise ImportError(
        f"supervised fine-tuning on text needs TRL, which is missing ({error}); install it with "
        'pip install "bayeslora[sft]".'
    ) from error

__all__ = ["BayesianSFTTrainer", "SFTConfig", "SFTTrainer"]


class BayesianSFTTrainer(ELBOTrainerMixin, SFTTrainer):
    """`trl.SFTTrainer` that minimises mean NLL per target token + beta * KL / N.

    N is the number of target tokens of the training set as TRL prepared it: after the chat template, truncation,
    packing and the masks of `completion_only_loss` and `assistant_only_loss`. Plain LoRA trains in it as in SFTTrainer
    (its KL is zero). Arguments are those of SFTTrainer (`peft_config=BayesianLoraConfig(...)` among them) and of
    `ELBOTrainerMixin`. Evaluation uses the posterior mean; `bayeslora.runs.language_modelling.predict_tokens` averages
    draws.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        _keep_full_precision(self._module)


def _keep_full_precision(model: nn.Module) -> None:
    """Undo SFTTrainer's cast of the adapters of a quantised model to bfloat16, for the random modules.

    A log standard deviation of -5 moves in bfloat16 by steps of 0.03, so most updates of a variational parameter would
    be rounded away.
    """
    for module in model.modules():
        if isinstance(module, RandomModule):
            for parameter in module.parameters():
                if parameter.dtype == torch.bfloat16:
                    parameter.data = parameter.data.float()
