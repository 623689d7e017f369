"""Supervised fine-tuning as in the paper (2.2): TRL's SFTTrainer, full parameters, the loss on the answer.

On a CPU the loss is computed here, of the scored tokens alone, as TRL does on GPUs; where TRL adds to it (a router's
loss of a mixture of experts) or tells a tracker more than the loss, it is TRL's.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, cast

import torch
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from knowshift.errors import InputError
from knowshift.facts.fact import Fact, tuning_prompt, tuning_target
from knowshift.known_facts import KnownFacts
from knowshift.models.layers.llama import Layers, whole_layers
from knowshift.models.loading import LoadedModel
from knowshift.models.saving import unchanged
from knowshift.system.patches import attention_of, quick_zero_grad
from knowshift.training.guard import BETAS, TrainingGuard
from knowshift.training.one_row import IGNORED, OneRow, check_same_loss
from knowshift.training.precision import check_trainable
from knowshift.training.shown import shown_rows
from knowshift.training.strategy import PLAIN, Scored, Strategy, Training

# transformers 5.2x renamed the option and warns at the old name.
_NAMES = {field.name for field in fields(SFTConfig)}
_CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in _NAMES else "gradient_checkpointing"


@dataclass(frozen=True)
class TrainingRecipe:
    """The paper's settings; the learning rate is 1e-5 there, and larger for pocket models."""

    learning_rate: float = 1e-5
    batch_size: int = 8
    epochs: int = 1
    schedule: str = "cosine"
    weight_decay: float = 0.0
    bfloat16: bool = False  # autocast over float32 weights
    gradient_checkpointing: bool = False
    shared_prefix: bool = False  # every batch as one row (knowshift.training.one_row): the same gradients, fewer tokens
    report_to: str = "none"  # passed on to the Trainer: trackio, wandb, tensorboard, mlflow

    def steps(self, facts: int) -> int:
        """Updates of the optimiser on so many facts."""
        return self.epochs * -(-facts // self.batch_size)

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def encode_examples(
    loaded: LoadedModel, questions: Sequence[str], answers: Sequence[str], ask: Callable[[str], str] = tuning_prompt
) -> list[dict[str, list[int]]]:
    """For each question ``input_ids``, of prompt + target + EOS, and ``labels``, the ids of target and EOS alone.

    ``ask`` makes the prompt of a question: the fine-tuning prompt, or another form.

    The prompt's ids are those that the model is asked with at evaluation; for the target's see
    :meth:`knowshift.models.prompts.PromptEncoder.examples`. Its labels are :data:`.one_row.IGNORED`.

    Raises:
        InputError: an example does not fit into the model's context, or it has a token that the model has no row for.
    """
    prompts = [ask(question) for question in questions]
    examples = loaded.encoder.examples(prompts, [tuning_target(answer) for answer in answers])
    return [{"input_ids": ids, "labels": [IGNORED] * start + ids[start:]} for ids, start in examples]


def examples_of(
    loaded: LoadedModel, facts: Sequence[Fact], recipe: TrainingRecipe, strategy: Strategy = PLAIN
) -> tuple[list[dict[str, list[int]]], int]:
    """The examples of a training, and the id that they are padded with.

    Raises:
        InputError: no facts, a float16 model, and as :func:`encode_examples` and :func:`.one_row.check_same_loss`.
    """
    if not facts:
        raise InputError("no training facts")
    check_trainable(loaded.name, str(loaded.model.dtype).removeprefix("torch."))
    examples = strategy.examples(loaded, facts, partial(encode_examples, loaded))
    if recipe.shared_prefix:
        one_row = OneRow(attention_of(loaded.model), loaded.model.dtype)
        check_same_loss(loaded.model, examples[: recipe.batch_size], one_row)
    # Padding is masked, so any id will do that has an embedding; a pad token often has none.
    pad, end = loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id
    return examples, pad if pad in loaded.vocabulary.usable else end


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer without what looks through all modules or gradients at every step, to no use on one CPU.

    ``strategy`` may have a loss of its own for each token, for which ``base`` is asked too. The others' is TRL's,
    computed here on a CPU where it is nothing but the mean cross entropy of the scored tokens.
    """

    strategy: Strategy = PLAIN
    base: LoadedModel | None = None
    layers = Layers()
    weights: Sequence[torch.nn.Parameter] = ()  # all of the model that is trained

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with self.layers.only(_asked(inputs["labels"])):
            return self._loss(model, inputs, return_outputs, num_items_in_batch)

    def _loss(self, model: Any, inputs: Any, return_outputs: bool, num_items_in_batch: Any) -> Any:
        plainly = self.args.use_cpu and self.args.loss_type == "nll" and self.label_smoother is None
        plainly = plainly and not self.aux_loss_enabled and not self.args.report_to
        if self.strategy.losses is None and not plainly:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        losses = self.strategy.losses or _cross_entropy
        given = {name: value for name, value in inputs.items() if name != "labels"}
        labels = inputs["labels"][:, 1:]
        scored = labels != IGNORED
        logits = _scored_logits(model, given, scored)
        seen = Scored(
            logits=logits,
            targets=labels[scored],
            base=partial(_base_logits, self.base, given, scored),
            shown=partial(_shown_logits, self.base, inputs),
        )
        total = losses(seen).sum()
        count = seen.targets.numel() if num_items_in_batch is None else num_items_in_batch
        return total / torch.as_tensor(count).clamp(min=1)  # a strategy may leave a batch without a loss

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if not self.args.use_cpu or self.args.gradient_accumulation_steps > 1:
            return cast(torch.Tensor, super().training_step(model, inputs, num_items_in_batch))
        if not model.training:
            model.train()
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        loss.backward()  # what accelerate does on one CPU, after looking for installed packages
        return cast(torch.Tensor, loss.detach())

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """The same norm; gradients are scaled only where they are clipped, and not by 1."""
        if not self.args.use_cpu:
            return cast(torch.Tensor, super()._clip_grad_norm(model))
        parameters = [parameter for parameter in self.weights if parameter.grad is not None]
        norm = get_total_norm([cast(torch.Tensor, parameter.grad) for parameter in parameters])
        if not self.args.max_grad_norm / (norm + 1e-6) >= 1:  # as it is written in PyTorch
            clip_grads_with_norm_(parameters, self.args.max_grad_norm, norm)
        return norm


def _cross_entropy(seen: Scored) -> torch.Tensor:
    """The loss of plain fine-tuning at each scored token [N]."""
    return cross_entropy(seen.logits, seen.targets, reduction="none")


def _asked(labels: torch.Tensor) -> torch.Tensor | None:
    """The tokens of one row [1, T] whose next token has a loss; None of several rows."""
    return (labels[0, 1:] != IGNORED).nonzero().squeeze(1) if len(labels) == 1 else None


def _scored_logits(model: Any, inputs: Mapping[str, Any], scored: torch.Tensor) -> torch.Tensor:
    """Logits [N, V], float32, at the positions before the scored tokens: of rows of T tokens ``scored`` is [B, T - 1].

    Only columns in which a row has a scored token go through the output head.
    """
    columns = scored.any(0).nonzero().squeeze(1)
    logits = model(**inputs, use_cache=False, logits_to_keep=columns).logits
    if logits.shape[1] != len(columns):  # an architecture that gives all
        logits = logits[:, columns]
    return cast(torch.Tensor, logits[scored[:, columns]].float())


@torch.no_grad()
def _base_logits(base: LoadedModel | None, inputs: Mapping[str, Any], scored: torch.Tensor) -> torch.Tensor:
    assert base is not None  # the strategy asks it, so it needs it
    return _scored_logits(base.model, inputs, scored)


def _shown_logits(base: LoadedModel | None, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    assert base is not None
    rows, labels = shown_rows(inputs, len(base.encoder.prefix))
    return _base_logits(base, rows, labels[:, 1:] != IGNORED)


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Calls ``progress`` after every step."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress

    def on_step_end(self, *given: Any, **more: Any) -> None:
        self._progress(1)


def finetune(
    loaded: LoadedModel,
    facts: Sequence[Fact],
    recipe: TrainingRecipe,
    *,
    seed: int,
    strategy: Strategy = PLAIN,
    base: LoadedModel | None = None,
    known: KnownFacts | None = None,
    progress: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Fine-tune ``loaded.model`` in place on the facts, in the given order of seeds.

    Nothing but the weights is changed: what the Trainer writes into configs and tokenizer is undone. ``progress``
    is called after every step. ``base`` is the model as it was, in memory of its own, for a strategy that asks it, and
    ``known`` the facts with its mastery of them; what the strategy does to facts before and to weights after is not
    done here (:func:`knowshift.tuning.run.tune`).

    Returns:
        ``steps`` (optimiser updates), ``train_loss`` (mean over steps, nats per target token), ``losses`` (of every
        step), ``load_dtype`` and ``compute_dtype``; and ``noted``, where the strategy's steps noted something.

    Raises:
        InputError: no facts, a float16 model, ``shared_prefix`` for a model that cannot take it, or a training that
            failed (:class:`~knowshift.training.guard.TrainingGuard`), whose weights are of no use.
    """
    assert base is not None or not strategy.needs_base
    examples, pad = examples_of(loaded, facts, recipe, strategy)
    collator: Any = DataCollatorForLanguageModeling(pad_token_id=pad)
    if recipe.shared_prefix:
        collator = OneRow(attention_of(loaded.model), loaded.model.dtype)
    disable_progress_bar()
    on_cpu = loaded.device.split(":")[0] == "cpu"
    with (
        unchanged(loaded.model),
        strategy.trained(loaded, facts, seed, known) as trained,
        tempfile.TemporaryDirectory(prefix="knowshift-sft-") as scratch,
    ):
        guard = TrainingGuard(trained, loaded.name, weight_decay=recipe.weight_decay)
        training = Training(loaded, trained, facts, seed, known)
        trainer = _Trainer(
            model=trained,
            processing_class=copy.deepcopy(loaded.tokenizer),  # it is given a pad token
            callbacks=[guard, *strategy.callbacks(training), _Steps(progress)],
            train_dataset=Dataset.from_list(examples),
            data_collator=collator,
            args=SFTConfig(
                output_dir=scratch,
                learning_rate=recipe.learning_rate,
                per_device_train_batch_size=recipe.batch_size,
                num_train_epochs=recipe.epochs,
                lr_scheduler_type=recipe.schedule,
                weight_decay=recipe.weight_decay,
                optim="adamw_torch_fused",
                adam_beta1=BETAS[0],
                adam_beta2=BETAS[1],
                bf16=recipe.bfloat16,
                **{_CHECKPOINTING: recipe.gradient_checkpointing},
                max_length=None,  # nothing is cut: a cut answer would be a wrong answer
                packing=False,
                dataset_kwargs={"skip_prepare_dataset": True},  # examples are encoded and labelled
                save_strategy="no",
                logging_strategy="steps",
                logging_steps=1,  # the guard looks at every step
                logging_nan_inf_filter=False,  # it would show the mean of earlier losses instead
                disable_tqdm=True,
                report_to=recipe.report_to,
                use_cpu=on_cpu,
                dataloader_pin_memory=not on_cpu,
                seed=seed,
                data_seed=seed,
                log_level="error",
                **strategy.options(),
            ),
        )
        trainer.strategy, trainer.base, trainer.weights = strategy, base, list(trainer.model.parameters())
        if on_cpu:
            trainer.train_dataset = examples  # TRL takes a Dataset alone, which makes each example anew from a table
        trainer.remove_callback(PrinterCallback)  # it prints every log to standard output
        try:
            with whole_layers(loaded.model) as layers, quick_zero_grad(loaded.model):
                trainer.layers = layers
                trainer.train()
        finally:
            if recipe.gradient_checkpointing:
                getattr(loaded.model, _CHECKPOINTING + "_disable")()
                loaded.model.disable_input_require_grads()
            loaded.model.eval()
        guard.check()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        final = next(entry for entry in reversed(trainer.state.log_history) if "train_loss" in entry)
    return {
        "steps": int(trainer.state.global_step),
        "train_loss": float(final["train_loss"]),
        "losses": losses,
        "load_dtype": loaded.dtype,
        "compute_dtype": "bfloat16" if recipe.bfloat16 else str(loaded.model.dtype).removeprefix("torch."),
        **({"noted": training.noted} if training.noted else {}),
    }
