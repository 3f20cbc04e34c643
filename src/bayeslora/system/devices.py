"""The device that a model is put on."""

from __future__ import annotations

import torch

from bayeslora.system.log import logger


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: There is no such device in this machine, or no device has such a name.
    """
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if is_here(kind))
    if is_here(name):
        return torch.device(name)
    have = ", ".join(kind for kind in ("cpu", "cuda", "mps", "xpu") if is_here(kind))
    raise ValueError(
        f"there is no device {name!r} here; this machine has: {have}. Name one of them (with a number, such as cuda:1, "
        "one of several), or 'auto'. A GPU that is missing from the list needs its driver and a torch that was built "
        "for it."
    )


def is_here(name: str) -> bool:
    """Whether this machine has the device of this name."""
    try:
        device = torch.device(name)
    except RuntimeError:
        return False
    backend = torch.backends.mps if device.type == "mps" else getattr(torch, device.type, None)
    if backend is None or not backend.is_available():
        return False
    return device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()


def kept_device(name: str) -> str:
    """The device that a run was trained on; "auto", with a word, where this machine does not have it."""
    if name == "auto" or is_here(name):
        return name
    logger.warning("the run was trained on %r, which is not here; it is loaded on %s", name, choose_device("auto"))
    return "auto"
