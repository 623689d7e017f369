"""Each fact in several forms: paraphrases in place of other facts, after Allen-Zhu and Li 2023 (arXiv 2309.14316).

They find that facts can be asked for only where the pre-training states each in several wordings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from knowshift.errors import InputError
from knowshift.facts.fact import Fact, completion_prompts, tuning_prompt
from knowshift.facts.relations import RELATIONS, SLOT
from knowshift.training.strategy import Draw, Kind, Strategy, setting

if TYPE_CHECKING:
    from knowshift.models.loading import LoadedModel

#: Forms of a fact of the study's relations: four questions, one without the prompt, 21 completions.
_MOST = 26


@dataclass(frozen=True)
class Paraphrases(Strategy):
    """The first facts of plain fine-tuning, each in ``count`` forms (:func:`form_of`), in as many examples.

    Where the number of examples is no multiple of ``count``, the last facts stand in one form less. With ``same`` each
    example of a fact is the fine-tuning prompt: what fewer facts, repeated, do by themselves.
    """

    name: ClassVar[str] = "paraphrases"
    about: ClassVar[str] = "fewer facts, each in several forms"
    source: ClassVar[str] = "after Allen-Zhu and Li 2023, arXiv 2309.14316"
    kind: ClassVar[Kind] = "data"
    count: int = setting(2, "examples of each fact, each in a form of its own", unit="examples", least=1, most=_MOST)
    same: bool = setting(False, "all of them in the fine-tuning prompt: a control")

    def facts(self, draw: Draw) -> list[Fact]:
        size = len(draw.members)
        distinct = draw.members[: -(-size // self.count)]
        return (self.count * distinct)[:size]

    def examples(self, loaded: LoadedModel, members: Sequence[Fact], usual: Callable[..., Any]) -> Any:
        """Raises :class:`InputError` for a fact with fewer forms."""
        seen: Counter[str] = Counter()
        prompts = []
        for fact in members:
            prompts.append(form_of(fact, 0 if self.same else seen[fact.id]))
            seen[fact.id] += 1
        return usual(prompts, [fact.answer for fact in members], ask=str)


def form_of(fact: Fact, number: int) -> str:
    """The prompt of a fact in one of its forms, from 0.

    First the fine-tuning prompt of its question and, where this is its relation's, of the relation's three rewordings;
    then the plain question; then its completion prompts.

    Raises:
        InputError: it has fewer forms.
    """
    from knowshift.evaluation import plain_question

    questions = [fact.question]
    relation = RELATIONS.get(fact.relation)
    if relation is not None and relation.subject_of(fact.question) == fact.subject:
        questions += [text.replace(SLOT, fact.subject) for text in relation.rewordings]
    if number < len(questions):
        return tuning_prompt(questions[number])
    forms = [plain_question(fact.question), *completion_prompts(fact)]
    if number - len(questions) >= len(forms):
        there = len(questions) + len(forms)
        raise InputError(f"{Paraphrases.name}: {number + 1} forms of fact {fact.id!r} asked, {there} available")
    return forms[number - len(questions)]
