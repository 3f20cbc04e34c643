#!/usr/bin/env bash
# torch 2.13.0 (CPU), one thread, on an x86 processor with AVX512_BF16.
#
# Expected: a linear layer costs the same on the last tokens of a batch (hidden[:, -k:]) as on a contiguous copy of them, which is
# 4,608 numbers here.
# Seen: a 3-D input that is not contiguous is not flattened but goes to a batched product: with a vocabulary of 49,152 and 8 rows
# the language-model head takes 0.728 s on the slice and 0.008 s on its copy in bfloat16 (88 times), 0.079 s and 0.020 s in float32.
# It is what logits_to_keep makes in transformers' models (hidden_states[:, slice_indices, :]), so whoever scores a batch of prompts by
# their last tokens on a CPU pays it at each batch. A .contiguous() or .reshape(-1, width) before the head takes it away; with
# one row alone a slice counts as contiguous.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import time

import torch
from torch.nn.functional import linear

torch.set_num_threads(1)


def seconds(hidden, weight):
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        linear(hidden, weight)
        best = min(best, time.perf_counter() - started)
    return best


ratios = {}
for dtype in (torch.bfloat16, torch.float32):
    weight = torch.randn(49152, 576, generator=torch.Generator().manual_seed(0)).to(dtype)
    hidden = torch.randn(8, 64, 576, generator=torch.Generator().manual_seed(1)).to(dtype)
    last = hidden[:, -1:]
    assert not last.is_contiguous()
    torch.testing.assert_close(linear(last, weight), linear(last.contiguous(), weight), atol=2.0, rtol=0.1)
    slow, fast = seconds(last, weight), seconds(last.contiguous(), weight)
    ratios[dtype] = slow / fast
    print(f"{dtype}: slice {slow:.3f} s, copy {fast:.3f} s, {slow / fast:.0f} times")
assert ratios[torch.bfloat16] > 8, ratios
assert ratios[torch.float32] > 1.5, ratios
PYTHON
