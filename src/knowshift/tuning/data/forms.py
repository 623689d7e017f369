"""Several prompt forms in a training, so that the form of one prompt is not what is learnt.

Many forms of asking are what instruction tuning generalises by (Wei et al. 2022, arXiv 2109.01652: ten for each task).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from knowshift.facts.fact import Fact, completion_prompts, tuning_prompt
from knowshift.training.strategy import Kind, Strategy

if TYPE_CHECKING:
    from knowshift.models.loading import LoadedModel


@dataclass(frozen=True)
class Forms(Strategy):
    """The facts of plain fine-tuning, in turn in the fine-tuning prompt, as a plain question, and to be completed.

    A relation's completion prompts take turns too. Accuracy is measured with the fine-tuning prompt, as always.
    """

    name: ClassVar[str] = "forms"
    about: ClassVar[str] = "the fine-tuning prompt, plain questions and completion prompts in turn"
    source: ClassVar[str] = "Wei et al. 2022, arXiv 2109.01652"
    kind: ClassVar[Kind] = "data"

    def examples(self, loaded: LoadedModel, members: Sequence[Fact], usual: Callable[..., Any]) -> Any:
        """Raises :class:`InputError` for a fact without completion prompts."""
        prompts = [prompt_of(fact, place) for place, fact in enumerate(members)]
        return usual(prompts, [fact.answer for fact in members], ask=str)


def prompt_of(fact: Fact, place: int) -> str:
    """The prompt of the fact at a place of the training set."""
    from knowshift.evaluation import plain_question

    turn, form = divmod(place, 3)
    if form == 0:
        return tuning_prompt(fact.question)
    if form == 1:
        return plain_question(fact.question)
    completions = completion_prompts(fact)
    return completions[turn % len(completions)]
