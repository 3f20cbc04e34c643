#!/usr/bin/env bash
# chorus-fl 0.1.0 (PyPI, federated LoRA), peft 0.21.2, transformers 5.24.0, torch 2.13.0.
#
# Expected: ChorusClient.export_model merges the aggregated adapter into the base model, "ready for deployment": where both
# clients hand in the same adapter, the exported model is the base model with that adapter.
# Seen: it is the base model, to the bit. submit_delta takes "base_model.model." off the names of the tensors and nothing puts it
# back, so peft finds none of its tensors in the file and merges the zeros that a fresh adapter starts with. peft warns of
# "missing adapter keys"; the client logs "Export complete". What pull_latest(path, adapter_config=...) writes "for
# PeftModel.from_pretrained()" adds nothing either. With the names put right the export would halve the adapter: lora_alpha is
# never sent, and set to the rank, where the package's own trainer takes rank 16 and alpha 32.
#
# Output seen on 29 November 2026 (a tiny random Llama, both clients with one adapter of rank 16 and alpha 32; what is added to
# the base model's weights, as a multiple of what the adapter adds):
#   export_model 0.00
#   pull_latest 0.00
#   names put right, the export's alpha 0.50
#   names and alpha put right 1.00
#   weights of the export that differ from the base model's: 0 of 24,736
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 \
    safetensors==0.8.0 fastapi==0.165.0 starlette==1.10.0 httpx==0.28.1 httpx2==2.16.2 python-multipart==0.0.34 \
    websockets==17.4 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps chorus-fl==0.1.0 2>/dev/null
cd "$folder"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error OMP_NUM_THREADS=1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json

import torch
from chorus import ChorusClient
from chorus.server.app import app, configure
from fastapi.testclient import TestClient
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def base():
    return LlamaForCausalLM.from_pretrained("base")


def change(weights):
    """What was added to the base model, over all tensors."""
    return torch.cat([(weights[name] - tensor).flatten() for name, tensor in base().state_dict().items()])


def merged(adapter):
    return PeftModel.from_pretrained(base(), adapter).merge_and_unload().state_dict()


def put_right(source, target, **changed):
    """The pulled adapter with peft's names for its tensors."""
    tensors = {f"base_model.model.{name}": tensor for name, tensor in load_file(f"{source}/adapter_model.safetensors").items()}
    model = get_peft_model(base(), LoraConfig(**{**SETTINGS, **changed}))
    model.save_pretrained(target)
    save_file(tensors, f"{target}/adapter_model.safetensors")


SETTINGS = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained("base")
trained = get_peft_model(base(), LoraConfig(**SETTINGS))
for name, parameter in trained.named_parameters():
    if "lora_B" in name:
        nn.init.normal_(parameter, std=0.1)
trained.save_pretrained("adapter")

configure(model_id="tiny", data_dir="server", min_deltas=2)
with TestClient(app) as http:
    for name in ("one", "two"):
        client = ChorusClient(server="http://testserver", model_id="tiny", client_id=name)
        client._http = http  # the server in this process, without a port
        client.submit_delta("adapter")
    client.export_model("base", "merged")
    with open("adapter/adapter_config.json") as file:
        client.pull_latest("pulled", adapter_config=json.load(file))
put_right("pulled", "as exported", lora_alpha=16)
put_right("pulled", "right")

own = change(merged("adapter"))
found = {
    "export_model": change(LlamaForCausalLM.from_pretrained("merged").state_dict()),
    "pull_latest": change(merged("pulled")),
    "names put right, the export's alpha": change(merged("as exported")),
    "names and alpha put right": change(merged("right")),
}
differ = int((found["export_model"] != 0).sum())
found = {name: (added @ own / own.square().sum()).item() for name, added in found.items()}
for name, share in found.items():
    print(f"{name} {share:.2f}")
print(f"weights of the export that differ from the base model's: {differ} of {len(own):,}")

assert differ == 0 and found["export_model"] == found["pull_latest"] == 0, found
assert abs(found["names and alpha put right"] - 1) < 1e-3, found
assert abs(found["names put right, the export's alpha"] - 0.5) < 1e-3, found
PYTHON
echo "as stated"
