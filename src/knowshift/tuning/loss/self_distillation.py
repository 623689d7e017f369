"""Self-distillation (Shenfeld et al. 2026, arXiv 2601.19897): the base model that is shown the answer is the teacher.

Departures from the paper, whose students answer long tasks: the KL is taken at the tokens of the known answer rather
than along answers that the student samples, and the teacher is the base model rather than a moving average of the
student (TRL's ``teacher_model_kind="base"``, its default).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.training.strategy import Kind, Scored, Strategy
from knowshift.tuning.loss.kl import kl

if TYPE_CHECKING:
    from torch import Tensor

    from knowshift.models.loading import LoadedModel


@dataclass(frozen=True)
class SelfDistillation(Strategy):
    """KL(s || t) at each scored token: s the model in training, t the base after the same question, answered.

    There is no loss on the answer itself: it is learnt as far as the base says it again when it is shown it.
    """

    name: ClassVar[str] = "self-distillation"
    about: ClassVar[str] = "the model learns to say what the base says when it is shown the answer"
    source: ClassVar[str] = "Shenfeld et al. 2026, arXiv 2601.19897"
    cost: ClassVar[str] = "a forward pass of the base model on rows twice as long; its weights in memory"
    kind: ClassVar[Kind] = "loss"
    needs_base: ClassVar[bool] = True

    def examples(self, loaded: LoadedModel, members: Sequence[Fact], usual: Callable[..., Any]) -> Any:
        """Those of plain fine-tuning.

        Raises:
            InputError: an example that does not fit into the model's context twice.
        """
        from knowshift.training.shown import shown

        examples = super().examples(loaded, members, usual)
        longest = max(len(shown(example["input_ids"], len(loaded.encoder.prefix))) for example in examples)
        if loaded.context is not None and longest > loaded.context:
            raise InputError(
                f"self-distillation: {loaded.name}: a question that stands answered before it is asked has {longest} "
                f"tokens; expected at most {loaded.context}, the model's context"
            )
        return examples

    def losses(self, scored: Scored) -> Tensor:
        """Loss of each scored token [N], in nats."""
        return kl(scored.logits, scored.shown())
