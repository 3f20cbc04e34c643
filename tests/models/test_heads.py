"""Heads of classifiers: what no checkpoint holds is trained and saved whole, and never drawn at a load."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import Tensor

import bayeslora
from bayeslora.adapters.files import require_supplied
from bayeslora.experiments.sequences.chain import load_chain
from bayeslora.methods import BayesianLora, Lora, Method, trainable_parameters
from bayeslora.methods.full_fine_tuning import FullFineTuning
from bayeslora.methods.mc_dropout import MonteCarloDropout
from bayeslora.methods.sd_lora import SdLora
from bayeslora.models import load_base_model
from bayeslora.models.heads import new_modules, new_weights
from bayeslora.models.missing import weights_to_draw
from bayeslora.models.positions import readable_tokens
from bayeslora.planning import base_on_meta
from bayeslora.planning.memory import Weights
from bayeslora.runs import load_run, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.runs.loading import head_width, load_adapted
from conftest import byte_level_tokenizer, distance, logits_of, perturb, seeded, tokens

_END = 2
_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
_D_MODEL: dict[str, Any] = {"vocab_size": 320, "d_model": 16, "pad_token_id": 0, "eos_token_id": _END}
_BART = {
    **{f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")},
    "max_position_embeddings": 40,
    "init_std": 0.2,
    "bos_token_id": 1,
    "decoder_start_token_id": _END,
}
_T5 = {"d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
_DISTIL = {"vocab_size": 320, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40}
_MARKS = {"bos_token_id": 1, "eos_token_id": _END, "cls_token_id": 1, "sep_token_id": _END}
_XLNET = {"n_layer": 2, "n_head": 2, "d_inner": 24, "initializer_range": 0.2, "bos_token_id": 1}

CHECKPOINTS: dict[str, tuple[str, str, dict[str, Any], list[str], list[str]]] = {
    "bert": ("BertForMaskedLM", "BertConfig", _SIZES, ["query", "value"], ["bert.pooler", "classifier"]),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _SIZES, ["query", "value"], ["classifier"]),
    "deberta": (
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        _SIZES,
        ["query_proj", "value_proj"],
        ["classifier", "pooler"],
    ),
    "modernbert": ("ModernBertModel", "ModernBertConfig", {**_SIZES, **_MARKS}, ["Wqkv"], ["classifier", "head"]),
    "modernbert_mlm": ("ModernBertForMaskedLM", "ModernBertConfig", {**_SIZES, **_MARKS}, ["Wqkv"], ["classifier"]),
    "albert": (
        "AlbertForMaskedLM",
        "AlbertConfig",
        {**_SIZES, "embedding_size": 16},
        ["query", "value"],
        ["albert.pooler", "classifier"],
    ),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {**_DISTIL, "pad_token_id": 0},
        ["q_lin", "v_lin"],
        ["classifier", "pre_classifier"],
    ),
    "electra": (
        "ElectraForMaskedLM",
        "ElectraConfig",
        {**_SIZES, "embedding_size": 16},
        ["query", "value"],
        ["classifier"],
    ),
    "mpnet": ("MPNetForMaskedLM", "MPNetConfig", _SIZES, ["attn.q", "attn.v"], ["classifier"]),
    "xlnet": (
        "XLNetLMHeadModel",
        "XLNetConfig",
        {**_D_MODEL, **_XLNET},
        ["layer_1"],
        ["logits_proj", "sequence_summary"],
    ),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        {**_D_MODEL, **_BART},
        ["q_proj", "v_proj"],
        ["classification_head"],
    ),
    "t5": ("T5ForConditionalGeneration", "T5Config", {**_D_MODEL, **_T5}, ["q", "v"], ["classification_head"]),
    "llama": (
        "LlamaForCausalLM",
        "LlamaConfig",
        {**_SIZES, "num_key_value_heads": 1},
        ["q_proj", "v_proj"],
        ["score"],
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {**_SIZES, "n_inner": 24, "bos_token_id": 1, "eos_token_id": _END},
        ["c_attn"],
        ["score"],
    ),
}
"""By name: class and config of a checkpoint without a classification head, what to adapt, and what the head lacks."""

METHODS: dict[str, Callable[..., Method]] = {
    "bayesian_lora": lambda **options: BayesianLora(prior_std=0.3, **options),
    "lora": Lora,
    "mc_dropout": MonteCarloDropout,
    "sd_lora": SdLora,
    "full_fine_tuning": FullFineTuning,
}


def ending_tokenizer() -> Any:
    """Ends each text, as BART and T5 need it."""
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", _END)]
    )
    return tokenizer


def written(folder: Path, name: str, **changes: Any) -> Path:
    kind, config, fields, _, _ = CHECKPOINTS[name]
    with seeded(0):
        model = getattr(transformers, kind)(getattr(transformers, config)(**{**fields, **changes}))
    model.save_pretrained(folder)
    ending_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: written(tmp_path_factory.mktemp(name), name) for name in CHECKPOINTS}


def loaded(folder: Path, seed: int = 1, **options: Any) -> Any:
    fields = {"num_labels": 3, "dtype": "float32", **options}
    with seeded(seed):
        return load_base_model(str(folder), kind="sequence_classification", device="cpu", **fields)[0]


def adapted(method: Method, base: Any) -> PeftModel:
    with seeded(3):
        model = method.adapt(base, "sequence_classification")
    return perturb(model).eval()  # type: ignore[return-value]


def classes_of(model: Any) -> Tensor:
    ids = torch.cat([tokens(), torch.full((3, 1), _END)], dim=1)
    return logits_of(model, ids)


def draws_of(model: Any) -> Tensor:
    draws = []
    for first in range(2):
        with bayeslora.sampling(model, 1, seed=3, first=first):
            draws.append(classes_of(model))
    return torch.stack(draws)


def saved_names(adapter: Path) -> set[str]:
    """Weights of the adapter file that belong to no pair of LoRA, by their names in the base model."""
    keys = load_file(adapter / "adapter_model.safetensors")
    return {key.removeprefix("base_model.model.") for key in keys if ".lora_" not in key}


# --- planned ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_plan_counts_what_is_new_as_loading_draws_it(name: str, checkpoints: dict[str, Path]) -> None:
    model = loaded(checkpoints[name], dtype="bfloat16")
    new = weights_to_draw(str(checkpoints[name]), 3)
    assert new == new_weights(model)
    base = base_on_meta(model.config, "sequence_classification", "bfloat16", 3, new=new)
    method = Lora(target_modules=CHECKPOINTS[name][3])
    planned, trained = (method.adapt(each, "sequence_classification") for each in (base, model))
    assert trainable_parameters(planned) == trainable_parameters(trained)
    assert Weights.of(planned) == Weights.of(trained)


def test_without_the_checkpoint_a_plan_takes_the_head_for_new(checkpoints: dict[str, Path]) -> None:
    assert weights_to_draw("somebody/something", 3) is None
    base = base_on_meta(loaded(checkpoints["deberta"]).config, "sequence_classification", "float32", 3)
    assert new_modules(base) == ["pooler", "classifier"]


# --- saved, and loaded on a fresh base under another seed ------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_new_head_comes_back_whole_under_another_seed(
    name: str, method: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    targets = None if method == "full_fine_tuning" else CHECKPOINTS[name][3]
    base = loaded(checkpoints[name], seed=1)
    new = set(new_weights(base))
    assert {weight.rpartition(".")[0] for weight in new} and new
    model = adapted(METHODS[method](target_modules=targets), base)
    trained = {
        key.replace(".modules_to_save.default", "") for key, each in model.named_parameters() if each.requires_grad
    }
    assert {f"base_model.model.{weight}" for weight in new} <= trained
    model.save_pretrained(tmp_path)
    assert new <= saved_names(tmp_path)
    fresh = loaded(checkpoints[name], seed=2)
    require_supplied(fresh, [tmp_path])
    again = PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert head_width(tmp_path) == 3
    assert distance(classes_of(again), classes_of(model)) == 0
    assert distance(draws_of(again), draws_of(model)) == 0
    assert distance(classes_of(loaded(checkpoints[name], seed=2)), classes_of(loaded(checkpoints[name], seed=1))) > 0


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_is_new_is_found_and_no_more_is_saved(name: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = adapted(Lora(r=2, target_modules=CHECKPOINTS[name][3]), loaded(checkpoints[name]))
    model.save_pretrained(tmp_path)
    modules = CHECKPOINTS[name][4]
    saved = saved_names(tmp_path)
    assert all(any(weight.startswith(f"{module}.") for module in modules) for weight in saved)
    assert all(any(weight.startswith(f"{module}.") for weight in saved) for module in modules)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task_type", ["CAUSAL_LM", None, "SEQ_CLS"])
def test_a_head_that_the_first_adapter_lacks_is_new(
    method: str, task_type: str | None, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    folder, first = checkpoints["llama"], tmp_path / "first"
    base = loaded(folder) if task_type == "SEQ_CLS" else load_base_model(str(folder), device="cpu")[0]
    options: Any = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    get_peft_model(base, LoraConfig(task_type=task_type, **options)).save_pretrained(first)  # type: ignore[arg-type]
    model = adapted(METHODS[method](init_from=str(first)), loaded(folder, seed=4))
    model.save_pretrained(tmp_path / "second")
    assert "score.weight" in saved_names(tmp_path / "second")
    fresh = loaded(folder, seed=5)
    require_supplied(fresh, [tmp_path / "second"])
    again = PeftModel.from_pretrained(fresh, tmp_path / "second").eval()
    assert distance(classes_of(again), classes_of(model)) == 0


def test_the_next_task_of_sd_lora_takes_the_head_with_it(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    first = adapted(SdLora(r=2, target_modules=["query"]), loaded(checkpoints["bert"], seed=1))
    first.save_pretrained(tmp_path / "first")
    second = SdLora(init_from=str(tmp_path / "first"), old_magnitudes="keep").adapt(
        loaded(checkpoints["bert"], seed=2), "sequence_classification"
    )
    second.save_pretrained(tmp_path / "second")
    old, new = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    for name in new_weights(loaded(checkpoints["bert"])):
        torch.testing.assert_close(new[f"base_model.model.{name}"], old[f"base_model.model.{name}"], rtol=0, atol=0)


# --- a load draws nothing --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    classes = ("tea", "rain")
    path.write_text(
        "\n".join(f'{{"question": "of {classes[n % 2]} {n}", "label": "{classes[n % 2]}"}}' for n in range(24))
    )
    return path


def config_of(folder: Path, items: Path, targets: list[str], merge: list[str] | None = None) -> RunConfig:
    return RunConfig(
        model=ModelConfig(name=str(folder), dtype="float32", device="cpu", merge=merge or []),
        task=TaskConfig(name=str(items), scoring="classification", choices=["tea", "rain"]),
        method=BayesianLora(r=2, target_modules=targets, prior_std=0.3),
        train=TrainConfig(max_steps=2, batch_size=4, arguments={"disable_tqdm": True}),
        num_samples=3,
    )


def probabilities(run: Any, test: Any, num_samples: int) -> Tensor:
    return run.predict(test, num_samples, progress=False).predictive.probabilities


@pytest.mark.parametrize("name", ["bert", "xlnet", "bart"])
def test_a_run_predicts_the_same_from_its_folder(
    name: str, checkpoints: dict[str, Path], items: Path, tmp_path: Path
) -> None:
    run = train(config_of(checkpoints[name], items, CHECKPOINTS[name][3]), tmp_path / "run")
    test: Any = run.splits.test  # type: ignore[attr-defined]
    with seeded(77):
        again = load_run(tmp_path / "run")
    for samples in (0, 3):
        assert distance(probabilities(again, test, samples), probabilities(run, test, samples)) < 1e-6


def drop_from(adapter: Path, part: str) -> None:
    """Have an adapter file be one of before, without the weights of `part`."""
    file, described = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    save_file({key: value for key, value in load_file(file).items() if part not in key}, file)
    config = json.loads(described.read_text())
    config["modules_to_save"] = [name for name in config["modules_to_save"] if part not in name]
    described.write_text(json.dumps(config))


def test_a_run_whose_adapter_lacks_a_part_is_refused_by_its_names(
    checkpoints: dict[str, Path], items: Path, tmp_path: Path
) -> None:
    config = config_of(checkpoints["bert"], items, ["query", "value"])
    train(config, tmp_path / "run")
    drop_from(tmp_path / "run" / "adapter", "pooler")
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense\.bias, bert\.pooler\.dense\.weight.*Train again"):
        load_run(tmp_path / "run")


def test_merged_adapters_supply_weights_too(checkpoints: dict[str, Path], items: Path, tmp_path: Path) -> None:
    folder = checkpoints["bert"]
    train(config_of(folder, items, ["query"]), tmp_path / "first")
    config = config_of(folder, items, ["value"], merge=[str(tmp_path / "first")])
    run = train(config, tmp_path / "second")
    adapter = tmp_path / "second" / "adapter"
    assert "bert.pooler.dense.weight" in saved_names(adapter)
    with seeded(77):
        again = load_run(tmp_path / "second")
    test: Any = run.splits.test  # type: ignore[attr-defined]
    assert distance(probabilities(again, test, 0), probabilities(run, test, 0)) < 1e-6
    drop_from(adapter, "pooler")
    load_adapted(config.model, config.task, adapter)
    drop_from(tmp_path / "first" / "adapter", "pooler")
    with pytest.raises(ValueError, match="pooler"):
        load_adapted(config.model, config.task, adapter)


def test_a_chain_whose_blocks_lack_a_part_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    block = tmp_path / "block0" / "adapter"
    adapted(Lora(r=2, target_modules=["query"]), loaded(checkpoints["bert"])).save_pretrained(block)
    (tmp_path / "chain.json").write_text('{"blocks": [{"folder": "block0"}]}')
    load_chain(loaded(checkpoints["bert"]), tmp_path)
    drop_from(block, "pooler")
    with pytest.raises(ValueError, match=r"bert\.pooler"):
        load_chain(loaded(checkpoints["bert"]), tmp_path)


def test_a_model_loaded_otherwise_and_a_whole_checkpoint_have_nothing_new(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    whole = loaded(checkpoints["bert"])
    whole.save_pretrained(tmp_path)
    ending_tokenizer().save_pretrained(tmp_path)
    assert new_weights(loaded(tmp_path)) == {}
    other = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"])
    assert new_weights(other) == {}
    adapted(Lora(r=2, target_modules=["query"]), loaded(tmp_path)).save_pretrained(tmp_path / "adapter")
    assert saved_names(tmp_path / "adapter") == {"classifier.weight", "classifier.bias"}


# --- a head of another size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "resized"), [("bert", "classifier"), ("roberta", "classifier.out_proj")])
def test_a_head_of_another_size_gives_way_to_a_new_one(
    name: str, resized: str, checkpoints: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded(checkpoints[name], num_labels=2).save_pretrained(tmp_path)
    ending_tokenizer().save_pretrained(tmp_path)
    base = loaded(tmp_path, num_labels=3)
    assert set(new_weights(base)) == {f"{resized}.weight", f"{resized}.bias"}
    with caplog.at_level(logging.INFO, logger="bayeslora"):
        model = adapted(Lora(r=2, target_modules=["query"]), base)
    assert "classifier is new ([2, 16] in the checkpoint, [3, 16] here)" in caplog.text
    assert classes_of(model).shape == (3, 3)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(loaded(tmp_path, seed=9, num_labels=3), tmp_path / "adapter").eval()
    assert distance(classes_of(again), classes_of(model)) == 0


def test_a_backbone_of_another_size_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    written(tmp_path, "bert")
    transformers.BertConfig(**{**_SIZES, "vocab_size": 300}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 1 .*word_embeddings"):
        loaded(tmp_path)


# --- 16 bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16"])
@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name != "xlnet"])  # It runs in float32 alone.
def test_the_head_is_in_float32_on_a_base_of_16_bits(name: str, dtype: str, checkpoints: dict[str, Path]) -> None:
    base = loaded(checkpoints[name], dtype=dtype)
    new = set(new_weights(base))
    assert {each.dtype for key, each in base.named_parameters() if key in new} == {torch.float32}
    assert getattr(torch, dtype) in {each.dtype for each in base.parameters()}
    plain = classes_of(loaded(checkpoints[name]))
    assert classes_of(base).dtype == torch.float32
    assert distance(classes_of(base), plain) < 0.1 * plain.abs().max()
    model = adapted(BayesianLora(r=2, target_modules=CHECKPOINTS[name][3]), base).train()
    ids = torch.cat([tokens(), torch.full((3, 1), _END)], dim=1)
    model(input_ids=ids).logits.sum().backward()
    assert {each.dtype for each in model.parameters() if each.requires_grad} == {torch.float32}


def test_a_small_step_moves_every_weight_of_a_new_head(checkpoints: dict[str, Path]) -> None:
    model = Lora(r=2).adapt(loaded(checkpoints["llama"], dtype="bfloat16"), "sequence_classification")
    head: Any = model.get_submodule("base_model.model.score.modules_to_save.default")
    before = head.weight.detach().clone()
    ids = tokens(rows=6)
    loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits, torch.arange(6) % 3)
    loss.backward()
    torch.optim.AdamW([head.weight], lr=2e-5).step()
    assert (head.weight != before).all()
    assert (head.weight.bfloat16() == before.bfloat16()).float().mean() > 0.5  # What 16 bits would have kept.


# --- encoder-decoder models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_draws_of_an_encoder_decoder_in_one_forward_are_those_one_by_one(
    name: str, checkpoints: dict[str, Path]
) -> None:
    model = adapted(BayesianLora(r=2, target_modules=CHECKPOINTS[name][3], prior_std=0.3), loaded(checkpoints[name]))
    ids = torch.cat([tokens(), torch.full((3, 1), _END)], dim=1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    together = bayeslora.predict(model, batch, num_samples=3, chunk_size=3).samples
    apart = bayeslora.predict(model, batch, num_samples=3, chunk_size=1).samples
    assert distance(together, apart) < 1e-5
    assert together.std(0).max() > 1e-3


def test_draws_of_layers_with_the_tokens_first_come_one_by_one(checkpoints: dict[str, Path]) -> None:
    base = loaded(checkpoints["xlnet"])
    model = adapted(BayesianLora(r=2, target_modules=["layer_1"], prior_std=0.3), base)
    ids = tokens(rows=2, length=6)  # So that the tokens can be divided by the draws.
    found = bayeslora.predict(model, {"input_ids": ids}, num_samples=2, chunk_size=2).samples
    for draw in range(2):
        with torch.no_grad(), bayeslora.sampling(model, 1, seed=0, first=draw):
            expected = model(input_ids=ids).logits.log_softmax(-1)
        assert distance(found[draw], expected) < 1e-6
    with pytest.raises(ValueError, match="tokens there"), bayeslora.sampling(model, 2):
        pass
    classes_of(model)


# --- positions -------------------------------------------------------------------------------------------------------

READABLE = {"bert": 40, "roberta": 39, "mpnet": 38, "bart": 40, "gpt2": 40, "llama": 40, "xlnet": None, "t5": None}


@pytest.mark.parametrize("name", READABLE)
def test_a_text_as_long_as_is_said_can_be_read_and_a_longer_one_cannot(name: str, checkpoints: dict[str, Path]) -> None:
    model = loaded(checkpoints[name])
    assert readable_tokens(model) == READABLE[name]
    longest = READABLE[name] or 60
    ids = torch.full((1, longest), 5)
    ids[:, -1] = _END
    assert logits_of(model, ids).isfinite().all()
    if READABLE[name] and name != "llama":  # Its positions are rotary: longer texts are read, but badly.
        with pytest.raises((IndexError, RuntimeError)):
            logits_of(model, torch.cat([ids[:, :1], ids], dim=1))


@pytest.mark.parametrize(("name", "expected"), [("roberta", 39), ("xlnet", 50)])
def test_long_items_are_cut_to_what_the_model_can_read(
    name: str, expected: int, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(f'{{"question": "{"long text " * 60}{n}", "label": "tea"}}' for n in range(12)))
    config = config_of(checkpoints[name], path, CHECKPOINTS[name][3])
    config.task.max_length = 50
    run = train(config, tmp_path / "run")
    assert run.scoring.max_length == expected
