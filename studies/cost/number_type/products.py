"""What bfloat16 brings to the matrix products of a training step alone: the most that the whole step can gain.

OMP_NUM_THREADS=1 python -m studies.cost.number_type.products --output studies/cost/number_type/products.json
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from studies.cost.timing import common_options, environment, least, save

SHAPES = {"up": (672, 576, 1536), "down": (672, 1536, 576), "head": (352, 576, 49152)}
"""Rows, inputs and outputs of SmolLM2's largest maps in a step on eight items of PIQA."""
TYPES = (torch.float32, torch.bfloat16)


def both_ways(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The product of a forward pass, and that which its backward pass takes through a frozen weight."""
    rows, inputs, outputs = shape
    value, gradient = torch.randn(rows, inputs).to(dtype), torch.randn(rows, outputs).to(dtype)
    weight = torch.randn(outputs, inputs).to(dtype)
    return lambda: linear(value, weight), lambda: gradient @ weight


def faster(shape: tuple[int, int, int], rounds: int) -> list[float]:
    """Seconds in float32 over seconds in bfloat16, forward and backward."""
    of_types = [both_ways(shape, dtype) for dtype in TYPES]
    times = [least(dict(zip("ab", products, strict=True)), rounds, 1) for products in zip(*of_types, strict=True)]
    return [spent["a"] / spent["b"] for spent in times]


if __name__ == "__main__":
    options = common_options(__doc__ or "", rounds=9).parse_args()
    torch.set_num_threads(1)
    found = {
        name: dict(zip(("forward", "backward"), faster(shape, options.rounds), strict=True))
        for name, shape in SHAPES.items()
    }
    save(options.output, {"times as fast in bfloat16": found, "environment": environment(torch.device("cpu"))})
