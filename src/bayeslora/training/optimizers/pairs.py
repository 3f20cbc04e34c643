"""Which parameters of a model are the two factors of one LoRA update, and in which groups an optimizer gets them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from peft.tuners.lora import LoraLayer
from torch import nn

from bayeslora.adapters.random_module import RandomModule


class Pair(NamedTuple):
    """The factors of one update B A, as PEFT has them."""

    name: str
    """Of the layer and the adapter."""
    a: nn.Parameter
    """A `[r, in]`, or of an ensemble `[members, r, in]`."""
    b: nn.Parameter
    """B `[out, r]`, or of an ensemble `[members, out, r]`."""
    random: bool
    """Whether A or B is the mean (the `location`) of a random factor, and not the weight itself."""


def lora_pairs(model: nn.Module) -> list[Pair]:
    """The trainable pairs of all adapters of `model`, in its order.

    Linear and embedding layers, and random factors whose mean is a LoRA matrix, such as those of
    `BayesianLora(mean="lora")`. Not convolutions, fused experts, or factors that are no parameters (RepLoRA,
    `mean="inducing"`).
    """
    found, seen = [], set[int]()
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for adapter, (a, b, random) in _factors(layer):
            trained = a.requires_grad and b.requires_grad
            fits = a.shape[:-2] == b.shape[:-2] and a.shape[-2] == b.shape[-1] == layer.r[adapter]
            # A weight that two layers share belongs to one pair.
            if trained and fits and not {id(a), id(b)} & seen:
                seen |= {id(a), id(b)}
                found.append(Pair(f"{name}.{adapter}", a, b, random))
    return found


def parameter_groups(
    model: nn.Module, weight_decay: float = 0.0, decayed: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters of `model` for a `PairOptimizer`; none is empty.

    Those with `pairs` True list A, B, A, B, ...; `random` says whether they are means of random factors. The others are
    for AdamW.

    Args:
        model: A PEFT model.
        weight_decay: Of the pairs and of the parameters in `decayed`; the other parameters are not decayed.
        decayed: Names of other parameters to decay, such as `Trainer.get_decay_parameter_names(model)`.
    """
    pairs = lora_pairs(model)
    paired = {id(parameter) for pair in pairs for parameter in (pair.a, pair.b)}
    rest = [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in paired]
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for pair in pairs if pair.random is random for parameter in (pair.a, pair.b)],
            "pairs": True,
            "random": random,
            "weight_decay": weight_decay,
        }
        for random in (False, True)
    ]
    groups += [
        {
            "params": [parameter for name, parameter in rest if (name in decayed) is decay],
            "pairs": False,
            "weight_decay": weight_decay if decay else 0.0,
        }
        for decay in (True, False)
    ]
    return [group for group in groups if group["params"]]


def _factors(layer: Any) -> Iterator[tuple[str, tuple[nn.Parameter, nn.Parameter, bool]]]:
    """Adapter, A, B, and whether one of them is a mean, of each adapter of a layer that has such parameters."""
    for first, second in ((layer.lora_A, layer.lora_B), (layer.lora_embedding_A, layer.lora_embedding_B)):
        for adapter in first:
            if adapter in second:
                a, b = _matrix(first[adapter]), _matrix(second[adapter])
                if a is not None and b is not None:
                    random = isinstance(first[adapter], RandomModule) or isinstance(second[adapter], RandomModule)
                    yield adapter, (a, b, random)


def _matrix(factor: Any) -> nn.Parameter | None:
    """The parameter that is a LoRA matrix; None if the factor has none."""
    if isinstance(factor, nn.Parameter):
        return factor
    if isinstance(factor, nn.Linear):
        return factor.get_parameter("weight")
    if not isinstance(factor, RandomModule):
        return None
    held = [value for name, value in factor.named_parameters(recurse=False) if name in factor.location]
    return held[0] if len(held) == 1 and held[0].dim() >= 2 else None
