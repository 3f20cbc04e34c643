"""A part of an adapter whose forward depends on a draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayeslora.posteriors.weights.base import KL, Noise


class RandomModule(nn.Module, ABC):
    """A part of an adapter whose forward depends on a draw.

    Noise is kept, not what is computed from it, so that gradient checkpointing recomputes the same forward; it is a
    plain attribute because DDP would broadcast a buffer from rank 0.
    """

    local: ClassVar[bool] = False
    """Whether `kl` is that of latent variables of each row of a batch, and not of the whole data set."""
    location: tuple[str, ...] = ()
    """Names of the parameters that are ordinary LoRA matrices; the others are variational."""

    def __init__(self) -> None:
        super().__init__()
        self.noise: Noise | None = None
        self.explicit = False

    @property
    @abstractmethod
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the normal noise of one draw."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the noise belongs."""

    @property
    def draws_in_training(self) -> bool:
        """Whether training uses draws too, and not prediction alone."""
        return True

    @property
    def active_noise(self) -> Noise | None:
        """Noise of an explicit sampling context, else of the training step, else None: the mean."""
        return self.noise if self.explicit or (self.training and self.draws_in_training) else None

    def set_noise(self, noise: Noise | None, *, explicit: bool = False) -> None:
        """Use `noise` from now on; `explicit` noise also counts in eval mode."""
        set_plainly(self, "noise", noise)
        set_plainly(self, "explicit", explicit)

    def begin_forward(self, inputs: Mapping[str, Any]) -> None:
        """A forward of the model begins, with these keyword arguments."""

    def embed(self, weight: Tensor) -> None:
        """Restart such that the mean is the LoRA matrix `weight` `[out, in]`.

        Raises:
            NotImplementedError: The module does not take the place of a LoRA matrix.
        """
        raise NotImplementedError(f"{type(self).__name__} does not take the place of a LoRA matrix.")

    def kl(self) -> KL:
        """KL from posterior to prior in nats, scalars; none where there is nothing to learn.

        Where it is `local`, the mean over the rows of the last forward.
        """
        zero = torch.zeros((), device=self.device)
        return KL(zero, zero)


def set_plainly(module: nn.Module, name: str, value: object) -> None:
    """Set an attribute that is neither a parameter, a buffer nor a module.

    `nn.Module` looks for all three first, which for every factor at every step adds up.
    """
    object.__setattr__(module, name, value)


def check_sample_major(value: Tensor, samples: int) -> None:
    """Whether `value` can be `[samples * batch, ...]`.

    Raises:
        ValueError: Its leading dimension is no multiple of `samples`.
    """
    if value.shape[0] % samples:
        raise ValueError(
            f"{samples} posterior samples in one forward need a leading dimension of samples * batch, got inputs of "
            f"shape {tuple(value.shape)}; this module sees packed or routed tokens, so take one sample at a time "
            "(bayeslora.predict(..., chunk_size=1))."
        )


def random_signs(value: Tensor, features: int) -> Tensor:
    """Random signs `[rows, 1, ..., features]`, one vector per row of `value` `[rows, ..., *]`."""
    shape = (value.shape[0], *(1 for _ in value.shape[1:-1]), features)
    return torch.randint(0, 2, shape, device=value.device).to(value.dtype) * 2 - 1
