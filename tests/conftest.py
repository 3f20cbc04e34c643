"""Tiny random models and tokenizers; `from conftest import ...` works in tests and in other processes."""

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bayeslora import BayesianLoraConfig

torch.set_num_threads(1)

VOCABULARY = 96
HIDDEN = 32
LAYERS = 4
POSTERIORS = ("diagonal", "matrix_normal", "full", "ensemble", "flow")
POSTERIOR_OPTIONS: dict[str, dict[str, Any]] = {
    "ensemble": {"members": 3},
    "flow": {"transforms": 2, "hidden": 8},
}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator at `seed` inside, as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


# --- models ------------------------------------------------------------------------------------------------------

_SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    # Far from the usual 0.02, so that what the adapters do shows in the logits.
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def _built(kind: type[PreTrainedModel], config: Any, seed: int) -> PreTrainedModel:
    with seeded(seed):
        return kind(config).eval()


def tiny_llama(seed: int = 0, **changes: Any) -> PreTrainedModel:
    return _built(LlamaForCausalLM, LlamaConfig(**{**_SHARED, "num_key_value_heads": 2, **changes}), seed)


def tiny_gpt2(seed: int = 0, **changes: Any) -> PreTrainedModel:
    fields = {**_SHARED, "n_inner": 48, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **changes}
    fields.pop("intermediate_size")
    return _built(GPT2LMHeadModel, GPT2Config(**fields), seed)


def tiny_gemma(seed: int = 0, **changes: Any) -> PreTrainedModel:
    fields = {**_SHARED, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, **changes}
    return _built(Gemma2ForCausalLM, Gemma2Config(**fields), seed)


def tiny_qwen(seed: int = 0, **changes: Any) -> PreTrainedModel:
    return _built(
        Qwen3ForCausalLM, Qwen3Config(**{**_SHARED, "num_key_value_heads": 2, "head_dim": 8, **changes}), seed
    )


def tiny_bert(seed: int = 0, **changes: Any) -> PreTrainedModel:
    fields = {
        **_SHARED,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 3,
        **changes,
    }
    return _built(BertForSequenceClassification, BertConfig(**fields), seed)


def tiny_llama_classifier(seed: int = 0, **changes: Any) -> PreTrainedModel:
    fields = {**_SHARED, "num_key_value_heads": 2, "num_labels": 3, **changes}
    return _built(LlamaForSequenceClassification, LlamaConfig(**fields), seed)


MODELS: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "gemma": tiny_gemma,
    "qwen": tiny_qwen,
    "bert": tiny_bert,
    "llama_classifier": tiny_llama_classifier,
}
CAUSAL = ("llama", "gpt2", "gemma", "qwen")
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "gemma": ["q_proj", "v_proj", "down_proj"],
    "qwen": ["q_proj", "v_proj", "down_proj"],
    "bert": ["query", "value"],
    "llama_classifier": ["q_proj", "v_proj", "down_proj"],
}


def config_for(name: str = "llama", **options: Any) -> BayesianLoraConfig:
    """A wide prior, so that draws differ visibly."""
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS[name], "prior_std": 0.3}
    if "posterior" in options:
        fields["posterior_options"] = POSTERIOR_OPTIONS.get(options["posterior"], {})
    if name == "gpt2":
        fields["fan_in_fan_out"] = True
    return BayesianLoraConfig(**{**fields, **options})


def perturb(model: nn.Module, seed: int = 1, scale: float = 0.1) -> nn.Module:
    """Move every trainable parameter, as training would: B is no longer zero, the posterior no longer the prior."""
    with seeded(seed), torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter))
    return model


def bayesian(name: str = "llama", seed: int = 0, **options: Any) -> PeftModel:
    """A tiny model with a "trained" adapter, in eval mode."""
    with seeded(seed + 100):
        model = get_peft_model(MODELS[name](seed), config_for(name, **options))
    return perturb(model).eval()  # type: ignore[return-value]


def tokens(rows: int = 3, length: int = 7, seed: int = 5) -> Tensor:
    return torch.randint(4, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model: nn.Module, ids: Tensor | None = None, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens() if ids is None else ids, **options).logits


def distance(one: Tensor, other: Tensor) -> float:
    """Largest difference; refuses shapes that would only broadcast."""
    assert one.shape == other.shape
    return (one - other).abs().max().item()


# --- tokenizers --------------------------------------------------------------------------------------------------

TEXTS = [
    "Question: What do plants need to grow and make food?\nAnswer: sunlight and water",
    "Question: Which of these is a metal?\nA. iron\nB. wood\nC. glass\nD. paper\nE. wool\nAnswer: A",
    "The quick brown fox jumps over the lazy dog. Answer: B C D E",
    "Question: The sun is a star, the moon is a rock. Answer: Yes No True False",
]


def byte_level_tokenizer(vocabulary: int = 320) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2 and Llama 3: a leading space is part of the token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Letters after a space are one token in every tokenizer of this kind, so also here.
    tokenizer.train_from_iterator(TEXTS + [" A B C D E"] * 50, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )


def metaspace_tokenizer(vocabulary: int = 160, *, end: bool = False) -> PreTrainedTokenizerFast:
    """As SentencePiece (Llama 2, Gemma): a word starts with the mark for its space; <s> in front, maybe </s> behind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<pad>", "<s>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS + ["A B C D E"] * 50, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if end else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: [CLS] text [SEP]. Its vocabulary is listed, since training one does not give the same one twice."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    split = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in TEXTS for word, _ in split.pre_tokenize_str(text)})
    characters = sorted({character for word in words for character in word} | set("0123456789"))
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *characters, *(f"##{c}" for c in characters), *words]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=512,
    )


# --- fixtures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> None:
    """Each training ends in a full garbage collection; what outlives a file of tests need not be looked through."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def saved_base(tmp_path: Path) -> Path:
    """Folder of a tiny Llama, as `from_pretrained` takes it."""
    path = tmp_path / "base"
    tiny_llama().save_pretrained(path)
    return path


# --- a browser ---------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,1100", "--no-proxy-server"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()
