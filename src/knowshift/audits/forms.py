"""The forms in which facts are asked for greedy answers: what is gone in one of them may be there in another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from knowshift.errors import InputError
from knowshift.evaluation import plain_question
from knowshift.facts.asking import QUESTION
from knowshift.facts.fact import Fact, completion_prompts
from knowshift.models.loading import LoadedModel

#: Answered examples before a question in the form "few-shot".
SHOWN = 4
#: The name of that form.
FEW_SHOT = "few-shot"
#: That of the user's own form.
OWN = "your format"


@dataclass(frozen=True)
class Form:
    """A name, the prompt of every fact, and whether only the first line of an answer counts."""

    name: str
    prompt: Callable[[Fact], str]
    first_line: bool = False


def forms_of(
    loaded: LoadedModel,
    best_prompt: Mapping[str, int],
    examples: Sequence[Fact],
    prompt_format: str | None = None,
) -> list[Form]:
    """The forms that a model can be asked in.

    Args:
        best_prompt: for each relation the completion prompt that the base answers best.
        examples: facts shown with their answers before the question, in the form "few-shot"; without any, no such form.
        prompt_format: the user's own form, with ``{question}`` in it.

    Raises:
        InputError: a prompt format without ``{question}``, a chat template that fails.
    """
    found = [
        Form("completion", lambda fact: completion_prompts(fact)[best_prompt[fact.relation]]),
        Form("question", lambda fact: plain_question(fact.question)),
    ]
    if examples:
        shown = "".join(f"{plain_question(fact.question)} {fact.answer}\n" for fact in examples)
        found.append(Form(FEW_SHOT, lambda fact: shown + plain_question(fact.question), first_line=True))
    if getattr(loaded.tokenizer, "chat_template", None):
        encoder = loaded.encoder  # a form may outlive the model
        encoder.chat("Who?")
        found.append(Form("chat", lambda fact: encoder.chat(fact.question)))
    if prompt_format is not None:
        found.append(own_form(prompt_format))
    return found


def own_form(prompt_format: str) -> Form:
    """The user's; errors as :func:`check_format`."""
    check_format(prompt_format)
    return Form(OWN, lambda fact: prompt_format.replace(QUESTION, fact.question))


def check_format(prompt_format: str) -> None:
    """Raise :class:`InputError` where a form of the user's has no place for the question."""
    if QUESTION not in prompt_format:
        raise InputError(f"prompt format {prompt_format[:80]!r}: expected {QUESTION} in it")
