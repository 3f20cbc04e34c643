"""A model of the evaluation harness that answers with the posterior predictive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from bayeslora.adapters.draws import find_draws
from bayeslora.adapters.sampling import sampling
from bayeslora.prediction.generation import generate
from bayeslora.prediction.likelihood import (
    LIKELIHOODS,
    ContinuationScorer,
    Likelihood,
    Scored,
    log_likelihood,
)
from bayeslora.prediction.predictive import affordable_samples
from bayeslora.runs import Run, load_run
from bayeslora.scoring.base import forward_options
from bayeslora.system.log import logger

_HANDED_ON = (
    "max_length",
    "max_batch_size",
    "add_bos_token",
    "prefix_token_id",
    "truncation",
    "logits_cache",
    "chat_template_args",
    "enable_thinking",
    "think_end_token",
)
"""Arguments of the harness's own HFLM that mean the same here."""

Request = tuple[Any, list[int], list[int]]
"""The strings of a request (None for a window of a long text), the tokens of its context and of its continuation."""


@register_model("bayeslora")
class PosteriorLM(HFLM):
    """A run under lm-evaluation-harness: tasks, prompts and metrics are the harness's, the answers the posterior's.

    `loglikelihood` averages over draws as `likelihood` says (`bayeslora.prediction.likelihood`),
    `loglikelihood_rolling` does so over the whole text, and `generate_until` decodes from the average over draws for
    each token (`bayeslora.generate`). The draws are the same for all requests. With 0 samples all of it is the code of
    HFLM on the posterior mean.

    Args:
        pretrained: Run folder, Hub id of a pushed run, a `Run` in memory, or a causal language model with adapters.
        num_samples: Draws S; 0 for the posterior mean. Default: the run's; 10 for a model.
        likelihood: "joint" or "mixture".
        seed: Of the draws. Default: the run's; 0 for a model.
        samples_per_forward: Draws in one forward. Default: as many as should fit in memory.
        tokenizer: For a model in `pretrained`.
        revision: Branch, tag or commit of a Hub id.
        base_model: Hub id or folder of the base model, in place of the one that the run names.
        allow_method: Dotted path of a method outside of bayeslora that the run may name.
        device: Where to compute; default: where the run says.
        batch_size: Requests in one forward, each with all its draws; "auto" as in HFLM.
        **options: max_length, max_batch_size, add_bos_token, prefix_token_id, truncation, logits_cache,
            chat_template_args, enable_thinking and think_end_token of HFLM.

    Raises:
        ValueError: An option is unknown or out of range, or the run has no language-model head.
    """

    def __init__(
        self,
        pretrained: str | Path | Run | nn.Module,
        num_samples: int | None = None,
        likelihood: Likelihood = "joint",
        seed: int | None = None,
        samples_per_forward: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        base_model: str | None = None,
        allow_method: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        **options: Any,
    ):
        _check(num_samples, likelihood, samples_per_forward, options)
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            # The harness's command line says cuda:0 where nobody has chosen, and HFLM falls back as well.
            device = None
        if isinstance(pretrained, nn.Module):
            model, samples = pretrained, 10 if num_samples is None else num_samples
            if tokenizer is None:
                raise ValueError("a model in `pretrained` needs its tokenizer: PosteriorLM(model, tokenizer=...).")
        else:
            run = (
                pretrained
                if isinstance(pretrained, Run)
                else load_run(
                    pretrained, revision=revision, base_model=base_model, device=device, allow_method=allow_method
                )
            )
            model, tokenizer, samples = run.model, run.scoring.tokenizer, _samples_of(run, num_samples)
            seed = run.config.seed if seed is None else seed
        if device is not None and not isinstance(pretrained, str | Path):
            model = model.to(device)
        super().__init__(model, backend="causal", tokenizer=tokenizer, batch_size=batch_size, **options)
        self.likelihood = likelihood
        self.seed = seed or 0
        self.num_samples = _drawn(model, samples)
        self._samples_per_forward = samples_per_forward
        self._texts = 0

    # --- likelihoods -----------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        if not self.num_samples:
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs, **kwargs)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        progress = tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests")
        for index, scored in self._scored(requests):
            answers[index] = (log_likelihood(scored.tokens, self.likelihood), scored.is_greedy)
            self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
            progress.update()
        progress.close()
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each request's whole text, which is averaged over draws once and not by window."""
        if not self.num_samples:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        texts = [request.args[0] for request in requests]
        windows = [(number, window) for number, text in enumerate(texts) for window in self._windows(text)]
        tokens: list[list[Tensor]] = [[] for _ in texts]
        found = self._scored([window for _, window in windows], greedy=False)
        for index, scored in tqdm(found, total=len(windows), disable=disable_tqdm, desc="Running rolling windows"):
            tokens[windows[index][0]].append(scored.tokens)
        answers = []
        for text, parts in zip(texts, tokens, strict=True):
            answers.append(log_likelihood(torch.cat(parts, 1), self.likelihood) if parts else 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
        return answers

    def _windows(self, text: str) -> Iterator[Request]:
        """The text in pieces of the model's length, each token predicted once, as HFLM cuts it."""
        windows = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        for context, continuation in map(utils.make_disjoint_window, windows):
            yield None, context, continuation

    def _scored(self, requests: Sequence[Request], *, greedy: bool = True) -> Iterator[tuple[int, Scored]]:
        """Each request's number and score, the longest first; those that differ in the last token share a row."""
        rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            self._check_length(continuation)
            rows.setdefault((tuple(context), tuple(continuation[:-1])), []).append(index)
        order = sorted(rows, key=lambda row: (-len(row[0]) - len(row[1]), row))
        size = self._rows_per_forward([requests[rows[row][0]] for row in order[:1]])
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            scorers = self._forward_draws(batch, greedy=greedy)
            for row, scorer in zip(batch, scorers, strict=True):
                for index in rows[row]:
                    yield index, scorer.score(requests[index][2][-1])

    def _forward_draws(
        self, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], *, greedy: bool
    ) -> list[ContinuationScorer]:
        """All draws of a batch of rows (context, continuation but its last token)."""
        texts = [list(context + prefix)[-self.max_length :] for context, prefix in rows]
        longest = max(map(len, texts))
        # Padding behind a text changes nothing before it, and the places of the tokens stay those of the text alone.
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=self.device)
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts], device=self.device)
        starts = [len(text) - len(prefix) - 1 for text, (_, prefix) in zip(texts, rows, strict=True)]
        kept = longest - min(starts)
        options = forward_options(self.model, attention_mask=mask, logits_to_keep=kept, use_cache=False)
        scorers = [ContinuationScorer(prefix, self.likelihood, greedy=greedy) for _, prefix in rows]
        size = self._samples_per_forward or affordable_samples(self.model, ids, kept)
        for first in range(0, self.num_samples, size):
            count = min(size, self.num_samples - first)
            with torch.no_grad(), sampling(self.model, count, self.seed, first=first):
                logits = self.model(input_ids=ids, **options).logits[:, -kept:].unflatten(0, (count, -1))
            for number, (scorer, start, (_, prefix)) in enumerate(zip(scorers, starts, rows, strict=True)):
                place = start - min(starts)
                scorer.add(torch.log_softmax(logits[:, number, place : place + len(prefix) + 1].float(), -1))
        return scorers

    def _check_length(self, continuation: Sequence[int]) -> None:
        if not 0 < len(continuation) <= self.max_length:
            raise ValueError(
                f"a continuation must have between 1 and max_length={self.max_length} tokens, got {len(continuation)}; "
                "raise max_length if the model can read more, or leave the item out."
            )

    def _rows_per_forward(self, longest: list[Request]) -> int:
        if self.batch_size == "auto":
            return int(self._detect_batch_size(longest)) if longest else 1
        return int(self.batch_size)

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.num_samples:
            return super()._model_call(inps, *args, **kwargs)
        # What HFLM tries batch sizes with: all draws, as in the forwards that follow.
        with sampling(self.model, min(self._samples_per_forward or self.num_samples, self.num_samples), self.seed):
            return super()._model_call(inps, *args, **kwargs)

    # --- generation ------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts that go on from the requests' contexts, decoded from the average over draws for each token."""
        self._texts = 0
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        if not self.num_samples:
            return super()._model_generate(context, max_length, stop, **generation_kwargs)
        inputs = {"input_ids": context, "attention_mask": generation_kwargs.pop("attention_mask")}
        if not generation_kwargs.get("do_sample"):
            generation_kwargs = {**generation_kwargs, "do_sample": False}
            generation_kwargs.pop("temperature", None)
        rows, length = context.shape
        generation = generate(
            self.model,
            inputs,
            self.num_samples,
            self.seed,
            first_row=self._texts,
            max_new_tokens=max_length - length,
            stopping_criteria=stop_sequences_criteria(self.tokenizer, stop, length, rows),
            pad_token_id=self.tokenizer.pad_token_id,
            **generation_kwargs,
        )
        self._texts += rows
        return torch.cat([context, generation.tokens.to(context.device)], 1)


def _check(num_samples: int | None, likelihood: str, samples_per_forward: int | None, options: dict[str, Any]) -> None:
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood must be 'joint' or 'mixture', got {likelihood!r}.")
    if num_samples is not None and num_samples < 0:
        raise ValueError(f"num_samples must be at least 0 (0: posterior mean), got {num_samples}.")
    if samples_per_forward is not None and samples_per_forward < 1:
        raise ValueError(f"samples_per_forward must be at least 1, got {samples_per_forward}.")
    # HFLM takes any name and forgets those that it does not know.
    if unknown := sorted(set(options) - set(_HANDED_ON)):
        raise ValueError(
            f"the model 'bayeslora' has no option {unknown[0]!r}; it has pretrained, num_samples, likelihood, seed, "
            f"samples_per_forward, revision, base_model, device, batch_size, {', '.join(_HANDED_ON)}. The number type "
            "is that of the run's config.yaml."
        )


def _samples_of(run: Run, num_samples: int | None) -> int:
    if run.scoring.by_heads:
        raise ValueError(
            "a head reads this run's choices, and no likelihoods of text were trained; the harness needs a run that "
            "was trained with task.scoring cloze or letter."
        )
    if run.scoring.kind != "causal_lm":
        raise ValueError(
            f"this run has a {run.scoring.kind} head and no likelihoods of text; the harness needs a run that was "
            "trained with task.scoring cloze or letter."
        )
    return run.config.samples_used(num_samples)


def _drawn(model: nn.Module, samples: int) -> int:
    """`samples`, or 0 where the adapters have no draws."""
    draws = find_draws(model)
    if samples and (draws is None or not draws.modules(in_use=True)):
        logger.warning("this adapter has no draws of weights: the harness evaluates its point estimate")
        return 0
    return samples
