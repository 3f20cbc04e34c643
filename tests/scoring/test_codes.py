"""Typed questions read by single-token codes, on tiny models."""

import string
from functools import lru_cache

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from bayeslora import sampling
from bayeslora.scoring.codes import CodeReader, Template, TooLongError, rotations
from bayeslora.scoring.codes import reading as module
from bayeslora.tasks.decisions import Noul, Question, parse_question, parse_questions
from conftest import CAUSAL, MODELS, byte_level_tokenizer, config_for, perturb, seeded

NOUL = parse_question({"type": "noul", "instructions": "Is it urgent?", "criteria": {"true": "Soon"}})
SCORE = parse_question({"type": "score", "instructions": "How angry?", "criteria": ["calm", "cross", "furious"]})
CHAT = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@lru_cache
def tokenizer(codes: int = 40) -> PreTrainedTokenizerFast:
    """A space and a code are one token, for so many codes."""
    from tokenizers import AddedToken

    made = byte_level_tokenizer(260)
    labels = [*string.ascii_uppercase, *(a + b for a in string.ascii_uppercase for b in string.ascii_uppercase)]
    made.add_tokens([AddedToken(f" {label}", normalized=False) for label in labels[:codes]])
    return made


def choice(options: int, named: str = "queue {}") -> Question:
    criteria = {named.format(number): f"letters {number}" for number in range(options)}
    return parse_question({"type": "choice", "instructions": "Which?", "criteria": criteria})


def reader(name: str = "llama", orders: int = 1, **options: object) -> CodeReader:
    words = tokenizer()
    model = MODELS[name](vocab_size=len(words), max_position_embeddings=2048)
    return CodeReader(model, words, orders=orders, **options)  # type: ignore[arg-type]


def read_alone(reading: CodeReader, state: str, question: Question, order: list[int]) -> Tensor:
    """Probabilities of the options from one forward of the whole prompt without a cache."""
    template = reading.template
    text = template.show_question(question, reading.codes.labels, order) + template.answer
    ids = reading.tokenizer(template.show_state(state))["input_ids"] + reading.tokenizer(text)["input_ids"]
    with torch.no_grad():
        logits = reading.model(input_ids=torch.tensor([ids])).logits[0, -1]
    codes = [reading.tokenizer(f"Answer: {label}")["input_ids"][-1] for label in reading.codes.labels[: len(order)]]
    placed = logits[codes].double().log_softmax(-1)
    return torch.stack([placed[order.index(option)] for option in range(len(order))])


@pytest.mark.parametrize("name", CAUSAL)
def test_the_state_read_once_is_the_whole_prompt_read_at_once(name: str) -> None:
    reading = reader(name, orders=3)
    for question in (NOUL, SCORE, choice(7)):
        (found,) = reading("What is iron?", [question])
        orders = rotations(len(question.options), 3)
        alone = torch.stack([read_alone(reading, "What is iron?", question, order) for order in orders])
        assert found == pytest.approx(alone.mean(0).log_softmax(-1), abs=1e-5)
        assert found.exp().sum() == pytest.approx(1)


def test_other_questions_and_their_order_move_no_bit() -> None:
    reading = reader(orders=2)
    asked = [NOUL, SCORE, choice(5), choice(31)]
    together = reading("a state", asked)
    for question, found in zip(asked, together, strict=True):
        assert torch.equal(reading("a state", [question])[0], found)
    assert all(torch.equal(a, b) for a, b in zip(reading("a state", asked[::-1])[::-1], together, strict=True))


def test_ids_of_questions_do_not_reach_the_model() -> None:
    value = {"type": "noul", "instructions": "Is it urgent?"}
    reading = reader()
    first, second = (parse_questions({name: value})[name] for name in ("a", "zzz"))
    state = reading.state_tokens("a state")
    assert reading.prompts(state, first) == reading.prompts(state, second)


def test_all_rotations_make_the_order_of_options_meaningless() -> None:
    reading, question = reader(orders=4), choice(4)
    criteria = list(question.to_dict()["criteria"].items())
    turned = parse_question({**question.to_dict(), "criteria": dict(criteria[2:] + criteria[:2])})
    one, other = reading("a state", [question])[0], reading("a state", [turned])[0]
    assert other == pytest.approx(one.roll(-2), abs=1e-6)
    # A reader of one order does depend on it.
    single = reader()
    assert (single("a state", [turned])[0] - single("a state", [question])[0].roll(-2)).abs().max() > 1e-3


def test_a_noul_has_two_orders_and_they_are_averaged() -> None:
    reading = reader(orders=9)
    assert len(reading.prompts([], NOUL)) == 2 and len(reading.prompts([], choice(20))) == 9


@pytest.mark.parametrize("long", [0, 10_000])
def test_long_questions_are_read_whole_to_the_same_result(monkeypatch: pytest.MonkeyPatch, long: int) -> None:
    reading = reader(orders=2)
    expected = reading("a", [choice(6)])[0]
    monkeypatch.setattr(module, "_LONG", long)
    monkeypatch.setattr(module, "_ROWS", 1)
    assert reading("a", [choice(6)])[0] == pytest.approx(expected, abs=1e-5)


def test_too_few_codes_and_too_long_prompts_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"45 options, but this tokenizer has only 40 codes.*readout='heads'"):
        reader()("a state", [choice(45)])
    with pytest.raises(TooLongError, match=r"have (\d+) tokens, but the model reads 60") as raised:
        reader(max_length=60)("word " * 30, [NOUL])
    short = reader()
    expected = len(short.state_tokens("word " * 30)) + len(short.prompts([], NOUL)[0])
    assert (raised.value.tokens, raised.value.room) == (expected, 60)
    assert reader(max_length=expected)("word " * 30, [NOUL])


def test_a_chat_template_stands_around_state_and_question() -> None:
    words = tokenizer()
    words.chat_template = CHAT
    try:
        reading = reader()
        text = words.decode(reading.state_tokens("the state") + reading.prompts([], NOUL)[0])
    finally:
        words.chat_template = None
    assert text.startswith("<s>user\nState:\nthe state\n\nQuestion: Is it urgent?\nA: yes: Soon\nB: no\n")
    assert text.endswith("Answer with the code of one option.</s>\n<s>assistant\n")


def test_adapters_and_draws_of_them_are_read() -> None:
    words = tokenizer()
    model = _adapted(len(words))
    reading = CodeReader(model, words)
    mean = reading("a state", [SCORE])[0]
    draws = []
    for seed in range(3):
        with sampling(model, num_samples=1, seed=seed):
            draws.append(reading("a state", [SCORE])[0])
    assert len({round(float(draw[0]), 6) for draw in [mean, *draws]}) == 4
    with sampling(model, num_samples=1, seed=0):
        assert torch.equal(reading("a state", [SCORE])[0], draws[0])


def _adapted(vocabulary: int) -> nn.Module:
    model = MODELS["llama"](vocab_size=vocabulary, max_position_embeddings=512)
    with seeded(0):
        return perturb(get_peft_model(model, config_for())).eval()


def test_the_template_comes_back_as_it_was_stored() -> None:
    template = Template(state="S: {state}\n")
    assert Template(**template.to_dict()) == template
    assert template.show_state({"a": "ü"}) == 'S: {"a": "ü"}\n'
    lines = Template().show_question(SCORE, ["A", "B", "C"], [2, 1, 0]).splitlines()
    assert lines == ["", "", "Question: How angry?", "A: furious", "B: cross", "C: calm"]


def test_questions_are_announced_before_the_state_once_and_not_in_a_text_of_ones_own() -> None:
    asked = [NOUL, SCORE, NOUL]
    announced = Template().announcing(asked)
    text = announced.show_state("a {state}")
    assert text == f"Questions:\n{NOUL.instructions}\n{SCORE.instructions}\n\nState:\na {{state}}"
    assert announced.announcing([SCORE]).show_state("s") == f"Questions:\n{SCORE.instructions}\n\nState:\ns"
    assert announced.announcing([]) == Template() and Template.of(announced.to_dict()) == announced
    braces = Noul("Is {this} urgent?", NOUL.options)
    assert Template().announcing([braces]).show_state("s").startswith("Questions:\nIs {this} urgent?\n")
    assert Template().announcing([Noul("long " * 500, NOUL.options)]) == Template()
    own = Template(state="Mail: {state}")
    assert own.announcing(asked) == own


def test_a_run_of_before_is_read_in_the_texts_of_then() -> None:
    assert Template.stored({"answer": "A:"}).show_state("s") == "State:\ns\n\n"
    assert Template.stored(Template().to_dict()) == Template()
    with pytest.raises(ValueError, match="a template has the texts"):
        Template.stored({"reply": ""})
