"""Monte Carlo dropout (arXiv 1506.02142): the adapters' dropout stays on at prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from bayeslora.adapters import Part, RandomLoraConfig, register
from bayeslora.adapters.from_lora import from_lora
from bayeslora.adapters.random_module import RandomModule
from bayeslora.methods.base import TASK_TYPES, Method
from bayeslora.models.kinds import ModelKind
from bayeslora.options.ranges import Range


class AdapterDropout(RandomModule):
    """Dropout in train mode, in draws, and never else.

    In train mode it is `torch.nn.Dropout`: fresh masks from torch's generator, which gradient checkpointing restores.
    In a draw each number of the input has its own mask, as in training, and the masks are a function of the draw's
    noise and of the input's shape.

    Args:
        p: Probability that a number is dropped.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p
        self._device = torch.device("cpu")

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """One number, the bits of which are the seed of the draw's masks in this module."""
        return ((1,),)

    @property
    def device(self) -> torch.device:
        """Where the model that it is a part of was moved to."""
        return self._device

    @property
    def draws_in_training(self) -> bool:
        """No: training has masks of its own for each forward."""
        return False

    def _apply(self, function: Any, recurse: bool = True) -> AdapterDropout:
        # Without a tensor to follow the model, it looks where an empty one goes.
        device = function(torch.empty(0, device=self._device)).device
        self._device = self._device if device.type == "meta" else device
        return super()._apply(function, recurse)

    def forward(self, value: Tensor) -> Tensor:
        """Value `[batch, ..., in]`, or `[samples * batch, ..., in]` sample-major in draws, with zeros in it.

        Raises:
            ValueError: The leading dimension is not samples * batch.
        """
        noise = self.active_noise
        if noise is None:
            return nn.functional.dropout(value, self.p, self.training)
        seeds: list[int] = noise.normal[0].float().view(torch.int32).flatten().tolist()
        if value.shape[0] % len(seeds):
            raise ValueError(
                f"dropout of {len(seeds)} draws in one forward needs a leading dimension of draws * batch, got inputs "
                f"of shape {tuple(value.shape)}; take one draw at a time (bayeslora.predict(..., chunk_size=1))."
            )
        kept = [_kept(draw, seed, 1 - self.p) for draw, seed in zip(value.chunk(len(seeds)), seeds, strict=True)]
        return value * torch.cat(kept) / (1 - self.p)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


def _kept(value: Tensor, seed: int, probability: float) -> Tensor:
    """Ones with `probability`, else zeros, in the shape of `value`."""
    if value.is_meta:
        return torch.empty_like(value)  # Torch has no generator there.
    generator = torch.Generator(value.device).manual_seed(seed)
    return torch.empty_like(value).bernoulli_(probability, generator=generator)


@register("MC_DROPOUT_LORA")
@dataclass
class MonteCarloDropoutConfig(RandomLoraConfig):
    """Config of a LoRA adapter with Monte Carlo dropout; every field of `peft.LoraConfig` works as there.

    Raises:
        ValueError: `lora_dropout` is not in (0, 1), or an option of LoRA that cannot be combined.
    """

    lora_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lora_dropout < 1:
            raise ValueError(
                f"Monte Carlo dropout needs lora_dropout in (0, 1), got {self.lora_dropout}: without dropout all draws "
                "are equal. Set for example lora_dropout=0.1, or use plain LoRA."
            )

    def randomised(self, part: Part, module: nn.Module) -> AdapterDropout | None:
        """The dropout in front of A."""
        return AdapterDropout(self.lora_dropout) if part == "lora_dropout" else None


class MonteCarloDropout(Method):
    """Plain LoRA with dropout, which stays on for S passes at prediction (Gal and Ghahramani, arXiv 1506.02142).

    Only the adapters' own dropout is drawn; other dropout of the model is off at prediction, as always. With 0 samples
    there is none at all, the usual prediction of a model that was trained with dropout.

    Each number of an adapter's input is dropped by itself, as in training. So a draw is no set of weights: its masks
    depend on the shape of the batch, padding included, and it cannot be merged.

    Args:
        lora_dropout: Dropout probability on the adapters' input, in training and in draws. With `init_from` it takes
            the place of the adapter's own.
    """

    name = "mc_dropout"
    config_class: ClassVar[type[LoraConfig]] = MonteCarloDropoutConfig
    draws_depend_on_batch = True

    def __init__(self, lora_dropout: Annotated[float, Range(0, 1, above=True, below=True)] = 0.1, **kwargs: Any):
        super().__init__(lora_dropout=lora_dropout, **kwargs)

    def adapt(self, model: nn.Module, kind: ModelKind) -> PeftModel:
        """As the base class; the adapter of `init_from` gets this method's dropout."""
        if self.init_from is None:
            return super().adapt(model, kind)

        def config(**fields: Any) -> LoraConfig:
            return self.config_class(**{**fields, "lora_dropout": self.lora_dropout})

        task_type = TASK_TYPES[kind]
        return from_lora(model, self.init_from, config_class=config, task_type=task_type)  # type: ignore[arg-type]
