"""Time of a posterior prediction of S samples, as a ratio to one deterministic pass over the same items.

python benchmarks/speed/prediction.py --output results/speed/prediction_cpu.json

SmolLM2-135M with adapters on q and v of the top layers, ARC-Easy items. Deterministic: the posterior mean, one pass.
Rows: all samples in one forward above a shared trunk (`bayeslora.predict`), the same with the inputs repeated instead
of the trunk's output, and a loop of S forwards, as the public codes do it. Then how the first grows with S, the adapted
layers, the rank, the length and the batch. The limit for S samples in the top k of L layers is (L - k + S k) / L,
without the head.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from measure import environment, paired, ratios, save
from peft import PeftModel, get_peft_model

import bayeslora
from bayeslora.memory import peak_memory
from bayeslora.models import load_base_model
from bayeslora.predictive import evaluating
from bayeslora.scoring import ChoiceBatch, Cloze, Letter

DEFAULTS = {"scoring": "letter", "samples": 10, "layers": 7, "rank": 8, "batch": 8, "length": None}
SCALING: Mapping[str, tuple[int, ...]] = {
    "samples": (1, 2, 5, 10, 20),
    "layers": (1, 2, 4, 7, 15, 30),
    "rank": (4, 8, 16, 32),
    "batch": (1, 4, 16),
    "length": (32, 64, 128, 256),
}


class Setting:
    """A model, a batch and the ways to predict it."""

    def __init__(self, device: torch.device, dtype: str, **changes: Any):
        self.options = {**DEFAULTS, **changes}
        base, tokenizer = load_base_model("offline:smollm2", dtype=dtype, device=str(device))  # type: ignore[arg-type]
        total = base.config.num_hidden_layers
        layers = list(range(total - self.options["layers"], total))
        config = bayeslora.BayesianLoraConfig(
            r=self.options["rank"],
            lora_alpha=2 * self.options["rank"],
            target_modules=["q_proj", "v_proj"],
            layers_to_transform=layers,
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(0)
        self.model: PeftModel = get_peft_model(base, config).eval()
        self.limit = (total - len(layers) + self.options["samples"] * len(layers)) / total
        self.batch: Any = self._batch(tokenizer, device)

    def _batch(self, tokenizer: Any, device: torch.device) -> ChoiceBatch | dict[str, torch.Tensor]:
        rows, length = self.options["batch"], self.options["length"]
        if length is not None:
            generator = torch.Generator().manual_seed(0)
            return {"input_ids": torch.randint(0, 40000, (rows, length), generator=generator).to(device)}
        items = bayeslora.get_task("arc_easy").splits().test[:rows]
        scoring = {"letter": Letter, "cloze": Cloze}[self.options["scoring"]](tokenizer)
        return scoring(items).to(device)

    def _logits(self) -> torch.Tensor:
        if isinstance(self.batch, ChoiceBatch):
            return self.batch.choice_logits(self.model)
        return self.model(**self.batch, logits_to_keep=1).logits

    @torch.no_grad()
    def mean(self) -> torch.Tensor:
        """One deterministic pass."""
        with evaluating(self.model):
            return self._logits()

    @torch.no_grad()
    def together(self, share_trunk: bool = True) -> torch.Tensor:
        """All samples in one forward."""
        samples = self.options["samples"]
        with evaluating(self.model), bayeslora.sampling(self.model, samples, share_trunk=share_trunk):
            return self._logits().unflatten(0, (samples, -1))

    @torch.no_grad()
    def loop(self) -> torch.Tensor:
        """A forward for each sample."""
        logits = []
        for sample in range(self.options["samples"]):
            with evaluating(self.model), bayeslora.sampling(self.model, 1, first=sample, share_trunk=False):
                logits.append(self._logits())
        return torch.stack(logits)

    def candidates(self) -> dict[str, Callable[[], object]]:
        """What is compared."""
        return {
            "deterministic": self.mean,
            "samples in one forward, shared trunk": self.together,
            "samples in one forward, repeated inputs": lambda: self.together(share_trunk=False),
            "loop": self.loop,
        }

    def memory_ratio(self, device: torch.device) -> float | None:
        """Peak of the sampled pass over that of the deterministic one, the process with its weights included."""
        peaks = []
        for work in (self.mean, self.together):
            with peak_memory(device) as memory:
                work()
            peaks.append(memory.peak)
        return None if None in peaks else round(peaks[1] / peaks[0], 3)


def compared(setting: Setting, device: torch.device, rounds: int) -> dict[str, Any]:
    """All rows of one setting; the ways to compute the same samples must agree."""
    torch.testing.assert_close(setting.together(), setting.loop(), rtol=0.02, atol=0.05)
    table = ratios(paired(setting.candidates(), device, rounds), "deterministic")
    return {"limit": round(setting.limit, 3), **table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scaling", action="store_true", help="Also how it grows.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    record: dict[str, Any] = environment(device) | {"dtype": options.dtype, "defaults": DEFAULTS}
    for changes in ({}, {"scoring": "cloze"}, {"batch": 1}, {"batch": 1, "scoring": "cloze"}):
        title = ", ".join(f"{name} {value}" for name, value in {**DEFAULTS, **changes}.items() if value is not None)
        record[title] = compared(Setting(device, options.dtype, **changes), device, options.rounds)
        save(options.output, record)
    record["scaling"] = {}
    for name, values in SCALING.items() if options.scaling else ():
        rows = record["scaling"].setdefault(name, {})
        for value in values:
            setting = Setting(device, options.dtype, **{"length": 64, name: value})
            works = {"deterministic": setting.mean, "sampled": setting.together}
            row = ratios(paired(works, device, max(3, options.rounds // 2)), "deterministic")["sampled"]
            rows[value] = {**row, "limit": round(setting.limit, 3), "memory": setting.memory_ratio(device)}
            save(options.output, record)


if __name__ == "__main__":
    main()
