"""Exported adapters and models, read by plain PEFT and transformers in a process where bayeslora cannot be imported."""

import json
import math
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

import bayeslora
from bayeslora.adapters.draws import hold_draw
from bayeslora.deploy.export import RECORD, export_mean, export_merged, export_run, export_samples
from bayeslora.deploy.export.rounding import Spread, relative_error
from bayeslora.methods.blob import BlobConfig
from bayeslora.methods.c_lora import CLoraConfig
from bayeslora.methods.ensemble import EnsembleConfig
from bayeslora.methods.full_fine_tuning import FullFineTuning
from bayeslora.methods.mc_dropout import MonteCarloDropoutConfig
from bayeslora.runs import load_run
from bayeslora_cli.main import main
from conftest import (
    MODELS,
    TARGETS,
    bayesian,
    byte_level_tokenizer,
    config_for,
    distance,
    logits_of,
    perturb,
    seeded,
    tiny_llama,
    tokens,
)
from other_processes import run_python

DRAWS, SEED = 2, 11


# --- the readers' rules, in our own words -------------------------------------------------------------------------


def refused_by_vllm(folder: Path, *, max_lora_rank: int = 16, modules: tuple[str, ...] = ()) -> list[str]:
    """Why vLLM would not load an adapter (vllm/lora: peft_helper.py, lora_model.py, utils.py; several versions).

    Its config needs r, lora_alpha and target_modules; no modules_to_save (newer versions take classifier and score),
    no variant or base-changing start, no bias, at most max_lora_rank. Older versions take one rank and one alpha for
    all layers. Each tensor is `<prefix>.<module>.lora_A.weight` or lora_B, the module's last name one that it knows.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    reasons = [f"no {name}" for name in ("r", "lora_alpha", "target_modules") if not config.get(name)]
    reasons += [name for name in ("modules_to_save", "rank_pattern", "alpha_pattern") if config.get(name)]
    switches = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
    reasons += [name for name in switches if config.get(name)]
    reasons += ["start"] if config.get("init_lora_weights", True) is not True else []
    reasons += ["bias"] if config.get("bias", "none") != "none" else []
    reasons += ["rank"] if config["r"] > max_lora_rank else []
    for name in load_file(folder / "adapter_model.safetensors"):
        *module, part, last = name.removeprefix("base_model.model.").split(".")
        if last != "weight" or part not in ("lora_A", "lora_B") or module[-1] not in modules:
            reasons.append(name)
    return reasons


def vllm_scale(folder: Path) -> float:
    config = json.loads((folder / "adapter_config.json").read_text())
    return config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])


def refused_by_llama_cpp(folder: Path) -> list[str]:
    """Why convert_lora_to_gguf.py would stop, or llama.cpp apply another scale than 1 (lora_alpha / rank of B).

    Tensors are lora_A.weight and lora_B.weight, two of each module, A [rank, in] and B [out, rank], besides norms. It
    transposes the layers of GPT-2 with their update, which makes A of B and B of A.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    pairs: dict[str, dict[str, Tensor]] = {}
    reasons = ["fan_in_fan_out"] if config["fan_in_fan_out"] else []
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        if found:
            pairs.setdefault(found[1], {})[found[2]] = tensor
        else:
            reasons.append(name)
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            reasons.append(f"pair {module}")
        elif config["lora_alpha"] / pair["B"].shape[1] != 1:
            reasons.append(f"scale of {module}")
    return reasons


# --- a process without bayeslora ----------------------------------------------------------------------------------

READER = """
import sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bayeslora":
            raise ImportError("bayeslora is not installed here")

sys.meta_path.insert(0, Refuse())
try:
    import bayeslora
except ImportError:
    pass
else:
    raise SystemExit("bayeslora was importable")

import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

torch.set_num_threads(1)
root = Path(sys.argv[1])
ids = load_file(root / "ids.safetensors")["ids"]
logits = {}

def note(model, folder):
    with torch.no_grad():
        logits[str(folder.relative_to(root))] = model.eval()(input_ids=ids).logits.contiguous()

for case in sorted(path.parent for path in root.glob("*/base")):
    classifies = (case / "classifies").exists()
    auto = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    peft_auto = AutoPeftModelForSequenceClassification if classifies else AutoPeftModelForCausalLM
    model = peft_auto.from_pretrained(case / "mean", **({"num_labels": 3} if classifies else {}))
    note(model, case / "mean")
    for draw in sorted(case.glob("samples/draw*")):
        model.load_adapter(draw, adapter_name=draw.name)
        model.set_adapter(draw.name)
        note(model, draw)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert layers and all(scale == 1 for layer in layers for scale in layer.scaling.values())
    for merged in case.glob("merged*"):
        note(auto.from_pretrained(merged), merged)
save_file(logits, root / "logits.safetensors")
"""


@dataclass
class Case:
    """A model with a trained adapter; what plain PEFT makes of its exports must be what it makes itself."""

    name: str
    model: str = "llama"
    options: dict[str, Any] = field(default_factory=dict)
    config: type[LoraConfig] | None = None
    rank: int = 4

    @property
    def classifies(self) -> bool:
        return self.model in ("bert", "llama_classifier")

    def build(self, base: Path) -> PeftModel:
        made = MODELS[self.model](num_hidden_layers=2)
        made.save_pretrained(base)
        options = {"task_type": "SEQ_CLS" if self.classifies else "CAUSAL_LM", **self.options}
        if self.config is None:
            config: LoraConfig = config_for(self.model, **options)
        else:
            config = self.config(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS[self.model], **options})
        with seeded(3):
            model = get_peft_model(type(made).from_pretrained(base), config)
        return perturb(model).eval()  # type: ignore[return-value]


RANKS = {"rank_pattern": {"v_proj": 2, "down_proj": 6}, "alpha_pattern": {"v_proj": 3}}
CASES = [
    Case("alpha"),
    Case("rslora", options={"use_rslora": True}),
    Case("ranks", options=RANKS, rank=6),
    Case("layers", options={"layers_to_transform": 1}),
    Case("pattern", options={"target_modules": r".*\.1\.self_attn\.(q|v)_proj"}),
    Case("gpt2", "gpt2"),
    Case("bert", "bert"),
    Case("llama_classifier", "llama_classifier"),
    Case("flow", options={"posterior": "flow"}),
    Case("blob", config=BlobConfig, options={"epsilon": 0.5}),
    Case("ensemble", config=EnsembleConfig, options={"members": DRAWS}),
    Case("lora", config=LoraConfig),
    Case("mc_dropout", config=MonteCarloDropoutConfig),
]
NAMES = [case.name for case in CASES]
DRAWING = [name for name in NAMES if name not in ("lora", "mc_dropout")]


@dataclass
class Exports:
    root: Path
    own: dict[str, Tensor]
    """Logits of bayeslora, by folder."""
    read: dict[str, Tensor]
    """Logits of the process without it."""
    records: dict[str, dict[str, Any]]

    def distance(self, folder: str) -> float:
        return distance(self.own[folder], self.read[folder])


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    root = tmp_path_factory.mktemp("exports")
    own, records = {}, {}
    for case in CASES:
        folder = root / case.name
        model = case.build(folder / "base")
        if case.classifies:
            (folder / "classifies").touch()
        own[f"{case.name}/mean"] = own[f"{case.name}/merged_mean"] = logits_of(model)
        records[f"{case.name}/mean"] = export_mean(model, folder / "mean")
        if case.name in DRAWING:
            with bayeslora.sampling(model, DRAWS, SEED):
                draws = logits_of(model).unflatten(0, (DRAWS, -1))
            for number, draw in enumerate(draws):
                own[f"{case.name}/samples/draw{number}"] = draw
            own[f"{case.name}/merged_draw"] = draws[1]
            records[f"{case.name}/samples"] = export_samples(model, folder / "samples", num_samples=DRAWS, seed=SEED)
            if case.name in ("ranks", "bert"):
                export_merged(case.build(folder / "base"), folder / "merged_draw", draw=1, seed=SEED)
        if case.name in ("alpha", "gpt2", "mc_dropout"):
            records[f"{case.name}/merged_mean"] = export_merged(model, folder / "merged_mean")
    save_file({"ids": tokens().contiguous()}, root / "ids.safetensors")
    script = root / "script"
    script.mkdir()
    result = run_python(READER, script, str(root))
    assert result.returncode == 0, result.stderr
    return Exports(root, own, load_file(root / "logits.safetensors"), records)


# --- what plain PEFT makes of it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_plain_peft_reproduces_the_mean(exports: Exports, name: str) -> None:
    assert exports.distance(f"{name}/mean") < 1e-5


@pytest.mark.parametrize("name", DRAWING)
def test_plain_peft_reproduces_every_draw(exports: Exports, name: str) -> None:
    folders = [f"{name}/samples/draw{number}" for number in range(DRAWS)]
    assert exports.records[f"{name}/samples"]["draws"] == ["draw0", "draw1"]
    for folder in folders:
        assert exports.distance(folder) < 1e-5
    assert distance(exports.read[folders[0]], exports.read[folders[1]]) > 1e-2
    if name != "ensemble":  # whose mean is its first member
        assert distance(exports.read[folders[0]], exports.read[f"{name}/mean"]) > 1e-2


@pytest.mark.parametrize(
    "folder",
    ["alpha/merged_mean", "gpt2/merged_mean", "mc_dropout/merged_mean", "ranks/merged_draw", "bert/merged_draw"],
)
def test_transformers_alone_reproduces_the_merged_model(exports: Exports, folder: str) -> None:
    # Adding the update to the weights rounds once more than adapters do, relative to the size of the numbers.
    assert exports.distance(folder) < 1e-5 * exports.own[folder].abs().max()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("bert", "llama_classifier", "gpt2")])
def test_servers_accept_the_adapters(exports: Exports, name: str) -> None:
    folders = [path.parent for path in (exports.root / name).glob("**/adapter_config.json")]
    assert len(folders) == (1 + DRAWS if name in DRAWING else 1)
    for folder in folders:
        assert refused_by_vllm(folder, modules=tuple(TARGETS["llama"])) == []
        assert vllm_scale(folder) == 1
        assert refused_by_llama_cpp(folder) == []


def test_the_restated_rules_refuse_what_servers_refuse(exports: Exports, tmp_path: Path) -> None:
    bayesian("llama", rank_pattern={"v_proj": 2}).save_pretrained(str(tmp_path))
    assert refused_by_vllm(tmp_path, modules=tuple(TARGETS["llama"]))
    assert refused_by_llama_cpp(tmp_path)
    with_head = exports.root / "bert" / "mean"
    assert "modules_to_save" in refused_by_vllm(with_head, modules=("query", "value"))
    assert any("classifier" in reason for reason in refused_by_llama_cpp(with_head))
    assert refused_by_llama_cpp(exports.root / "gpt2" / "mean") == ["fan_in_fan_out"]


def test_layers_of_smaller_rank_are_padded_with_zeros(exports: Exports) -> None:
    folder = exports.root / "ranks" / "samples" / "draw0"
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 6
    assert {tensor.shape[0 if ".lora_A." in name else 1] for name, tensor in tensors.items()} == {6}
    name = "base_model.model.model.layers.0.self_attn.v_proj"
    assert tensors[f"{name}.lora_A.weight"][:2].all() and not tensors[f"{name}.lora_A.weight"][2:].any()
    assert not tensors[f"{name}.lora_B.weight"][:, 2:].any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alpha", {"target_modules": ["down_proj", "q_proj", "v_proj"], "task_type": "CAUSAL_LM", "peft_type": "LORA"}),
        ("layers", {"layers_to_transform": [1]}),
        (
            "pattern",
            {
                "target_modules": [f"model.layers.1.self_attn.{part}_proj" for part in "qv"],
                "layers_to_transform": None,
            },
        ),
        ("bert", {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}),
        ("gpt2", {"fan_in_fan_out": True}),
        ("rslora", {"use_rslora": False, "lora_alpha": 4}),
        ("mc_dropout", {"lora_dropout": 0.0, "inference_mode": True}),
    ],
)
def test_the_config_is_plain_lora_with_lists(exports: Exports, name: str, expected: dict[str, Any]) -> None:
    config = json.loads((exports.root / name / "mean" / "adapter_config.json").read_text())
    assert {key: config[key] for key in expected} == expected
    assert config["base_model_name_or_path"] == str(exports.root / name / "base")


def test_the_classification_head_goes_with_each_draw(exports: Exports) -> None:
    files = [exports.root / "bert" / part / "adapter_model.safetensors" for part in ("mean", "samples/draw1")]
    heads = [load_file(file)["base_model.model.classifier.weight"] for file in files]
    original = load_file(exports.root / "bert" / "base" / "model.safetensors")["classifier.weight"]
    assert torch.equal(heads[0], heads[1]) and distance(heads[0], original) > 1e-3


def test_the_record_says_what_was_exported(exports: Exports) -> None:
    record = json.loads((exports.root / "alpha" / "samples" / RECORD).read_text())
    assert record == exports.records["alpha/samples"]
    assert {key: record[key] for key in ("format", "seed", "num_samples", "dtype", "version", "warnings")} == {
        "format": "samples",
        "seed": SEED,
        "num_samples": DRAWS,
        "dtype": "float32",
        "version": bayeslora.__version__,
        "warnings": [],
    }
    assert record["spread"]["dtype"] == "bfloat16" and record["spread"]["noise"] < 1e-3
    assert exports.records["ensemble/mean"]["warnings"] == [
        f"the mean of an ensemble is no trained model: this is its member 0 of {DRAWS}"
    ]


# --- which draws, and when ----------------------------------------------------------------------------------------


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_draw_depends_on_its_number_and_the_seed_alone(tmp_path: Path) -> None:
    model = bayesian()
    export_samples(model, tmp_path / "two", num_samples=2, seed=1)
    export_samples(model, tmp_path / "three", num_samples=3, seed=1)
    export_samples(model, tmp_path / "other", num_samples=2, seed=2)
    assert same(weights(tmp_path / "two" / "draw1"), weights(tmp_path / "three" / "draw1"))
    assert not same(weights(tmp_path / "two" / "draw1"), weights(tmp_path / "other" / "draw1"))
    assert not same(weights(tmp_path / "two" / "draw1"), weights(tmp_path / "two" / "draw0"))


def test_the_global_generator_and_the_model_stay_as_they_are(tmp_path: Path) -> None:
    model = bayesian().train()
    hold_draw(model, seed=4, step=2)
    state, before = torch.get_rng_state(), logits_of(model)
    export_samples(model, tmp_path / "samples", num_samples=2)
    export_mean(model, tmp_path / "mean")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and torch.equal(logits_of(model), before)


def test_a_model_in_training_exports_its_mean(tmp_path: Path) -> None:
    model = bayesian()
    export_mean(model, tmp_path / "eval")
    hold_draw(model.train(), seed=4, step=2)
    export_mean(model, tmp_path / "train")
    assert same(weights(tmp_path / "eval"), weights(tmp_path / "train"))


def test_an_ensemble_exports_its_members_however_many_are_asked_for(tmp_path: Path) -> None:
    model = Case("members", config=EnsembleConfig, options={"members": 2}).build(tmp_path / "base")
    record = export_samples(model, tmp_path / "out", num_samples=5, seed=9)
    assert record["draws"] == ["draw0", "draw1"] and "2 were written, not 5" in record["warnings"][0]
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    for number in range(2):
        tensors = weights(tmp_path / "out" / f"draw{number}")
        key = "base_model.model.model.layers.1.self_attn.q_proj"
        assert torch.equal(tensors[f"{key}.lora_A.weight"], layer.lora_A["default"].members[number].detach())
        assert torch.equal(tensors[f"{key}.lora_B.weight"], 2 * layer.lora_B["default"].members[number].detach())


def test_the_active_adapter_is_exported_under_any_name(tmp_path: Path) -> None:
    model = bayesian()
    with seeded(8):
        model.add_adapter("other", config_for(r=2, lora_alpha=6))
    perturb(model)
    model.set_adapter("other")
    export_mean(model.eval(), tmp_path / "out")
    tensors = weights(tmp_path / "out")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    expected = 3 * layer.lora_B["other"].weight @ layer.lora_A["other"].weight
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    product = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
    assert distance(product, expected.detach()) < 1e-6
    assert not any("default" in name or "other" in name for name in tensors)


def test_two_active_adapters_are_refused(tmp_path: Path) -> None:
    model = bayesian()
    model.add_adapter("other", config_for())
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="one adapter can be exported at a time"):
        export_mean(model, tmp_path / "out")


def test_what_has_no_weight_draws_says_why(tmp_path: Path) -> None:
    plain = Case("lora", config=LoraConfig).build(tmp_path / "base")
    with pytest.raises(ValueError, match="no posterior over weights"):
        export_samples(plain, tmp_path / "out")
    dropout = Case("dropout", config=MonteCarloDropoutConfig).build(tmp_path / "base")
    with pytest.raises(ValueError, match=r"depend on the input.*AdapterDropout"):
        export_samples(dropout, tmp_path / "out")
    contextual = Case("c_lora", config=CLoraConfig).build(tmp_path / "base")
    with pytest.raises(ValueError, match=r"depend on the input.*ContextualFactor"):
        export_merged(contextual, tmp_path / "out", draw=0)
    with pytest.raises(ValueError, match="cannot be written as a LoRA file"):
        export_mean(contextual, tmp_path / "out")
    with pytest.raises(NotImplementedError, match="no weights to merge"):
        export_merged(contextual, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_plain_lora_says_so(tmp_path: Path) -> None:
    dora = Case("dora", config=LoraConfig, options={"use_dora": True}).build(tmp_path / "base")
    with pytest.raises(ValueError, match="variant of LoRA"):
        export_mean(dora, tmp_path / "out")
    pissa = Case("pissa", config=LoraConfig, options={"init_lora_weights": "pissa"}).build(tmp_path / "base")
    with pytest.raises(ValueError, match="changes the base weights"):
        export_mean(pissa, tmp_path / "out")
    embedding = Case("embedding", config=LoraConfig, options={"target_modules": ["embed_tokens"]}).build(
        tmp_path / "base"
    )
    with pytest.raises(ValueError, match="embed_tokens cannot be written as a LoRA file"):
        export_mean(embedding, tmp_path / "out")
    biased = Case("bias", config=LoraConfig, options={"bias": "all", "target_modules": ["query"]}, model="bert")
    with pytest.raises(ValueError, match=r"tensors that a plain LoRA file does not hold.*bias"):
        export_mean(biased.build(tmp_path / "base_bert"), tmp_path / "out")
    before = logits_of(dora)
    export_merged(dora, tmp_path / "merged")
    assert distance(logits_of(LlamaForCausalLM.from_pretrained(tmp_path / "merged")), before) < 1e-5


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    model = bayesian()
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        export_samples(model, tmp_path / "out", num_samples=0)
    with pytest.raises(ValueError, match="draw must be at least 0, got -1"):
        export_merged(model, tmp_path / "out", draw=-1)
    with bayeslora.sampling(model, 1, 0):
        for call in (export_mean, export_samples, export_merged):
            with pytest.raises(ValueError, match=r"leave it before you export"):
                call(model, tmp_path / "out")
    model.base_model.model.is_quantized = True
    with pytest.raises(ValueError, match="quantised"):
        export_merged(model, tmp_path / "out")


# --- rounding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_files_hold_the_rounded_draws(tmp_path: Path, dtype: Any) -> None:
    model = bayesian()
    export_samples(model, tmp_path / "exact", num_samples=2)
    record = export_samples(model, tmp_path / "rounded", num_samples=2, dtype=dtype)
    exact = {name: value.to(getattr(torch, dtype)) for name, value in weights(tmp_path / "exact" / "draw1").items()}
    assert same(weights(tmp_path / "rounded" / "draw1"), exact)
    assert record["spread"]["dtype"] == dtype and record["warnings"] == []


def noise_by_definition(draws: Tensor) -> float:
    """Sum of squared deviations of the rounding errors over that of the draws `[draws, numbers]`."""
    values = draws.double().numpy()
    errors = draws.bfloat16().double().numpy() - values
    return float(np.var(errors, axis=0).sum() / np.var(values, axis=0).sum())


@pytest.mark.parametrize(("spacings", "low", "high"), [(20.0, 0, 0.001), (1.0, 0.07, 0.1), (0.01, 0.9, 100)])
def test_noise_of_rounding_is_small_where_the_draws_are_many_spacings_apart(
    spacings: float, low: float, high: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 1.2 + 0.6 * torch.rand(4000, generator=generator)  # bfloat16 numbers in [1, 2) are 1/128 apart
    draws = mean + spacings / 128 * torch.randn(8, 4000, generator=generator)
    if spacings > 1:
        draws = draws.clamp(1, 2)
    spread = Spread("bfloat16")
    for draw in draws:
        spread.add({"random": draw, "fixed": mean})
    assert spread.noise.keys() == {"random"}
    assert spread.noise["random"] == pytest.approx(noise_by_definition(draws), rel=1e-3)
    assert low <= spread.noise["random"] <= high
    assert spread.report()["lost_tensors"] == len(spread.lost) == (spacings < 1)


def test_draws_that_round_to_the_same_numbers_have_noise_one() -> None:
    spread = Spread("bfloat16")
    for offset in (-1e-4, 0.0, 1e-4):
        spread.add({"weight": torch.full((3, 3), 1 + offset)})
    assert spread.noise == {"weight": pytest.approx(1)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_posterior_too_narrow_for_bfloat16_is_warned_of(
    tmp_path: Path, dtype: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = bayesian(prior_std=1e-5, inducing_std=1e-5)
    record = export_samples(model, tmp_path / "out", num_samples=3, dtype=dtype)
    assert record["spread"]["lost_tensors"] == record["spread"]["random_tensors"] == 24
    assert len(record["warnings"]) == 1 and "the spread of 24 of 24 random tensors is lost" in caplog.text
    assert json.loads((tmp_path / "out" / RECORD).read_text())["warnings"] == record["warnings"]


def test_merging_adds_in_float32_and_rounds_once(tmp_path: Path) -> None:
    exact, rounded = (bayesian() for _ in range(2))
    exact.base_model.model.to(torch.bfloat16)
    rounded.base_model.model.to(torch.bfloat16)
    export_merged(exact, tmp_path / "exact")
    export_merged(rounded, tmp_path / "rounded", dtype="bfloat16")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("exact", "rounded"))
    assert same({name: value.bfloat16() for name, value in one.items()}, other)
    assert json.loads((tmp_path / "rounded" / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_update_smaller_than_the_spacing_of_the_weights_is_warned_of(tmp_path: Path) -> None:
    assert export_merged(bayesian(), tmp_path / "out", dtype="bfloat16")["warnings"] == []
    model = bayesian(lora_alpha=0.001)
    record = export_merged(model, tmp_path / "out", dtype="bfloat16")
    assert "merged update of 12 of 12 layers is lost" in record["warnings"][0]
    assert export_merged(bayesian(lora_alpha=0.001), tmp_path / "out")["warnings"] == []
    weight, update = torch.ones(2, 2), torch.full((2, 2), 1e-4)
    assert relative_error(weight, update, "bfloat16") == 1 and relative_error(weight, 0 * update, "bfloat16") == 0


# --- the folder ---------------------------------------------------------------------------------------------------


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    model = bayesian()
    for call in (export_mean, export_samples, export_merged):
        with pytest.raises(FileExistsError, match="name another folder"):
            call(model, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_export_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = bayesian(), tmp_path / "out"
    out.mkdir()
    export_samples(model, out, num_samples=3)
    export_samples(model, out, num_samples=2)
    assert sorted(path.name for path in out.iterdir()) == ["draw0", "draw1", RECORD]

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("bayeslora.adapters.lora_file.save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export_mean(model, out)
    assert sorted(path.name for path in out.iterdir()) == ["draw0", "draw1", RECORD]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- runs and the command -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run folders by method, trained for two steps."""
    root = tmp_path_factory.mktemp("runs")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    rows = [{"question": f"The sun is ({n})", "choices": ["a star", "iron"], "label": n % 2} for n in range(8)]
    for split in ("train", "dev"):
        path = root / "data" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def run(method: str, **options: Any) -> Path:
        folder = root / method
        if folder.is_dir():
            return folder
        config = {
            "model": {"name": str(root / "base"), "device": "cpu"},
            "task": {"name": str(root / "data")},
            "method": {"class_path": method, "init_args": {"r": 2, "last_layers": 2, **options}},
            "train": {"max_steps": 2, "batch_size": 4},
            "seed": 5,
            "num_samples": 2,
            "temperature_scaling": method == "Blob",
        }
        (root / f"{method}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        main(["train", "--config", str(root / f"{method}.yaml"), "--output_dir", str(folder)])
        return folder

    return run


def test_the_command_exports_the_draws_that_predictions_use(
    trained: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = trained("Blob", epsilon=0.5), tmp_path / "out"
    capsys.readouterr()
    main(["export", str(run), "--format", "samples", "--num_samples", "2", "--output_dir", str(out)])
    *folders, following = capsys.readouterr().out.splitlines()
    assert folders == [str(out / "draw0"), str(out / "draw1")]
    assert following.startswith("next     load each by PEFT") and "average their probabilities" in following
    record = json.loads((out / RECORD).read_text())
    main(["export", str(run), "--format", "samples", "--num_samples", "2", "--output_dir", str(out), "--json"])
    assert json.loads(capsys.readouterr().out) == record | {"folders": [str(out / "draw0"), str(out / "draw1")]}
    loaded = load_run(run)
    assert (record["run"], record["method"], record["seed"]) == (str(run), "blob", 5)
    assert record["temperature"] == loaded.temperature != 1
    with bayeslora.sampling(loaded.model, 2, seed=loaded.config.seed):
        expected = logits_of(loaded.model).unflatten(0, (2, -1))
    for number in range(2):
        base = LlamaForCausalLM.from_pretrained(record["base_model"])
        model = PeftModel.from_pretrained(base, str(out / f"draw{number}")).eval()
        assert distance(logits_of(model), expected[number]) < 1e-5


def test_the_command_merges_with_the_tokenizer(
    trained: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = trained("Blob", epsilon=0.5), tmp_path / "out"
    capsys.readouterr()
    main(["export", str(run), "--format", "merged", "--draw", "1", "--seed", "3", "--output_dir", str(out)])
    assert "shards" not in capsys.readouterr().err, "no bar of another library"
    model = load_run(run).model
    with bayeslora.sampling(model, 1, seed=3, first=1):
        expected = logits_of(model)
    merged = LlamaForCausalLM.from_pretrained(out).eval()
    assert distance(logits_of(merged), expected) < 1e-5
    assert AutoTokenizer.from_pretrained(out)("The sun")["input_ids"]
    assert json.loads((out / RECORD).read_text())["draw"] == 1


def test_laplace_exports_its_mean_and_says_why_no_draws(
    trained: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("LaplaceLora")
    assert export_run(run, tmp_path / "mean")["format"] == "mean"
    with pytest.raises(SystemExit):
        main(["export", str(run), "--format", "samples", "--output_dir", str(tmp_path / "out")])
    assert "linearised model" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_options_of_another_format_are_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"num_samples": 3}, "num_samples is for format 'samples'"),
        ({"format": "samples", "draw": 0}, "draw is for format 'merged'"),
        ({"format": "gguf"}, "format must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            export_run(tmp_path / "run", tmp_path / "out", **options)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(FileExistsError):
        export_run(tmp_path / "run", tmp_path / "out")


# --- the example: draws behind a server ---------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_with_vllm.py"
SERVED = {"draw0": {" A": 0.5, " B": 0.3, " C": 0.1}, "draw1": {"A": 0.1, "\u2581B": 0.2, " C": 0.2, "C": 0.4}}
"""Probabilities of next tokens; letters are written as servers write them, and other tokens have the rest."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """URL of an endpoint that answers as vLLM's /v1/completions does, and the requests it has seen."""
    seen: list[dict[str, Any]] = []

    class Completions(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, **body})
            tokens = {text: math.log(probability) for text, probability in SERVED[body["model"]].items()}
            answer = {"choices": [{"text": " A", "logprobs": {"tokens": [" A"], "top_logprobs": [tokens]}}]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Completions) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", seen
        running.shutdown()


@pytest.fixture
def served_export(tmp_path: Path) -> Path:
    export_samples(bayesian(), tmp_path / "served", num_samples=2, details={"temperature": 2.0})
    return tmp_path / "served"


def test_the_example_averages_the_probabilities_of_the_draws(
    served_export: Path, server: tuple[str, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, seen = server
    example = runpy.run_path(str(EXAMPLE))
    answer = example["ask"](served_export, url, "Which?", ["one", "two", "three"])
    # The temperature takes the square root of each draw's probabilities, and " C" goes before "C".
    draws = np.sqrt(np.array([[0.5, 0.3, 0.1], [0.1, 0.2, 0.2]]))
    draws /= draws.sum(axis=1, keepdims=True)
    mean = draws.mean(axis=0)
    own = bayeslora.Predictive(torch.tensor(draws).log().unsqueeze(1))
    assert answer.probabilities == pytest.approx(mean.tolist())
    assert answer.entropy == pytest.approx(-(mean * np.log(mean)).sum()) == pytest.approx(own.entropy.item())
    assert answer.mutual_information == pytest.approx(own.mutual_information.item()) and own.mutual_information > 0.01
    assert sorted(request["model"] for request in seen) == ["draw0", "draw1"]
    assert {request["path"] for request in seen} == {"/v1/completions"}
    item = bayeslora.tasks.Item(id="1", question="Which?", choices=("one", "two", "three"), label=None)
    assert seen[0]["prompt"] == bayeslora.Letter(byte_level_tokenizer()).prompt(item)
    assert (seen[0]["max_tokens"], seen[0]["logprobs"]) == (1, 20)
    example["main"](["ask", str(served_export), "--url", url, "--question", "Which?", "--choices", "one", "two"])
    assert "mutual information" in capsys.readouterr().out


def test_the_example_refuses_a_letter_that_the_server_left_out(
    served_export: Path, server: tuple[str, list[dict[str, Any]]]
) -> None:
    with pytest.raises(ValueError, match="letter D is not among the"):
        runpy.run_path(str(EXAMPLE))["ask"](served_export, server[0], "Which?", ["one", "two", "three", "four"])


def test_the_example_prints_the_command_that_serves_the_draws(served_export: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-S", str(EXAMPLE), "command", str(served_export)], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    words = shlex.split(result.stdout)
    assert words[:2] == ["vllm", "serve"] and "--enable-lora" in words
    assert words[words.index("--max-lora-rank") + 1] == "8" and words[words.index("--max-loras") + 1] == "2"
    modules = dict(word.split("=") for word in words[words.index("--lora-modules") + 1 :])
    assert modules == {name: str(served_export / name) for name in ("draw0", "draw1")}


def test_what_has_no_low_rank_update_is_no_lora_file(tmp_path: Path) -> None:
    model = FullFineTuning(last_layers=1).adapt(tiny_llama(), "causal_lm")
    with pytest.raises(ValueError, match="format 'merged'"):
        export_mean(model, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
    export_merged(model, tmp_path / "merged")
    ids = torch.arange(6).unsqueeze(0)
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(merged(ids).logits, model(ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "format", "fits"),
    [
        ("Blob", {"epsilon": 0.5}, "samples", True),
        ("Blob", {"epsilon": 0.5}, "mean", False),
        ("LaplaceLora", {}, "mean", False),
        ("Lora", {}, "mean", True),
    ],
)
def test_a_temperature_is_said_to_be_of_what_it_was_fitted_to(trained, tmp_path, caplog, method, options, format, fits):
    run = Path(shutil.copytree(trained(method, **options), tmp_path / "run"))
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"temperature": 1.5}))
    export_run(run, tmp_path / "out", format=format)
    said = [text for text in caplog.messages if "temperature 1.5" in text]
    assert len(said) == 1 and ("do so yourself" in said[0]) == fits == ("whole posterior" not in said[0])
