"""The ELBO in transformers' Trainer: a mixin for any Trainer, and one ready to use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.modeling_outputs import SequenceClassifierOutput

from bayeslora.adapters.draws import find_draws, hold_draw
from bayeslora.posteriors.weights.base import KL
from bayeslora.scoring import ChoiceBatch
from bayeslora.scoring.trunk_cache import TrunkCache, served
from bayeslora.system.files import last_complete_checkpoint, sort_sets
from bayeslora.training.checkpoints import NamedCheckpoints
from bayeslora.training.cross_entropy import item_losses
from bayeslora.training.elbo import kl_divergence, kl_weight, negative_elbo, weight_penalty
from bayeslora.training.log_sums import LogSums
from bayeslora.training.non_finite import NonFiniteLossError, likely_cause
from bayeslora.training.num_observations import count_target_tokens, has_token_labels, row_count, rows_have_token_labels
from bayeslora.training.parameter_groups import ParameterGroups, sampled_weights

__all__ = ["BayesianLoraTrainer", "ELBOTrainerMixin", "NonFiniteLossError"]


class ELBOTrainerMixin(ParameterGroups, NamedCheckpoints):
    """Makes a Trainer minimise mean NLL + beta * KL / N for models with Bayesian-LoRA adapters.

    Put it before the Trainer: `class MyTrainer(ELBOTrainerMixin, Trainer)`. The parent's loss is the mean NLL; for a
    `ChoiceBatch` it is the cross-entropy of the class logits. One posterior draw, a function of the seed and the step,
    serves all micro-batches and all processes of a step, so a batch of 8 gives the same update as 2 x 4 accumulated
    and as 2 processes with 4 each.

    Args:
        beta: Weight of the KL; 1 is the ELBO.
        num_examples: N. Default: the length of the training set, or where labels are sequences, in the dataset or made
            by the collator, the number of its target tokens. A dataset without a length needs it.
        kl_warmup_steps: Steps until the KL has its full weight.
        posterior_learning_rate: Learning rate of the variational parameters (all of a factor but its LoRA mean).
            Default: that of the others.
        optimizer: "adamw" for the Trainer's own (`TrainingArguments.optim`), or the name of one for LoRA pairs
            (`bayeslora.training.optimizers`), which takes learning rate, betas, epsilon and decay from the
            TrainingArguments.
        optimizer_options: Further options of that optimizer.
        label_smoothing: Share of each item's target spread evenly over its choices (`ChoiceBatch`). Default:
            TrainingArguments.label_smoothing_factor, which other inputs need.
        train_samples: Draws per forward (`ChoiceBatch` only); the NLL is their mean.
        trunk_cache: Serves the frozen layers' output for batches of items (`ChoiceBatch`).
        prior_std: Standard deviation of a Gaussian prior on the weights of plain LoRA factors (`weight_penalty`), which
            counts as part of the KL; default: a flat prior.

    The Trainer's `compute_loss_func(outputs, labels, num_items_in_batch)` takes the place of the cross-entropy, also of
    items: `outputs.logits` is [rows, choices] with -inf where an item has no such choice, `labels` [rows], or [rows,
    choices] where items have `label_probabilities`, and a row is an item in one of the `train_samples` draws; to be
    accumulated it must return sum / num_items_in_batch.

    An optimizer with a context `sampled_params(train=True)` (IVON) has each forward and backward run inside it.
    """

    def __init__(
        self,
        *args: Any,
        beta: float = 1.0,
        num_examples: int | None = None,
        kl_warmup_steps: int = 0,
        posterior_learning_rate: float | None = None,
        optimizer: str = "adamw",
        optimizer_options: dict[str, Any] | None = None,
        label_smoothing: float = 0.0,
        train_samples: int = 1,
        trunk_cache: TrunkCache | None = None,
        prior_std: float | None = None,
        **kwargs: Any,
    ):
        if beta < 0:
            raise ValueError(f"beta must be at least 0, got {beta}.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}.")
        if train_samples < 1:
            raise ValueError(f"train_samples must be at least 1, got {train_samples}.")
        if optimizer == "adamw" and optimizer_options:
            raise ValueError(
                f"optimizer_options {sorted(optimizer_options)} are for optimizers of LoRA pairs, but optimizer is "
                "'adamw', whose options are fields of TrainingArguments."
            )
        if optimizer != "adamw" and kwargs.get("optimizer_cls_and_kwargs") is not None:
            raise ValueError(f"this method brings its own optimizer; leave optimizer at 'adamw', got {optimizer!r}.")
        if prior_std is not None and kwargs.get("optimizer_cls_and_kwargs") is not None:
            raise ValueError("this method's optimizer has a prior of its own; leave train.prior_std out.")
        super().__init__(*args, **kwargs)
        self.prior_std = prior_std
        if prior_std is not None:
            weight_penalty(self._module, prior_std)
        factor = self.args.label_smoothing_factor
        if label_smoothing and factor:
            raise ValueError(
                f"label_smoothing={label_smoothing} and TrainingArguments.label_smoothing_factor={factor} say the same "
                "thing; give one of them."
            )
        if self.compute_loss_func is not None and (label_smoothing or factor):
            raise ValueError(
                "compute_loss_func takes the place of the cross-entropy, so that nothing would be smoothed; smooth in "
                "that function, and leave label_smoothing and label_smoothing_factor out."
            )
        self.optimizer_name = optimizer
        self.optimizer_options = optimizer_options or {}
        self.beta = beta
        self.kl_warmup_steps = kl_warmup_steps
        self.posterior_learning_rate = posterior_learning_rate
        self.label_smoothing = label_smoothing
        self.train_samples = train_samples
        self.trunk_cache = trunk_cache
        dataset: Any = self.train_dataset
        self._counts_rows = False
        if num_examples is None and dataset is not None:
            self._counts_rows = not rows_have_token_labels(dataset)
            num_examples = row_count(dataset)
            if not self._counts_rows:
                num_examples = count_target_tokens(dataset, self._row_collator())
        self._num_examples = num_examples
        self._drawn_step: int | None = None
        self._log_sums = LogSums()
        self._saves_checkpoint = False

    # --- loss ------------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, with the draw of its step.

        Raises:
            NonFiniteLossError: The loss is NaN or infinite; the optimizer has not stepped with it.
        """
        state = self.state
        if self._drawn_step != state.global_step:
            hold_draw(model, seed=self.args.seed, step=state.global_step, num_samples=self.train_samples)
            self._drawn_step = state.global_step
            self._log_sums.begin_step()
        with sampled_weights(self.optimizer):
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss became {loss.item()} at step {state.global_step + 1} of {state.max_steps}; training stopped "
                f"before the update. {self._last_good()} {self._likely_cause()}"
            )
        self._log_sums.add(loss=loss)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean NLL, and in train mode beta * KL / N once per step however it is accumulated and distributed."""
        outputs: Any
        if isinstance(inputs, ChoiceBatch):
            loss, outputs = self._choice_loss(model, inputs, num_items_in_batch)
        else:
            if self.label_smoothing:
                raise ValueError(
                    "label_smoothing spreads the targets of items with choices; for these inputs set "
                    f"TrainingArguments(label_smoothing_factor={self.label_smoothing})."
                )
            # Outputs are asked for only where they are needed: TRL's trainers compute them in a forward of its own.
            found: Any = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
            loss, outputs = found if return_outputs else (found, None)
        if model.training:
            # The trainer divides by the accumulation steps unless the loss is already a share of the whole batch.
            steps = max(1, getattr(self, "current_gradient_accumulation_steps", 1))
            scaled = self._is_scaled(num_items_in_batch)
            self._count_labels_of_collator(inputs)
            kl = kl_divergence(model, self._rows(inputs))
            if self.prior_std is not None:
                kl = KL(kl.inducing, kl.conditional + weight_penalty(model, self.prior_std))
            self._note(loss.detach() if scaled else loss.detach() / steps, kl, steps)
            beta = self._kl_weight() / steps if scaled else self._kl_weight()
            loss = negative_elbo(loss, kl, self.num_observations, beta).to(loss.dtype)
        return (loss, outputs) if return_outputs else loss

    def _choice_loss(self, model: nn.Module, batch: ChoiceBatch, num_items: Any) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch.suited_to(model)
        with served(batch, self.trunk_cache):
            logits = batch.choice_logits(model)
        targets = batch.targets
        if targets is None:
            raise ValueError("training needs a label for every item, but this batch has items without one.")
        copies = logits.shape[0] // targets.shape[0]
        shared = num_items is not None and model.training and self._is_scaled(num_items)
        rows = copies * num_items if shared else None
        loss = self._row_loss(batch, logits, torch.cat([targets] * copies), rows, model.training)
        if shared and self.args.average_tokens_across_devices:
            # num_items counts all processes, and DDP averages the gradients over them.
            loss = loss * self.accelerator.num_processes
        return loss, {"loss": loss, "logits": logits}

    def _row_loss(self, batch: ChoiceBatch, logits: Tensor, labels: Tensor, rows: Any, training: bool) -> Tensor:
        """The mean loss of logits [rows, choices], or where `rows` counts those of the whole step their share of it."""
        if self.compute_loss_func is not None:
            loss: Tensor = self.compute_loss_func(
                SequenceClassifierOutput(logits=logits), labels, num_items_in_batch=rows
            )
            return loss
        smoothing = self.label_smoothing or self.args.label_smoothing_factor
        losses = item_losses(batch, logits, labels, smoothing if training else 0.0)
        return losses.mean() if rows is None else losses.sum() / rows

    def _is_scaled(self, num_items_in_batch: Any) -> bool:
        """Whether the loss is a share of the whole accumulated batch (the trainer will not divide it), as Trainer."""
        explicit = getattr(self, "loss_is_scaled_for_ga", None)
        if explicit is not None:
            return bool(explicit)
        counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return bool(counted or self.compute_loss_func is not None)

    def _count_labels_of_collator(self, inputs: Any) -> None:
        """Where the collator makes the labels, the first batch shows whether the loss is per token; then N is too."""
        if self._counts_rows and not isinstance(inputs, ChoiceBatch) and has_token_labels(inputs):
            self._num_examples = count_target_tokens(self.train_dataset, self._row_collator())
            self._counts_rows = False

    def _row_collator(self) -> Callable[[list[Any]], Any]:
        """The collator, with the columns that the trainer takes out of the dataset taken out."""
        return self._get_collator_with_removed_columns(self.data_collator, description="training")

    def _kl_weight(self) -> float:
        return kl_weight(self.state.global_step + 1, self.beta, self.kl_warmup_steps)

    @property
    def num_observations(self) -> int:
        """N of beta * KL / N: the number of training examples, or of their target tokens."""
        if self._num_examples is None:
            raise ValueError("num_examples (N in beta * KL / N) is unknown for this dataset; pass num_examples=...")
        return self._num_examples

    def _rows(self, inputs: Any) -> int:
        """Rows of the training set: N, or where N counts tokens the length of the data set."""
        dataset: Any = self.train_dataset
        if isinstance(inputs, ChoiceBatch):
            return self.num_observations
        try:
            return len(dataset)
        except TypeError:
            return self.num_observations

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The micro-batches of a step and their number of items; choices are counted as items, not as tokens."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if count is not None and batches and isinstance(batches[0], ChoiceBatch):
            count = torch.tensor(sum(batch.batch_size for batch in batches), device=device)
            if self.args.average_tokens_across_devices:
                count = self.accelerator.reduce(count, "sum")
        return batches, count

    # --- logs ------------------------------------------------------------------------------------------------------

    def _note(self, nll: Tensor, kl: KL, steps: int) -> None:
        self._log_sums.add(
            nll=nll,
            kl_weight=torch.full_like(kl.total, self._kl_weight() / steps),
            kl=kl.total / steps,
            kl_inducing=kl.inducing / steps,
            kl_conditional=kl.conditional / steps,
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean nll (nats per example) and kl (nats, whole model, and its two parts) since the last log."""
        if "loss" in logs and self._log_sums:
            # The loss too: after a resume the Trainer's own leaves out the steps before the checkpoint.
            logs.update(self._log_sums.means(self._mean_of_processes))
            self._log_sums.clear()
        super().log(logs, *args, **kwargs)

    # --- life of a run ---------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As Trainer.train; `resume_from_checkpoint=True` takes the newest checkpoint that was written to its end."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(str(self.args.output_dir))
        self._log_sums.clear()
        if resume_from_checkpoint:
            self._log_sums.load(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._drawn_step = None
            draws = find_draws(self._module)
            if draws is not None:
                draws.clear()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Where parameters are sharded, `state_dict` is what the trainer has gathered.
        gathered = state_dict or {}
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad and not torch.isfinite(gathered.get(name, parameter)).all():
                raise NonFiniteLossError(
                    f"parameter {name} is not finite at step {self.state.global_step}; nothing was saved. "
                    f"{self._last_good()} {self._likely_cause()}"
                )
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        for name, config in getattr(self._module, "peft_config", {}).items():
            sort_sets(folder if name == "default" else folder / name, config)
        if self._saves_checkpoint:
            self._log_sums.save(folder)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._log_sums.share(self._mean_of_processes)
        self._saves_checkpoint = True
        try:
            super()._save_checkpoint(*args, **kwargs)
        finally:
            self._saves_checkpoint = False

    def _mean_of_processes(self, values: Tensor) -> Tensor:
        mean: Tensor = self.accelerator.reduce(values.to(self.args.device), "mean")
        return mean

    def _likely_cause(self) -> str:
        arguments = self.args
        return likely_cause(
            self.state.global_step, arguments.learning_rate, self.posterior_learning_rate, arguments.max_grad_norm
        )

    def _last_good(self) -> str:
        checkpoint = last_complete_checkpoint(str(self.args.output_dir))
        return f"The last good checkpoint is {checkpoint}." if checkpoint else "No checkpoint had been saved yet."


class BayesianLoraTrainer(ELBOTrainerMixin, Trainer):
    """transformers' Trainer with the ELBO; plain PEFT adapters train in it as usual (their KL is zero)."""
