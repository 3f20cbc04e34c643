#!/usr/bin/env bash
# transformers 5.24.0, bitsandbytes 0.50.2, peft 0.21.2, torch 2.13.0 (CPU).
#
# Expected: a quantised classifier keeps its head in full precision, since transformers leaves a model's last layer
# unquantised for numerical stability, and peft's task_type="SEQ_CLS" trains a copy of it (plain QLoRA).
# Seen: get_keys_to_not_convert takes the name of the last PARAMETER and strips ".weight" from it. Where the head has a
# bias, the name is "classifier.bias", which is no layer, so nothing is kept: the heads of BERT and RoBERTa become four-bit
# codes without a word, and get_peft_model ends with "only Tensors of floating point dtype can require gradients", which
# names no layer. Llama's "score" has no bias: the same lines work. Remedy: llm_int8_skip_modules=["classifier"].
#
# Output seen:
#   bert: keeps ['classifier.bias'] by default, the head is Linear4bit; only Tensors of floating point dtype can ...
#   roberta: keeps ['classifier.out_proj.bias'] by default, the head is Linear4bit; only Tensors of floating point ...
#   llama: keeps ['score'] by default, the head is Linear; trains
#   bert, head named: keeps ['classifier.bias'] by default, the head is Linear; trains
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 bitsandbytes==0.50.2 accelerate==1.15.0 numpy==2.4.6 2>/dev/null
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>"$folder/errors" <<'PYTHON' || { cat "$folder/errors" >&2; exit 1; }
import tempfile

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig, BitsAndBytesConfig, LlamaConfig, RobertaConfig
from transformers.quantizers.base import get_keys_to_not_convert

SIZES = dict(vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128)
CASES = {
    "bert": (BertConfig, "classifier", ["query"], []),
    "roberta": (RobertaConfig, "classifier.out_proj", ["query"], []),
    "llama": (LlamaConfig, "score", ["q_proj"], []),
    "bert, head named": (BertConfig, "classifier", ["query"], ["classifier"]),
}


def qlora(config_class, head, targets, skip):
    """What the quantiser keeps, what the head became, and whether LoRA can be put on."""
    config = config_class(**SIZES, max_position_embeddings=40, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = AutoModelForSequenceClassification.from_config(config)
    kept = get_keys_to_not_convert(model)
    quantised = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip or None)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder, quantization_config=quantised, device_map="cpu")
    layer = type(model.get_submodule(head)).__name__
    try:
        get_peft_model(model, LoraConfig(r=2, task_type="SEQ_CLS", target_modules=targets))
    except RuntimeError as error:
        return kept, layer, str(error)
    return kept, layer, "trains"


seen = {name: qlora(*case) for name, case in CASES.items()}
for name, (kept, layer, end) in seen.items():
    print(f"{name}: keeps {kept} by default, the head is {layer}; {end}")
refusal = "only Tensors of floating point dtype can require gradients"
assert seen["bert"] == (["classifier.bias"], "Linear4bit", refusal), seen
assert seen["roberta"] == (["classifier.out_proj.bias"], "Linear4bit", refusal), seen
assert seen["llama"] == (["score"], "Linear", "trains"), seen
assert seen["bert, head named"][1:] == ("Linear", "trains"), seen
PYTHON
echo "as stated"
