#!/usr/bin/env bash
# decisionformer 0.2.0 (PyPI), torch 2.13.0, transformers 5.24.0, peft 0.21.2.
#
# Expected: who trains on soft labels (`targets`, such as the votes of ten annotators) and gives a calibration file of such
# records gets back their probabilities: 8 of 10 votes, 0.8. (sysone 0.5.2 fits its temperature to soft targets.)
# Seen: training uses the votes, and learns them; the temperature is then fitted to the option with the most votes alone, as
# if it were certain. Where the majority can be told from the state, as here, that drives it to its lower bound of 0.05:
# logits times 20, a 0.8 becomes 1.0000, and `model.decide` says so. The soft NLL that the run reports for its dev set gets
# nine times worse when "calibrated", which is also what picks the best checkpoint. The same votes given one by one, as hard
# labels, lead to a temperature near 1.
#
# Output seen (a tiny random Llama; the votes are 8 to 2 for one option where the state holds "late", else for the other):
#   votes as targets: temperature 0.05, soft NLL 0.51 raw and 4.53 calibrated, decide 1.0000
#   votes one by one: temperature 0.9, decide 0.74
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2 decisionformer==0.2.0 numpy==2.4.6 2>/dev/null
cd "$folder"
HF_HUB_OFFLINE=1 DECISIONFORMER_DEVICE=cpu OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2>log <<'PYTHON' || { tail -n 5 log; exit 1; }
import json

import decisionformer
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

OPTIONS = ("refund", "reply")
QUESTION = {"type": "choice", "instructions": "What next?", "criteria": dict.fromkeys(OPTIONS)}
STATES = [f"parcel {number} {when}" for number in range(10) for when in ("late", "early")]


def base():
    """A tiny random decoder whose tokenizer knows the words of the prompt."""
    words = "State: Question: What next? Options: A: B: A B C refund reply parcel late early Answer: x".split()
    known = {word: place for place, word in enumerate(["[UNK]", "[END]", *words, *map(str, range(10))])}
    inner = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="[END]").save_pretrained("base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(known), **sizes)).save_pretrained("base")


def votes(state):
    """Of ten annotators."""
    return (8, 2) if "late" in state else (2, 8)


def record(state, number, **labels):
    return {"id": f"{state}-{number}", "state": state, "questions": {"next": QUESTION}} | labels


def soft(state):
    shares = {option: count / 10 for option, count in zip(OPTIONS, votes(state))}
    return [record(state, 0, targets={"next": shares})]


def one_by_one(state):
    drawn = [option for option, count in zip(OPTIONS, votes(state)) for _ in range(count)]
    return [record(state, number, gold={"next": option}) for number, option in enumerate(drawn)]


def run(name, labelled, epochs):
    """Trained with a calibration file of other states; the temperature, the dev set's scores, and what decide says."""
    for part, states in {"train": STATES[:12], "calibration": STATES[12:16], "dev": STATES[16:]}.items():
        rows = [row for state in states for row in labelled(state)]
        with open(f"{part}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    decisionformer.train({
        "model": {"backbone": "base", "pooler": {"type": "mean"}, "head": {"type": "fixed_softmax", "labels": list(OPTIONS)}},
        "finetune": {"mode": "head_only"},
        "data": {"train": "train.jsonl", "calibration": "calibration.jsonl", "eval": {"dev": "dev.jsonl"}},
        "train": {"output_dir": name, "epochs": epochs, "lr": 0.1, "eval_every": None},
    })
    events = [json.loads(line) for line in open(f"{name}/metrics.jsonl", encoding="utf-8")]
    scores = {kind: one["overall"] for kind, one in events[-1]["sets"]["dev"].items()}
    model = decisionformer.AutoDecisionModel.from_pretrained(f"{name}/best")
    answer = model.decide("parcel 9 late", {"next": QUESTION})["answers"]["next"]["probabilities"]["refund"]
    return events[-1]["temperatures"]["choice"], scores, answer


base()
temperature, scores, answer = run("soft", soft, 200)
raw, calibrated = scores["raw"]["soft_nll"], scores["calibrated"]["soft_nll"]
print(f"votes as targets: temperature {temperature:.2f}, soft NLL {raw:.2f} raw and {calibrated:.2f} calibrated, decide {answer:.4f}")
apart, _, plain = run("hard", one_by_one, 100)
print(f"votes one by one: temperature {apart:.1f}, decide {plain:.2f}")
assert temperature < 0.06 and raw < 0.55 and calibrated > 5 * raw and answer > 0.999
assert 0.5 < apart < 1.5 and 0.65 < plain < 0.9
PYTHON
echo "as stated"
