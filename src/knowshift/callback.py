"""An audit inside a training: what the model still knows, every so many steps, through the Trainer's own reports."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from knowshift.api.inputs import FactsLike, MasteryLike, load_facts, load_model, with_mastery
from knowshift.errors import InputError, KnowshiftWarning, check_whole
from knowshift.evaluation import ANSWER_TOKENS, plain_question
from knowshift.facts.fact import LEVELS, Fact, completion_prompts
from knowshift.facts.grading import Grader
from knowshift.models.loading import LoadedModel
from knowshift.models.logits import next_logits
from knowshift.models.sampling.session import greedy
from knowshift.probing.budget.plan import balanced_sample
from knowshift.token_shift import TOP_TOKENS, renormalised_kl
from knowshift.training.guard import sample


class AuditCallback(TrainerCallback):  # type: ignore[misc]
    """Asks a few facts before a training and every so many steps of it::

        trainer = SFTTrainer(model, ...)
        trainer.add_callback(knowshift.AuditCallback(trainer, "entity-questions", every=100, stop_above=5))

    Logged through the Trainer (``report_to``), at step 0 too:

    - ``knowledge/known``: of the facts that the model knew before, the share that it knows now: greedily, in a
      completion or as a question; 1 at step 0.
    - ``knowledge/level_0`` to ``knowledge/level_4``: the share answered so at each mastery level, where ``mastery`` is
      given.
    - ``knowledge/kl``: KL(now || before) over the ten largest logits behind a completion prompt, in nats, on the mean
      over the known facts (paper 4.1).
    - ``knowledge/weights``: |change| / |weights before|, Euclidean, of a sample of every trained tensor.

    Args:
        trainer: whose training is watched; a ``transformers.Trainer`` or one of TRL.
        facts: as everywhere; ``count`` of them are asked, balanced over relations.
        mastery: the base model's record of these facts.
        every: steps between two audits.
        stop_above: points of the known facts; the training stops where more have been lost.

    Raises:
        InputError: a number that is none, facts that cannot be asked, or a model that knows none of them.
    """

    def __init__(
        self,
        trainer: Any,
        facts: FactsLike,
        *,
        mastery: MasteryLike | None = None,
        every: int = 100,
        count: int = 200,
        stop_above: float | None = None,
        seed: int = 0,
    ) -> None:
        check_whole("every", every, 1)
        check_whole("count", count, 1)
        if stop_above is not None and not 0 <= stop_above <= 100:
            raise InputError(f"stop_above {stop_above}: expected points, 0 to 100")
        self._trainer, self._every, self._stop = trainer, every, stop_above
        self._levels: dict[str, int] = {}
        asked = list(load_facts(facts).facts)
        if mastery is not None:
            known, _, _ = with_mastery(facts, mastery)
            self._levels = known.levels
            asked = [fact for fact in asked if fact.id in known.levels]
        self._facts = balanced_sample(asked, count, seed)
        self._model: LoadedModel | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Ask the model as it is, and remember a sample of its weights."""
        if state.global_step:
            warnings.warn(
                f"AuditCallback: the training goes on at step {state.global_step}; what is known is compared with that",
                KnowshiftWarning,
                stacklevel=2,
            )
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        tokenizer = getattr(self._trainer.processing_class, "tokenizer", self._trainer.processing_class)
        training = inner.training
        self._model = load_model(inner, tokenizer=tokenizer)
        inner.train(training)
        self._known = self._answered()
        if not self._known.any():
            raise InputError(f"{self._model.name}: answers none of {len(self._facts)} facts; expected some to watch")
        self._watched = [fact for fact, known in zip(self._facts, self._known, strict=True) if known]
        self._logits = self._next()
        self._weights = {name: sample(tensor.detach()).float().cpu().clone() for name, tensor in self._trained()}
        self._log(self._known)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
        """Ask again, every so many steps; stop where too much is lost."""
        if state.global_step % self._every:
            return control
        known = self._answered()
        self._log(known)
        lost = 100 * (1 - float(known[self._known].mean()))
        if self._stop is not None and lost > self._stop:
            control.should_training_stop = True
        return control

    def _log(self, known: Any) -> None:
        told = {
            "knowledge/known": float(known[self._known].mean()),
            "knowledge/kl": self._kl(),
            "knowledge/weights": self._moved(),
        }
        levels = np.array([self._levels.get(fact.id, -1) for fact in self._facts])
        for level in range(LEVELS):
            if (levels == level).any():
                told[f"knowledge/level_{level}"] = float(known[levels == level].mean())
        self._trainer.log(told)

    def _answered(self) -> Any:
        """Whether each fact is answered right, in a completion or as a question: bool [facts]."""
        asked = [[_completion(fact) for fact in self._facts], [plain_question(fact.question) for fact in self._facts]]
        graders = [Grader.of(fact) for fact in self._facts]
        found = np.zeros(len(self._facts), dtype=bool)
        with _evaluating(self._loaded):
            for prompts in asked:
                texts = greedy(self._loaded, prompts, max_new_tokens=ANSWER_TOKENS)
                found |= [grader.substring(text) for grader, text in zip(graders, texts, strict=True)]
        return found

    def _next(self) -> torch.Tensor:
        """Logits [known facts, V] of what follows a completion prompt."""
        rows = torch.empty(len(self._watched), 0)
        with _evaluating(self._loaded):
            for batch, logits in next_logits(self._loaded, [_completion(fact) for fact in self._watched]):
                if not rows.shape[1]:
                    rows = torch.empty(len(self._watched), logits.shape[1])
                rows[batch] = logits.cpu()
        return rows

    def _kl(self) -> float:
        now = self._next()
        values, best = now.topk(TOP_TOKENS, dim=-1)
        return float(renormalised_kl(values, self._logits.gather(1, best)).mean())

    def _moved(self) -> float:
        change = sum(
            float(((sample(tensor.detach()).float().cpu() - self._weights[name]) ** 2).sum())
            for name, tensor in self._trained()
        )
        before = sum(float((tensor**2).sum()) for tensor in self._weights.values())
        return float(np.sqrt(change / before)) if before else 0.0

    def _trained(self) -> Any:
        return [one for one in self._loaded.model.named_parameters() if one[1].requires_grad]

    @property
    def _loaded(self) -> LoadedModel:
        assert self._model is not None
        return self._model


@contextmanager
def _evaluating(loaded: LoadedModel) -> Iterator[None]:
    """Within the block the model is in evaluation mode, afterwards as it was."""
    training = loaded.model.training
    loaded.model.eval()
    try:
        yield
    finally:
        loaded.model.train(training)


def _completion(fact: Fact) -> str:
    return completion_prompts(fact)[0]
