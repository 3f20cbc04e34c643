"""A head as named tensors, and back, bit for bit on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayeslora.options.ranges import Positive, Share, check_value
from bayeslora.readouts.blocks import BlockScaling, OptionFeatures
from bayeslora.readouts.contrasts import Contrasts
from bayeslora.readouts.evidence import Scales
from bayeslora.readouts.head import Head, exact_posterior
from bayeslora.readouts.label_noise import LabelNoise
from bayeslora.readouts.novelty import Novelty
from bayeslora.readouts.regression import Regression
from bayeslora.readouts.sparse import SparseRegression

_AGAIN = "copy it again from where it was written."
_HEAD, _SAME = "head", "same"
_SPARSE = ("factor", "precision_factor", "mean")


def head_tensors(head: Head) -> dict[str, Tensor]:
    """All that `head_from_tensors` needs: training vectors, scales, and of a sparse posterior its factors."""
    numbers = torch.tensor(
        [head.scales.noise, head.scales.log_evidence, head.noise.temperature, head.noise.share, head.noise.nll],
        dtype=torch.float64,
    )
    tensors = {
        "mask": head.features.mask,
        "questions": head.features.questions,
        "labels": head.labels,
        "weights": head.scales.weights,
        "effective_parameters": head.scales.effective_parameters,
        "precision": head.precision,
        "right": head.noise.right,
        "numbers": numbers,
    }
    tensors |= {f"scale.{name}": scale for name, scale in head.scaling.scales.items()}
    tensors |= {f"hidden.{name}": block for name, block in head.features.hidden.items()}
    tensors |= {f"number.{name}": block for name, block in head.features.numbers.items()}
    tensors |= head.novelty.tensors()
    if isinstance(head.posterior, SparseRegression):
        tensors |= {f"sparse.{name}": getattr(head.posterior, name) for name in _SPARSE}
    # The order of the blocks, which a file of tensors does not keep.
    order = {f"order.{name}": torch.tensor(place) for place, name in enumerate(head.scaling.scales)}
    return {name: tensor.contiguous() for name, tensor in (tensors | order).items()}


def heads_state(heads: Sequence[Head]) -> dict[str, Tensor]:
    """The tensors of heads, which a run keeps beside those of its method; what they share stands there once."""
    first = head_tensors(heads[0])
    state: dict[str, Tensor] = {}
    for number, head in enumerate(heads):
        for name, tensor in head_tensors(head).items():
            shared = number and name in first and tensor.data_ptr() == first[name].data_ptr()
            state |= (
                {f"{_HEAD}.{number}.{_SAME}.{name}": torch.tensor(0)}
                if shared
                else {f"{_HEAD}.{number}.{name}": tensor.clone()}  # A scale that they share under another name.
            )
    return state


def is_head(name: str) -> bool:
    """Whether a tensor of a run's state is a head's and not its method's."""
    return name.startswith(f"{_HEAD}.")


def heads_from_state(state: Mapping[str, Tensor]) -> list[Head]:
    """The heads that `heads_state` wrote, whatever else is in the state.

    Raises:
        ValueError: A tensor is missing, or all.
    """
    every = _part(state, _HEAD)
    numbers = sorted({int(name.partition(".")[0]) for name in every})
    if not numbers:
        raise ValueError("the run's posterior.safetensors has no head; " + _AGAIN)
    parts = [_part(every, str(number)) for number in numbers]
    same = [{name: parts[0][name] for name in _part(part, _SAME) if name in parts[0]} for part in parts]
    return [head_from_tensors(part | shared) for part, shared in zip(parts, same, strict=True)]


def head_from_tensors(tensors: Mapping[str, Tensor]) -> Head:
    """The head that `head_tensors` wrote.

    Raises:
        ValueError: A tensor is missing, a number is out of its range or not finite, or a feature that is not constant
            counts for nothing.
    """
    try:
        return _head(tensors)
    except KeyError as error:
        raise ValueError(f"the head's file lacks {error}; {_AGAIN}") from error


def _head(tensors: Mapping[str, Tensor]) -> Head:
    order = {name: int(place) for name, place in _part(tensors, "order").items()}
    scales = {name: _part(tensors, "scale")[name] for name in sorted(order, key=order.__getitem__)}
    noise, log_evidence, temperature, share, nll = tensors["numbers"].tolist()
    for name, value, kind in (
        ("noise", noise, Positive),
        ("temperature", temperature, Positive),
        ("share", share, Share),
    ):
        check_value(value, kind, name)
    features = OptionFeatures(_part(tensors, "hidden"), tensors["mask"], tensors["questions"], _part(tensors, "number"))
    _check_tensors(tensors, features, scales)
    scaling = BlockScaling(scales)
    chosen = Scales(tensors["weights"], noise, log_evidence, tensors["effective_parameters"])
    sparse, precision = _part(tensors, "sparse"), tensors["precision"]
    posterior: Regression | SparseRegression
    if sparse:
        posterior = SparseRegression(**{name: sparse[name] for name in _SPARSE})
    else:
        targets = Contrasts(features.mask).targets(tensors["labels"])
        posterior = exact_posterior(scaling, chosen, features, targets, precision)
    return Head(
        features=features,
        labels=tensors["labels"],
        precision=precision,
        scaling=scaling,
        scales=chosen,
        noise=LabelNoise(temperature, share, tensors["right"], nll),
        posterior=posterior,
        novelty=Novelty.restored(tensors),
    )


def _check_tensors(tensors: Mapping[str, Tensor], features: OptionFeatures, scales: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"the head's file has NaN or infinity in {name!r}; {_AGAIN}")
    for name, block in {**features.hidden, **features.numbers}.items():
        rows = block[features.mask]
        # What `BlockScaling.of` gives the scale 0 is constant; it had the same items, or more.
        if bool(((scales[name] == 0) & (rows.float().std(0, correction=0) > 1e-6 * rows.abs().amax(0))).any()):
            raise ValueError(f"the head's file has a scale of 0 in {name!r} for a feature that varies; {_AGAIN}")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
