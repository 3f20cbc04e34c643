"""Generation with uncertainty: against loops without a cache, transformers' own generate, and probability itself."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_layers import GradientCheckpointingLayer

import bayeslora
from bayeslora.adapters.sampling import sampling
from bayeslora.methods.c_lora import CLoraConfig
from bayeslora.prediction.generation import Generation, encode_prompts, generate, picture
from bayeslora.prediction.generation.prompts import token_pieces
from bayeslora.runs.config import RunConfig, TaskConfig
from bayeslora_cli.main import main
from conftest import (
    CAUSAL,
    TARGETS,
    bayesian,
    byte_level_tokenizer,
    logits_of,
    perturb,
    seeded,
    tiny_bert,
    tiny_llama,
    tokens,
)

UPPER = [2, 3]
STATISTICS = ("draw_log_probabilities", "log_probability", "entropy", "mutual_information")


def left_padded(rows: int = 3, length: int = 7) -> dict[str, Tensor]:
    """Prompts of different lengths."""
    ids, mask = tokens(rows, length), torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        ids[row, : 2 * row], mask[row, : 2 * row] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def full_logits(model: nn.Module, ids: Tensor, mask: Tensor, draw: int, seed: int = 7) -> Tensor:
    """Logits [batch, tokens, vocabulary] of one draw, of the whole text at once."""
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad(), sampling(model, 1, seed, first=draw):
        return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


def naive(model: nn.Module, prompt: dict[str, Tensor], steps: int, draws: int) -> dict[str, Tensor]:
    """Greedy generation: a full forward per draw and token, probabilities averaged by the definition."""
    ids, mask = prompt["input_ids"], prompt["attention_mask"]
    rows = []
    for _ in range(steps):
        logits = torch.stack([full_logits(model, ids, mask, draw)[:, -1] for draw in range(draws)])
        probabilities = logits.double().softmax(-1)
        average = probabilities.mean(0)
        token = average.argmax(-1)
        entropy = -(average * average.log()).sum(-1)
        expected = -(probabilities * probabilities.log()).sum(-1).mean(0)
        own = probabilities[:, torch.arange(len(token)), token].log()
        rows.append((token, own, average[torch.arange(len(token)), token].log(), entropy, entropy - expected))
        ids = torch.cat([ids, token[:, None]], -1)
        mask = torch.cat([mask, torch.ones_like(token[:, None])], -1)
    columns = (torch.stack(column, -1) for column in zip(*rows, strict=True))
    return dict(zip(("tokens", *STATISTICS), columns, strict=True))


def assert_equal(found: Generation, expected: dict[str, Tensor]) -> None:
    assert torch.equal(found.tokens, expected["tokens"])
    for name in STATISTICS:
        torch.testing.assert_close(getattr(found, name).double(), expected[name].double(), atol=3e-5, rtol=1e-4)


# --- against a loop without a cache ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_greedy_is_the_naive_loop(name: str) -> None:
    model, prompt = bayesian(name, layers_to_transform=UPPER), left_padded()
    expected = naive(model, prompt, 5, 4)
    assert expected["mutual_information"].mean() > 0.01, "the draws agree: the test is void"
    found = generate(model, prompt, 4, seed=7, max_new_tokens=5, eos_token_id=None)
    assert_equal(found, expected)
    assert found.mask.all() and found.num_samples == 4


@pytest.mark.parametrize("options", [{}, {"target_modules": ["lm_head"]}], ids=["all layers", "head"])
def test_greedy_is_the_naive_loop_wherever_the_first_random_factor_is(options: dict[str, Any]) -> None:
    model, prompt = bayesian(layers_to_transform=None, **options), left_padded()
    assert_equal(generate(model, prompt, 3, seed=7, max_new_tokens=4, eos_token_id=None), naive(model, prompt, 4, 3))


def test_greedy_is_the_naive_loop_for_a_posterior_that_depends_on_the_input() -> None:
    with seeded(3):
        config = CLoraConfig(r=4, lora_alpha=8, target_modules=TARGETS["llama"], std=0.5)
        model = perturb(get_peft_model(tiny_llama(), config)).eval()
    prompt = left_padded()
    assert_equal(generate(model, prompt, 3, seed=7, max_new_tokens=4, eos_token_id=None), naive(model, prompt, 4, 3))


def test_a_generation_without_cache_is_the_same() -> None:
    model, prompt = bayesian(layers_to_transform=UPPER), left_padded()
    with_cache, without = (generate(model, prompt, 3, max_new_tokens=4, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache.tokens, without.tokens)
    torch.testing.assert_close(with_cache.mutual_information, without.mutual_information, atol=2e-5, rtol=1e-4)


def test_the_trunk_and_its_cache_are_shared_by_the_draws() -> None:
    model, shapes = bayesian(layers_to_transform=UPPER), []
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    handles = [layer.register_forward_hook(lambda m, a, output: shapes.append(output.shape[:2])) for layer in layers]
    generate(model, left_padded(), 5, max_new_tokens=3, eos_token_id=None)
    for handle in handles:
        handle.remove()
    assert [tuple(shape) for shape in shapes] == [(rows, length) for length in (7, 1, 1) for rows in (3, 3, 15, 15)]


def test_the_model_is_as_before() -> None:
    model, ids = bayesian(layers_to_transform=UPPER).train(), tokens()
    generate(model, ids, 3, max_new_tokens=2)
    assert model.training
    model.eval()
    with torch.no_grad():
        assert model(input_ids=ids).logits.shape[0] == 3
        with sampling(model, 2, seed=0), pytest.raises(ValueError, match="past_key_values"):
            model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True)


# --- scores of sequences ---------------------------------------------------------------------------------------------


def ended_early(model: nn.Module, prompt: dict[str, Tensor]) -> Generation:
    """The first sequence ends after two tokens."""
    free = generate(model, prompt, 4, seed=7, max_new_tokens=6, eos_token_id=None)
    end = int(free.tokens[0, 1])
    return generate(model, prompt, 4, seed=7, max_new_tokens=6, eos_token_id=end, pad_token_id=0)


def test_scores_are_those_of_teacher_forcing() -> None:
    model, prompt = bayesian(layers_to_transform=UPPER), left_padded()
    found = ended_early(model, prompt)
    ids = torch.cat([prompt["input_ids"], found.tokens], -1)
    mask = torch.cat([prompt["attention_mask"], found.mask.long()], -1)
    start = prompt["input_ids"].shape[1]
    logits = torch.stack([full_logits(model, ids, mask, draw) for draw in range(4)])[:, :, start - 1 : -1]
    draws = logits.double().log_softmax(-1).gather(-1, found.tokens.expand(4, -1, -1).unsqueeze(-1)).squeeze(-1)
    draws = draws * found.mask
    joint = draws.sum(-1).exp().mean(0).log()
    average = (draws.exp().mean(0).log() * found.mask).sum(-1) / found.mask.sum(-1)
    torch.testing.assert_close(found.log_likelihood.double(), joint, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.mean_log_probability.double(), average, atol=1e-4, rtol=1e-4)
    assert (found.log_likelihood - found.log_probability.sum(-1)).abs().max() > 1e-3, "both scores agree: void"


def test_sequences_that_end_early_are_padded_and_count_their_own_tokens() -> None:
    found = ended_early(bayesian(layers_to_transform=UPPER), left_padded())
    assert found.mask[0].tolist() == [True, True] + [False] * (found.mask.shape[1] - 2)
    assert found.mask.shape[1] > 2
    assert (found.tokens[0, 2:] == 0).all()
    for name in STATISTICS:
        assert (getattr(found, name)[..., 0, 2:] == 0).all()
        assert (getattr(found, name)[..., 0, :2] != 0).all()
    assert math.isclose(found.mean_log_probability[0], found.log_probability[0, :2].mean(), rel_tol=1e-5)


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"top_k": 0}, {"temperature": 0.5, "top_k": 5}], ids=["plain", "warped"])
def test_sampled_tokens_follow_the_averaged_distribution(options: dict[str, Any]) -> None:
    with seeded(4):
        config = bayeslora.BayesianLoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], prior_std=0.5)
        model = perturb(get_peft_model(tiny_llama(vocab_size=8), config)).eval()
    ids = torch.tensor([[1, 5, 3]])
    draws = torch.stack([full_logits(model, ids, torch.ones_like(ids), s)[0, -1].softmax(-1) for s in range(3)])
    rows, temperature, kept = 2000, options.get("temperature", 1.0), options["top_k"] or 8

    def warped(probabilities: Tensor) -> Tensor:
        powers = probabilities.double() ** (1 / temperature)
        powers[powers < powers.sort().values[-kept]] = 0
        return powers / powers.sum()

    found = generate(
        model, ids.expand(rows, -1), 3, seed=7, max_new_tokens=1, do_sample=True, eos_token_id=None, **options
    )
    counts = torch.bincount(found.tokens[:, 0], minlength=8)

    def p_value(probabilities: Tensor) -> float:
        possible = probabilities > 0
        assert counts[~possible].sum() == 0
        return float(chisquare(counts[possible], rows * probabilities[possible]).pvalue)

    assert p_value(warped(draws.mean(0))) > 1e-3
    if kept == 8:
        assert p_value(warped(draws[0])) < 1e-6, "a single draw would do as well: the test is void"


def test_sampling_depends_on_seed_and_row_and_not_on_the_rest_of_the_batch() -> None:
    model, prompt = bayesian(layers_to_transform=UPPER), left_padded()
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "eos_token_id": None}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, again = generate(model, prompt, 3, seed=1, **options), generate(model, prompt, 3, seed=1, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.tokens, again.tokens) and torch.equal(one.entropy, again.entropy)
    assert not torch.equal(one.tokens, generate(model, prompt, 3, seed=2, **options).tokens)
    alone = generate(model, {name: value[:1] for name, value in prompt.items()}, 3, seed=1, **options)
    assert torch.equal(alone.tokens[0], one.tokens[0])
    second = {name: value[1:] for name, value in prompt.items()}
    assert torch.equal(generate(model, second, 3, seed=1, first_row=1, **options).tokens, one.tokens[1:])
    twice = generate(model, prompt["input_ids"][:1], 3, seed=1, num_return_sequences=2, **options).tokens
    assert twice.shape == (2, 6) and not torch.equal(twice[0], twice[1])


def test_sampling_from_the_best_token_alone_is_greedy() -> None:
    model, prompt = bayesian(), left_padded()
    greedy = generate(model, prompt, 3, max_new_tokens=4)
    assert torch.equal(generate(model, prompt, 3, max_new_tokens=4, do_sample=True, top_k=1).tokens, greedy.tokens)


# --- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAUSAL)
def test_padding_changes_nothing(name: str) -> None:
    model, prompt = bayesian(name, layers_to_transform=UPPER), left_padded()
    together = generate(model, prompt, 3, max_new_tokens=4, eos_token_id=None)
    for row in range(3):
        alone = generate(model, prompt["input_ids"][row : row + 1, 2 * row :], 3, max_new_tokens=4, eos_token_id=None)
        assert torch.equal(alone.tokens[0], together.tokens[row])
        for statistic in STATISTICS:
            one, other = getattr(alone, statistic)[..., 0, :], getattr(together, statistic)[..., row, :]
            torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


# --- the point estimate, and models without a posterior --------------------------------------------------------------


def test_no_samples_is_the_mean_as_transformers_generates_from_it() -> None:
    model, prompt = bayesian(), left_padded()
    options: dict[str, Any] = {"max_new_tokens": 6, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    found = generate(model, prompt, 0, **options)
    expected = model.generate(**prompt, do_sample=False, return_dict_in_generate=True, output_logits=True, **options)
    assert torch.equal(found.tokens, expected.sequences[:, 7:])
    distribution = torch.stack(expected.logits, 1).log_softmax(-1)
    own = distribution.gather(-1, found.tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found.log_probability, own * found.mask, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.entropy, -(distribution.exp() * distribution).sum(-1) * found.mask)
    assert found.num_samples == 0 and (found.mutual_information == 0).all()
    torch.testing.assert_close(found.log_likelihood, found.log_probability.sum(-1))


def test_one_draw_has_the_models_own_logits_also_for_penalties() -> None:
    model, prompt = bayesian(), left_padded()
    options: dict[str, Any] = {"max_new_tokens": 6, "repetition_penalty": 1.8}
    found = generate(model, prompt, 1, seed=7, **options)
    with sampling(model, 1, seed=7):
        expected = model.generate(**prompt, do_sample=False, **options)
    assert torch.equal(found.tokens, expected[:, 7:])


@pytest.mark.parametrize("adapter", [True, False])
def test_models_without_a_posterior_are_their_own_prediction(adapter: bool) -> None:
    model: Any = tiny_llama()
    if adapter:
        model = perturb(get_peft_model(model, LoraConfig(target_modules=["q_proj"]))).eval()
    prompt = left_padded()
    found = generate(model, prompt, 5, max_new_tokens=4)
    assert torch.equal(found.tokens, model.generate(**prompt, max_new_tokens=4, do_sample=False)[:, 7:])
    assert found.num_samples == 0 and (found.mutual_information == 0).all()


# --- options of transformers -----------------------------------------------------------------------------------------


class Ends(StoppingCriteria):
    """Ends row r when it has r + 1 new tokens after a prompt of 7."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.arange(1, len(input_ids) + 1) <= input_ids.shape[1] - 7


def test_stopping_criteria_and_a_generation_config() -> None:
    config = GenerationConfig(max_new_tokens=8, pad_token_id=0, eos_token_id=95)
    found = generate(bayesian(), tokens(), 2, generation_config=config, stopping_criteria=[Ends()])
    assert found.mask.sum(-1).tolist() == [1, 2, 3]
    assert (found.tokens[~found.mask] == 0).all()


def test_stop_strings_need_the_tokenizer_and_end_a_text() -> None:
    tokenizer = byte_level_tokenizer()
    model = perturb(get_peft_model(tiny_llama(vocab_size=320), bayeslora.BayesianLoraConfig(r=2))).eval()
    prompt = encode_prompts(tokenizer, ["The quick brown"])
    unreadable = [token for token in range(320) if not tokenizer.decode(token).strip().isalpha()]
    options: dict[str, Any] = {"max_new_tokens": 8, "suppress_tokens": unreadable, "repetition_penalty": 2.0}
    free = generate(model, prompt, 2, tokenizer=tokenizer, **options)
    assert free.pieces is not None and free.texts is not None
    stop = free.pieces[0][3]
    for given in ({"stop_strings": stop}, {"generation_config": GenerationConfig(stop_strings=stop)}):
        found = generate(model, prompt, 2, tokenizer=tokenizer, **options, **given)
        assert found.texts == [free.texts[0][: free.texts[0].index(stop) + len(stop)]]
        assert len(found.texts[0]) < len(free.texts[0])
        with pytest.raises(ValueError, match="give generate the model's tokenizer"):
            generate(model, prompt, 2, **options, **given)


def test_a_streamer_gets_each_token_once() -> None:
    class Kept(BaseStreamer):
        def __init__(self) -> None:
            self.values: list[int] = []

        def put(self, value: Tensor) -> None:
            self.values += value.flatten().tolist()

        def end(self) -> None:
            self.values.append(-1)

    streamer = Kept()
    found = generate(bayesian(), tokens(1), 3, max_new_tokens=4, streamer=streamer)
    assert streamer.values == [*tokens(1)[0].tolist(), *found.tokens[0].tolist(), -1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "beam_search; set num_beams=1"),
        ({"prompt_lookup_num_tokens": 2}, "assisted_generation"),
        ({"assistant_model": "any"}, "Leave assistant_model out"),
        ({"past_key_values": "any"}, "give the whole text"),
        ({"cache": "any"}, "give the whole text"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"cache_implementation": "static"}, "use 'dynamic'"),
        ({"output_scores": True}, "output_scores=True has no place"),
        ({"num_samples": -1}, "num_samples must be at least 0"),
    ],
)
def test_what_cannot_be_combined_says_what_to_do(options: dict[str, Any], message: str) -> None:
    model = bayesian()
    before = logits_of(model)
    with pytest.raises(ValueError, match=message):
        generate(model, tokens(), **{"num_samples": 2, "max_new_tokens": 2, **options})
    assert torch.equal(logits_of(model), before)


def test_wrong_inputs_say_what_was_expected() -> None:
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, -1] = 0
    with pytest.raises(ValueError, match="padded on the right"):
        generate(bayesian(), {"input_ids": tokens(), "attention_mask": mask}, 2)
    with pytest.raises(ValueError, match=r"got \(7,\)"):
        generate(bayesian(), tokens(1)[0], 2)
    with pytest.raises(ValueError, match="holds none; load the base model with AutoModelForCausalLM"):
        generate(tiny_bert(), tokens(), 2)


# --- the result ------------------------------------------------------------------------------------------------------


def result(information: list[list[float]], pieces: list[list[str]] | None = None) -> Generation:
    values = torch.tensor(information)
    mask = values.ge(0)
    return Generation(
        tokens=torch.arange(values.numel()).view_as(values),
        mask=mask,
        draw_log_probabilities=torch.stack([-values, -2 * values]).masked_fill(~mask, 0),
        entropy=(2 * values).masked_fill(~mask, 0),
        mutual_information=values.masked_fill(~mask, 0),
        num_samples=2,
        pieces=pieces,
    )


def test_spans_are_runs_above_the_threshold() -> None:
    found = result([[0.5, 0.3, 0.0, 0.4], [0.0, 0.1, 0.1, -1]], [["a", " b", " c", " d"], ["e", "f", "g"]])
    first, second = found.spans(0.2)
    assert [(span.start, span.end, span.text) for span in first] == [(0, 2, "a b"), (3, 4, " d")]
    assert first[0].value == pytest.approx(0.4) and second == []
    assert [(span.start, span.end) for span in found.spans(0.15, "entropy")[1]] == [(1, 3)]
    with pytest.raises(ValueError, match="measure must be"):
        found.spans(0.1, "surprise")  # type: ignore[arg-type]


def test_records_hold_what_was_generated_and_are_json() -> None:
    found = result([[0.5, 0.3], [0.25, -1]], [["a", " b"], ["e"]])
    first, second = json.loads(json.dumps(list(found.records(0.4))))
    assert first["text"] == "a b" and second["text"] == "e"
    assert first["unsure"] == [{"start": 0, "end": 1, "value": 0.5, "text": "a"}]
    assert second["tokens"] == [2] and second["entropy"] == [0.5] and second["unsure"] == []
    assert second["log_likelihood"] == pytest.approx(math.log((math.exp(-0.25) + math.exp(-0.5)) / 2))


# --- text ------------------------------------------------------------------------------------------------------------


def test_pieces_joined_are_the_text_also_where_tokens_share_a_character() -> None:
    tokenizer = byte_level_tokenizer()
    text = "The sun — 日 — is"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    pieces = token_pieces(tokenizer, ids)
    assert len(pieces) == len(ids) and pieces[-1] == ""
    assert "".join(pieces) == text
    assert sum("日" in piece for piece in pieces) == 1


def test_prompts_are_padded_on_the_left_and_use_the_chat_template() -> None:
    tokenizer = byte_level_tokenizer()
    plain = encode_prompts(tokenizer, ["The sun", "Question: What do plants need"])
    assert tokenizer.padding_side == "right"
    assert plain["attention_mask"][0, 0] == 0 and plain["attention_mask"][:, -1].all()
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>A:{% endif %}"
    )
    chat = encode_prompts(tokenizer, ["The sun"])["input_ids"][0]
    assert tokenizer.decode(chat) == "<s>The sun</s><s>A:"
    raw = encode_prompts(tokenizer, ["The sun"], raw=True)["input_ids"][0]
    assert tokenizer.decode(raw) == "The sun"
    for prompts in ([], [""]):
        with pytest.raises(ValueError, match="leave empty prompts out"):
            encode_prompts(tokenizer, prompts, raw=True)


# --- the picture and the command ------------------------------------------------------------------------------------


RECORD = {
    "prompt": "Why $x^2$ is\nnever negative?",
    "pieces": ["Because", " it", " is", " a", " square", ".\n", "", " Antidisestablishmentarianism" * 4],
    "mutual_information": [0.0, 0.1, 0.0, 0.2, 0.9, 0.0, 0.3, 0.1],
    "entropy": [0.5] * 8,
    "unsure": [{"start": 3, "end": 5, "value": 0.5, "text": " a square"}],
}


def test_a_picture_places_every_character_once_and_within_the_page() -> None:
    placed = picture._wrapped(RECORD["pieces"])
    text = "".join(RECORD["pieces"]).replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
    shown = "".join(place.character for place in placed)
    assert shown.replace(" ", "") == text.replace(" ", "")
    assert len({(place.line, place.column) for place in placed}) == len(placed)
    assert max(place.column for place in placed) < picture._COLUMNS and placed[-1].line > 1
    assert "".join(place.character for place in placed if place.token == 4) == " square"


def test_a_picture_depends_on_what_is_unsure() -> None:
    one, again = picture.uncertainty_picture([RECORD]), picture.uncertainty_picture([RECORD])
    assert one.startswith(b"\x89PNG") and one == again
    assert picture.uncertainty_picture([{**RECORD, "unsure": []}]) != one
    with pytest.raises(ValueError, match="give generate a tokenizer"):
        picture.uncertainty_picture([{**RECORD, "pieces": None}])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A run as `load_run` gives it."""
    with seeded(1):
        config = bayeslora.BayesianLoraConfig(r=2, prior_std=0.5, task_type="CAUSAL_LM")
        model = perturb(get_peft_model(tiny_llama(vocab_size=320), config)).eval()
    run = SimpleNamespace(
        model=model,
        scoring=bayeslora.Cloze(byte_level_tokenizer()),
        config=RunConfig(task=TaskConfig("unused"), num_samples=3),
    )
    monkeypatch.setattr("bayeslora.runs.load_run", lambda folder, device=None: run)
    return run


def test_the_command_writes_records_and_a_picture(run: SimpleNamespace, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"id": "a", "prompt": "The sun is"}, {"prompt": "Which of these is a metal?"}, {"prompt": "The sun is"}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    written = []
    for batch_size in (1, 3):
        output, image = tmp_path / "out.jsonl", tmp_path / "tokens.png"
        files = ["--input", prompts, "--output", output, "--picture", image, "--batch_size", batch_size]
        decoding = ["--max_new_tokens", 5, "--do_sample", True, "--seed", 4, "--unsure_above", 0.01]
        decoding += ["--overwrite", True]
        main([str(argument) for argument in ["generate", "runs/any", *files, *decoding]])
        assert image.read_bytes().startswith(b"\x89PNG")
        written.append([json.loads(line) for line in output.read_text().splitlines()])
    one, other = written
    assert [record["id"] for record in one] == ["a", "prompts-1", "prompts-2"]
    assert [record["tokens"] for record in one] == [record["tokens"] for record in other]
    assert one[0]["tokens"] != one[2]["tokens"], "equal prompts of one file have tokens of their own"
    assert one[0]["num_samples"] == 3 and len(one[0]["mutual_information"]) == len(one[0]["tokens"])


def test_the_command_prints_one_prompt(run: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    main(["generate", "runs/any", "--prompt", "The sun is", "--max_new_tokens", "4", "--unsure_above", "0"])
    assert "unsure:\n" in capsys.readouterr().out
    run.model = run.model.unload()
    main(["generate", "runs/any", "--prompt", "The sun is", "--max_new_tokens", "4"])
    said = capsys.readouterr()
    assert "the point estimate generates" in said.err and "0 of 4 tokens are unsure" in said.out


def test_the_command_says_what_is_wrong(
    run: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(["generate", "runs/any", *arguments])
        return capsys.readouterr().err

    assert "either --prompt or --input" in fails()
    assert "either --prompt or --input" in fails("--prompt", "a", "--input", "b.jsonl")
    (tmp_path / "wrong.jsonl").write_text('{"question": "Why?"}\n')
    assert 'line 1: expected a text as "prompt"' in fails("--input", str(tmp_path / "wrong.jsonl"))
    run.scoring.kind = "sequence_classification"
    assert "writes no text" in fails("--prompt", "a")
