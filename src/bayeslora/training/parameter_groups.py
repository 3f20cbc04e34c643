"""The optimizer of a training: which parameters decay, which have a rate of their own, and who steps LoRA pairs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bayeslora.adapters.random_module import RandomModule
from bayeslora.training.optimizers import build_optimizer

if TYPE_CHECKING:
    from transformers import Trainer as _Parent
else:
    _Parent = object


class ParameterGroups(_Parent):
    """A mixin for Trainers: groups of their own for variational parameters, and optimizers of LoRA pairs.

    Attributes:
        optimizer_name: "adamw" for the Trainer's own, or one of `bayeslora.training.optimizers`.
        optimizer_options: Further options of that one.
        posterior_learning_rate: That of the variational parameters; None: that of the others.
    """

    optimizer_name: str
    optimizer_options: dict[str, Any]
    posterior_learning_rate: float | None

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay, where it is switched on, is for LoRA means and other weights, not for q(V), Z, D or lambda."""
        variational = {name for name, _ in variational_parameters(model)}
        names = super().get_decay_parameter_names(model)
        return [name for name in names if name not in variational]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The parent's optimizer, with groups of their own for variational parameters where they have a rate."""
        fresh = self.optimizer is None
        if fresh and self.optimizer_name != "adamw":
            self.optimizer = self._pair_optimizer()
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and self.posterior_learning_rate is not None:
            chosen = {id(p) for _, p in variational_parameters(self._module)}
            for group in list(optimizer.param_groups):
                moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
                if moved:
                    optimizer.add_param_group({**group, "params": moved, "lr": self.posterior_learning_rate})
        self.optimizer = optimizer
        return optimizer

    def _pair_optimizer(self) -> torch.optim.Optimizer:
        arguments = self.args
        given = {
            "lr": arguments.learning_rate,
            "betas": (arguments.adam_beta1, arguments.adam_beta2),
            "eps": arguments.adam_epsilon,
            "weight_decay": arguments.weight_decay,
            "decayed": self.get_decay_parameter_names(self._module),
            "fused": True if arguments.optim == "adamw_torch_fused" else None,
        }
        return build_optimizer(self.optimizer_name, self._module, **{**given, **self.optimizer_options})

    @property
    def _module(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model


@contextmanager
def sampled_weights(optimizer: Any) -> Iterator[None]:
    """The optimizer's own perturbation of the weights, if it has one (IVON: arXiv 2402.17641).

    Raises:
        ValueError: Float16 training scales the loss, and such an optimizer would read the scaled gradients.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    context = getattr(inner, "sampled_params", None)
    if context is None:
        yield
        return
    if getattr(optimizer, "scaler", None) is not None:
        raise ValueError(
            f"{type(inner).__name__} notes the gradients of the backward pass, which float16 training scales; train in "
            "bfloat16 or float32."
        )
    with context(train=True):
        yield


def variational_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters of all random factors, such as q(V), Z, D and lambda; not their LoRA means."""
    return [
        (f"{prefix}.{name}", parameter)
        for prefix, module in model.named_modules()
        if isinstance(module, RandomModule)
        for name, parameter in module.named_parameters(recurse=False)
        if name not in module.location
    ]
