"""Prompts in the tokenizer's chat template: what the model reads, when it is used, and what older runs meant."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.experiments.comparison.growth import grown
from bayeslora.methods import Lora
from bayeslora.runs import Run, Trained, load_run, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig, describe
from bayeslora.runs.differences import at_defaults
from bayeslora.runs.loading import uses_chat_template
from bayeslora.scoring import Classification, Cloze, Letter, class_token_ids
from bayeslora.scoring.chat import chat_frame
from bayeslora.tasks import Item
from conftest import byte_level_tokenizer, distance, metaspace_tokenizer, tiny_llama

BOTH = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] | trim }}</s>\n{% endfor %}"
TEMPLATES = {
    "chatml": BOTH + "{% if add_generation_prompt %}<s>assistant\n{% endif %}",
    "instruction": "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}",
    "thinking": "{% for m in messages %}<s>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}",
}
FRAMES = {
    "chatml": ("<s>user\n", "</s>\n<s>assistant\n", ""),
    "instruction": ("<s>[INST] ", " [/INST]", " "),
    "thinking": ("<s>user\n", "</s>\n<s>assistant\n<think>\n\n</think>\n\n", ""),
}
ITEMS = [
    Item(id="1", question="Which of these is a metal?", choices=("iron", "wood", "glass"), label=0),
    Item(id="2", question="Is the moon a rock? ", choices=("Yes", "No"), label=1),
]
each_template = pytest.mark.parametrize("name", TEMPLATES)
each_scoring = pytest.mark.parametrize("scoring", [Letter, Cloze], ids=lambda scoring: scoring.name)


def chatty(name: str = "chatml", build: Any = byte_level_tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = build()
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@each_template
def test_frames(name: str) -> None:
    assert chat_frame(chatty(name)) == FRAMES[name]


@each_template
def test_a_letter_is_read_where_the_assistant_would_answer(name: str) -> None:
    model, tokenizer = tiny_llama(vocab_size=320, max_position_embeddings=512), chatty(name)
    with torch.no_grad():
        found = Letter(tokenizer, chat_template=True)(ITEMS).choice_logits(model)
    before, behind, separator = FRAMES[name]
    for row, item in enumerate(ITEMS):
        listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABC", item.choices, strict=False))
        prompt = f"{before}Question: {item.question}\n{listed}Answer with one letter.{behind}"
        for index, letter in enumerate("ABC"[: len(item.choices)]):
            # Where a template leads with a space, it is the letter's.
            *context, answer = ids_of(tokenizer, prompt + separator + letter)
            assert context == ids_of(tokenizer, prompt)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context])).logits[0, -1]
            assert abs(found[row, index] - logits[answer]) < 1e-5


@each_template
def test_choices_are_what_the_assistant_would_say(name: str) -> None:
    model, tokenizer = tiny_llama(vocab_size=320, max_position_embeddings=512), chatty(name)
    with torch.no_grad():
        found = Cloze(tokenizer, chat_template=True)(ITEMS).choice_logits(model)
    before, behind, separator = FRAMES[name]
    for row, item in enumerate(ITEMS):
        context = ids_of(tokenizer, f"{before}{item.question.strip()}{behind}")
        for index, choice in enumerate(item.choices):
            answer = ids_of(tokenizer, separator + choice)
            with torch.no_grad():
                logits = torch.log_softmax(model(input_ids=torch.tensor([context + answer])).logits[0], -1)
            expected = logits[len(context) - 1 : -1].gather(-1, torch.tensor(answer).unsqueeze(-1)).mean()
            assert abs(found[row, index] - expected) < 1e-5


@each_scoring
def test_the_template_adds_no_second_start(scoring: Any) -> None:
    ids = scoring(chatty("instruction", metaspace_tokenizer), chat_template=True)(ITEMS[:1])["input_ids"][0].tolist()
    assert ids[0] == 1
    assert ids[1] != 1


@each_scoring
def test_of_a_long_question_the_frame_stays(scoring: Any) -> None:
    tokenizer = chatty()
    long = Item(id="long", question="The sun is a star. " * 60, choices=("iron", "wood"), label=0)
    read = scoring(tokenizer, max_length=90, chat_template=True)
    text = tokenizer.decode(read([long])["input_ids"][0])
    before, behind, _ = FRAMES["chatml"]
    assert text.startswith(before)
    assert behind in text
    assert read.cut == {"long"}


def test_templates_with_a_date_have_the_same_one_every_day() -> None:
    tokenizer = chatty()
    tokenizer.chat_template = "Today is {{ strftime_now('%Y-%m-%d') }}. " + TEMPLATES["chatml"]
    assert chat_frame(tokenizer).before == "Today is 2024-07-26. <s>user\n"
    tokenizer.chat_template = "{{ date_string }} " + TEMPLATES["chatml"]
    assert chat_frame(tokenizer).before == "26 Jul 2024 <s>user\n"


def test_tokenizers_without_a_usable_template_are_refused() -> None:
    with pytest.raises(ValueError, match="has no chat template"):
        Letter(byte_level_tokenizer(), chat_template=True)
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "hello"
    with pytest.raises(ValueError, match="does not show the user's message"):
        Cloze(tokenizer, chat_template=True)


def test_letters_that_are_no_token_there_are_refused() -> None:
    with pytest.raises(ValueError, match="label 'zebra' must be one token"):
        class_token_ids(chatty(), ["zebra"], "<s>assistant\n", "")


def test_the_remedy_for_letters_that_are_no_token_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    scoring = Letter(chatty(), chat_template=True)
    monkeypatch.setattr(type(scoring), "separator", property(lambda self: "zebra"))
    with pytest.raises(ValueError, match=r"must be one token .* chat_template: false does without"):
        scoring(ITEMS[:1])


# --- when it is used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scoring", "asked", "used"),
    [
        ("letter", "auto", True),
        ("letter", False, False),
        ("cloze", "auto", False),
        ("cloze", True, True),
        ("classification", "auto", False),
    ],
)
def test_by_default_letters_are_asked_for_in_a_chat(scoring: Any, asked: Any, used: bool) -> None:
    task = TaskConfig(scoring=scoring, chat_template=asked)
    assert uses_chat_template(task, chatty()) is used
    assert uses_chat_template(TaskConfig(scoring=scoring), byte_level_tokenizer()) is False


def test_a_template_for_scorings_that_ask_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="not for classification"):
        uses_chat_template(TaskConfig(scoring="classification", chat_template=True), chatty())
    assert Classification(chatty()).chat_template is False


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    """Letters on a tiny model whose tokenizer has a template, and the run's folder."""
    folder = tmp_path_factory.mktemp("chat")
    tiny_llama(vocab_size=320, max_position_embeddings=256).save_pretrained(folder / "base")
    chatty().save_pretrained(folder / "base")
    rows = [{"question": f"case {n}?", "choices": ["sun", "moon"], "label": ["sun", "moon"][n % 2]} for n in range(24)]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = RunConfig(
        model=ModelConfig(name=str(folder / "base"), device="cpu"),
        task=TaskConfig(name=str(folder / "items.jsonl"), scoring="letter"),
        method=Lora(r=2, target_modules=["q_proj"]),
        train=TrainConfig(max_steps=2, batch_size=4),
    )
    run = train(config, folder / "run")
    assert config.task.chat_template == "auto"
    return run, folder / "run"


def probabilities(run: Run) -> Tensor:
    return run.predict(ITEMS, progress=False).predictive.probabilities


def test_a_run_writes_down_what_it_used(trained: tuple[Trained, Path]) -> None:
    run, folder = trained
    assert run.metrics["chat_template"] is True
    assert yaml.safe_load((folder / "config.yaml").read_text())["task"]["chat_template"] is True
    loaded = load_run(folder)
    assert loaded.config.task.chat_template is True
    assert torch.equal(probabilities(loaded), probabilities(run))


def test_a_run_from_before_the_option_has_no_template(trained: tuple[Trained, Path], tmp_path: Path) -> None:
    run, folder = trained
    shutil.copytree(folder, tmp_path / "older")
    path = tmp_path / "older/config.yaml"
    written = yaml.safe_load(path.read_text())
    del written["task"]["chat_template"]
    path.write_text(yaml.safe_dump(written))
    loaded = load_run(tmp_path / "older")
    assert loaded.config.task.chat_template is False
    found = probabilities(loaded)
    assert distance(found, probabilities(run)) > 1e-3
    loaded.scoring = Letter(loaded.scoring.tokenizer)
    assert torch.equal(probabilities(loaded), found)


def test_results_from_before_the_option_go_on_without_a_template(tmp_path: Path) -> None:
    def compared(**options: Any) -> CompareConfig:
        return CompareConfig(tasks={"arc": TaskConfig(name="arc_easy", **options)})

    for scoring, asked, differs in (("cloze", "auto", False), ("letter", False, False), ("letter", "auto", True)):
        config = compared(scoring=scoring, chat_template=asked)
        older = describe(config)
        del older["tasks"]["arc"]["chat_template"]
        if differs:
            with pytest.raises(ValueError, match=r"tasks\.arc\.chat_template is false there and \"auto\" here"):
                grown(older, describe(config), at_defaults(config), tmp_path)
        else:
            grown(older, describe(config), at_defaults(config), tmp_path)
