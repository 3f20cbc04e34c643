"""What the optimizers of LoRA pairs share: pairs stacked by shape, AdamW for the rest, state in float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.training.optimizers.adamw import adamw_update, assign, full_precision


@dataclass(frozen=True)
class PairStack:
    """Pairs of one shape, device and age, whose matrices are handled in batches.

    Their tensors are `[pairs, ..., r, in]` (A) and `[pairs, ..., out, r]` (B), in at least float32. What a method keeps
    for a pair is in the state of its A.
    """

    group: Mapping[str, Any]
    """Options of the parameter group."""
    step: int
    """Number of the update under way, from 1."""
    a: tuple[nn.Parameter, ...]
    b: tuple[nn.Parameter, ...]
    state: dict[Any, dict[str, Any]]
    """The optimizer's."""

    def weights(self) -> tuple[Tensor, Tensor]:
        """A and B."""
        first, second = ([full_precision(p, self.state[p]) for p in side] for side in (self.a, self.b))
        return torch.stack(first), torch.stack(second)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of A and of B; zeros where only the other one has a gradient."""
        first, second = ([torch.zeros_like(p) if p.grad is None else p.grad for p in s] for s in (self.a, self.b))
        wide = torch.float64 if self.a[0].dtype == torch.float64 else torch.float32
        return torch.stack(first).to(wide), torch.stack(second).to(wide)

    def assign(self, a: Tensor, b: Tensor) -> None:
        """Write new weights to the parameters."""
        assign([*self.a, *self.b], [*a.unbind(), *b.unbind()], self.state)

    def read(self, name: str) -> Tensor:
        """A tensor of the state, `[pairs, ...]`."""
        return torch.stack([self.state[a][name] for a in self.a])

    def write(self, **values: Tensor) -> None:
        """Keep tensors `[pairs, ...]` for the next step."""
        for name, value in values.items():
            for a, part in zip(self.a, value.unbind(), strict=True):
                self.state[a][name] = part

    @property
    def shrinkage(self) -> float:
        """What decoupled weight decay multiplies the weights by."""
        return 1 - self.group["lr"] * self.group["weight_decay"]


class PairOptimizer(torch.optim.Optimizer, ABC):
    """A torch optimizer whose groups with `pairs=True` hold the factors A, B, A, B, ... of LoRA updates B A.

    The other groups get AdamW. Pairs of one shape are updated together, so that the number of kernels does not grow
    with the number of layers. For parameters of 16 bits the moments and a copy of the weights are kept in float32.
    The gradients of A and B must be whole (one process, or DDP; not sharded by FSDP).

    Args:
        params: The groups; `parameter_groups(model)` makes them.
        lr: Learning rate.
        pair_lr: That of the pairs; default: `lr`.
        betas: Decay of the first and second moment, in AdamW too.
        eps: AdamW's, added to the root of the second moment.
        weight_decay: Decoupled weight decay, for groups that do not have one of their own.
        fused: Whether AdamW uses torch's fused kernel.
        options: Further options of all groups, those of the method.

    Raises:
        ValueError: No group holds pairs, or a value is out of range.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        pair_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fused: bool | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        groups: list[Any] = list(params)
        if not any(isinstance(group, dict) and group.get("pairs") for group in groups):
            raise ValueError(
                f"{type(self).__name__} found no trainable LoRA pair (A, B) of linear or embedding layers; pass "
                "parameter_groups(model) of a PEFT LoRA model, or use AdamW."
            )
        for name, value in (("lr", lr), ("pair_lr", pair_lr or 0.0), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), got {betas}.")
        if pair_lr is not None:
            groups = [{"lr": pair_lr, **group} if group.get("pairs") else group for group in groups]
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "fused": fused}
        super().__init__(groups, {**defaults, "pairs": False, "random": False, **(options or {})})

    @abstractmethod
    def update_pairs(self, stacks: list[PairStack]) -> None:
        """Update all pairs that have gradients."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; returns what `closure` (which computes the loss and the gradients anew) returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stacks = [stack for group in self.param_groups if group["pairs"] for stack in self._stacks(group)]
        if stacks:
            self.update_pairs(stacks)
        for group in self.param_groups:
            if not group["pairs"]:
                parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
                adamw_update(parameters, [parameter.grad for parameter in parameters], self.state, group)
        return loss

    def _stacks(self, group: dict[str, Any]) -> list[PairStack]:
        """The pairs of a group that have gradients, each counted one step older."""
        alike: dict[Any, list[tuple[nn.Parameter, nn.Parameter]]] = {}
        for a, b in zip(group["params"][::2], group["params"][1::2], strict=True):
            if a.grad is None and b.grad is None:
                continue
            self.state[a]["updates"] = self.state[a].get("updates", 0) + 1
            key = (self.state[a]["updates"], a.shape, b.shape, a.dtype, b.dtype, a.device)
            alike.setdefault(key, []).append((a, b))
        return [
            PairStack(group, key[0], tuple(a for a, _ in pairs), tuple(b for _, b in pairs), self.state)
            for key, pairs in alike.items()
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would round the state to the number type of the parameters."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and name != "step":
                    self.state[parameter][name] = value.to(parameter.device, copy=True)
