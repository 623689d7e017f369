"""Both graders: the paper's substring rule, and the rule at word boundaries."""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.facts.grading import Grader, gradable, normalise, substring_hit, word_hit
from knowshift.facts.words import _APOSTROPHES, readings, settled

# Characters of some rule: digits, signs, separators, initials, apostrophes, invisible characters, other scripts.
TRICKY = [
    *"aUS.é+#&, \n'`-–−$()[]\"5017_·½²٣٫ʼ’ʻßŉ℀…İ北年日ंि್",
    *("us", "U.S.", "J. R.", "the ", "10", "000", "500", "1,500", " -5", ".5", "\u0301"),
    *("\u00a0", "\u202f", "\u200b", "\u200d", "\u00ad", "\ufe0f", "\u20e3"),
]
TRICKY_TEXT = st.lists(st.sampled_from(TRICKY), max_size=14).map("".join)
ANY_TEXT = st.one_of(st.text(max_size=40), TRICKY_TEXT)
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
def test_the_words_of_a_text_are_their_own_words(text: str) -> None:
    """Words are put two blanks apart: with one, groups of digits may become a number."""
    once = normalise(text)
    assert normalise(once.replace(" ", "  ")) == once
    assert once == once.strip()
    assert "  " not in once


NEAR = st.sampled_from([str, str.swapcase, str.upper, normalise, lambda text: text[1:], lambda text: text + "x"])


@given(ANY_TEXT, st.lists(ANSWERS, min_size=1, max_size=3), ANY_TEXT, st.data())
def test_a_substring_hit_is_an_answer_letter_by_letter(
    before: str, accepted: list[str], after: str, data: st.DataObject
) -> None:
    """In texts that hold an answer, or nearly one: another case, normalised, or cut."""
    accepted = [data.draw(st.sampled_from([answer, answer.title(), f"Ł{answer}"])) for answer in accepted]
    text = before + data.draw(NEAR)(data.draw(st.sampled_from(accepted))) + after
    written = any(text[i : i + len(answer)] == answer for answer in accepted for i in range(len(text)))
    assert substring_hit(text, accepted) is written


@given(ANY_TEXT)
def test_an_answer_is_at_word_boundaries_in_itself(answer: str) -> None:
    if normalise(answer):
        assert word_hit(answer, [answer])


@given(ANSWERS, ANSWERS, ANSWERS)
def test_a_word_hit_is_a_run_of_whole_words(before: str, answer: str, after: str) -> None:
    assert word_hit(f"{before} {answer} {after}", [answer])
    assert word_hit(f"({before}): “{answer.upper()}”, {after}!", [answer])
    assert not word_hit(f"x{answer}", [answer])
    assert not word_hit(f"{answer}x", [answer])


@given(ANSWERS, ANSWERS)
def test_word_hits_agree_with_a_plain_list_of_words(text: str, answer: str) -> None:
    words, wanted = text.split(), answer.split()
    runs = [words[i : i + len(wanted)] for i in range(len(words))]
    assert word_hit(text, [answer]) == (wanted in runs)


@given(st.lists(ANSWERS, min_size=1, max_size=4), ANSWERS, st.data())
def test_a_hit_is_a_hit_of_any_one_answer(accepted: list[str], text: str, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([text, f"{text} {data.draw(st.sampled_from(accepted))}"]))
    each = [Grader([answer]) for answer in accepted]
    assert Grader(accepted).substring(text) is any(one.substring(text) for one in each)
    assert Grader(accepted).word(text) is any(one.word(text) for one in each)


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


@given(ANY_TEXT)
def test_gradable_is_what_a_grader_takes(answer: str) -> None:
    if gradable(answer):
        assert Grader([answer]).word(answer)
    else:
        with pytest.raises(InputError):
            Grader([answer])


# The table of cases in docs/facts.md

DOCUMENTED = re.findall(
    r"^\| `(.+)` \| `(.+)` \| (yes|no) \|$",
    (Path(__file__).parents[2] / "docs" / "facts.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def shown(cell: str) -> str:
    return re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), cell)


@pytest.mark.parametrize(("text", "answer", "found"), DOCUMENTED)
def test_the_documented_cases(text: str, answer: str, found: str) -> None:
    assert word_hit(shown(text), [shown(answer)]) is (found == "yes")


def test_every_documented_case_is_tried() -> None:
    assert len(DOCUMENTED) > 50
    assert {found for _, _, found in DOCUMENTED} == {"yes", "no"}


# Numbers

INTEGERS = st.one_of(
    st.integers(-30, 30), st.sampled_from([500, 1000, 1500, -1500, 5000]), st.integers(-(10**9), 10**9)
)


def groups(digits: str, separator: str) -> str:
    return f"{int(digits):,}".replace(",", separator)


@st.composite
def spellings(draw: st.DrawFn, number: int) -> str:
    """One of the ways to write a number."""
    digits = str(abs(number))
    written = draw(
        st.sampled_from([digits, *(groups(digits, s) for s in (",", "'", "’", "\u00a0", "\u2009", "\u202f"))])
    )
    if "000" in digits[-3:] and len(digits) < 7:
        written = draw(st.sampled_from([written, groups(digits, " ")]))
    written += draw(st.sampled_from(["", "", ".0", ".00"]))
    sign = draw(st.sampled_from(["-", "−", "–"])) if number < 0 else ""
    return sign + draw(st.sampled_from(["", "", "$", "€"])) + written


CONTEXTS = st.sampled_from(
    [
        "{}",
        "{}.",
        "({})",
        "“{}”",
        "'{}'",
        "it was {}, not",
        "{}%",
        "is {}!",
        "a:{};",
        "\n{}\n",
        "{} km",
        "x {}?",
        "={}",
        "> {}",
        "**{}**",
        "_{}_",
        "`{}`",
        "|{}|",
        "≈{}",
        "≤{}",
        "度は{}度",
    ]
)


@settings(max_examples=200)
@given(st.data(), INTEGERS, INTEGERS, CONTEXTS)
def test_a_number_is_found_in_itself_however_it_is_written_and_in_no_other(
    data: st.DataObject, number: int, other: int, context: str
) -> None:
    text = context.format(data.draw(spellings(number)))
    assert word_hit(text, [data.draw(spellings(number))])
    assert word_hit(text, [data.draw(spellings(other))]) is (number == other)


@settings(max_examples=150)
@given(st.data(), *[st.decimals(-9999, 9999, places=2, allow_nan=False)] * 2)
def test_fractions_are_compared_as_numbers(data: st.DataObject, number: object, other: object) -> None:
    spelled = [
        data.draw(st.sampled_from([str(n), f"{n:,}", f"{n}0", str(n).replace("-", "−")])) for n in (number, other)
    ]
    assert word_hit(f"It is {spelled[0]}.", [spelled[1]]) is (number == other)
    assert word_hit(f"It is {spelled[0]}.", [f"{number:,}0"])


@given(
    st.integers(1, 2100), st.integers(1, 2100), st.sampled_from(["-", "–", "/", " - ", ", ", " to ", ":", "; ", "\n"])
)
def test_both_ends_of_a_range_or_list_are_found(first: int, second: int, between: str) -> None:
    text = f"{first}{between}{second}"
    assert word_hit(text, [str(first)])
    assert word_hit(text, [str(second)])
    assert not word_hit(text, [f"-{second}"])


GROUPS = st.lists(st.from_regex(r"[0-9]{1,3}", fullmatch=True).filter(str.isascii), min_size=2, max_size=4)
#: What joins digits or makes a fraction or a sign of them, beside the blanks, however it is typed (U+FF0C is a comma).
NO_SEPARATOR = set("'`,.،٫٬−" + _APOSTROPHES)


@settings(max_examples=400)
@given(
    GROUPS,
    st.one_of(
        st.sampled_from([", ", "; ", "\n", "\t", "  ", ":", "-", ") ", "/", "¨", "\n- ", ", and ", "|"]),
        st.characters(exclude_categories=["L", "N", "M", "Cf", "Cs", "Zs"]).filter(
            lambda typed: NO_SEPARATOR.isdisjoint(typed + unicodedata.normalize("NFKD", typed))
        ),
    ),
)
@example(groups=["1", "000"], between="¦")
def test_only_a_blank_joins_groups_of_digits(groups: list[str], between: str) -> None:
    if normalise(f"1{between}a").split() != ["1", "a"] and between != ", and ":
        return  # an apostrophe, a plus, or what folding makes a letter
    text = f"({between.join(groups)})"
    words = normalise(text).split()
    assert [word for word in words if word != "and"] == groups


HOSTILE = {
    "marks": "e" + "\u0316\u0301" * 100_000,
    "marks of other scripts": "e" + "\u05b0\u05b4\u1ab0\u20d0" * 50_000,
    "groups": "1" + " 000" * 50_000 + " 1",
    "digits": "1" * 200_000,
    "signs": "-1" * 100_000,
    "hyphens": "-" * 200_000 + "5",
    "initials": "a." * 100_000 + "bc",
    "apostrophes": "a'b" * 66_000,
    "quotes": "'" * 200_000,
    "letters": "a" * 200_000,
    "commas": "1," * 100_000,
    "dots": "." * 200_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_grading_takes_time_in_proportion_to_the_text(name: str) -> None:
    start = time.process_time()
    Grader(["Chang'e", "1,500"]).word(HOSTILE[name])
    settled(HOSTILE[name] + " x ")
    assert time.process_time() - start < 2


# Apostrophes and invisible characters

NAMES = st.lists(st.text(alphabet="bcfgkopuz", min_size=2, max_size=4), min_size=2, max_size=3)


@given(NAMES, st.sampled_from("'’‘`´ʼʻʹʾʿ′ꞌ＇"), st.sampled_from(["'", "’", "ʻ", " ", ""]))
def test_apostrophes_are_alike_and_may_be_left_out(parts: list[str], one: str, other: str) -> None:
    assert word_hit(f"in {one.join(parts)}, then", [other.join(parts)])
    assert word_hit(f"in {other.join(parts)}, then", [one.join(parts)])


def test_invisible_characters_and_all_digits_are_folded() -> None:
    """Every format character that this Python knows, and every decimal digit."""
    invisible = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) == "Cf"]
    assert len(invisible) > 100
    for character in invisible:
        assert word_hit(f"Pa{character}ris", ["Paris"]), hex(ord(character))
        assert word_hit("Paris", [f"{character}Paris{character}"]), hex(ord(character))
        assert not gradable(character), hex(ord(character))
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) == "Nd":
            assert word_hit(f"in {chr(code)}99 AD", [f"{unicodedata.decimal(chr(code))}99"]), hex(code)


# What a continuation cannot change


@settings(max_examples=500)
@given(ANY_TEXT, ANY_TEXT, st.one_of(ANY_TEXT, st.sampled_from(["US", "us a", "a", "5", "500", "1500", "-5", "é us"])))
def test_what_is_settled_stays_a_hit_whatever_follows(text: str, more: str, answer: str) -> None:
    beginning = settled(text)
    assert text.startswith(beginning)
    whole = list(readings(text + more))
    for words, grown in zip(readings(beginning), [*whole, whole[-1]], strict=False):
        assert grown[: len(words)] == words
    if gradable(answer) and word_hit(beginning, [answer]):
        assert word_hit(text + more, [answer])


def test_words_are_settled_when_the_next_one_has_begun() -> None:
    assert settled("She was born in Paris") == "She was born in"
    assert settled("She was born in Paris. ") == "She was born in Paris."
    assert settled("by J. R. ") == ""
    assert settled("by J. R. R. Tolkien and") == "by J. R. R. Tolkien"
    assert settled("S'a. ") == ""
    assert settled("about 1 ") == ""
    assert settled("about 10 - ") == ""
    assert settled("about 10 km ") == "about 10 km"
    assert settled("हिन्दी है") == "हिन्दी"
