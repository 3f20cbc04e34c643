"""What heads read: states and questions share forwards, and have the numbers that they have alone."""

import itertools
import random
import string
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from bayeslora.models.layers import outermost_layers
from bayeslora.readouts.row import Row
from bayeslora.runs.decisions import reading as module
from bayeslora.runs.decisions.reading import HiddenReader, Vectors
from bayeslora.scoring.codes import CodeReader, TooLongError
from bayeslora.tasks.decisions import Question, parse_question
from conftest import CAUSAL, MODELS, byte_level_tokenizer
from unheeding import bloom, built, gpt_neo, mpt

QUESTIONS = [
    parse_question({"type": "noul", "instructions": "Is it urgent?"}),
    parse_question({"type": "score", "instructions": "How angry is the one who wrote this?", "criteria": ["a", "b"]}),
    parse_question({"type": "choice", "instructions": "Who?", "criteria": {"billing": None, "it": "Computers"}}),
]
STATES = ["The parcel is lost and nobody answers.", "Hello", {"subject": "invoice", "amount": 3}]


def hidden_reader(name: str = "llama", model: nn.Module | None = None) -> HiddenReader:
    tokenizer = byte_level_tokenizer()
    if model is None:
        model = MODELS[name](vocab_size=len(tokenizer), max_position_embeddings=1024).eval()
    return HiddenReader(CodeReader(model, tokenizer))


def alone(reader: HiddenReader, state: object, question: Question) -> Vectors:
    """From one forward of the whole prompt that ends with the question."""
    before = reader.reader.state_tokens(state)
    text = reader.reader.template.show_question(question, [], []) + reader.reader.end
    behind = reader.reader.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        output = reader.reader.model(input_ids=torch.tensor([before + behind]), output_hidden_states=True)
    states = torch.stack([output.hidden_states[layer][0] for layer in reader.layers])
    of_state, own = states[:, : len(before)], states[:, len(before) :]
    return Vectors(_mean_and_last(of_state), _mean_and_last(own).unsqueeze(0))


def _mean_and_last(states: torch.Tensor) -> torch.Tensor:
    return torch.stack([states.mean(1), states[:, -1]], 1)


def assert_same(found: Vectors, expected: Sequence[Vectors]) -> None:
    torch.testing.assert_close(found.state, expected[0].state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.questions, torch.cat([one.questions for one in expected]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CAUSAL)
def test_states_and_questions_read_together_have_the_numbers_of_each_prompt_read_whole(name: str) -> None:
    reader = hidden_reader(name)
    prompts = [reader.prompt(reader.reader.state_tokens(state), QUESTIONS) for state in STATES]
    for state, found in zip(STATES, reader.read(prompts), strict=True):
        assert_same(found, [alone(reader, state, question) for question in QUESTIONS])
        assert_same(reader(state, QUESTIONS[::-1]), [alone(reader, state, question) for question in QUESTIONS[::-1]])
    bare = reader(STATES[0], [])
    assert bare.questions.shape == (0, len(reader.layers), 2, bare.state.shape[-1])
    torch.testing.assert_close(bare.state, alone(reader, STATES[0], QUESTIONS[0]).state, rtol=1e-4, atol=1e-5)


def forwards(reader: HiddenReader) -> list[tuple[int, int]]:
    """Grows by the number of a layer and the tokens that it reads."""
    ran: list[tuple[int, int]] = []

    def note(number: int) -> None:
        layer: nn.Module = outermost_layers(reader.reader.model)[number]
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: ran.append((number, (args[0] if args else kwargs["hidden_states"]).shape[1])),
            with_kwargs=True,
        )

    for number in range(len(outermost_layers(reader.reader.model))):
        note(number)
    return ran


def test_one_forward_reads_all_and_ends_behind_the_last_layer_that_is_read() -> None:
    reader = hidden_reader()
    prompts = [reader.prompt(reader.reader.state_tokens(state), QUESTIONS) for state in STATES]
    reader.read(prompts)  # The model is tried.
    ran = forwards(reader)
    reader.read(prompts)
    tokens = sum(prompt.tokens for prompt in prompts) - len(reader.begin) * (len(prompts) - 1)
    assert len(reader.begin) > 2
    assert ran == [(number, tokens) for number in range(reader.layers[-1])]
    assert reader.layers[-1] < len(outermost_layers(reader.reader.model))


def test_many_states_in_any_order_are_read_as_each_one_alone() -> None:
    generator = random.Random(0)
    asked = [
        ("".join(generator.choices(string.ascii_letters, k=length)), QUESTIONS[:count])
        for length, count in [(5, 1), (300, 3), (1, 2), (40, 0), (5, 3), (120, 1), (2, 1), (260, 2)] * 3
    ]
    # States that are equal, begin alike, or are the beginning of another one.
    asked += [asked[1], (asked[1][0][:200] + "!", QUESTIONS), (asked[1][0][:100], QUESTIONS)]
    alone_reader = hidden_reader()
    expected = [alone_reader(*each) for each in asked]
    for _ in range(2):
        order = generator.sample(range(len(asked)), len(asked))
        reader = hidden_reader()
        ran = forwards(reader)
        for place, found in zip(order, reader.vectors(asked[place] for place in order), strict=True):
            assert_same(found, [expected[place]])
        assert len([number for number, _ in ran if number == 0]) < len(asked)


def test_a_text_is_divided_in_the_same_way_in_any_company() -> None:
    begin, texts = [5, 6], [([5, 6, 7, 8], [[1], [2, 3]]), ([5, 6, 7], [[4]]), ([5, 6], [[1]]), ([9], []), ([5, 7], [])]

    def divided(row: Row) -> list[list[list[int]]]:
        return [[row.tokens[part] for part in text + behind] for text, behind in row.texts]

    row = Row.of(texts, begin)
    assert row.tokens == [5, 6, 7, 8, 1, 2, 3, 7, 4, 5, 6, 1, 9, 5, 7]
    assert row.positions == [0, 1, 2, 3, 4, 4, 5, 2, 3, 0, 1, 2, 0, 0, 1]
    assert divided(row) == [divided(Row.of([text], begin))[0] for text in texts]
    assert divided(row)[1] == [begin, [7], [4]] and divided(row)[4] == [[5, 7]]


def test_trials_of_rows_that_grow_are_few_and_read_few_prompts_twice() -> None:
    reader = hidden_reader()
    tried = []
    row = reader._longer
    reader._longer = lambda prompts, own: tried.append(len(own.tokens)) or row(prompts, own)  # type: ignore[method-assign]
    for length in range(20, 900, 40):
        reader("x" * length, QUESTIONS[:1])
    assert len(tried) < 7
    assert all(2 * one <= other for one, other in itertools.pairwise(tried))
    ran = forwards(other := hidden_reader())
    other.read([other.prompt(other.reader.state_tokens("x" * length), QUESTIONS[:1]) for length in range(30, 20, -1)])
    assert len([number for number, _ in ran if number == 0]) == 1 + 2 * 2


@pytest.mark.parametrize(("room", "first"), [(260, None), (100, None), (20, None), (2048, "rows are not trusted")])
def test_however_it_is_divided_the_numbers_are_the_same(
    monkeypatch: pytest.MonkeyPatch, room: int, first: str | None
) -> None:
    expected = [hidden_reader()(state, QUESTIONS) for state in STATES]
    monkeypatch.setattr(module, "_ROW", room)
    monkeypatch.setattr(module, "_TOGETHER", room)
    if first is not None:
        monkeypatch.setattr(module, "TOLERANCE", -1.0)
    reader = hidden_reader()
    ran = forwards(reader)
    prompts = [reader.prompt(reader.reader.state_tokens(state), QUESTIONS) for state in STATES]
    for found, one in zip(reader.read(prompts), expected, strict=True):
        assert_same(found, [one])
    assert len([number for number, _ in ran if number == 0]) > 1


@pytest.mark.parametrize("build", [gpt_neo, bloom, mpt], ids=lambda build: build.__name__)
def test_models_that_heed_no_masks_or_positions_are_found_out_and_read_one_by_one(
    build: Callable[[], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    reader = hidden_reader(model=built(build))
    assert len(reader(STATES[0], []).questions) == 0
    for state in STATES:
        assert_same(reader(state, QUESTIONS), [alone(reader, state, question) for question in QUESTIONS])
    assert caplog.text.count("does not read questions in one row behind their state") == 1


def test_a_window_that_only_long_rows_notice(caplog: pytest.LogCaptureFixture) -> None:
    model = built(lambda: gpt_neo(window=300))
    del model.config.window_size
    reader = hidden_reader(model=model)
    for state in ("Hello", "Hello " * 60, "Hello"):
        assert_same(reader(state, QUESTIONS), [alone(reader, state, question) for question in QUESTIONS])
    assert "off by" in caplog.text


def test_a_question_that_does_not_fit_behind_its_state_is_refused() -> None:
    reader = hidden_reader()
    with pytest.raises(TooLongError, match="but the model reads 1024"):
        reader(string.ascii_letters * 20, QUESTIONS)
