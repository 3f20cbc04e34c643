#!/usr/bin/env bash
# concadptr 0.2.0 (PyPI, merging LoRA adapters), peft 0.21.2, transformers 5.24.0, torch 2.13.0, safetensors 0.8.0.
#
# Expected: AdapterRegistry.merge and merge_adapters give a "standard PEFT adapter" of the adapters' weighted average: with weights
# [0, 1] it is the second adapter, with [1, 0] the first.
# Seen: only the tensors A and B are averaged; adapter_config.json is copied from whichever adapter is named first, its lora_alpha
# with it. An adapter of rank 8 and alpha 32 merged behind one of alpha 8 comes out at a quarter of its strength, in front
# of it the other comes out four times too strong. The registry reads the alphas, shows them in its summary, and checks rank,
# target modules and base model ("validates adapter compatibility before merging"), but not alpha; use_rslora is copied too.
# Linear, TIES and DARE alike. peft's own add_weighted_adapter takes each adapter's scaling.
#
# Output seen on 29 November 2026 (two adapters of rank 8 on one small network; change of its output as a multiple of what the
# adapter of weight 1 makes by itself):
#   alpha 8 first, weights [0, 1]: 0.25
#   alpha 8 first, weights [1, 0]: 1.00
#   alpha 32 first, weights [0, 1]: 4.00
#   alpha 32 first, weights [1, 0]: 1.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 \
    safetensors==0.8.0 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps concadptr==0.2.0 2>/dev/null
cd "$folder"
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from concadptr.adapters import AdapterRegistry
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

INPUTS = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 16, bias=False))


def write(name, alpha, seed):
    """A peft adapter of rank 8 as training leaves it: both of its factors filled."""
    torch.manual_seed(seed)
    model = get_peft_model(network(), LoraConfig(r=8, lora_alpha=alpha, target_modules=["0"]))
    for weight in (parameter for key, parameter in model.named_parameters() if "lora_B" in key):
        nn.init.normal_(weight, std=0.1)
    model.save_pretrained(name)


@torch.no_grad()
def change(name):
    """What the stored adapter adds to the network's output."""
    return PeftModel.from_pretrained(network(), name)(INPUTS) - network()(INPUTS)


write("small", 8, 2)
write("large", 32, 3)
registry, found = AdapterRegistry(), {}
for name in ("small", "large"):
    registry.register(name, name)
assert registry.validate_compatibility()
for first, second in (("small", "large"), ("large", "small")):
    for weights in ([0.0, 1.0], [1.0, 0.0]):
        registry.merge([first, second], "merged", method="linear", weights=weights)
        alone = change(second if weights[1] else first)
        merged = change("merged")
        share = (merged * alone).sum() / alone.square().sum()
        assert torch.allclose(merged, share * alone, atol=1e-5)
        found[first, weights[1]] = share.item()
        alpha = registry.get(first).alpha
        print(f"alpha {alpha} first, weights [{weights[0]:.0f}, {weights[1]:.0f}]: {share:.2f}")

assert abs(found["small", 1.0] - 0.25) < 1e-3 and abs(found["large", 1.0] - 4) < 1e-3, found
assert abs(found["small", 0.0] - 1) < 1e-3 and abs(found["large", 0.0] - 1) < 1e-3, found
PYTHON
echo "as stated"
