"""Class logits as the scorings read them, against loops over single sequences without padding."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tokenizers import normalizers
from torch import Tensor, nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from bayeslora import predict, sampling
from bayeslora.scoring import Classification, Cloze, Letter, class_token_ids, get_scoring
from bayeslora.scoring.fitting import cut_middle
from bayeslora.tasks import Item
from conftest import (
    CAUSAL,
    MODELS,
    byte_level_tokenizer,
    config_for,
    distance,
    metaspace_tokenizer,
    perturb,
    seeded,
    tiny_bert,
    tiny_gemma,
    tiny_gpt2,
    tiny_llama,
    tiny_llama_classifier,
    wordpiece_tokenizer,
)

ITEMS = [
    Item(id="1", question="Which of these is a metal?", choices=("iron", "wood", "glass", "paper"), label=0),
    Item(id="2", question="Is the moon a rock?", choices=("Yes", "No"), label=1),
    Item(
        id="3",
        question="What do plants need to grow and make their own food out of sunlight?",
        choices=("water", "a lazy dog in the sun", "wool", "B", "glass and paper"),
        label=4,
    ),
    Item(id="4", question="x?", choices=("sun", "star and moon", "fox"), label=2),
]
SIZES: dict[str, Any] = {"vocab_size": 320, "max_position_embeddings": 256}
TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level_tokenizer,
    "metaspace": metaspace_tokenizer,
    "metaspace_with_end": lambda: metaspace_tokenizer(end=True),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]()


def start_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What this tokenizer puts in front of a text."""
    return [tokenizer.bos_token_id] if tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id else []


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return start_of(tokenizer) + tokenizer(text, add_special_tokens=False)["input_ids"]


def naive_cloze(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, items: list[Item], max_length: int = 10**6
) -> Tensor:
    """One forward for each choice of each item."""
    width = max(len(item.choices) for item in items)
    result = torch.full((len(items), width), -torch.inf)
    for row, item in enumerate(items):
        prompt = f"Question: {item.question}\nAnswer:"
        context = ids_of(tokenizer, prompt)
        answers = [ids_of(tokenizer, f"{prompt} {choice}")[len(context) :] for choice in item.choices]
        context = context[-(max_length - sum(map(len, answers))) :]
        for index, answer in enumerate(answers):
            assert len(answer) > 0
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context + answer])).logits[0]
            likelihood = torch.log_softmax(logits, -1)[len(context) - 1 : -1]
            result[row, index] = likelihood.gather(-1, torch.tensor(answer).unsqueeze(-1)).mean()
    return result


def naive_letter(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, items: list[Item], max_length: int = 10**6
) -> Tensor:
    width = max(len(item.choices) for item in items)
    result = torch.full((len(items), width), -torch.inf)
    for row, item in enumerate(items):
        listed = "".join(f"{'ABCDE'[index]}. {choice}\n" for index, choice in enumerate(item.choices))
        prompt = f"Question: {item.question}\n{listed}Answer:"
        context = ids_of(tokenizer, prompt)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context[-max_length:]])).logits[0, -1]
        for index in range(len(item.choices)):
            (answer,) = ids_of(tokenizer, f"{prompt} {'ABCDE'[index]}")[len(context) :]
            result[row, index] = logits[answer]
    return result


def assert_same_logits(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert torch.equal(found.isfinite(), expected.isfinite())
    present = expected.isfinite()
    assert distance(found[present], expected[present]) < tolerance
    assert expected[present].std() > 0.1


NAIVE: dict[Any, Callable[..., Tensor]] = {Cloze: naive_cloze, Letter: naive_letter}
each_scoring = pytest.mark.parametrize("scoring", NAIVE, ids=lambda scoring: scoring.name)


# --- against loops -------------------------------------------------------------------------------------------------


@each_scoring
@pytest.mark.parametrize("name", CAUSAL)
def test_batches_are_loops_over_single_sequences(name: str, scoring: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    model = MODELS[name](**SIZES)
    batch = scoring(tokenizer)(ITEMS)
    with torch.no_grad():
        found = batch.choice_logits(model)
    assert_same_logits(found, NAIVE[scoring](model, tokenizer, ITEMS))
    assert torch.equal(batch.labels, torch.tensor([0, 1, 4, 2]))
    assert batch.batch_size == 4


@each_scoring
@pytest.mark.parametrize("items", [ITEMS[:1], ITEMS[1:2], ITEMS[2:], ITEMS[3:] * 3], ids=len)
def test_other_batches_of_the_items(scoring: Any, items: list[Item]) -> None:
    model, tokenizer = tiny_llama(**SIZES), byte_level_tokenizer()
    with torch.no_grad():
        found = scoring(tokenizer)(items).choice_logits(model)
    assert_same_logits(found, NAIVE[scoring](model, tokenizer, items))


@each_scoring
@pytest.mark.parametrize(
    ("name", "attention"),
    # Gemma 2 caps its attention scores, which sdpa cannot.
    [(name, attention) for name in CAUSAL for attention in ("eager", "sdpa") if (name, attention) != ("gemma", "sdpa")],
)
def test_each_attention_implementation(name: str, attention: str, scoring: Any) -> None:
    model, tokenizer = MODELS[name](**SIZES, attn_implementation=attention), metaspace_tokenizer()
    assert model.config._attn_implementation == attention
    with torch.no_grad():
        found = scoring(tokenizer)(ITEMS).choice_logits(model)
    assert_same_logits(found, NAIVE[scoring](model, tokenizer, ITEMS))


@each_scoring
def test_bayesian_models_in_mean_and_in_draws(scoring: Any) -> None:
    tokenizer = metaspace_tokenizer()
    with seeded(100):
        model = get_peft_model(tiny_llama(**SIZES), config_for(layers_to_transform=[1, 3], task_type="CAUSAL_LM"))
    perturb(model).eval()
    batch = scoring(tokenizer)(ITEMS)
    with torch.no_grad():
        assert_same_logits(batch.choice_logits(model), NAIVE[scoring](model, tokenizer, ITEMS))
        with sampling(model, 3, seed=7):
            together = batch.choice_logits(model)
        for number in range(3):
            with sampling(model, 1, seed=7, first=number):
                expected = NAIVE[scoring](model, tokenizer, ITEMS)
            assert_same_logits(together.unflatten(0, (3, 4))[number], expected, 2e-5)


@each_scoring
def test_half_precision(scoring: Any) -> None:
    tokenizer = metaspace_tokenizer()
    exact = NAIVE[scoring](tiny_llama(**SIZES), tokenizer, ITEMS)
    with torch.no_grad():
        found = scoring(tokenizer)(ITEMS).choice_logits(tiny_llama(**SIZES).to(torch.bfloat16))
    assert_same_logits(found, exact, 0.4)


def test_a_sliding_window_shorter_than_the_text() -> None:
    """Packed choices must not see further back than the model does, or the scoring must say that it cannot."""
    model, tokenizer = tiny_gemma(**SIZES, sliding_window=8), metaspace_tokenizer()
    wide = naive_cloze(tiny_gemma(**SIZES), tokenizer, ITEMS)
    expected = naive_cloze(model, tokenizer, ITEMS)
    assert distance(wide[:, :2], expected[:, :2]) > 1e-3, "the window has no effect: the test is void"
    try:
        with torch.no_grad():
            found = Cloze(tokenizer)(ITEMS).choice_logits(model)
    except ValueError:
        return
    assert_same_logits(found, expected)


def tiny_gemma3(**changes: Any) -> PreTrainedModel:
    """Text and pictures; the window is the text config's."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "initializer_range": 0.2}
    layers = ["sliding_attention", "sliding_attention", "full_attention"]
    heads = {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": len(layers)}
    text = {**sizes, **heads, "layer_types": layers, "sliding_window": 8, **changes}
    vision = {**sizes, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    with seeded(0):
        config = Gemma3Config(text_config=text, vision_config=vision, image_token_index=319)
        return Gemma3ForConditionalGeneration(config).eval()


@each_scoring
def test_models_of_several_parts(scoring: Any) -> None:
    model, tokenizer = tiny_gemma3(**SIZES), metaspace_tokenizer()
    with torch.no_grad():
        found = scoring(tokenizer)(ITEMS).choice_logits(model)
    assert_same_logits(found, NAIVE[scoring](model, tokenizer, ITEMS))


def test_letters_with_a_sliding_window_shorter_than_the_text() -> None:
    model, tokenizer = tiny_gemma(**SIZES, sliding_window=8), metaspace_tokenizer()
    with torch.no_grad():
        found = Letter(tokenizer)(ITEMS).choice_logits(model)
    assert_same_logits(found, naive_letter(model, tokenizer, ITEMS))


def test_order_of_the_choices_does_not_matter_to_cloze() -> None:
    model, tokenizer = tiny_llama(**SIZES), byte_level_tokenizer()
    item = ITEMS[2]
    mirrored = Item(id="m", question=item.question, choices=item.choices[::-1], label=0)
    with torch.no_grad():
        one, other = (Cloze(tokenizer)([entry]).choice_logits(model) for entry in (item, mirrored))
    assert distance(one, other.flip(-1)) < 1e-5


def test_gradients_of_packed_choices() -> None:
    """Training runs through the same numbers."""
    model, tokenizer = tiny_llama(**SIZES), byte_level_tokenizer()
    weight = model.model.layers[1].mlp.down_proj.weight
    batch = Cloze(tokenizer)(ITEMS)
    loss = nn.functional.cross_entropy(batch.choice_logits(model), batch.labels)
    (packed,) = torch.autograd.grad(loss, weight)
    rows = []
    for item in ITEMS:
        prompt = f"Question: {item.question}\nAnswer:"
        context = ids_of(tokenizer, prompt)
        likelihoods = []
        for choice in item.choices:
            whole = ids_of(tokenizer, f"{prompt} {choice}")
            logits = torch.log_softmax(model(input_ids=torch.tensor([whole])).logits[0], -1)[len(context) - 1 : -1]
            likelihoods.append(logits.gather(-1, torch.tensor(whole[len(context) :]).unsqueeze(-1)).mean())
        rows.append(-torch.log_softmax(torch.stack(likelihoods), 0)[item.label])
    (naive,) = torch.autograd.grad(torch.stack(rows).mean(), weight)
    assert distance(packed, naive) < 1e-5 * max(1.0, naive.abs().max().item())
    assert packed.isfinite().all()


# --- too long ------------------------------------------------------------------------------------------------------

LONG = Item(
    id="long",
    question="The quick brown fox jumps over the lazy dog. " * 6 + "Which of these is a metal?",
    choices=("iron", "wood and wool"),
    label=0,
)


@each_scoring
def test_a_long_question_is_cut_in_its_middle(
    scoring: Any, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_llama(vocab_size=320, max_position_embeddings=1024)
    reader = scoring(tokenizer, max_length=60)
    with caplog.at_level(logging.WARNING, "bayeslora"):
        batch = reader([LONG, ITEMS[1]])
    assert [record.getMessage() for record in caplog.records if "'long'" in record.getMessage()]
    assert reader.cut == {"long"}
    short = [cut_middle(LONG.question, n) for n in range(len(LONG.question))]
    room = 60 - (max(map(len, reader._encode(LONG)[1])) if scoring is Cloze else 0)
    kept = max(n for n, question in enumerate(short) if len(reader.encode(reader.prompt(LONG, question))) <= room)
    cut = replace(LONG, question=short[kept])
    assert kept > 10 and cut.question.startswith(LONG.question[:5]) and cut.question.endswith("metal?")
    with torch.no_grad():
        found = batch.choice_logits(model)
    assert_same_logits(found, NAIVE[scoring](model, tokenizer, [cut, ITEMS[1]]))
    first = batch["input_ids"][0][-int(batch["lengths"][0]) :].tolist()
    assert first[: len(start_of(tokenizer))] == start_of(tokenizer)


def test_a_long_text_to_classify_is_cut_in_its_middle() -> None:
    tokenizer = wordpiece_tokenizer()
    reader = Classification(tokenizer, max_length=16)
    ids = reader([LONG, ITEMS[1]])["input_ids"][0].tolist()
    whole = tokenizer(LONG.question, add_special_tokens=False)["input_ids"]
    assert len(whole) > 30 and 10 < len(ids) <= 16
    assert ids[0] == tokenizer.cls_token_id and ids[len(ids) - 1] in (tokenizer.sep_token_id, tokenizer.pad_token_id)
    text = [token for token in ids if token not in tokenizer.all_special_ids]
    assert text[:3] == whole[:3] and text[-3:] == whole[-3:]
    assert reader.cut == {"long"}


def test_all_choices_are_kept_however_many() -> None:
    """Only the longest of them counts, and packed rows may be longer than `max_length`."""
    choices = tuple(f"choice {n} of iron and wood" for n in range(30))
    item = Item("many", "Which of these?", choices, 3)
    tokenizer, model = byte_level_tokenizer(), tiny_llama(vocab_size=320, max_position_embeddings=1024)
    reader = Cloze(tokenizer, max_length=64)
    batch = reader([item])
    assert batch["input_ids"].shape[1] > 64 and not reader.cut
    with torch.no_grad():
        assert_same_logits(batch.choice_logits(model), naive_cloze(model, tokenizer, [item]))


@pytest.mark.parametrize("scoring", [Cloze, Letter])
def test_what_does_not_fit_without_its_question_is_refused(scoring: Any) -> None:
    reader = scoring(byte_level_tokenizer(), max_length=12)
    with pytest.raises(ValueError, match=r"item 'long' does not fit into 12 tokens.*raise max_length"):
        reader([LONG])
    reader.extensible = False
    with pytest.raises(ValueError, match="12 tokens even without its question; give it fewer"):
        reader([LONG])


# --- class tokens --------------------------------------------------------------------------------------------------


def test_class_tokens_of_a_byte_level_tokenizer() -> None:
    tokenizer = byte_level_tokenizer()
    spaced, bare = (class_token_ids(tokenizer, ["A", "B", "C"], separator=mark) for mark in (" ", ""))
    assert tokenizer.convert_ids_to_tokens(spaced) == ["ĠA", "ĠB", "ĠC"]
    assert tokenizer.convert_ids_to_tokens(bare) == ["A", "B", "C"]


@pytest.mark.parametrize("end", [False, True])
def test_class_tokens_of_a_metaspace_tokenizer(end: bool) -> None:
    tokenizer = metaspace_tokenizer(end=end)
    spaced, bare = (class_token_ids(tokenizer, ["A", "B", "C"], separator=mark) for mark in (" ", ""))
    assert tokenizer.convert_ids_to_tokens(spaced) == ["▁A", "▁B", "▁C"]
    assert tokenizer.convert_ids_to_tokens(bare) == ["A", "B", "C"]


def test_class_tokens_of_a_wordpiece_tokenizer() -> None:
    tokenizer = wordpiece_tokenizer()
    for separator in (" ", ""):
        ids = class_token_ids(tokenizer, ["A", "B"], separator=separator)
        assert tokenizer.convert_ids_to_tokens(ids) == ["A", "B"]


@pytest.mark.parametrize("build", [byte_level_tokenizer, metaspace_tokenizer])
def test_labels_of_several_tokens_are_refused(build: Callable[[], PreTrainedTokenizerFast]) -> None:
    with pytest.raises(ValueError, match="label 'zebra' must be one token after 'Answer:'"):
        class_token_ids(build(), ["A", "zebra"])
    with pytest.raises(ValueError, match="label ''"):
        class_token_ids(build(), ["A", ""], separator="")


def test_labels_that_merge_with_the_prompt_are_refused() -> None:
    """With "::" one token, the text goes on inside the last token of the prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {character: index for index, character in enumerate("<Answer:AĠ")}
    merged = Tokenizer(models.BPE(vocab={**letters, ":A": 20}, merges=[(":", "A")]))
    merged.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merged, pad_token="<")
    with pytest.raises(ValueError, match="label 'A' must be one token"):
        class_token_ids(tokenizer, ["A"], separator="")


def test_labels_that_are_the_same_token_are_refused() -> None:
    with pytest.raises(ValueError, match="not told apart"):
        class_token_ids(wordpiece_tokenizer(), ["ß", "Ж"])


def test_class_tokens_are_those_after_the_prompt_not_alone() -> None:
    tokenizer = byte_level_tokenizer()
    alone = [tokenizer.convert_tokens_to_ids(label) for label in "AB"]
    assert Letter(tokenizer)(ITEMS[1:2])["class_token_ids"].tolist() != alone


# --- classification ------------------------------------------------------------------------------------------------


def tiny_gpt2_classifier(**changes: Any) -> PreTrainedModel:
    config = tiny_gpt2(**changes).config
    with seeded(0):
        return GPT2ForSequenceClassification(config).eval()


def tiny_xlnet(max_position_embeddings: int, **changes: Any) -> PreTrainedModel:
    """Positions are relative; its head reads the last one."""
    fields = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "dropout": 0.0, "summary_last_dropout": 0.0}
    with seeded(0):
        return XLNetForSequenceClassification(XLNetConfig(**fields, initializer_range=0.2, **changes)).eval()


def class_token_last() -> PreTrainedTokenizerFast:
    """As XLNet's: text [SEP] [CLS]."""
    from tokenizers import processors

    tokenizer = wordpiece_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def classify(model: nn.Module, tokenizer: PreTrainedTokenizerBase, items: list[Item]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**tokenizer(item.question, return_tensors="pt")).logits for item in items])


@pytest.mark.parametrize(
    ("model", "build"),
    [
        (tiny_bert, wordpiece_tokenizer),
        (tiny_gpt2_classifier, byte_level_tokenizer),
        (tiny_llama_classifier, metaspace_tokenizer),
        (tiny_xlnet, class_token_last),
    ],
    ids=["bert", "gpt2", "llama", "xlnet"],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_classification_is_a_loop_over_texts(model: Any, build: Any, side: str) -> None:
    tokenizer = build()
    tokenizer.padding_side = side
    items = [ITEMS[0], ITEMS[1], ITEMS[3]]
    head = model(vocab_size=320, max_position_embeddings=256, num_labels=4)
    batch = Classification(tokenizer)(items)
    with torch.no_grad():
        found = batch.choice_logits(head)
    expected = classify(head, tokenizer, items)
    expected[1, 2:] = -torch.inf
    expected[2, 3:] = -torch.inf
    assert_same_logits(found, expected)
    assert batch.labels.tolist() == [0, 1, 2]
    assert tokenizer.padding_side == side


def test_classification_draws() -> None:
    tokenizer = wordpiece_tokenizer()
    with seeded(100):
        model = get_peft_model(tiny_bert(vocab_size=320), config_for("bert"))
    perturb(model).eval()
    items = [ITEMS[1], ITEMS[3]]
    found = predict(model, Classification(tokenizer)(items), 3, seed=7)
    for number in range(3):
        with sampling(model, 1, seed=7, first=number):
            logits = classify(model, tokenizer, items)
        logits[0, 2:] = -torch.inf
        expected = torch.softmax(logits, -1)
        assert distance(found.samples[number].exp(), expected) < 1e-5


def test_a_head_with_more_classes_than_choices_is_cut() -> None:
    tokenizer, head = wordpiece_tokenizer(), tiny_bert(vocab_size=320, num_labels=6)
    with torch.no_grad():
        found = Classification(tokenizer)(ITEMS[1:2]).choice_logits(head)
    assert distance(found, classify(head, tokenizer, ITEMS[1:2])[:, :2]) < 1e-5


def test_the_classes_of_a_head_are_texts() -> None:
    """Whatever the order of an item's choices, and whichever of the classes it has."""
    tokenizer, head = wordpiece_tokenizer(), tiny_bert(vocab_size=320, num_labels=5)
    scoring = Classification(tokenizer, classes=["sun", "moon", " star ", "rain"])
    orders = [("moon", "sun", "rain", "star"), ("sun", "moon", "star", "rain"), ("rain", " moon")]
    some = [Item(str(number), f"Which ({number})?", choices, 0) for number, choices in enumerate(orders)]
    with torch.no_grad():
        found, naive = scoring(some).choice_logits(head), classify(head, tokenizer, some)
    expected = torch.full((3, 4), -torch.inf)
    for row, places in enumerate([(1, 0, 3, 2), (0, 1, 2, 3), (3, 1)]):
        expected[row, : len(places)] = naive[row, list(places)]
    assert_same_logits(found, expected)
    assert scoring(some).labels.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"classes of this head are .*'x' has the choices \['sun', 'fog'\]"):
        scoring([Item("x", "Which?", ("sun", "fog"), 0)])
    with pytest.raises(ValueError, match="num_labels=4"), torch.no_grad():
        scoring(some[2:]).choice_logits(tiny_bert(vocab_size=320, num_labels=3))


def test_gradients_reach_the_classes_that_an_item_has() -> None:
    scoring = Classification(wordpiece_tokenizer(), classes=["sun", "moon", "star"])
    head = tiny_bert(vocab_size=320, num_labels=3)
    batch = scoring([Item("1", "Which?", ("star", "sun"), 0)])
    nn.functional.cross_entropy(batch.choice_logits(head), batch.labels).backward()
    sizes = head.classifier.weight.grad.abs().sum(1)
    assert sizes[0] > 0 and sizes[2] > 0 and sizes[1] == 0
    assert head.classifier.bias.grad[2] < 0 < head.classifier.bias.grad[0]


def test_without_names_of_classes_one_order_is_the_only_one(caplog: pytest.LogCaptureFixture) -> None:
    scoring, swapped = Classification(wordpiece_tokenizer()), Item("x", "Which?", ("No", "Yes"), 0)
    scoring(ITEMS[1:2])
    with pytest.raises(ValueError, match=r"item 'x'.*as \['Yes', 'No'\].*classes=\['Yes', 'No'\]"):
        scoring([swapped])
    assert not caplog.records
    scoring(ITEMS)
    scoring(ITEMS)
    assert [record.getMessage()[:32] for record in caplog.records] == ["items have different choices: cl"]


def test_a_head_with_too_few_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_labels=5"):
        Classification(wordpiece_tokenizer())(ITEMS).choice_logits(tiny_bert(vocab_size=320))


# --- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", [Cloze, Letter, Classification])
def test_batches_without_all_labels_have_none(scoring: Any) -> None:
    tokenizer = metaspace_tokenizer()
    unknown = Item(id="u", question="What?", choices=("sun", "moon"), label=None)
    assert scoring(tokenizer)([ITEMS[0], unknown]).labels is None
    assert scoring(tokenizer)([ITEMS[0]]).labels.tolist() == [0]


@pytest.mark.parametrize("scoring", [Cloze, Letter, Classification])
def test_batches_move_and_stay_what_they_are(scoring: Any) -> None:
    batch = scoring(metaspace_tokenizer())(ITEMS)
    moved = batch.to("meta")
    assert type(moved) is type(batch)
    assert all(value.device.type == "meta" for value in moved.values())


def test_tokenizers_without_padding_are_refused() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="padding token"):
        Cloze(tokenizer)


def test_scorings_by_name() -> None:
    assert get_scoring("cloze") is Cloze
    assert get_scoring("letter") is Letter
    assert get_scoring("classification") is Classification
    with pytest.raises(ValueError, match="Did you mean 'letter'"):
        get_scoring("leter")


def test_choices_of_the_same_tokens_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    scoring = Cloze(tokenizer)
    with caplog.at_level(logging.WARNING, "bayeslora"):
        scoring([Item("a", "Which?", ("Yes", "no"), 0)])
        assert not caplog.records
        for _ in range(2):
            scoring([Item("a", "Which?", ("Yes", "yes", "no"), 0)])
    assert [record.getMessage().split(" are the same")[0] for record in caplog.records] == [
        "two of the choices ['Yes', 'yes', 'no']"
    ]
