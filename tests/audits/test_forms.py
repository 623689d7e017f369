"""The forms in which a model is asked: those it has, in its own words, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from knowshift.audits.forms import forms_of
from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.models.loading import LoadedModel

FACT = Fact("a", "P19", "test", "in_domain", "Ann", "Where was Ann born?", "Rome")
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<me>{% endif %}"
)


def with_template(loaded: LoadedModel, template: str) -> LoadedModel:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = template
    return replace(loaded, tokenizer=tokenizer)


def test_a_model_is_asked_in_the_forms_it_has(small_model: LoadedModel) -> None:
    plain = {form.name: form.prompt(FACT) for form in forms_of(small_model, {"P19": 0}, [])}
    assert list(plain) == ["completion", "question"]
    assert plain["question"] == "Question: Where was Ann born? Answer:"
    assert "Ann" in plain["completion"]
    shown = [replace(FACT, question="Where was Bo born?", answer="Oslo")]
    chatty = with_template(small_model, TEMPLATE)
    all_forms = {form.name: form for form in forms_of(chatty, {"P19": 0}, shown, "Q {question} {x}")}
    assert list(all_forms) == ["completion", "question", "few-shot", "chat", "your format"]
    assert all_forms["chat"].prompt(FACT) == "<user>Where was Ann born?</><me>"
    assert all_forms["your format"].prompt(FACT) == "Q Where was Ann born? {x}"
    assert all_forms["few-shot"].prompt(FACT).startswith("Question: Where was Bo born? Answer: Oslo\n")
    assert [form.name for form in all_forms.values() if form.first_line] == ["few-shot"]


def test_a_model_that_may_think_is_asked_to_answer_at_once(small_model: LoadedModel) -> None:
    """As Qwen 3's template has it: without being told, the model would begin to think."""
    template = TEMPLATE + "{% if enable_thinking is defined and enable_thinking is false %}[thought]{% endif %}"
    forms = {form.name: form for form in forms_of(with_template(small_model, template), {}, [])}
    assert forms["chat"].prompt(FACT) == "<user>Where was Ann born?</><me>[thought]"


def test_a_template_that_fails_is_refused_in_a_line(small_model: LoadedModel) -> None:
    for template in ("{{ raise_exception('no') }}", "{% for %}", "{{ ''.__class__.__mro__ }}"):
        with pytest.raises(InputError, match="chat template fails"):
            forms_of(with_template(small_model, template), {}, [])
