"""Time of a posterior prediction of S samples, as a ratio to one pass of plain PEFT LoRA over the same items.

python -m studies.cost.prediction.measure --output studies/cost/prediction/prediction_cpu.json --threads 1
python -m studies.cost.prediction.measure --output studies/cost/prediction/scaling_cpu.json --threads 1 --scaling

SmolLM2-135M with adapters on q and v of the top layers, ARC-Easy items. Rows: `bayeslora.predict`, the posterior mean,
and a loop of S forwards of all layers, as the public codes do it. All of them read the model through the same scoring,
so plain LoRA gains from computing only what is read, too. With `--scaling`: how the first grows with S, the adapted
layers, the rank, the length and the batch. What the file holds already is not measured again. The limit for S samples
in the top k of L layers is (L - k + S k) / L: that of whole layers, without the head. `--clock processor` is for a
machine with other work on it.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import bayeslora
from bayeslora.models import load_base_model
from bayeslora.scoring import ChoiceBatch, Cloze, Letter
from bayeslora.scoring.letter import LetterBatch
from bayeslora.system.memory import peak_memory
from studies.cost.timing import CLOCKS, common_options, environment, paired, ratios, save

DEFAULTS = {"scoring": "letter", "samples": 10, "layers": 7, "rank": 8, "batch": 8, "length": None}
SCALING: Mapping[str, tuple[int, ...]] = {
    "samples": (1, 2, 5, 10, 20),
    "layers": (1, 4, 7, 15, 30),
    "rank": (4, 8, 32),
    "batch": (1, 2, 4, 8),
    "length": (32, 64, 128),
}
SCALING_DEFAULTS = {"batch": 2, "length": 64}


class Setting:
    """A batch, and two models on the same base to predict it with."""

    def __init__(self, bases: Sequence[Any], tokenizer: Any, **changes: Any):
        self.options = {**DEFAULTS, **changes}
        total = bases[0].config.num_hidden_layers
        adapted = self.options["layers"]
        place = {
            "r": self.options["rank"],
            "lora_alpha": 2 * self.options["rank"],
            "target_modules": ["q_proj", "v_proj"],
            "layers_to_transform": list(range(total - adapted, total)),
            "task_type": "CAUSAL_LM",
        }
        torch.manual_seed(0)
        self.model = get_peft_model(bases[0], bayeslora.BayesianLoraConfig(**place)).eval()
        self.plain = get_peft_model(bases[1], LoraConfig(**place)).eval()
        self.limit = (total - adapted + self.options["samples"] * adapted) / total
        self.batch = self._batch(tokenizer).to(next(bases[0].parameters()).device)

    def _batch(self, tokenizer: Any) -> ChoiceBatch:
        rows, length = self.options["batch"], self.options["length"]
        if length is None:
            items = bayeslora.get_task("arc_easy").splits().test[:rows]
            return {"letter": Letter, "cloze": Cloze}[self.options["scoring"]](tokenizer)(items)
        return LetterBatch(
            input_ids=torch.randint(0, 40000, (rows, length), generator=torch.Generator().manual_seed(0)),
            attention_mask=torch.ones(rows, length, dtype=torch.long),
            position_ids=torch.arange(length).repeat(rows, 1),
            lengths=torch.full((rows,), length),
            class_token_ids=torch.arange(100, 104),
            choice_mask=torch.ones(rows, 4, dtype=torch.bool),
        )

    def lora(self) -> torch.Tensor:
        """Plain LoRA, one pass."""
        return bayeslora.predict(self.plain, self.batch).samples

    def mean(self) -> torch.Tensor:
        """The posterior mean, one pass."""
        return bayeslora.predict(self.model, self.batch, 0).samples

    def sampled(self) -> torch.Tensor:
        """All samples, in chunks of the size that `predict` chooses."""
        return bayeslora.predict(self.model, self.batch, self.options["samples"]).samples

    @torch.no_grad()
    def loop(self) -> torch.Tensor:
        """A forward of all layers for each sample."""
        draws = []
        for sample in range(self.options["samples"]):
            with bayeslora.sampling(self.model, 1, first=sample):
                draws.append(torch.log_softmax(self.batch.choice_logits(self.model), -1))
        return torch.stack(draws)

    def memory_ratio(self, device: torch.device) -> float | None:
        """Peak of the sampled prediction over that of plain LoRA, the process with both models' weights included."""
        peaks = []
        for work in (self.lora, self.sampled):
            with peak_memory(device) as memory:
                work()
            peaks.append(memory.peak)
        plain, sampled = peaks
        return None if plain is None or sampled is None else round(sampled / plain, 3)

    def close(self) -> None:
        """Take the adapters off the bases."""
        self.model.unload()
        self.plain.unload()


REFERENCE = "plain LoRA"


def compared(setting: Setting, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one setting; the two ways to compute the same samples must agree."""
    torch.testing.assert_close(setting.sampled(), setting.loop(), rtol=1e-3, atol=1e-3)
    works = {REFERENCE: setting.lora, "posterior mean": setting.mean, "samples": setting.sampled}
    table = ratios(paired(works, device, options.rounds, clock=options.clock), REFERENCE)
    # Slow, and not what is in question: a few rounds do.
    slow = paired({REFERENCE: setting.lora, "loop over samples": setting.loop}, device, 3, clock=options.clock)
    table["loop over samples"] = ratios(slow, REFERENCE)["loop over samples"]
    return {"limit": round(setting.limit, 3), "memory": setting.memory_ratio(device), **table}


def grown(setting: Setting, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """The samples of one setting."""
    works = {REFERENCE: setting.lora, "samples": setting.sampled}
    row = ratios(paired(works, device, options.rounds, clock=options.clock), REFERENCE)["samples"]
    return {**row, "limit": round(setting.limit, 3), "memory": setting.memory_ratio(device)}


def main() -> None:
    parser = common_options(__doc__, rounds=9)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--scaling", action="store_true", help="How it grows, instead of the table.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    base, tokenizer = load_base_model("offline:smollm2", dtype=options.dtype, device=options.device)
    bases = (base, copy.deepcopy(base))
    record: dict[str, Any] = environment(device) | {"dtype": options.dtype, "clock": options.clock}
    if options.output.exists():
        record = json.loads(options.output.read_text(encoding="utf-8"))
    if options.scaling:
        record |= {"defaults": {**DEFAULTS, **SCALING_DEFAULTS}}
        for name, values in SCALING.items():
            rows = record.setdefault(name, {})
            for value in (value for value in values if str(value) not in rows):
                setting = Setting(bases, tokenizer, **{**SCALING_DEFAULTS, name: value})
                rows[str(value)] = grown(setting, device, options)
                setting.close()
                save(options.output, record)
        return
    record |= {"defaults": DEFAULTS}
    for changes in ({}, {"scoring": "cloze"}, {"batch": 1}, {"batch": 1, "scoring": "cloze"}):
        title = ", ".join(f"{name} {({**DEFAULTS, **changes})[name]}" for name in ("scoring", "batch"))
        if title in record:
            continue
        setting = Setting(bases, tokenizer, **changes)
        record[title] = compared(setting, device, options)
        setting.close()
        save(options.output, record)


if __name__ == "__main__":
    main()
