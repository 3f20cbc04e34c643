"""lm-evaluation-harness on a posterior: against merged draws, one after the other, one text after the other."""

import json
import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

import bayeslora
from bayeslora import BayesianLoraConfig
from bayeslora.methods import BayesianLora, Lora
from bayeslora.runs import Run, load_run, train
from bayeslora.runs.config import ModelConfig, RunConfig, TaskConfig, TrainConfig
from bayeslora.scoring import Classification, Cloze
from bayeslora_cli.main import main
from conftest import byte_level_tokenizer, perturb, seeded, tiny_llama, wordpiece_tokenizer
from other_processes import run_copy

pytest.importorskip("lm_eval")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from bayeslora.deploy.lm_eval import PosteriorLM
from bayeslora.prediction.likelihood import ContinuationScorer, log_likelihood

SAMPLES, SEED, LENGTH = 4, 3, 48
TOKENIZER = byte_level_tokenizer()
PAIRS = [
    ("Question: What do plants need?\nAnswer:", " sunlight and water"),
    ("Question: What do plants need?\nAnswer:", " A"),
    ("Question: What do plants need?\nAnswer:", " B"),
    ("The quick brown fox", " jumps over"),
    ("", "Answer: B C"),
    ("The sun is a", " star"),
]


def build() -> PeftModel:
    """A causal model with a wide posterior on its upper two layers."""
    with seeded(7):
        base = tiny_llama(vocab_size=len(TOKENIZER), max_position_embeddings=LENGTH)
        config = BayesianLoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "v_proj", "down_proj"],
            layers_to_transform=[2, 3],
            prior_std=0.5,
        )
        model = get_peft_model(base, config)
    return perturb(model).eval()  # type: ignore[return-value]


def posterior(num_samples: int = SAMPLES, **options) -> PosteriorLM:
    return PosteriorLM(build(), num_samples, tokenizer=TOKENIZER, seed=options.pop("seed", SEED), **options)


@pytest.fixture(scope="module")
def draws() -> list[nn.Module]:
    """Each draw merged into a plain model."""
    merged = []
    for number in range(SAMPLES):
        model = build()
        with bayeslora.sampling(model, num_samples=1, seed=SEED, first=number):
            merged.append(model.merge_and_unload())
    return merged


def instances(pairs) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=pair, task_name=None) for pair in pairs]


def tokens_of(context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Both as the harness cuts them; an empty context is the mark of the beginning."""
    if not context:
        return [TOKENIZER.bos_token_id], TOKENIZER(continuation)["input_ids"]
    before = TOKENIZER(context)["input_ids"]
    return before, TOKENIZER(context + continuation)["input_ids"][len(before) :]


@torch.no_grad()
def per_draw(draws: list[nn.Module], context: list[int], continuation: list[int]) -> Tensor:
    """Log-probabilities [samples, tokens, vocabulary] at the places of the continuation, in float64."""
    ids = torch.tensor([context + continuation[:-1]])
    logits = torch.stack([model(ids).logits[0, len(context) - 1 :] for model in draws])
    return torch.log_softmax(logits.double(), -1)


def expected(found: Tensor, continuation: list[int], likelihood: str) -> tuple[float, bool]:
    """The definition, with probabilities and loops."""
    probabilities = found.exp()
    total, greedy = 0.0, True
    weights = [1 / len(found)] * len(found)
    for place, token in enumerate(continuation):
        average = sum(weight * probabilities[s, place] for s, weight in enumerate(weights))
        total += math.log(average[token])
        greedy &= int(average.argmax()) == token
        if likelihood == "joint":
            weights = [float(w * probabilities[s, place, token] / average[token]) for s, w in enumerate(weights)]
    return total, greedy


def greedy_text(draws: list[nn.Module], context: list[int], count: int, likelihood: str) -> list[int]:
    """The continuation that is greedy by definition."""
    text: list[int] = []
    for _ in range(count):
        found = per_draw(draws, context, [*text, 0])
        weight = torch.zeros(len(found), dtype=torch.float64)
        if likelihood == "joint" and text:
            weight = found[:, : len(text)].gather(-1, torch.tensor(text).expand(len(found), -1)[..., None]).sum((1, 2))
        text.append(int((weight[:, None] + found[:, -1]).logsumexp(0).argmax()))
    return text


# --- the definitions -------------------------------------------------------------------------------------------------


def scorer(likelihood: str, prefix: list[int], probabilities: list) -> ContinuationScorer:
    scorer = ContinuationScorer(prefix, likelihood)
    for draw in probabilities:
        scorer.add(torch.tensor([draw]).log())
    return scorer


def test_two_draws_by_hand():
    """Draw one knows that token 0 comes first, and then 1; draw two is unsure first, and then says 2."""
    draws = [[[0.9, 0.1, 0.0], [0.2, 0.6, 0.2]], [[0.1, 0.5, 0.4], [0.0, 0.1, 0.9]]]
    joint = scorer("joint", [0], draws).score(1)
    assert log_likelihood(joint.tokens, "joint") == pytest.approx(math.log((0.9 * 0.6 + 0.1 * 0.1) / 2))
    assert log_likelihood(joint.tokens, "mixture") == pytest.approx(math.log(0.5 * 0.35))
    # After token 0 draw one has weight 0.9, so that 1 comes next; with equal weights 2 does: 0.55 against 0.35.
    assert joint.is_greedy and not scorer("joint", [0], draws).score(2).is_greedy
    assert not scorer("mixture", [0], draws).score(1).is_greedy and scorer("mixture", [0], draws).score(2).is_greedy


def test_the_joint_likelihood_is_never_below_that_of_any_draw_over_s():
    tokens = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).sub(3).double()
    value = log_likelihood(tokens, "joint")
    assert float(tokens.sum(1).max()) - math.log(5) <= value <= float(tokens.sum(1).max())
    assert value == pytest.approx(math.log(tokens.sum(1).exp().mean()))
    assert log_likelihood(tokens[:1], "joint") == pytest.approx(log_likelihood(tokens[:1], "mixture"))


# --- loglikelihood ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["joint", "mixture"])
def test_loglikelihood_is_that_of_merged_draws(draws, likelihood):
    found = posterior(likelihood=likelihood, batch_size=4).loglikelihood(instances(PAIRS), disable_tqdm=True)
    for pair, (value, greedy) in zip(PAIRS, found, strict=True):
        context, continuation = tokens_of(*pair)
        reference = expected(per_draw(draws, context, continuation), continuation, likelihood)
        assert value == pytest.approx(reference[0], abs=2e-4)
        assert greedy == reference[1]


def test_the_two_likelihoods_differ_for_several_tokens_and_agree_for_one():
    both = [
        posterior(likelihood=name).loglikelihood(instances(PAIRS), disable_tqdm=True) for name in ("joint", "mixture")
    ]
    differences = [abs(one - other) for (one, _), (other, _) in zip(*both, strict=True)]
    assert differences[0] > 0.05 and differences[1] < 1e-5 and differences[2] < 1e-5


def test_is_greedy_follows_the_likelihood(draws):
    """Continuations that are greedy by the definition, some of which are so under one of the two only."""
    lms = {name: posterior(likelihood=name) for name in ("joint", "mixture")}
    apart = 0
    for start in range(4, 40, 3):
        context = list(range(start, start + 5))
        texts = {name: greedy_text(draws, context, 5, name) for name in lms}
        apart += texts["joint"] != texts["mixture"]
        for name, lm in lms.items():
            wrong = [*texts[name][:-1], (texts[name][-1] + 1) % len(TOKENIZER)]
            requests = [(None, context, text) for text in (texts["joint"], texts["mixture"], wrong)]
            flags = [greedy for _, greedy in lm._loglikelihood_tokens(requests, disable_tqdm=True)]
            assert flags == [texts["joint"] == texts[name], texts["mixture"] == texts[name], False]
    assert apart, "the model must have a context where both differ, or nothing is tested"


def values(lm: PosteriorLM) -> list[float]:
    return [value for value, _ in lm.loglikelihood(instances(PAIRS), disable_tqdm=True)]


@pytest.mark.parametrize("options", [{"batch_size": 6}, {"samples_per_forward": 1}, {"samples_per_forward": 3}])
def test_batches_and_chunks_of_draws_do_not_change_the_answers(options):
    assert values(posterior(**options)) == pytest.approx(values(posterior(batch_size=1)), abs=1e-4)


def test_same_seed_same_numbers_and_another_seed_others():
    one = posterior()
    assert values(one) == values(one) == values(posterior())
    assert values(posterior(seed=SEED + 1)) != pytest.approx(values(one), abs=1e-2)


def test_without_samples_it_is_hflm_on_the_mean():
    lm, plain = posterior(0, batch_size=3), HFLM(build(), tokenizer=TOKENIZER, batch_size=3)
    assert lm.loglikelihood(instances(PAIRS), disable_tqdm=True) == plain.loglikelihood(
        instances(PAIRS), disable_tqdm=True
    )
    merged = HFLM(build().merge_and_unload(), tokenizer=TOKENIZER, batch_size=3)
    reference = [value for value, _ in merged.loglikelihood(instances(PAIRS), disable_tqdm=True)]
    assert values(lm) == pytest.approx(reference, abs=1e-4)


def test_a_batch_size_can_be_found():
    lm = posterior(batch_size="auto", max_batch_size=4)
    assert values(lm) == pytest.approx(values(posterior()), abs=1e-4)


# --- long texts ------------------------------------------------------------------------------------------------------

LONG = "The quick brown fox jumps over the lazy dog. " * 6


@pytest.mark.parametrize("likelihood", ["joint", "mixture"])
def test_rolling_averages_over_the_whole_text(draws, likelihood):
    ids = TOKENIZER(LONG)["input_ids"]
    assert len(ids) > 2 * LENGTH, "several windows, or nothing is tested"
    found: list[Tensor] = []
    for start in range(0, len(ids), LENGTH):
        window = ids[start : start + LENGTH]
        # The last window is filled up with what comes before it, and only its new tokens count.
        context = ids[start + len(window) - LENGTH - 1 : start] if start else [TOKENIZER.bos_token_id]
        lp = per_draw(draws, context, window)
        found.append(lp.gather(-1, torch.tensor(window).expand(SAMPLES, -1)[..., None])[..., 0])
    tokens = torch.cat(found, 1)
    # A text of this length is too improbable for exp.
    joint = tokens.sum(1).logsumexp(0) - math.log(SAMPLES)
    average = joint if likelihood == "joint" else tokens.exp().mean(0).log().sum()
    got = posterior(likelihood=likelihood, batch_size=2).loglikelihood_rolling(instances([(LONG,), ("A B",)]), True)
    assert got[0] == pytest.approx(float(average), abs=2e-3)
    assert len(got) == 2 and got[1] < 0


def test_rolling_without_samples_is_hflm():
    texts = instances([(LONG,), ("A B",)])
    plain = HFLM(build(), tokenizer=TOKENIZER, batch_size=2)
    assert posterior(0, batch_size=2).loglikelihood_rolling(texts, True) == plain.loglikelihood_rolling(texts, True)


# --- generation ------------------------------------------------------------------------------------------------------


def requests(**options) -> list[SimpleNamespace]:
    texts = ["The quick brown", "Question: The sun is", "Answer:"]
    return instances([(text, {"until": ["\n"], "max_gen_toks": 6, **options}) for text in texts])


def test_generation_decodes_from_the_average_of_the_draws():
    got = posterior(batch_size=2).generate_until(requests(), disable_tqdm=True)
    for text, request in zip(got, requests(), strict=True):
        ids = TOKENIZER(request.args[0], return_tensors="pt")
        found = bayeslora.generate(build(), dict(ids), SAMPLES, SEED, max_new_tokens=6)
        assert text == TOKENIZER.decode(found.tokens[0], skip_special_tokens=True).split("\n")[0].split("</s>")[0]


def test_sampled_texts_depend_on_the_seed_and_not_on_the_batch():
    options = {"do_sample": True, "temperature": 1.0}
    one, other = (posterior(batch_size=size).generate_until(requests(**options), disable_tqdm=True) for size in (1, 3))
    assert one == other
    assert posterior(seed=9).generate_until(requests(**options), disable_tqdm=True) != one


def test_generation_without_samples_is_hflm():
    plain = HFLM(build(), tokenizer=TOKENIZER, batch_size=2)
    got = posterior(0, batch_size=2).generate_until(requests(), disable_tqdm=True)
    assert got == plain.generate_until(requests(), disable_tqdm=True)


# --- the harness, end to end -----------------------------------------------------------------------------------------

WORDS = ["sunlight and water", "iron", "wood", "a star", "the moon"]


def documents(count: int) -> list[dict]:
    return [
        {
            "id": str(n),
            "question": f"What do plants need to grow ({n})?",
            "choices": [WORDS[(n + k) % 5] for k in range(3)],
            "label": n % 3,
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    tiny_llama(vocab_size=len(TOKENIZER), max_position_embeddings=256).save_pretrained(folder / "base")
    TOKENIZER.save_pretrained(folder / "base")
    (folder / "data").mkdir()
    for part, count in (("train", 8), ("dev", 4), ("test", 5)):
        rows = "".join(json.dumps(row) + "\n" for row in documents(count))
        (folder / "data" / f"{part}.jsonl").write_text(rows)
    task = {
        "task": "plants",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "data" / "test.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (folder / "tasks").mkdir()
    (folder / "tasks" / "plants.yaml").write_text(yaml.safe_dump(task))
    config = RunConfig(
        model=ModelConfig(name=str(folder / "base"), device="cpu"),
        task=TaskConfig(name=str(folder / "data")),
        method=BayesianLora(r=4, last_layers=2, prior_std=0.5),
        train=TrainConfig(max_steps=2, batch_size=4, learning_rate=1e-2),
        num_samples=SAMPLES,
        seed=SEED,
    )
    train(config, folder / "run")
    return folder


def test_simple_evaluate_scores_a_run_as_a_loop_over_merged_draws_does(run_folder):
    results = lm_eval.simple_evaluate(
        model="bayeslora",
        model_args=f"pretrained={run_folder / 'run'},num_samples={SAMPLES}",
        tasks=["plants"],
        batch_size=4,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(run_folder / "tasks"), include_defaults=False),
    )
    merged = []
    for number in range(SAMPLES):
        run = load_run(run_folder / "run")
        with bayeslora.sampling(run.model, num_samples=1, seed=SEED, first=number):
            merged.append(run.model.merge_and_unload())
    right = []
    for row, sample in zip(documents(5), results["samples"]["plants"], strict=True):
        found = []
        for choice in row["choices"]:
            context, continuation = tokens_of(f"Question: {row['question']}\nAnswer:", f" {choice}")
            found.append(expected(per_draw(merged, context, continuation), continuation, "joint")[0])
        assert [value for value, _ in sample["filtered_resps"]] == pytest.approx(found, abs=1e-3)
        right.append(max(range(3), key=found.__getitem__) == row["label"])
    assert results["results"]["plants"]["acc,none"] == pytest.approx(sum(right) / 5)


def test_the_command_prints_the_table_and_writes_the_results(run_folder, tmp_path, capsys, monkeypatch):
    own_tasks_only = partial(TaskManager, include_defaults=False)  # Reading the harness's own takes 20 s.
    monkeypatch.setattr("bayeslora.deploy.lm_eval.run.TaskManager", own_tasks_only)
    options = ["--tasks", "plants", "--include_path", str(run_folder / "tasks"), "--batch_size", "2", "--limit", "3"]
    main(
        ["lm-eval", str(run_folder / "run"), *options, "--likelihood", "mixture", "--output", str(tmp_path / "r.json")]
    )
    assert "plants" in capsys.readouterr().out
    written = json.loads((tmp_path / "r.json").read_text())
    assert 0 <= written["results"]["plants"]["acc,none"] <= 1
    assert written["config"]["model_args"] == {"pretrained": str(run_folder / "run"), "likelihood": "mixture"}


def test_the_harness_own_command_line_knows_the_model(run_folder, tmp_path):
    script = """
import functools, runpy, lm_eval.tasks
lm_eval.tasks.TaskManager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
runpy.run_module("bayeslora.deploy.lm_eval", run_name="__main__")
"""
    arguments = f"pretrained={run_folder / 'run'},num_samples=2"
    done = run_copy(
        script,
        tmp_path,
        *("--model", "bayeslora", "--model_args", arguments, "--tasks", "plants", "--limit", "2"),
        *("--include_path", str(run_folder / "tasks")),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "bayeslora" in done.stdout and "acc_norm" in done.stdout


# --- what cannot be --------------------------------------------------------------------------------------------------


def in_memory(method, scoring) -> Run:
    return Run(config=RunConfig(method=method), model=build(), scoring=scoring, metrics={}, state={})


def test_a_run_in_memory_gives_its_number_of_samples():
    lm = PosteriorLM(in_memory(BayesianLora(), Cloze(TOKENIZER)))
    assert lm.num_samples == RunConfig().num_samples and lm.likelihood == "joint"


def test_plain_lora_has_no_draws():
    assert PosteriorLM(in_memory(Lora(), Cloze(TOKENIZER)), num_samples=5).num_samples == 0


def test_a_classifier_has_no_likelihood_of_text():
    with pytest.raises(ValueError, match="cloze or letter"):
        PosteriorLM(in_memory(BayesianLora(), Classification(wordpiece_tokenizer())))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_sample": 3}, "no option 'num_sample'"),
        ({"dtype": "float16"}, "no option 'dtype'"),
        ({"num_samples": -1}, "at least 0"),
        ({"likelihood": "product"}, "'joint' or 'mixture'"),
        ({"samples_per_forward": 0}, "at least 1"),
        ({"tokenizer": None}, "needs its tokenizer"),
    ],
)
def test_wrong_options_say_what_is_right(options, says):
    with pytest.raises(ValueError, match=says):
        PosteriorLM(build(), **{"tokenizer": TOKENIZER, **options})


def test_a_continuation_longer_than_the_model_is_refused():
    with pytest.raises(ValueError, match=f"max_length={LENGTH}"):
        posterior()._loglikelihood_tokens([(None, [5], [6] * (LENGTH + 1))])


def test_without_the_harness_the_error_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("bayeslora.deploy.lm_eval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"bayeslora\[lm-eval\]"):
        import bayeslora.deploy.lm_eval  # noqa: F401
