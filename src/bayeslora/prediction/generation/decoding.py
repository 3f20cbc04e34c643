"""Decoding from the posterior predictive: S draws read the same text, their average says how it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)

from bayeslora.adapters.draws import find_draws
from bayeslora.adapters.noise import generator
from bayeslora.adapters.sampling import sampling
from bayeslora.models.layers import evaluating
from bayeslora.prediction.generation.prompts import token_pieces
from bayeslora.prediction.generation.result import Generation
from bayeslora.prediction.predictive import Predictive

_NOT_TAKEN = {
    "assistant_model": "an assistant would have to propose tokens to all draws",
    "custom_generate": "the decoding is this function's own",
    **dict.fromkeys(
        ("past_key_values", "cache"), "the cache must hold the draws of this call; give the whole text as input_ids"
    ),
    "inputs_embeds": "give input_ids",
    "negative_prompt_ids": "guidance is not supported",
    "adapter_names": "one adapter's draws are averaged; call model.set_adapter and generate for one adapter at a time",
    "synced_gpus": "sharded models are not supported",
}


def generate(
    model: nn.Module,
    inputs: Mapping[str, Any] | Tensor,
    num_samples: int = 10,
    seed: int = 0,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    first_row: int = 0,
    **options: Any,
) -> Generation:
    """Generate from the posterior predictive and say how sure the model was of each token.

    For each new token the S draws' distributions are averaged, p(y_t | y_<t) = (1/S) sum_s p_s(y_t | y_<t), and one
    token is chosen from the average for all of them. It is transformers' own `generate` on a model whose logits are
    log p plus the mean over draws of their log normaliser, so with one draw they are the model's own. The key-value
    cache holds the batch once for the layers below the first random one, and S times for the others.

    Args:
        model: A causal language model with or without adapters. Without a posterior, the result is the model's own.
        inputs: `input_ids` `[batch, tokens]`, or a mapping with these and their `attention_mask`, as
            `encode_prompts` gives them; padding on the left.
        num_samples: Draws S; 0 for the posterior mean, with mutual information 0.
        seed: Seed of the draws, and with `do_sample=True` of the tokens: those of a sequence depend on `seed`, its
            number and its text, not on the rest of the batch. torch's global generators are not used.
        tokenizer: To give the result texts, and for `stop_strings`.
        first_row: Number of the first sequence, for a batch that is one of several.
        **options: As for `model.generate`: max_new_tokens, do_sample, temperature, top_k, top_p, repetition_penalty,
            eos_token_id, stopping_criteria, generation_config, streamer, num_return_sequences and so on.

    Raises:
        ValueError: `num_samples` is negative, the inputs are not those of a batch padded on the left, the model is no
            decoder that can generate, or an option cannot be combined with several draws: beam search, assisted and
            contrastive decoding, guidance, static caches, output_scores and the like.
    """
    if num_samples < 0:
        raise ValueError(f"num_samples must be at least 0 (0: posterior mean), got {num_samples}.")
    for name, why in _NOT_TAKEN.items():
        if options.get(name) is not None:
            raise ValueError(f"{name} cannot be used in generation with uncertainty: {why}. Leave {name} out.")
    language_model = _language_model(model)
    prompt = _prompt(inputs, next(model.parameters()).device)
    draws = find_draws(model)
    samples = 0 if draws is None or not draws.modules(in_use=True) else num_samples
    decoder = _Decoder(max(samples, 1), (seed, first_row), options.pop("streamer", None))
    caller: Any = model if hasattr(model, "generate") else language_model
    options = {**_with_stop_strings(caller, tokenizer, options), **prompt, "custom_generate": decoder.decode}
    hook = language_model.register_forward_hook(decoder.average)
    try:
        with evaluating(model), sampling(model, samples, seed, use_cache=True) if samples else nullcontext():
            sequences = caller.generate(**options)
    finally:
        hook.remove()
    return decoder.generation(sequences[:, prompt["input_ids"].shape[1] :], samples, tokenizer)


class _Decoder:
    """Averages what the draws say, has one token chosen for all, and keeps the statistics of each step."""

    def __init__(self, copies: int, seed_and_row: tuple[int, int], streamer: Any):
        self._copies = copies
        self._seed, self._first_row = seed_and_row
        self._streamer = streamer
        self._predictive: Predictive | None = None
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []
        self._done: list[Tensor] = []
        self._padding: Tensor | None = None

    def average(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook: logits `[copies * batch, tokens, vocabulary]` become `[batch, 1, vocabulary]`."""
        logits = output.logits[:, -1].float().unflatten(0, (self._copies, -1))
        self._predictive = Predictive(torch.log_softmax(logits, -1))
        if self._copies > 1:
            average = self._predictive.log_probabilities + torch.logsumexp(logits, -1, keepdim=True).mean(0)
            output.logits = average.unsqueeze(1)
        return output

    def decode(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor:
        """The loop of transformers, with the choice of each token, after all its processors, made here."""
        _check_supported(generation_config)
        self._padding = getattr(generation_config, "_pad_token_tensor", None)
        generators = None
        if generation_config.do_sample:
            # A third number, so that no token is drawn from the stream of a draw's noise.
            rows = range(self._first_row, self._first_row + input_ids.shape[0])
            generators = [generator(input_ids.device, self._seed, row, 1) for row in rows]
        if self._streamer is not None:
            self._streamer.put(input_ids.cpu())
        # The token is drawn by the last processor; transformers' own draw would use torch's global generator.
        generation_config.do_sample = generation_config.return_dict_in_generate = False
        return model._sample(
            input_ids,
            logits_processor=LogitsProcessorList([*logits_processor, _Choice(generators, self._record)]),
            stopping_criteria=_Watched(stopping_criteria, self._done),
            generation_config=generation_config,
            streamer=self._streamer,
            **model_kwargs,
        )

    def _record(self, tokens: Tensor) -> None:
        predictive = self._predictive
        assert predictive is not None
        chosen = tokens.expand(predictive.samples.shape[0], -1).unsqueeze(-1)
        log_probabilities = predictive.samples.gather(-1, chosen).squeeze(-1)
        self._steps.append((log_probabilities, predictive.entropy, predictive.mutual_information))

    def generation(self, tokens: Tensor, samples: int, tokenizer: PreTrainedTokenizerBase | None) -> Generation:
        """The result, from the tokens `[batch, new_tokens]` and what was noted on the way."""
        steps = tokens.shape[1]
        done = torch.stack(self._done[:steps], -1)
        ended = done.cummax(-1).values
        mask = torch.cat([torch.ones_like(ended[:, :1]), ~ended[:, :-1]], -1)
        statistics = (torch.stack(column[:steps], -1) for column in map(list, zip(*self._steps, strict=True)))
        log_probabilities, entropy, information = (column.masked_fill(~mask, 0).cpu() for column in statistics)
        if self._padding is not None:
            tokens = tokens.masked_fill(~mask, int(self._padding))
        rows = zip(tokens.tolist(), mask.sum(-1).tolist(), strict=True)
        return Generation(
            tokens=tokens.cpu(),
            mask=mask.cpu(),
            draw_log_probabilities=log_probabilities,
            entropy=entropy,
            mutual_information=information,
            num_samples=samples,
            pieces=None if tokenizer is None else [token_pieces(tokenizer, row[:length]) for row, length in rows],
        )


class _Choice(LogitsProcessor):
    """Chooses one token per sequence, by its generator or else the most probable one, and leaves no other."""

    def __init__(self, generators: list[torch.Generator] | None, record: Any):
        self._generators = generators
        self._record = record

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._generators is None:
            tokens = scores.argmax(-1)
        else:
            pairs = zip(torch.softmax(scores, -1), self._generators, strict=True)
            tokens = torch.cat([torch.multinomial(row, 1, generator=own) for row, own in pairs])
        self._record(tokens)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.unsqueeze(1), 0.0)


class _Watched(StoppingCriteriaList):
    """Stopping criteria that note at each step which sequences they end."""

    def __init__(self, criteria: StoppingCriteriaList, done: list[Tensor]):
        super().__init__(criteria)
        self._done = done

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._done.append(super().__call__(*args, **kwargs))
        return self._done[-1]


def _check_supported(config: GenerationConfig) -> None:
    mode = str(getattr(config.get_generation_mode(), "value", config.get_generation_mode()))
    if mode not in ("greedy_search", "sample"):
        raise ValueError(
            f"generation with uncertainty decodes greedily or by sampling, but these options ask for {mode}; set "
            "num_beams=1 and leave out penalty_alpha, prompt_lookup_num_tokens and the like. For several candidates "
            "take do_sample=True with num_return_sequences, and rank them by log_likelihood."
        )
    if config.guidance_scale not in (None, 1):
        raise ValueError("guidance_scale runs a second forward for each token, which would be averaged too; set it 1.")
    if config.cache_implementation not in (None, "dynamic"):
        raise ValueError(
            f"cache_implementation={config.cache_implementation!r} fixes one number of rows for all layers, but draws "
            "need more in the upper layers; use 'dynamic'."
        )
    for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states"):
        if getattr(config, name, None):
            raise ValueError(f"{name}=True has no place in the result; leave it out, or call model.generate.")


def _language_model(model: nn.Module) -> Any:
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if isinstance(module, GenerationMixin) and not config.is_encoder_decoder:
            return module
    raise ValueError(
        f"generate needs a causal language model of transformers, a decoder, but {type(model).__name__} holds none; "
        "load the base model with AutoModelForCausalLM."
    )


def _prompt(inputs: Mapping[str, Any] | Tensor, device: torch.device) -> dict[str, Any]:
    """The model's inputs on its device, after a look at their shape and padding."""
    given = {"input_ids": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    prompt = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}
    ids, mask = prompt.get("input_ids"), prompt.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or 0 in ids.shape:
        shape = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"inputs must hold input_ids [batch, tokens] with at least one token, got {shape}.")
    if mask is not None and not bool(mask[:, -1].all()):
        raise ValueError(
            "the prompts are padded on the right, but generation goes on from the last position; pad on the left: "
            "encode_prompts does, or the tokenizer with padding_side='left'."
        )
    return prompt


def _with_stop_strings(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, options: dict[str, Any]
) -> dict[str, Any]:
    """`options` with stop strings as a stopping criterion: transformers hands no tokenizer to a custom decoding."""
    configs = [options.get("generation_config"), getattr(model, "generation_config", None)]
    found = [options.get("stop_strings"), *(getattr(config, "stop_strings", None) for config in configs)]
    strings = next((value for value in found if value is not None), None)
    if strings is None:
        return options
    if tokenizer is None:
        raise ValueError(f"stop_strings={strings!r} are found in text; give generate the model's tokenizer.")
    criteria = [*(options.get("stopping_criteria") or []), StopStringCriteria(tokenizer, strings)]
    return {**options, "stop_strings": None, "stopping_criteria": StoppingCriteriaList(criteria)}
