"""The noise of draws: numbers from generators, one for each draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from bayeslora.adapters.random_module import RandomModule
from bayeslora.posteriors.weights.base import Noise

PREDICTION = 2
"""Third number of the keys of prediction draws, whose first two are seed and number: the draws of training steps have
keys of two, so that no prediction takes the noise that a training step took. 1 is of generated tokens."""


def draw_noise(
    modules: Sequence[RandomModule], generators: Sequence[torch.Generator | None], first: int = 0
) -> list[Noise]:
    """Noise of `len(generators)` draws, numbered from `first`, for each module.

    All numbers of a draw come from one call, so a draw depends on its generator and on the modules only, not on how
    many draws are made together.
    """
    if not modules:
        return []
    places = [module.device for module in modules]
    shapes = [module.noise_shapes for module in modules]
    sizes = [_count(own) for own in shapes]
    normals, uniforms = [], []
    for generator in generators:
        at = places[0] if generator is None else generator.device
        normals.append(torch.randn(sum(sizes), generator=generator, device=at).to(places[0]))
        uniforms.append(torch.rand(1, generator=generator, device=at).to(places[0]))
    uniform, number = torch.cat(uniforms), torch.arange(first, first + len(generators), device=places[0])
    of_draws = {place: (uniform.to(place), number.to(place)) for place in set(places)}
    pieces = torch.stack(normals).split(sizes, dim=1)
    return [
        Noise(numbers if place == places[0] else numbers.to(place), own, *of_draws[place])
        for numbers, own, place in zip(pieces, shapes, places, strict=True)
    ]


@lru_cache(maxsize=1024)
def _count(shapes: tuple[tuple[int, ...], ...]) -> int:
    """How many numbers tensors of these shapes hold."""
    return sum(map(math.prod, shapes))


def set_noise(
    modules: Sequence[RandomModule],
    generators: Sequence[torch.Generator | None],
    *,
    first: int = 0,
    explicit: bool = False,
) -> None:
    """Give each module noise: draw number first + s from generator s (None: torch's default generator)."""
    for module, noise in zip(modules, draw_noise(modules, generators, first), strict=True):
        module.set_noise(noise, explicit=explicit)


def generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator for `key`, numbers >= 0; another key gives an unrelated stream. Zeros at its end do not count.

    For the meta device it is the CPU's: torch has none there, and what is drawn loses its numbers anyway.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu" if device.type == "meta" else device).manual_seed(int(state >> np.uint64(1)))
