"""An adapter that is not whole is refused wherever one is opened, with the name of the file; no NaN is a prediction."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bayeslora import from_lora
from bayeslora.adapters.starts import open_adapter
from bayeslora.experiments.intruder_dimensions.loading import load_adapter
from bayeslora.methods import BayesianLora, Lora
from bayeslora.methods.ensemble import DeepEnsemble
from bayeslora.methods.full_fine_tuning import FullFineTuning
from bayeslora.methods.laplace import LaplaceLora
from bayeslora.methods.sd_lora import SdLora
from bayeslora.prediction.predictive import Predictive
from bayeslora.runs import load_run, predict_file, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.loading import merge_adapters
from bayeslora.runs.prediction import write_rows
from bayeslora.runs.state import load_state
from conftest import byte_level_tokenizer, tiny_llama

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, data, and a run of each of two methods."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    items = [{"id": str(n), "question": f"{n}?", "choices": ["a", "b"], "label": n % 2} for n in range(20)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for name, method in (
        ("run", BayesianLora(r=2, last_layers=1, modules_to_save=["norm"])),
        ("lora", Lora(r=2, last_layers=1, modules_to_save=["norm"])),
        ("laplace", LaplaceLora(r=2, last_layers=1)),
    ):
        config = RunConfig(
            model=ModelConfig(name=str(folder / "base"), device="cpu"),
            task=TaskConfig(name=str(folder / "items.jsonl")),
            method=method,
            train=TrainConfig(max_steps=1, batch_size=2),
            num_samples=2,
            batch_size=32,
        )
        train(config, folder / name)
    return folder


@pytest.fixture(scope="module")
def vocabulary() -> int:
    return len(byte_level_tokenizer())


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world / "run", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        path = run / "adapter" / TENSORS
        found = load_file(path)
        change(found)
        save_file(found, path)

    return damage


def config(**fields: Any) -> Callable[[Path], None]:
    return content("adapter/" + CONFIG, lambda found: found | fields)


def metrics(**fields: Any) -> Callable[[Path], None]:
    return content("metrics.json", lambda found: found | fields)


def content(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / name).write_text(json.dumps(change(json.loads((run / name).read_text()))))

    return damage


def first(found: dict[str, torch.Tensor], part: str = "") -> str:
    return next(name for name in sorted(found) if part in name)


def cut_lines(name: str, keep: int) -> Callable[[Path], None]:
    return lambda run: (run / name).write_text("".join((run / name).read_text().splitlines(True)[:keep])) and None


def cut(name: str, keep: int) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:keep]) and None


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no tensors": (tensors(dict.clear), r"it lacks 'base_model\.model\.model\.layers\.0\.input_layernorm\.weight'"),
    "a missing tensor": (tensors(lambda found: found.pop(first(found, "lora_B"))), f"{TENSORS} lacks 1 of"),
    "a missing saved module": (tensors(lambda found: found.pop(first(found, "norm.weight"))), r"norm\.weight"),
    "a renamed tensor": (
        tensors(lambda found: found.update(other=found.pop(first(found)))),
        "it lacks|it has other instead",
    ),
    "another shape": (tensors(lambda found: found.update({first(found): torch.zeros(3, 3)})), "size mismatch"),
    "NaN": (tensors(lambda found: found[first(found)].view(-1)[:3].fill_(torch.nan)), f"{TENSORS}: 3 of .* NaN"),
    "infinite": (tensors(lambda found: found[first(found)].fill_(torch.inf)), f"{TENSORS}: .* infinite"),
    "a cut file": (cut(f"adapter/{TENSORS}", 5), f"{TENSORS} is cut or damaged"),
    "a cut end": (cut(f"adapter/{TENSORS}", 3000), f"{TENSORS} is cut or damaged"),
    "a pickle": (
        lambda run: (run / "adapter" / TENSORS).rename(run / "adapter" / "adapter_model.bin") and None,
        "is missing",
    ),
    "a foreign type": (config(peft_type="IA3"), f"{CONFIG}: peft_type must be LORA"),
    "a list of types": (config(peft_type=["LORA"]), f"{CONFIG}: peft_type must be LORA"),
    "no type": (content(f"adapter/{CONFIG}", lambda found: {"r": 2}), f"{CONFIG}: peft_type must be LORA"),
    "another rank": (config(r=3), "size mismatch"),
    "rank 0": (config(r=0), f"{CONFIG}: r must be at least 1"),
    "alpha NaN": (config(lora_alpha=float("nan")), f"{CONFIG}: lora_alpha must be a finite number"),
    "alpha null": (config(lora_alpha=None), f"{CONFIG}: lora_alpha must not be null"),
    "alpha huge": (config(lora_alpha=1e300), f"{CONFIG}: lora_alpha must be above 0 and at most"),
    "dropout": (config(lora_dropout=7), f"{CONFIG}: lora_dropout"),
    "prior NaN": (config(prior_std=float("nan")), f"{CONFIG}: prior_std must be a finite number"),
    "prior null": (config(prior_std=None), f"{CONFIG}: prior_std must not be null"),
    "posterior": (config(posterior="round"), f"{CONFIG}: posterior must be one of"),
    "posterior's options": (config(posterior_options={"members": "x"}), f"{CONFIG}: posterior_options"),
    "rank pattern": (config(rank_pattern={"q_proj": "x"}), f"{CONFIG}: rank_pattern.q_proj must be a whole number"),
    "rank pattern 0": (config(rank_pattern={"q_proj": 0}), f"{CONFIG}: rank_pattern.q_proj must be at least 1"),
    "a list of patterns": (config(alpha_pattern=[1]), f"{CONFIG}: alpha_pattern must be a mapping"),
    "no expression": (config(rank_pattern={"(": 2}), f"{CONFIG}: .* is no regular expression"),
    "targets": (config(target_modules=3), f"{CONFIG}: target_modules must be a list or a text"),
    "other targets": (config(target_modules=["nothing"]), "No modules were targeted"),
    "layers": (config(layers_to_transform=["top"]), rf"{CONFIG}: layers_to_transform\[0\]"),
    "a module to import": (
        config(megatron_config={}, megatron_core="antigravity"),
        f"{CONFIG}: megatron_config must be null",
    ),
    "no fingerprint": (config(base_fingerprint={}), "adapter"),
    "a config that is none": (
        content(f"adapter/{CONFIG}", lambda found: []),
        rf"{CONFIG} must hold a JSON object.*, got \[\]",
    ),
    "modules of no model": (
        config(target_modules=["no_such"]),
        f"does not fit its {CONFIG} or the base model .*target_modules",
    ),
    "a cut config": (cut(f"adapter/{CONFIG}", 20), f"{CONFIG} is no valid JSON"),
}
OF_A_RUN: dict[str, tuple[Callable[[Path], None], str]] = {
    "another type": (config(peft_type="LORA"), f"{CONFIG}: peft_type is .*LORA, but config.yaml names the method"),
    "temperature NaN": (metrics(temperature=float("nan")), r"metrics\.json: temperature must be a finite number"),
    "temperature 0": (metrics(temperature=0), r"metrics\.json: temperature must be above 0"),
    "temperature -1": (metrics(temperature=-1), r"metrics\.json: temperature must be above 0"),
    "temperature null": (metrics(temperature=None), r"metrics\.json: temperature must not be null"),
    "metrics []": (content("metrics.json", lambda found: []), r"metrics\.json must hold a JSON object.*, got \[\]"),
    "metrics null": (content("metrics.json", lambda found: None), r"metrics\.json must hold a JSON object.*, got None"),
    "empty metrics": (cut("metrics.json", 0), r"metrics\.json is no valid JSON \(Expecting value"),
    "a run config cut between options": (cut_lines("config.yaml", -2), r"config\.yaml is cut: its last line"),
    "a broken run config": (lambda run: (run / "config.yaml").write_text("model: [") and None, r"config\.yaml: "),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_adapter_is_refused(damage: Callable[[Path], None], message: str, run: Path, vocabulary: int) -> None:
    damage(run)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_adapter(tiny_llama(vocab_size=vocabulary, max_position_embeddings=256), run / "adapter")
    assert str(run) in str(error.value)


@pytest.mark.parametrize(("damage", "message"), OF_A_RUN.values(), ids=OF_A_RUN)
def test_a_damaged_run_is_refused(damage: Callable[[Path], None], message: str, run: Path) -> None:
    damage(run)
    with pytest.raises(ValueError, match=message) as error:
        load_run(run)
    assert str(run) in str(error.value)


def test_what_is_whole_loads(world: Path, run: Path) -> None:
    load_run(run)
    metrics(temperature=2.5)(run)
    assert load_run(run).temperature == 2.5
    config(lora_dropout=0.3, rank_pattern={"q_proj": 2}, note="of another program")(run)
    load_run(run)
    load_run(world / "laplace")


OPENED: dict[str, Callable[[torch.nn.Module, Path], Any]] = {
    "open": open_adapter,
    "from_lora": from_lora,
    "init_from": lambda model, path: Lora(init_from=str(path)).adapt(model, "causal_lm"),
    "init_from, random": lambda model, path: BayesianLora(init_from=str(path)).adapt(model, "causal_lm"),
    "init_from, ensemble": lambda model, path: DeepEnsemble(init_from=str(path)).adapt(model, "causal_lm"),
    "init_from, full": lambda model, path: FullFineTuning(init_from=str(path)).adapt(model, "causal_lm"),
    "init_from, directions": lambda model, path: SdLora(init_from=str(path)).adapt(model, "causal_lm"),
    "merge": lambda model, path: merge_adapters(model, [path]),
    "diagnose": lambda model, path: load_adapter(path),
}


@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
def test_wherever_an_adapter_is_opened(
    opened: Callable[[torch.nn.Module, Path], Any], world: Path, tmp_path: Path, vocabulary: int
) -> None:
    for name in ("a missing tensor", "a missing saved module", "NaN", "a cut file", "alpha NaN", "a module to import"):
        damage, message = DAMAGES[name]
        folder = tmp_path / name.replace(" ", "_")
        shutil.copytree(world / "lora" / "adapter", folder / "adapter")
        damage(folder)
        with pytest.raises(ValueError, match=f"{message}|lora_B"):
            opened(tiny_llama(vocab_size=vocabulary, max_position_embeddings=256), folder / "adapter")


def test_a_damaged_state_is_refused(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "laplace", tmp_path / "run")
    path = tmp_path / "run" / "posterior.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    with pytest.raises(ValueError, match=r"posterior\.safetensors is cut or damaged"):
        load_run(tmp_path / "run")
    path.write_bytes(whole)
    found = load_file(path)
    next(iter(found.values())).fill_(torch.nan)
    save_file(found, path)
    with pytest.raises(ValueError, match=r"posterior\.safetensors: .* NaN"):
        load_state(tmp_path / "run")


def test_no_nan_is_a_prediction(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.jsonl"
    broken = Predictive(torch.full((2, 20, 2), torch.nan))
    monkeypatch.setattr(BayesianLora, "predict", lambda *arguments, **options: broken)
    with pytest.raises(FloatingPointError, match="20 of 20 predictions are not finite, such as that of item '0'"):
        predict_file(world / "run", world / "items.jsonl", out)
    assert not out.exists()
    with pytest.raises(ValueError, match=r"record 1 of .*out\.jsonl"):
        write_rows(out, [{"a": 1.0}, {"a": float("nan")}])
    assert not out.exists()
