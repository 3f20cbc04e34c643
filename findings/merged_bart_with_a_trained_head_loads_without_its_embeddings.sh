#!/usr/bin/env bash
# peft 0.21.2, transformers 5.24.0, torch 2.13.0.
#
# Expected: what merge_and_unload returns gives the same outputs after save_pretrained and from_pretrained.
# Seen: with modules_to_save=["lm_head"] on a model of tied embeddings peft sets tie_word_embeddings=False when it merges,
# since the head is another one now. That flag ties BART's encoder and decoder embeddings to the shared table as well: only
# "shared" is in the file, and loading draws both embeddings anew, others each time. Logits are off by more than five times
# their own spread. peft's warning says "Input and output embeddings are no longer tied", transformers' load report lists
# the two embeddings, and nothing fails. Llama's head, and a BART without a trained head, survive the same steps.
#
# Output seen:
#   bart, lm_head trained: off by 4.395 (spread 0.800), two loads differ by 2.495;
#       missing ['model.decoder.embed_tokens.weight', 'model.encoder.embed_tokens.weight']
#   bart, LoRA alone: off by 0.000 (spread 0.828), two loads differ by 0.000; missing []
#   llama, lm_head trained: off by 0.000 (spread 0.748), two loads differ by 0.000; missing []
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 peft==0.21.2 transformers==5.24.0 numpy==2.4.6 2>/dev/null
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>"$folder/errors" <<'PYTHON' || { cat "$folder/errors" >&2; exit 1; }
import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM

bart = BartConfig(
    vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, init_std=0.2,
)  # fmt: skip
llama = LlamaConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, initializer_range=0.2,
    tie_word_embeddings=True,
)  # fmt: skip
tokens = torch.randint(4, 64, (2, 6), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=tokens).logits


def merged_and_loaded(model_class, config, saved):
    """The merged model's logits, those of two loads of its file, and the parameters that the file lacks."""
    torch.manual_seed(0)
    model = get_peft_model(model_class(config), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    before = logits(model)
    merged = model.merge_and_unload()
    assert torch.allclose(before, logits(merged), atol=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        merged.save_pretrained(folder)
        loads = [model_class.from_pretrained(folder, output_loading_info=True) for _ in range(2)]
    return before, *(logits(loaded) for loaded, _ in loads), sorted(loads[0][1]["missing_keys"])


off = {}
for name, model_class, config, saved in (
    ("bart, lm_head trained", BartForConditionalGeneration, bart, ["lm_head"]),
    ("bart, LoRA alone", BartForConditionalGeneration, bart, None),
    ("llama, lm_head trained", LlamaForCausalLM, llama, ["lm_head"]),
):
    merged, first, second, missing = merged_and_loaded(model_class, config, saved)
    off[name] = (merged - first).abs().max().item(), (first - second).abs().max().item(), missing
    print(f"{name}: off by {off[name][0]:.3f} (spread {merged.std():.3f}), two loads differ by {off[name][1]:.3f}; missing {missing}")

embeddings = ["model.decoder.embed_tokens.weight", "model.encoder.embed_tokens.weight"]
assert off["bart, lm_head trained"][2] == embeddings and min(off["bart, lm_head trained"][:2]) > 0.1, off
assert all(worst < 1e-5 for name in off if name != "bart, lm_head trained" for worst in off[name][:2]), off
PYTHON
echo "as stated"
