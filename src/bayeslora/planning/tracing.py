"""Counts the bytes of tensors as they are made and freed, also of tensors on the meta device, which hold none."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512
"""Bytes to which CUDA's allocator rounds a tensor up."""


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, a shared one counted once."""
    return sum({id(storage): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}.values())


def phase_peaks(
    work: Callable[[Callable[..., None]], object], before: Iterable[Tensor], device: str = "meta"
) -> list[int]:
    """The most bytes that tensors made in each phase of `work` held at one moment; `before` existed and does not count.

    `work` calls its argument where one phase ends and the next begins. Every operator's output is seen, those of
    autograd's backward pass and of recomputed layers included; what a kernel allocates inside itself and frees again is
    not. Attention runs as a fused kernel, which keeps no matrix of [tokens, tokens] scores.
    """
    counter = _LiveBytes(before, device)
    with _fused_attention(), counter:
        work(counter.next_phase)
    return counter.peaks


class _LiveBytes(TorchDispatchMode):
    def __init__(self, before: Iterable[Tensor], device: str):
        super().__init__()
        self.device, self.live, self.peaks = device, 0, [0]
        self._zeros: int | None = None
        # By identity, with the storage kept alive: an id is not given again.
        self._known: dict[int, Any] = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in before}

    def next_phase(self, *_: object) -> None:
        """Takes what hooks of modules are given, so that it can be one."""
        self.peaks.append(self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._as_without_mode(func, args)(*args, **(kwargs or {}))
        if func is torch.ops.aten.new_zeros.default:
            self._zeros = id(result.untyped_storage())
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self.device:
                self._note(leaf.untyped_storage())
        return result

    def _as_without_mode(self, func: Any, args: Any) -> Any:
        """What would run without a dispatch mode: the backward pass of gather then adds into its zeros in place."""
        if func is torch.ops.aten.scatter_add.default and id(args[0].untyped_storage()) == self._zeros:
            return torch.ops.aten.scatter_add_.default
        return func

    def _note(self, storage: Any) -> None:
        key = id(storage)
        if key in self._known:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._known[key] = None
        self.live += size
        self.peaks[-1] = max(self.peaks[-1], self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        del self._known[key]
        self._zeros = None if self._zeros == key else self._zeros
        self.live -= size


@contextmanager
def _fused_attention() -> Iterator[None]:
    """On the meta device torch would choose the kernel that writes all scores out; GPUs and CPUs take a fused one.

    The function itself is replaced, since a mode would not reach layers that the backward pass computes again.
    """
    functional: Any = torch.nn.functional
    own = functional.scaled_dot_product_attention

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = (_attend if query.is_meta else own)(query, *args, **kwargs)
        return output

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = attn_mask.to(query.dtype)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output: Tensor = kernel(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return output
