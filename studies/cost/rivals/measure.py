"""Time of predicting and fitting with another package, as ratios to plain PEFT LoRA in the same process and rounds.

pip install bayesian-lora==0.0.6
python -m studies.cost.rivals.measure --output studies/cost/rivals/rivals_cpu.json --threads 1 --rounds 3 \\
    --clock processor

The package is Robeyns' code of Laplace-LoRA (arXiv 2308.13111); without it the other rows are measured all the same.
SmolLM2-135M with adapters on q and v of the top 7 layers, ARC-Easy items with letter scoring. Its prediction is what
its README calls to get the Gaussian over the class logits, `jacobian_mean` and `variance`, without draws from it; that
of `LaplaceLora` has its integral over that Gaussian in it. Fitting is its `calculate_kronecker_factors` and
`cholesky_decompose_small_factors`, against one epoch of training over the same items. Nothing of it is changed: what
fails as published is in the file with its error. It runs as its README has it, with logits of all positions; with those
of the last position alone, by an option of the model; and so with eager attention, whose backward pass torch can batch.
`--clock processor` is for a machine with other work on it.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BatchEncoding

from bayeslora.methods.base import State, TrainingResult
from bayeslora.methods.laplace import LaplaceLora
from bayeslora.models import load_base_model
from bayeslora.scoring import ChoiceBatch, Letter
from bayeslora.system.memory import peak_memory
from bayeslora.tasks import get_task
from studies.cost.prediction.measure import DEFAULTS, REFERENCE, Setting
from studies.cost.timing import CLOCKS, Work, common_options, environment, paired, ratios, save

try:
    import bayesian_lora
    from bayesian_lora.main import jacobian_mean  # Not among the names that the package exports.

    MISSING = None
except ImportError as error:
    MISSING = f"not measured: {error}; pip install bayesian-lora==0.0.6"

RIVAL = "bayesian-lora"
PRIOR_VARIANCE = 0.1
KRONECKER_RANK = 10
WIDE = 100
"""Width from which the package cuts a factor; its default, 512, is above the width of v in this model, 192."""
FIT_ITEMS = 32
RATE = 1e-9
"""So small that the adapter stays what it is."""
VARIANTS: Mapping[str, tuple[dict[str, Any], str]] = {
    "all positions": ({}, "sdpa"),
    "last position": ({"logits_to_keep": 1}, "sdpa"),
    "last position, eager attention": ({"logits_to_keep": 1}, "eager"),
}


class Rival:
    """The package's calls on the plain adapter of a setting, as its README has them."""

    def __init__(self, setting: Setting, variant: str, wide: int = WIDE):
        self.model = setting.plain
        self.extra, self.attention = VARIANTS[variant]
        self.rank = setting.options["rank"]
        self.wide = wide
        self.batch = setting.batch
        self.inputs = self._inputs(setting.batch)
        self.factors: Any = None

    def _inputs(self, batch: ChoiceBatch) -> BatchEncoding:
        names = ("input_ids", "attention_mask", "position_ids")
        return BatchEncoding({**{name: batch[name] for name in names}, **self.extra})

    @contextmanager
    def _attention(self) -> Iterator[None]:
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation(self.attention)
        try:
            yield
        finally:
            self.model.set_attn_implementation(usual)

    def class_logits(self, outputs: Any) -> torch.Tensor:
        """What its documentation calls the logits of interest: the letters' at the last position."""
        return outputs.logits[:, -1, self.batch["class_token_ids"]]

    def fit(self, batches: list[ChoiceBatch]) -> None:
        """The Kronecker factors, in the form that its `variance` takes."""

        def call(model: nn.Module, inputs: BatchEncoding) -> torch.Tensor:
            return self.class_logits(model(**inputs))

        inputs: Any = [self._inputs(batch) for batch in batches]
        loader = torch.utils.data.DataLoader(inputs, batch_size=None)
        device = self.inputs["input_ids"].device
        with self._attention():
            factors = bayesian_lora.calculate_kronecker_factors(
                self.model, call, loader, KRONECKER_RANK, self.wide, ["lora"]
            )
        self.factors = bayesian_lora.cholesky_decompose_small_factors(factors, self.wide, device, torch.float32)
        self.model.zero_grad()
        self.model.eval()

    @torch.no_grad()
    def jacobian(self) -> tuple[Any, torch.Tensor]:
        """Jacobian and mean of the class logits."""
        with self._attention():
            return jacobian_mean(self.model, self.inputs, output_callback=self.class_logits)

    @torch.no_grad()
    def predict(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance of the class logits."""
        jacobian, mean = self.jacobian()
        classes = len(self.batch["class_token_ids"])
        variance = torch.tensor(PRIOR_VARIANCE, device=mean.device)
        return mean, bayesian_lora.variance(
            self.inputs, jacobian, self.factors, variance, classes, self.rank, KRONECKER_RANK, mean.device
        )


class Own:
    """This project's Laplace method on the plain adapter of a setting."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.method = LaplaceLora(prior_precision=1 / PRIOR_VARIANCE, kronecker_rank=KRONECKER_RANK)
        self.state: State = {}

    def fit(self, batches: list[ChoiceBatch]) -> None:
        """The posterior."""
        training = TrainingResult(lambda: batches, FIT_ITEMS, optimizer=None, trunk_cache=None, seed=0)
        self.state = self.method.fit_posterior(self.setting.plain, training)

    def predict(self) -> torch.Tensor:
        """Draws from the Gaussian over the class logits."""
        samples = self.setting.options["samples"]
        return self.method.predict(
            self.setting.plain, self.setting.batch, samples, seed=0, state=self.state
        ).probabilities


def opened(bases: tuple[Any, Any], tokenizer: Any, **changes: Any) -> Setting:
    """A setting whose plain adapter is as if trained: with B zero, half of the gradients would be."""
    setting = Setting(bases, tokenizer, **changes)
    for name, parameter in setting.plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return setting


def fit_batches(tokenizer: Any, size: int, device: torch.device) -> list[ChoiceBatch]:
    items = get_task("arc_easy").splits().train[:FIT_ITEMS]
    scoring = Letter(tokenizer)
    return [scoring(items[start : start + size]).to(device) for start in range(0, FIT_ITEMS, size)]


def failure(work: Work) -> str | None:
    """The error that `work` ends with, and the line that raises it."""
    try:
        work()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).parent.name}/{Path(where.filename).name}, line {where.lineno}: {where.line}"
        folder = f"{Path(bayesian_lora.__file__).parents[1]}/"
        return f"{type(error).__name__}: {error} ({place})".replace(folder, "")
    return None


def published(setting: Setting, batches: list[ChoiceBatch]) -> dict[str, str | None]:
    """What its README and defaults say, and the error it ends with; None where it runs."""
    rival = Rival(setting, "last position")

    def exported() -> None:
        from bayesian_lora import jacobian_mean  # noqa: F401

    def by_target_ids() -> None:
        jacobian_mean(rival.model, rival.inputs, setting.batch["class_token_ids"])

    def by_documented_width() -> None:
        documented = Rival(setting, "last position", wide=512)
        documented.fit(batches[:1])
        documented.predict()

    return {
        "from bayesian_lora import jacobian_mean": failure(exported),
        "jacobian_mean(model, batch_inputs, target_ids)": failure(by_target_ids),
        "variance with the factors of lr_threshold=512": failure(by_documented_width),
    }


def memory_ratios(works: Mapping[str, Work], device: torch.device) -> dict[str, float | None]:
    """Peaks over that of the first, the process with both models' weights included."""
    peaks = []
    for work in works.values():
        _give_back()
        with peak_memory(device) as memory:
            work()
        peaks.append(memory.peak)
    shares = [None if peak is None or peaks[0] is None else round(peak / peaks[0], 3) for peak in peaks]
    return dict(zip(works, shares, strict=True))


def _give_back() -> None:
    """Freed memory to the system: what fitting needed would hide what a prediction needs."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def table(works: Mapping[str, Work], device: torch.device, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Time and memory of each row, over the first."""
    memory = memory_ratios(works, device)
    timed = ratios(paired(works, device, options.rounds, clock=options.clock), next(iter(works)))
    return {name: {**row, "memory": memory[name]} for name, row in timed.items()}


def predictions(
    setting: Setting, batches: list[ChoiceBatch], device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    """All rows of one setting; the package's mean must be plain LoRA's logits."""
    own = Own(setting)
    own.fit(batches)
    samples = f"{setting.options['samples']} samples"
    works: dict[str, Work] = {
        REFERENCE: setting.lora,
        f"bayeslora, {samples}": setting.sampled,
        "bayeslora, LaplaceLora": own.predict,
    }
    failures = {}
    for variant in VARIANTS if MISSING is None else ():
        rival = Rival(setting, variant)
        rival.fit(batches)
        with torch.no_grad():
            expected = setting.batch.choice_logits(setting.plain)
        torch.testing.assert_close(rival.jacobian()[1].detach(), expected, rtol=1e-3, atol=1e-3)
        failed = failure(rival.predict)
        if failed is None:
            works[f"{RIVAL}, {variant}"] = rival.predict
        else:
            failures[f"{RIVAL}, {variant}"] = failed
            works[f"{RIVAL}, {variant}, jacobian_mean alone"] = rival.jacobian
    return {**table(works, device, options), "failed": failures}


def fits(
    setting: Setting, batches: list[ChoiceBatch], device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    """Fitting, over one epoch of training."""
    works: dict[str, Work] = {f"{REFERENCE}, one epoch": epoch(setting.plain, batches)}

    def fitting(fit: Callable[[list[ChoiceBatch]], None]) -> Work:
        return lambda: fit(batches)

    works["bayeslora, LaplaceLora"] = fitting(Own(setting).fit)
    for variant in VARIANTS if MISSING is None else ():
        works[f"{RIVAL}, {variant}"] = fitting(Rival(setting, variant).fit)
    return table(works, device, options)


def epoch(model: Any, batches: list[ChoiceBatch]) -> Work:
    """One epoch of training."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, fused=True)

    def steps() -> None:
        model.train()
        for batch in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(batch.choice_logits(model), batch["labels"]).backward()
            optimizer.step()
        optimizer.zero_grad()
        model.eval()

    return steps


def main() -> None:
    parser = common_options(__doc__, rounds=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    record: dict[str, Any] = environment(device) | {"dtype": "float32", "clock": options.clock, "defaults": DEFAULTS}
    record |= {"prior_variance": PRIOR_VARIANCE, "kronecker_rank": KRONECKER_RANK, "lr_threshold": WIDE}
    record[RIVAL] = MISSING or version(RIVAL)
    if MISSING is not None:
        print(f"{RIVAL} is {MISSING}")
    base, tokenizer = load_base_model("offline:smollm2", dtype="float32", device=options.device)
    bases = (base, copy.deepcopy(base))
    batches = fit_batches(tokenizer, DEFAULTS["batch"], device)  # type: ignore[arg-type]
    if MISSING is None:
        setting = opened(bases, tokenizer, batch=2)
        record["as published"] = published(setting, batches)
        setting.close()
    for size in (1, 2, 8):
        setting = opened(bases, tokenizer, batch=size)
        record[f"prediction, batch {size}"] = predictions(setting, batches, device, options)
        setting.close()
        save(options.output, record)
    setting = opened(bases, tokenizer)
    record[f"fit, {FIT_ITEMS} items in batches of {DEFAULTS['batch']}"] = fits(setting, batches, device, options)
    setting.close()
    save(options.output, record)


if __name__ == "__main__":
    main()
