"""RepLoRA (arXiv 2502.03044): A and B are the outputs of small networks while training, and plain matrices after it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from bayeslora.adapters import RandomLoraConfig, Side, register
from bayeslora.adapters.random_factor import RandomFactor
from bayeslora.methods.base import Method, State, TrainingResult
from bayeslora.models.kinds import ModelKind
from bayeslora.options.from_config import options_of
from bayeslora.options.ranges import Size
from bayeslora.posteriors.weights.base import KL, Noise, WeightPosterior, no_kl
from bayeslora.posteriors.weights.whitening import at_least_float32

_NETWORK = ("hidden_weight", "hidden_bias")


@dataclass(frozen=True)
class GeneratedWeights(WeightPosterior):
    """A point mass: a factor computed by a network with one hidden layer from a latent vector for each rank.

        hidden = gelu(latent hidden_weight + hidden_bias)          [r, hidden_size]
        A = hidden head  [r, in],     B = (hidden head)^T  [out, r]

    Args:
        rows: o.
        columns: i.
        side: "A" or "B": which dimension is the LoRA rank.
        latent_size: Numbers of a latent vector.
        hidden_size: Units of the hidden layer, at least the rank.
    """

    location: ClassVar[tuple[str, ...]] = ()
    draws_in_training: ClassVar[bool] = False

    side: Literal["A", "B"]
    latent_size: int = 16
    hidden_size: int = 64

    @property
    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Nothing is random."""
        return ()

    def initial(self, weight: Tensor) -> dict[str, Tensor]:
        """A random latent and hidden layer, and the head that makes `weight` of them (zeros, where that is zero)."""
        weight = at_least_float32(weight.detach())
        rank = self.rows if self.side == "A" else self.columns
        options: Any = {"dtype": weight.dtype, "device": weight.device}
        parameters = {
            "latent": torch.randn(rank, self.latent_size, **options),
            "hidden_weight": torch.randn(self.latent_size, self.hidden_size, **options) / self.latent_size**0.5,
            "hidden_bias": torch.zeros(1, self.hidden_size, **options),
        }
        return {**parameters, "head": self.head_for(weight, parameters)}

    def head_for(self, weight: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The smallest head `[hidden_size, in or out]` with which the network gives `weight`."""
        target = weight if self.side == "A" else weight.mT
        if weight.is_meta:
            return target.new_empty(self.hidden_size, target.shape[-1])
        wide = {name: value.detach().double() for name, value in parameters.items()}
        return (torch.linalg.pinv(self._hidden(wide)) @ target.double()).to(weight.dtype)

    def mean_weight(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The factor `[..., rows, columns]`."""
        factor = self._hidden(parameters) @ parameters["head"]
        return factor if self.side == "A" else factor.mT

    def sample_weight(self, parameters: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """The same factor for each draw `[samples, ..., rows, columns]`."""
        return self.mean_weight(parameters).expand(noise.number.shape[0], *parameters["head"].shape[:-2], -1, -1)

    def kl(self, parameters: Mapping[str, Tensor], noise: Noise | None) -> KL:
        """None: point masses have no density."""
        return no_kl(parameters["head"])

    @staticmethod
    def _hidden(parameters: Mapping[str, Tensor]) -> Tensor:
        """`[..., r, hidden_size]`."""
        return nn.functional.gelu(parameters["latent"] @ parameters["hidden_weight"] + parameters["hidden_bias"])


class GeneratedFactor(RandomFactor):
    """`lora_A` or `lora_B` as the output of a network, parts of which other factors may share."""

    family: GeneratedWeights

    def embed(self, weight: Tensor) -> None:
        """Restart the head such that the factor is `weight`; what is shared stays."""
        with torch.no_grad():
            parameters = self.parameters_by_name
            value = at_least_float32(weight.to(self.device))
            parameters["head"].copy_(self.family.head_for(value, parameters))

    def share(self, first: GeneratedFactor, names: tuple[str, ...]) -> None:
        """Use the parameters `names` of another factor; the weight of this one stays."""
        weight = self.weight.detach()
        for name in names:
            self.register_parameter(name, first.get_parameter(name))
        self.embed(weight)


@register("REP_LORA")
@dataclass
class RepLoraConfig(RandomLoraConfig):
    """Config of RepLoRA while it trains; every field of `peft.LoraConfig` works as there, and:

    Args:
        latent_size: Numbers of the latent vector of a rank.
        hidden_size: Units of the hidden layer; at least the rank.

    Raises:
        ValueError: A value out of range, or an option of LoRA that cannot be combined.
    """

    latent_size: Size = 16
    hidden_size: Size = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        rank = max([self.r, *(self.rank_pattern or {}).values()])
        if self.hidden_size < rank:
            raise ValueError(
                f"hidden_size must be at least the rank, so that any A and B can be the output of the network, got "
                f"hidden_size={self.hidden_size} for r={rank}."
            )

    def factor(self, side: Side, module: nn.Linear) -> GeneratedFactor:
        """The output of a network."""
        return GeneratedFactor(self.family(side, module.out_features, module.in_features), module.weight.data)

    def family(self, side: Side, rows: int, columns: int) -> GeneratedWeights:
        """What the factor `[rows, columns]` is generated by."""
        return GeneratedWeights(rows, columns, side=side, latent_size=self.latent_size, hidden_size=self.hidden_size)


@options_of(RepLoraConfig)
class RepLora(Method):
    """Reparameterised LoRA (Truong et al., arXiv 2502.03044): A = g_A(z), B = g_B(z), and after training A and B alone.

    The adapted layers of one block (query and value by default) share the latent z, one vector for each rank, and the
    hidden layers of g_A and of g_B; each has heads of its own. It starts at LoRA's own A and B, and ends as a plain
    LoRA adapter: the networks are in the checkpoints, not in the saved adapter. So training cannot go on from there
    with the same networks, while `init_from` embeds any LoRA adapter in fresh ones.

    Only a summary of the paper was at hand ("one-hidden-layer MLPs on one shared latent for the query and value
    adapters"), and no code of the authors: the latent's shape, the sizes, gelu, the shared hidden layers and the exact
    start were chosen here.
    """

    name = "replora"
    has_draws = False

    def adapt(self, model: nn.Module, kind: ModelKind) -> PeftModel:
        """As the base class, with the latent of each block shared by its layers."""
        adapted = super().adapt(model, kind)
        share_latents(adapted)
        return adapted

    def trains(self, config: PeftConfig) -> bool:
        """As the base class; `fit_posterior` leaves a plain LoRA adapter."""
        return type(config) is LoraConfig or super().trains(config)

    def fit_posterior(self, model: PeftModel, training: TrainingResult) -> State:
        """Compute A and B and drop the networks."""
        drop_networks(model)
        return {}


def share_latents(model: nn.Module) -> None:
    """Let the factors of an adapter in one block of `model` share a latent, and those of one side a hidden layer.

    A block is what a layer's name has up to its last number (`...layers.3`). Weights do not change, up to rounding.
    Layers of another rank in the same block have a latent of their own.
    """
    first: dict[tuple[Any, ...], GeneratedFactor] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        block = re.match(r"(.*\.\d+)\.", f".{name}.")
        for side in (layer.lora_A, layer.lora_B):
            for adapter, factor in side.items():
                if isinstance(factor, GeneratedFactor):
                    key = (block and block[1], adapter, layer.r[adapter])
                    factor.share(first.setdefault(key, factor), ("latent",))
                    factor.share(first.setdefault((*key, factor.family.side), factor), _NETWORK)


def drop_networks(model: PeftModel) -> None:
    """Replace the generated factors of all adapters by matrices of the same weights, and their configs by LoRA's."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for side in ("lora_A", "lora_B"):
                factors = getattr(layer, side)
                setattr(layer, side, nn.ModuleDict({name: _plain(factor) for name, factor in factors.items()}))
    for adapter, config in model.peft_config.items():
        if isinstance(config, RepLoraConfig):
            plain = {each.name: getattr(config, each.name) for each in dataclasses.fields(LoraConfig)}
            for name in ("peft_type", "runtime_config"):
                plain.pop(name, None)
            model.peft_config[adapter] = LoraConfig(**plain)


def _plain(factor: nn.Module) -> nn.Module:
    """A linear layer in the place of a generated factor; anything else as it is."""
    if not isinstance(factor, GeneratedFactor):
        return factor
    weight = factor.weight.detach()
    linear = nn.Linear(factor.in_features, factor.out_features, bias=False, device=weight.device, dtype=weight.dtype)
    trainable = factor.reference.requires_grad
    linear.weight = nn.Parameter(weight.clone(), requires_grad=trainable)
    return linear.train(factor.training)
