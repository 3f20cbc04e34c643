"""Normalising-flow posterior (needs the extra `bayeslora[flow]`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayeslora.posteriors.base import InducingPosterior, Parameters, log_standard_normal


class _MaskedAutoregressive(nn.Module):
    """The transforms T_phi of one factor on rows of V `[..., rows, columns]`, from zuko."""

    def __init__(self, columns: int, transforms: int, hidden: int):
        super().__init__()
        try:
            from zuko.flows import MaskedAutoregressiveTransform
        except ImportError as error:
            raise ImportError(
                "posterior='flow' needs the package zuko, which is not installed; "
                "run `pip install bayeslora[flow]` or choose another posterior."
            ) from error
        order = torch.arange(columns)
        self.transforms = nn.ModuleList(
            MaskedAutoregressiveTransform(
                features=columns, hidden_features=(hidden,), order=order if k % 2 == 0 else order.flip(0)
            )
            for k in range(transforms)
        )

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """T(value) and log|det J| summed over rows."""
        total: Tensor | float = 0.0
        for transform in self.transforms:
            value, log_determinant = transform().call_and_ladj(value)
            total = total + log_determinant.sum(-1)
        return value, torch.as_tensor(total)


@dataclass(frozen=True)
class Flow(InducingPosterior):
    """V = T_phi(V0), V0 ~ N(loc, diag(std^2)), T_phi a row-wise masked autoregressive flow that starts as identity.

    The KL is a one-sample (or S-sample) Monte Carlo estimate, E[log q0(V0) - log|det J| - log N(T(V0); 0, I)]
    (arXiv 2601.21003, with the log-determinant subtracted). Mean mode uses T_phi(loc), a point inside q(V); the exact
    mean of a flow has no closed form.

    Args:
        transforms: Number of autoregressive transforms.
        hidden: Width of the hidden layer of each transform.
    """

    transforms: int = 2
    hidden: int = 32

    name: ClassVar[str] = "flow"
    kl_is_estimate: ClassVar[bool] = True

    @cached_property
    def _module(self) -> _MaskedAutoregressive:
        # The seed of the template is forked: building it must not move the caller's random state.
        with torch.random.fork_rng(devices=[]):
            return _MaskedAutoregressive(self.columns, self.transforms, self.hidden)

    def __post_init__(self) -> None:
        """Build the template now: vmap forbids its random initialisation."""
        _ = self._module

    def initial(self, loc: Tensor) -> dict[str, Tensor]:
        """Location, log standard deviation and the flow's weights as one flat row `[1, weights]`."""
        template = _MaskedAutoregressive(self.columns, self.transforms, self.hidden)
        for transform in template.transforms:
            # A zero last layer makes the affine transform the identity; a single column has no layers at all.
            *_, last = (layer for layer in transform.modules() if isinstance(layer, nn.Linear | nn.ParameterList))
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        flat = torch.cat([parameter.detach().flatten() for parameter in template.parameters()])
        return {
            "v_loc": loc.clone(),
            "v_log_std": torch.full_like(loc, math.log(self.std)),
            "v_flow": flat.to(loc).unsqueeze(0),
        }

    def _transform_one(self, flat: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """T_phi of one factor: flat `[1, weights]`, value `[samples, rows, columns]`."""
        shapes = {name: parameter.shape for name, parameter in self._module.named_parameters()}
        pieces = flat.squeeze(0).split([shape.numel() for shape in shapes.values()])
        weights = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        buffers = {name: buffer.to(flat.device) for name, buffer in self._module.named_buffers()}
        return torch.func.functional_call(self._module, {**weights, **buffers}, (value,))

    def _transform(self, flat: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """T_phi of all stacked factors: flat `[..., 1, weights]`, value `[samples, ..., rows, columns]`."""
        stack = flat.shape[:-2]
        if not stack:
            return self._transform_one(flat, value)
        flat = flat.reshape(-1, *flat.shape[-2:])
        grouped = value.reshape(value.shape[0], -1, *value.shape[-2:])
        transform: Any = torch.vmap(self._transform_one, in_dims=(0, 1), out_dims=(1, 1))
        out, log_determinant = transform(flat, grouped)
        return out.reshape(value.shape), log_determinant.reshape(value.shape[:-2])

    def mean(self, parameters: Parameters) -> Tensor:
        """T_phi(loc)."""
        return self._transform(parameters["v_flow"], parameters["v_loc"].unsqueeze(0))[0].squeeze(0)

    def sample(self, parameters: Parameters, noise: Tensor, uniform: Tensor) -> Tensor:
        """T_phi(loc + std * noise)."""
        base = parameters["v_loc"] + parameters["v_log_std"].exp() * noise
        return self._transform(parameters["v_flow"], base)[0]

    def kl(self, parameters: Parameters, noise: Tensor | None) -> Tensor:
        """Monte Carlo estimate from `noise` [samples, ..., rows, columns], averaged over samples."""
        assert noise is not None, "the KL of a flow is estimated from noise"
        log_std = parameters["v_log_std"]
        value, log_determinant = self._transform(parameters["v_flow"], parameters["v_loc"] + log_std.exp() * noise)
        log_base = log_standard_normal(noise) - log_std.sum((-2, -1))
        return (log_base - log_determinant - log_standard_normal(value)).mean(0)
