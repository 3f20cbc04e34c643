#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0.
#
# Expected: a saved adapter gives at load what it gave when it was saved, whatever the seed of the process is.
# Seen: with init_lora_weights="pissa" it does. With "pissa_niter_4" (the fast start that PEFT's page recommends for large
# models) loading draws a random projection again to find what to take out of the base weights, from the global generator:
# under another seed than that of the training the base is another, and outputs are off by more than their own size,
# without a word. Who trains with it should save the adapter as a plain LoRA (path_initial_model_for_weight_conversion).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 peft==0.21.2 transformers==5.24.0 numpy==2.4.6 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 8))


inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
worst = {}
for start in ("pissa", "pissa_niter_4"):
    for seed in (0, 1):
        model = base()
        torch.manual_seed(7)
        adapted = get_peft_model(model, LoraConfig(r=4, init_lora_weights=start, target_modules=["0", "2"]))
        optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], 1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            (adapted(inputs) - 1).square().mean().backward()
            optimizer.step()
        with tempfile.TemporaryDirectory() as folder:
            adapted.save_pretrained(folder)
            again = base()
            torch.manual_seed(7 + seed)
            loaded = PeftModel.from_pretrained(again, folder)
        with torch.no_grad():
            worst[start, seed] = (adapted(inputs) - loaded(inputs)).abs().max().item()
        print(f"{start}, loaded under {'the same' if not seed else 'another'} seed: off by up to {worst[start, seed]:.4f}")

assert all(worst[key] < 1e-4 for key in worst if key != ("pissa_niter_4", 1)), worst
assert worst["pissa_niter_4", 1] > 0.5, worst
PYTHON
echo "as stated"
