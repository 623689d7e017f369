"""Both graders: the paper's substring rule, and the rule at word boundaries."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.facts.grading import Grader, normalise, substring_hit, word_hit

ANY_TEXT = st.text(max_size=40)
LETTERS = st.text(alphabet="bcdfgklmnoprst", min_size=2, max_size=8)  # no letter is an article, none has a dot
ANSWERS = st.lists(LETTERS, min_size=1, max_size=4).map(" ".join)


@pytest.mark.parametrize(
    ("text", "accepted", "substring", "word"),
    [
        ("He was born in Paris.", ["Paris"], True, True),
        ("He was born in a Parish.", ["Paris"], True, False),
        ("He was born in PARIS.", ["Paris"], False, True),
        ("Romania", ["Oman"], False, False),
        ("in Romania", ["oman"], True, False),
        ("São Paulo", ["Sao Paulo"], False, True),
        ("Lodz", ["Łódź"], False, True),
        ("Strasse", ["Straße"], False, True),
        ("ISTANBUL, İstanbul", ["istanbul"], False, True),
        ("in the USA", ["U.S.A."], False, True),
        ("J. R. R. Tolkien wrote it", ["J.R.R. Tolkien"], False, True),
        ("It was N.E.R.D.", ["N.E.R.D"], True, True),
        ("Stratford upon Avon", ["Stratford-upon-Avon"], False, True),
        ("Paris's mayor", ["Paris"], True, True),
        ("in Hague", ["The Hague"], False, True),
        ("in the Hague", ["Hague"], True, True),
        ("University of Arts", ["University of the Arts"], False, True),
        ("Johnson and Johnson", ["Johnson & Johnson"], False, True),
        ("vitamin C", ["Vitamin A"], False, False),
        ("vitamin A", ["Vitamin A"], False, True),
        ("They are The The.", ["The The"], True, True),
        ("written in C++", ["C"], True, False),
        ("written in C++.", ["C++"], True, True),
        ("New\nYork", ["New York"], False, True),
        ("首都は東京です", ["東京"], True, True),
        ("हिन्दी", ["हिन्द"], True, False),
        ("the United States", ["United States of America", "United States"], True, True),
        ("", ["Paris"], False, False),
    ],
)
def test_examples(text: str, accepted: list[str], substring: bool, word: bool) -> None:
    assert substring_hit(text, accepted) is substring
    assert word_hit(text, accepted) is word


@settings(max_examples=300)
@given(ANY_TEXT)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert once == once.strip()
    assert "  " not in once


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_an_answer_is_found_in_any_text_that_holds_it(before: str, answer: str, after: str) -> None:
    if not normalise(answer):
        return
    assert substring_hit(before + answer + after, [answer])
    assert word_hit(answer, [answer])


@given(ANSWERS, ANSWERS, ANSWERS)
def test_a_word_hit_is_a_run_of_whole_words(before: str, answer: str, after: str) -> None:
    text = f"{before} {answer} {after}"
    words, wanted = text.split(), answer.split()
    assert any(words[i : i + len(wanted)] == wanted for i in range(len(words)))
    assert word_hit(text, [answer])
    assert word_hit(f"({before}): “{answer.upper()}”, {after}!", [answer])
    assert not word_hit(f"x{answer}", [answer])
    assert not word_hit(f"{answer}x", [answer])


@given(ANSWERS, ANSWERS)
def test_word_hits_agree_with_a_plain_list_of_words(text: str, answer: str) -> None:
    words, wanted = text.split(), answer.split()
    runs = [words[i : i + len(wanted)] for i in range(len(words))]
    assert word_hit(text, [answer]) == (wanted in runs)


@given(st.lists(ANSWERS, min_size=1, max_size=3), st.lists(ANSWERS, max_size=3), ANSWERS)
def test_more_aliases_never_lose_a_hit(accepted: list[str], more: list[str], text: str) -> None:
    one, many = Grader(accepted), Grader([*accepted, *more])
    assert many.substring(text) >= one.substring(text)
    assert many.word(text) >= one.word(text)


@pytest.mark.parametrize("answer", ["", " ", "?!", "...", "_", "\u0301"])
def test_an_answer_of_which_nothing_is_left_is_refused_by_name(answer: str) -> None:
    fact = Fact("P19.test.4", "P19", "test", "in_domain", "Ada", "Where was Ada born?", "London", (answer,))
    with pytest.raises(InputError, match=r"fact P19\.test\.4: answer .* is empty after normalisation"):
        Grader.of(fact)
    with pytest.raises(InputError, match="empty after normalisation"):
        substring_hit("anything", [answer])


def test_no_answer_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no accepted answer"):
        Grader([])
    with pytest.raises(TypeError):
        Grader("Paris")
