"""Merging into base models that share weights: nothing that is not adapted changes, and a saved model is the same."""

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoConfig,
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import bayeslora
from bayeslora.adapters.merging import merged
from bayeslora.deploy.export import export_mean, export_merged, export_run, export_samples
from bayeslora.methods.full_fine_tuning import FullFineTuning
from bayeslora.runs import train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.loading import merge_adapters
from bayeslora.system.files import write_json
from conftest import (
    VOCABULARY,
    byte_level_tokenizer,
    config_for,
    distance,
    logits_of,
    perturb,
    seeded,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tokens,
)


def tied_llama() -> PreTrainedModel:
    return tiny_llama(tie_word_embeddings=True)


def tiny_bart() -> PreTrainedModel:
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _SIDE.items()}
    with seeded(0):
        return BartForConditionalGeneration(
            BartConfig(vocab_size=VOCABULARY, d_model=32, max_position_embeddings=64, init_std=0.2, **sizes)
        ).eval()


_SIDE = {"layers": 1, "attention_heads": 4, "ffn_dim": 48}


def tiny_t5() -> PreTrainedModel:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    with seeded(0):
        return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes)).eval()


def adapted(base: PreTrainedModel, **options: Any) -> PeftModel:
    with seeded(3):
        return perturb(get_peft_model(base, LoraConfig(r=4, **options))).eval()  # type: ignore[return-value]


def outputs(model: Any) -> Tensor:
    decoder = {"decoder_input_ids": tokens()} if model.config.is_encoder_decoder else {}
    return logits_of(model, **decoder)


BASES: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "llama": (tied_llama, "q_proj"),
    "gpt2": (tiny_gpt2, "c_attn"),
    "bart": (tiny_bart, "q_proj"),
    "t5": (tiny_t5, "q"),
}


@pytest.mark.parametrize(
    "options",
    [
        {"targets": ["lm_head"]},
        {"targets": ["embed_tokens", "wte"]},
        {"targets": [], "modules_to_save": ["lm_head"]},
        {"targets": [], "modules_to_save": ["shared"]},
    ],
    ids=["head adapted", "embedding adapted", "head saved", "embedding saved"],
)
@pytest.mark.parametrize("name", BASES)
def test_a_merged_and_saved_model_is_the_adapted_one(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    build, target = BASES[name]
    saved = options.get("modules_to_save")
    base = build()
    if not any(module.endswith(tuple(options["targets"] or saved)) for module, _ in base.named_modules()):
        pytest.skip("no such module")
    model = adapted(
        base, target_modules=[target, *options["targets"]], modules_to_save=saved, fan_in_fan_out=name == "gpt2"
    )
    before = outputs(model)
    result: Any = merged(model).eval()
    assert distance(outputs(result), before) < 1e-4
    result.save_pretrained(tmp_path)
    assert distance(outputs(type(result).from_pretrained(tmp_path).eval()), before) < 1e-4
    assert distance(outputs(build()), before) > 1e-2


def tied_posterior() -> PeftModel:
    with seeded(3):
        model = get_peft_model(tied_llama(), config_for(target_modules=["q_proj", "lm_head"]))
    return perturb(model).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("what", ["mean", "draw"])
def test_the_users_own_merge_unties(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tied_posterior()
    draw = bayeslora.sampling(model, 1, seed=2) if what == "draw" else nullcontext()
    with draw, caplog.at_level(logging.WARNING, "bayeslora"):
        before = logits_of(model)
        merged_model: Any = model.merge_and_unload().eval()
    assert "lm_head shares its weight" in caplog.text
    assert distance(logits_of(merged_model), before) < 1e-4
    merged_model.save_pretrained(tmp_path)
    assert distance(logits_of(type(merged_model).from_pretrained(tmp_path).eval()), before) < 1e-4


def test_merging_in_place_unties_and_can_be_undone() -> None:
    model, base = tied_posterior(), logits_of(tied_llama())
    before = logits_of(model)
    model.merge_adapter()
    assert distance(logits_of(model), before) < 1e-4
    model.unmerge_adapter()
    assert distance(logits_of(model), before) < 1e-4
    with model.disable_adapter():
        assert distance(logits_of(model), base) < 1e-4


def test_a_tied_base_stays_tied_where_nothing_tied_is_adapted() -> None:
    with seeded(3):
        model = get_peft_model(tied_llama(), config_for())
    result: Any = perturb(model).eval().merge_and_unload()  # type: ignore[operator]
    assert result.lm_head.weight is result.model.embed_tokens.weight
    assert result.config.tie_word_embeddings


def test_unloading_alone_unties_nothing() -> None:
    result: Any = tied_posterior().unload()
    assert result.lm_head.weight is result.model.embed_tokens.weight
    assert distance(logits_of(result), logits_of(tied_llama())) == 0


def test_an_inactive_adapter_unties_nothing() -> None:
    model = tied_posterior()
    model.add_adapter("other", config_for(target_modules=["v_proj"]))
    model.set_adapter("other")
    model.merge_adapter()
    assert model.get_base_model().config.tie_word_embeddings


def test_exports_and_stacked_runs(tmp_path: Path) -> None:
    model = tied_posterior()
    before = logits_of(model)
    model.save_pretrained(tmp_path / "adapter")
    stacked = merge_adapters(tied_llama(), [tmp_path])
    assert distance(logits_of(stacked.eval()), before) < 1e-4
    for record in (
        export_mean(model, tmp_path / "mean"),
        export_samples(model, tmp_path / "samples", num_samples=1),
    ):
        assert any("lm_head shares its weight" in warning for warning in record["warnings"])
    export_merged(model, tmp_path / "merged")
    assert distance(logits_of(type(tied_llama()).from_pretrained(tmp_path / "merged").eval()), before) < 1e-4


CHOICES = ["billing", "shipping", "technical"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a classification head, trained for one step."""
    root = tmp_path_factory.mktemp("classifier")
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer)).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    rows = [{"question": f"the parcel {n}", "label": CHOICES[n % 3]} for n in range(9)]
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = RunConfig(
        model=ModelConfig(name=str(root / "base"), device="cpu"),
        task=TaskConfig(name=str(root / "data.jsonl"), scoring="classification", choices=CHOICES),
        train=TrainConfig(max_steps=1),
        num_samples=1,
    )
    train(config, root / "run")
    return root / "run"


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "older run"])
def test_a_merged_classifier_knows_the_names_of_its_classes(classifier: Path, recorded: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(classifier, run)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["classes"] == CHOICES
    if not recorded:
        write_json(run / "metrics.json", {name: value for name, value in metrics.items() if name != "classes"})
    record = export_run(run, tmp_path / "out", format="merged")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == dict(enumerate(CHOICES))
    assert config.label2id == {"billing": 0, "shipping": 1, "technical": 2}
    assert record["warnings"] == []


def test_names_for_another_number_of_classes_are_not_written(tmp_path: Path) -> None:
    model = adapted(tiny_bert(), target_modules=["query"], task_type="SEQ_CLS")
    record = export_merged(model, tmp_path / "out", classes=["yes", "no"])
    assert "the head has 3 classes" in record["warnings"][0]
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_a_quiet_export_where_nothing_is_shared(tmp_path: Path) -> None:
    with seeded(3), torch.no_grad():
        model = get_peft_model(tied_llama(), config_for())
    assert export_mean(perturb(model).eval(), tmp_path / "mean")["warnings"] == []  # type: ignore[arg-type]


def test_full_fine_tuning_refuses_a_start_that_unties(tmp_path: Path) -> None:
    """It trains a tied weight as one, and the start has two."""
    adapted(tied_llama(), target_modules=["q_proj", "lm_head"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="shares its weight with, and full fine-tuning trains them as one"):
        FullFineTuning(init_from=str(tmp_path)).adapt(tied_llama(), "causal_lm")
