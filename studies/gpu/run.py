"""Everything that only a GPU can show, in short sittings: call it again until it says that all is done.

python -m studies.gpu.run --output_dir studies/gpu

Steps, each with a JSON file of its own: the time and the memory of a training step and the time of a prediction of one
item, over plain LoRA's, eager and compiled, and a comparison of methods with all layers and full training splits
(`comparison.yaml`). A step whose file is there is skipped; one begins only while there is time for it. The comparison
is ended when the time is up, and goes on from the last epoch that ended. `--dry_run` takes all steps in a minute, on
the processor, with a model that has no training behind it: it shows that the script works, and nothing else.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import bayeslora
from bayeslora.methods import TrainingResult
from bayeslora.methods.one_pass import OnePass
from bayeslora.models import load_base_model
from bayeslora.models.base_model import locate
from bayeslora.scoring import Letter
from bayeslora.system.memory import peak_memory
from studies.cost.launches.measure import NARROW
from studies.cost.prediction.measure import REFERENCE, Setting
from studies.cost.timing import Work, environment, paired, ratios, save
from studies.cost.training_step.measure import configs, step_of, tokens

HERE = Path(__file__).parent
SMOLLM2 = "offline:smollm2"
ROWS = ("lora", "bayesian_lora")
ONE_PASS = "mean and uncertainty in one pass"
GOALS = {"training step": 1.10, "training memory": 1.02, "posterior mean": 1.3, ONE_PASS: 1.3, "samples": 1.5}
"""At most so many times plain LoRA's."""
FITTED = 8
"""Items."""
GRACE = 20.0
"""Seconds that the end of the comparison is given."""


@dataclass(frozen=True)
class Sitting:
    """Where and how the steps of one call are taken."""

    output: Path
    device: torch.device
    ends: float
    """On the clock of `time.monotonic`."""
    dry: bool
    rounds: int

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def base(self) -> Any:
        """SmolLM2, or of the same kind a model that is narrow and has two layers."""
        if self.dry:
            narrow: Any = AutoModelForCausalLM.from_pretrained(self.narrow())
            return narrow.to(self.device)
        return load_base_model(SMOLLM2, dtype="bfloat16", device=str(self.device))[0]

    def narrow(self) -> Path:
        """The folder of the dry run's model, with the tokenizer of SmolLM2."""
        folder = self.output / "narrow"
        if not folder.exists():
            wide, tokenizer = smollm2()
            wide.update({**NARROW, "num_hidden_layers": 2, "layer_types": None})
            AutoModelForCausalLM.from_config(wide).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        return folder

    @property
    def backend(self) -> str:
        """That of torch.compile; the dry run generates no code."""
        return "eager" if self.dry else "inductor"

    @property
    def warmup(self) -> int:
        """Rounds that are not counted."""
        return 1 if self.dry else 3

    @property
    def size(self) -> tuple[int, int]:
        """Rows and tokens of a training batch."""
        return (2, 4) if self.dry else (8, 64)


def smollm2() -> tuple[Any, Any]:
    """Config and tokenizer of SmolLM2, without its weights."""
    folder = locate(SMOLLM2)
    return AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


# --- steps ------------------------------------------------------------------------------------------------------------


def adapted(name: str, sitting: Sitting, checkpointing: bool) -> PeftModel:
    """A base model of its own with the adapters of a row, in training mode."""
    torch.manual_seed(0)
    base = sitting.base()
    model = get_peft_model(base, configs()[name]())
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    return model.train()


def training_time(sitting: Sitting, compiled: bool) -> dict[str, Any]:
    """Time of a step of each row, over plain LoRA's."""
    ids = tokens(*sitting.size, sitting.device)
    steps = {name: step_of(adapted(name, sitting, False), ids, compiled, sitting.backend) for name in ROWS}
    table = ratios(paired(steps, sitting.device, sitting.rounds, sitting.warmup), ROWS[0])
    return {"goal": GOALS["training step"], "batch": sitting.size, "rows": table}


def training_memory(sitting: Sitting) -> dict[str, Any]:
    """Peak of a second step of each row, over plain LoRA's; on a processor that of the process, which says little."""
    ids = tokens(*sitting.size, sitting.device)
    found = {}
    for checkpointing in (False, True):
        peaks = {name: _peak(adapted(name, sitting, checkpointing), ids, sitting.device) for name in ROWS}
        title = "with gradient checkpointing" if checkpointing else "without gradient checkpointing"
        found[title] = {"bytes": peaks, "ratio": round(peaks["bayesian_lora"] / peaks["lora"], 4)}
    return {"goal": GOALS["training memory"], "batch": sitting.size, **found}


def _peak(model: PeftModel, ids: torch.Tensor, device: torch.device) -> int:
    gc.collect()  # Models that were measured before are circles, and would count here.
    step = step_of(model, ids)
    step()
    with peak_memory(device) as memory:
        step()
    if memory.peak is None:
        raise RuntimeError("expected Linux or a CUDA device, whose peak of memory can be read; leave this step out.")
    return memory.peak


def prediction(sitting: Sitting, compiled: bool) -> dict[str, Any]:
    """Time of a prediction of one item by letters from adapters in the top 7 layers, over plain LoRA's."""
    base = sitting.base()
    changes = {"batch": 1, **({"layers": 1} if sitting.dry else {})}
    tokenizer = smollm2()[1]
    setting = Setting((base, copy.deepcopy(base)), tokenizer, **changes)
    works = _compiled_forwards(setting, sitting.backend) if compiled else _predictions(setting, tokenizer)
    table = ratios(paired(works, sitting.device, sitting.rounds, sitting.warmup), REFERENCE)
    return {"goals": {name: GOALS[name] for name in works if name in GOALS}, **setting.options, "rows": table}


def _predictions(setting: Setting, tokenizer: Any) -> dict[str, Work]:
    """As users call them. The posterior of one pass is fitted to a few items, as its time depends on none of them."""
    works: dict[str, Work] = {REFERENCE: setting.lora, "posterior mean": setting.mean}
    items = bayeslora.get_task("arc_easy").splits().train[:FITTED]
    batch = Letter(tokenizer)(items).to(next(setting.model.parameters()).device)
    # B is zero before training, and the evidence has nothing to find a prior's scale from.
    method, samples = OnePass(prior_scale=1.0), setting.options["samples"]
    state = method.fit_posterior(setting.model, TrainingResult(lambda: [batch], FITTED, None, None, 0))
    works[ONE_PASS] = lambda: method.predict(setting.model, setting.batch, samples, 0, state=state)
    return works | {"samples": setting.sampled}


def _compiled_forwards(setting: Setting, backend: str) -> dict[str, Work]:
    """The same by forwards of the compiled models, all draws in one, as `predict` is Python around forwards."""
    inputs = {"input_ids": setting.batch["input_ids"], "use_cache": False}
    plain, model = (torch.compile(each, backend=backend) for each in (setting.plain, setting.model))

    @torch.no_grad()
    def mean() -> Any:
        return model(**inputs)

    @torch.no_grad()
    def sampled() -> Any:
        with bayeslora.sampling(setting.model, setting.options["samples"]):
            return model(**inputs)

    return {REFERENCE: torch.no_grad()(lambda: plain(**inputs)), "posterior mean": mean, "samples": sampled}


def comparison(sitting: Sitting) -> dict[str, Any] | None:
    """The quality of both methods; None while cells are missing."""
    folder = sitting.output / "comparison"
    command = [sys.executable, "-m", "bayeslora", "compare", *_compared(sitting), "--output_dir", str(folder)]
    if not _within(command, sitting.left - GRACE):
        return None
    return {"results": str((folder / "results.jsonl").relative_to(sitting.output)), "table": "comparison/report.md"}


def _compared(sitting: Sitting) -> list[str]:
    """Options of the comparison."""
    options = ["--config", str(HERE / "comparison.yaml"), "--model.device", str(sitting.device)]
    if not sitting.dry:
        return options
    items = sitting.output / "items"
    items.mkdir(parents=True, exist_ok=True)
    item = {"question": "What do plants need?", "choices": ["light", "iron", "wood"], "label": 0}
    for split, count in (("train", 4), ("dev", 4), ("test", 4)):
        lines = [json.dumps({"id": f"{split} {n}", **item, "question": f"{split} {n}?"}) for n in range(count)]
        (items / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = sitting.output / "dry_run.yaml"
    config.write_text(
        f"model: {{name: {sitting.narrow()}, dtype: float32, device: cpu}}\n"
        f"tasks: {{items: {{name: {items}, scoring: cloze}}}}\n"
        "rows:\n  lora: {method: {class_path: Lora}}\n  bayesian_lora: {method: {class_path: BayesianLora}}\n"
        "protocol: {further_rates: 0, choose_epochs: false, length_powers: [], base_rows: false}\n"
        "train: {epochs: 1, batch_size: 4, arguments: {disable_tqdm: true}}\n"
        "learning_rates: [1.0e-3]\nseeds: [0]\nnum_samples: 2\nbatch_size: 4\ncost_examples: 1\n",
        encoding="utf-8",
    )
    return ["--config", str(config)]


def _within(command: list[str], seconds: float) -> bool:
    """Whether the command ended by itself; after `seconds` it is asked to end, and goes on with the next call."""
    with subprocess.Popen(command) as process:
        try:
            code = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(GRACE / 2)
            except subprocess.TimeoutExpired:
                process.kill()
            return False
    if code != 0:
        raise subprocess.CalledProcessError(code, command)
    return True


# --- the order of the steps -------------------------------------------------------------------------------------------

STEPS: Mapping[str, tuple[float, Callable[[Sitting], dict[str, Any] | None]]] = {
    "training_step_eager": (2.0, lambda sitting: training_time(sitting, compiled=False)),
    "training_memory": (2.0, training_memory),
    "prediction_eager": (2.0, lambda sitting: prediction(sitting, compiled=False)),
    "training_step_compiled": (6.0, lambda sitting: training_time(sitting, compiled=True)),
    "prediction_compiled": (6.0, lambda sitting: prediction(sitting, compiled=True)),
    "comparison": (2.0, comparison),
}
"""Each with the minutes that must be left where it begins."""


def take(name: str, sitting: Sitting) -> bool:
    """Take one step if it is missing and there is time; whether its file is there afterwards."""
    minutes, step = STEPS[name]
    path = sitting.output / f"{name}.json"
    if path.exists():
        return True
    if sitting.left < 60 * minutes:
        return False
    record = environment(sitting.device)
    found = step(sitting)
    if found is not None:
        save(path, {"step": name, "dry_run": sitting.dry, **record, **found})
    return found is not None


def main(arguments: list[str] | None = None) -> int:
    """0 when all steps are done, 3 when the same command has to be called again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="It ends before.")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--dry_run", action="store_true", help="All steps in a minute on the processor; no results.")
    options = parser.parse_args(arguments)
    if not (options.dry_run or torch.cuda.is_available()):
        parser.error("expected a CUDA device, got none; --dry_run takes the steps on the processor.")
    sitting = Sitting(
        output=options.output_dir.resolve(),
        device=torch.device("cpu" if options.dry_run else "cuda"),
        ends=time.monotonic() + 60 * options.minutes,
        dry=options.dry_run,
        rounds=2 if options.dry_run else options.rounds,
    )
    missing = [name for name in options.steps if not take(name, sitting)]
    print(f"missing: {', '.join(missing)}; call this again." if missing else "all steps are done.")
    return 3 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
