"""The smallest changes that make a plan fit, each as the option to set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace

from bayeslora.planning.estimate import Setting

_DEVICES = (2, 4, 8)
"""Numbers of devices that are tried. Not together with 4 bits: FSDP2 leaves such weights whole on each device."""


@dataclass(frozen=True)
class Change:
    """What is set differently.

    Args:
        checkpointing: Gradient checkpointing is switched on.
        accumulation: Into how many micro-batches each batch of training is split.
        smaller_forwards: By what the items of a prediction's forward are divided.
        four_bit: The linear layers of the base model are stored in 4 bits.
        devices: How many devices share the frozen weights.
    """

    checkpointing: bool = False
    accumulation: int = 1
    smaller_forwards: int = 1
    four_bit: bool = False
    devices: int = 1

    def includes(self, other: Change) -> bool:
        """Whether it sets all that `other` sets, at least as far."""
        return all(own >= others for own, others in zip(astuple(self), astuple(other), strict=True))

    def of(self, setting: Setting) -> Setting:
        """`setting` with this change."""
        return replace(
            setting,
            batch_size=max(1, setting.batch_size // self.accumulation),
            predict_batch_size=max(1, setting.predict_batch_size // self.smaller_forwards),
            checkpointing=setting.checkpointing or self.checkpointing,
            four_bit=setting.four_bit or self.four_bit,
            devices=max(setting.devices, self.devices),
        )


def advise(
    setting: Setting,
    training_fits: Callable[[Change], bool],
    prediction_fits: Callable[[Change], bool],
    *,
    shareable: bool = True,
) -> list[Change]:
    """Ways to make a plan fit, the least first; the empty change alone where it fits, none where nothing helps.

    The weights stay as they are if that can be, else they are stored in 4 bits, or are shared by devices: at most one
    way of each kind, and none that only adds to another. For each kind, checkpointing is tried, then smaller batches
    with accumulation, then both.

    Args:
        setting: Before any change.
        training_fits: Whether training fits with a change.
        prediction_fits: The same for prediction.
        shareable: Whether devices can share the weights.
    """
    kinds = [[Change()], [] if setting.four_bit else [Change(four_bit=True)]]
    kinds.append([Change(devices=devices) for devices in _DEVICES] if shareable and not setting.four_bit else [])
    found: list[Change] = []
    for kind in kinds:
        ways = (_smallest(weights, setting, training_fits, prediction_fits) for weights in kind)
        way = next((way for way in ways if way is not None), None)
        if way is not None and not any(map(way.includes, found)):
            found.append(way)
        if way == Change():
            break
    return found


def _smallest(
    weights: Change,
    setting: Setting,
    training_fits: Callable[[Change], bool],
    prediction_fits: Callable[[Change], bool],
) -> Change | None:
    """The least that is needed beside `weights`; None where nothing is enough."""
    training = next(filter(training_fits, _for_training(weights, setting)), None)
    prediction = next(filter(prediction_fits, _for_prediction(weights, setting)), None)
    if training is None or prediction is None:
        return None
    return replace(training, smaller_forwards=prediction.smaller_forwards)


def _for_training(weights: Change, setting: Setting) -> Iterator[Change]:
    whole = [weights] if setting.checkpointing else [weights, replace(weights, checkpointing=True)]
    yield from whole
    for change in whole:
        for parts in _halvings(setting.batch_size):
            yield replace(change, accumulation=parts)


def _for_prediction(weights: Change, setting: Setting) -> Iterator[Change]:
    yield weights
    for parts in _halvings(setting.predict_batch_size):
        yield replace(weights, smaller_forwards=parts)


def _halvings(size: int) -> list[int]:
    """2, 4, 8, ... as long as they divide `size` into whole batches."""
    return [2**power for power in range(1, size.bit_length()) if size % 2**power == 0]
