#!/usr/bin/env bash
# vlora-dev 1.0.0 (PyPI, merging of LoRA adapters), safetensors 0.8.0, torch 2.13.0.
#
# Expected: ties_merge of N adapters "averages only the values that agree with the elected sign", so with density 1 the merge of N
# copies of an adapter is that adapter, as task_arithmetic's is; and `vlora merge one two -o merged` writes "one merged adapter".
# Seen: the default weights are 1/N each, and their sum is divided by the number of agreeing adapters once more: both
# matrices come out as 1/N of themselves and their product, which is what is added to the model, as 1/N^2: two copies give a
# quarter, eight a sixty-fourth. With weights of 1 each the size is right. Besides, the merged adapter forgets lora_alpha: what
# `vlora merge` writes has its rank for it, so one with the usual alpha of twice the rank is halved, without a word.
#
# Output seen on 29 November 2026 (rank 8, alpha 16; what the merge of copies of one adapter adds, as a multiple of what that
# adapter adds):
#   ties_merge, density 1: 2 copies 0.2500, 3 copies 0.1111, 8 copies 0.0156
#   ties_merge, density 1, weights of 1: 2 copies 1.0000, 3 copies 1.0000, 8 copies 1.0000
#   task_arithmetic: 2 copies 1.0000, 3 copies 1.0000, 8 copies 1.0000
#   vlora merge of two copies, from file to file: average 0.5000, ties 0.1250
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 safetensors==0.8.0 \
    click==8.5.0 packaging==26.2 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps vlora-dev==1.0.0 2>/dev/null
cd "$folder"
cat > adapters.py <<'PYTHON'
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from vlora import LoRAWeights, task_arithmetic, ties_merge

RANK, ALPHA, LAYER = 8, 16, "layers.0.self_attn.q_proj"
KEY = f"base_model.model.{LAYER}."


def added(folder):
    """What the adapter in this folder adds to its weight: alpha / rank times B A."""
    tensors = load_file(f"{folder}/adapter_model.safetensors")
    config = json.loads(Path(folder, "adapter_config.json").read_text())
    return config["lora_alpha"] / config["r"] * tensors[KEY + "lora_B.weight"] @ tensors[KEY + "lora_A.weight"]


def share(one, of):
    """The multiple of `of` that `one` is."""
    multiple = ((one * of).sum() / (of * of).sum()).item()
    assert torch.allclose(one, multiple * of, atol=1e-4), "no multiple"
    return multiple


def write(matrices):
    for name in ("one", "two"):
        Path(name).mkdir()
        save_file({KEY + f"lora_{side}.weight": matrix for side, matrix in matrices.items()}, f"{name}/adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"]}
        Path(name, "adapter_config.json").write_text(json.dumps(config))


def merges(matrices):
    """By way of merging, the size of the merge of 2, 3 and 8 copies."""
    adapter = LoRAWeights([LAYER], {LAYER: matrices["A"]}, {LAYER: matrices["B"]}, RANK)
    ways = {
        "ties_merge, density 1": lambda copies: ties_merge(copies, density=1.0),
        "ties_merge, density 1, weights of 1": lambda copies: ties_merge(copies, density=1.0, weights=[1.0] * len(copies)),
        "task_arithmetic": task_arithmetic,
    }
    found = {}
    for name, merge in ways.items():
        for copies in (2, 3, 8):
            merged = merge([adapter] * copies)
            found[name, copies] = share(merged.lora_b[LAYER] @ merged.lora_a[LAYER], matrices["B"] @ matrices["A"])
        print(name + ": " + ", ".join(f"{copies} copies {found[name, copies]:.4f}" for copies in (2, 3, 8)))
    return found


torch.manual_seed(0)
matrices = {"A": torch.randn(RANK, 32), "B": torch.randn(48, RANK)}
if sys.argv[1] == "write":
    write(matrices)
else:
    found = merges(matrices)
    disk = {method: share(added(method), added("one")) for method in ("average", "ties")}
    print("vlora merge of two copies, from file to file: " + ", ".join(f"{name} {size:.4f}" for name, size in disk.items()))
    for (name, copies), size in found.items():
        assert abs(size - (copies**-2 if name == "ties_merge, density 1" else 1)) < 1e-4, found
    assert abs(disk["average"] - RANK / ALPHA) < 1e-4 and abs(disk["ties"] - RANK / ALPHA / 4) < 1e-4, disk
PYTHON
export OMP_NUM_THREADS=1
"$folder/venv/bin/python" -W ignore adapters.py write
for method in average ties; do "$folder/venv/bin/vlora" merge one two -o "$method" --method "$method" --density 1 >/dev/null; done
"$folder/venv/bin/python" -W ignore adapters.py merged
echo "as stated"
