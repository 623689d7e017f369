"""Is the answer in the text? The paper's substring rule, and a stricter one at word boundaries.

*Substring* (Ye et al., EMNLP 2025): a text is a hit when the answer or an accepted alias occurs in it, as written,
upper and lower case kept apart. It is fooled by longer words: "Oman" stands in "Romania" only when case is ignored,
but "Paris" stands in "Parish" either way.

*Word* (ours): text and answer are normalised, and the answer must stand between word boundaries.

1. Case is folded, as Unicode does it ("Straße" is "strasse"), and invisible characters are removed.
2. Accents are removed: combining marks U+0300..U+036F after decomposition, and the letters that do not decompose
   (ø o, ł l, đ d, ħ h, dotless i, ð d, þ th, æ ae, œ oe). Marks of other scripts (Devanagari, Thai, kana) stay.
3. Dotted initials are joined: "U.S.A." is "usa", "J. R. R." is "jrr". "&" is "and". All other punctuation, symbols
   and control characters separate words, so "Stratford-upon-Avon" is three words and "Paris's" holds the word "paris".
   "+" and "#" right behind a letter stay, so that "C" is not found in "C++".
4. Numbers are compared as numbers: "1,500" is "1500", "10.50" is "10.5", and neither "5" nor "1" is in "1,500".
5. An apostrophe inside a word, however it is typed, is read both ways: "Hawaiʻi" is "Hawai'i" and "Hawaii". It is left
   out only in words of four letters or more, and these then keep their capital: "Chang'e" is not "change".
6. The English articles a, an, the count for nothing on both sides ("The Hague" and "Hague" are one), unless the answer
   ends in one ("Vitamin A", "The The"): then they count.
7. Scripts written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar) have no word boundary to ask for: an end of an
   answer in such a script may touch other text, and so may a number that stands beside one.

Steps 1 to 5 are in :mod:`knowshift.facts.words`; docs/facts.md has a table of cases.

Known gaps, as in every rule of this kind: "not Mark Twain" is a hit for Mark Twain under both rules, and a short
answer that is a common word ("The Band") is found wherever that word is.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from functools import lru_cache

from knowshift.errors import InputError
from knowshift.facts.fact import Fact
from knowshift.facts.words import closed_words, holds, readings, unspaced

_ARTICLES = frozenset(("a", "an", "the"))
#: Letters that a word needs for being compared without its apostrophe: "Hawai'i" has them and "B'z" has not.
_LONG = 4
_PLAIN = frozenset(string.ascii_letters + string.digits)


def normalise(text: str) -> str:
    """The words of ``text``, joined by single blanks. Articles stay."""
    return " ".join(next(readings(text)))


class _Words:
    """One reading of an accepted answer, prepared for the word rule.

    ``closed`` holds the words that lost an apostrophe in it, and whether each begins with a capital.
    """

    __slots__ = ("articles_count", "closed", "long", "needle")

    def __init__(self, words: Sequence[str], closed: Sequence[tuple[str, bool]] = ()) -> None:
        self.closed = closed
        self.long = len("".join(words)) >= _LONG
        self.articles_count = words[-1] in _ARTICLES
        core = " ".join(words if self.articles_count else _without_articles(words))
        start, end = ("" if unspaced(edge) else " " for edge in (core[0], core[-1]))
        self.needle = f"{start}{core}{end}"

    def stands_in(self, full: str, plain: str) -> bool:
        """``full`` and ``plain``: the padded text with and without its articles."""
        return self.needle in (full if self.articles_count else plain)

    def spelled_in(self, text: str) -> bool:
        """Whether ``text`` has the closed words with the answer's capitals, so that "Chang'e" is not "change"."""
        return all(holds(text, word, capital) for word, capital in self.closed)


def _without_articles(words: Iterable[str]) -> list[str]:
    return [word for word in words if word not in _ARTICLES]


class Grader:
    """The accepted answers of one fact, prepared once for many texts.

    ``accepted`` holds the answer and its aliases; ``fact`` names the fact in errors. An empty list, or an answer of
    which nothing is left after normalising ("?!"), is an :class:`InputError`: it would be a hit everywhere, or nowhere.
    """

    __slots__ = ("_words", "accepted")

    def __init__(self, accepted: Sequence[str], fact: str = "") -> None:
        where = f"fact {fact}: " if fact else ""
        if isinstance(accepted, str):
            raise TypeError("accepted is a list of answers, not one string")
        if not accepted:
            raise InputError(f"{where}no accepted answer; expected at least one")
        self.accepted = tuple(accepted)
        self._words: list[_Words] = []
        for answer in self.accepted:
            as_typed, *without_apostrophes = readings(answer)
            if not as_typed:
                raise InputError(
                    f"{where}answer {answer!r} is empty after normalisation; expected at least one letter or digit"
                )
            self._words.append(_Words(as_typed))
            for words in without_apostrophes:
                closed = closed_words(answer)
                if all(len(word) >= _LONG for word, _ in closed):
                    self._words.append(_Words(words, closed))

    @classmethod
    def of(cls, fact: Fact) -> Grader:
        """The grader of a fact's answer and aliases; made once where many models answer the same facts."""
        return _grader_of(fact.accepted, fact.id)

    def substring(self, text: str) -> bool:
        """The paper's rule: any accepted answer occurs in ``text`` exactly as written."""
        return any(answer in text for answer in self.accepted)

    def word(self, text: str) -> bool:
        """Our rule: any accepted answer stands in ``text`` at word boundaries, both normalised."""
        answers = self._words
        for words in readings(text):
            full = f" {' '.join(words)} "
            plain = f" {' '.join(_without_articles(words))} "
            if any(answer.stands_in(full, plain) and answer.spelled_in(text) for answer in answers):
                return True
            answers = [answer for answer in answers if answer.long]  # the next reading of the text has no apostrophes
        return False


@lru_cache(maxsize=4096)
def _grader_of(accepted: tuple[str, ...], fact: str) -> Grader:
    return Grader(accepted, fact)


def gradable(answer: str) -> bool:
    """Whether anything of ``answer`` is left after normalising, so that :class:`Grader` accepts it."""
    # The first character decides for nearly every answer, and this runs for a hundred thousand of them.
    return answer[:1] in _PLAIN or bool(normalise(answer))


def substring_hit(text: str, accepted: Sequence[str]) -> bool:
    """Grade one text by the paper's plain substring rule (case-sensitive); errors as :class:`Grader`."""
    return Grader(accepted).substring(text)


def word_hit(text: str, accepted: Sequence[str]) -> bool:
    """Grade one text at word boundaries, normalised; errors as :class:`Grader`."""
    return Grader(accepted).word(text)
