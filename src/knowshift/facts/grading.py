"""Is the answer in the text? The paper's substring rule, and a stricter one at word boundaries.

*Substring* (Ye et al., EMNLP 2025): a text is a hit when the answer or an accepted alias occurs in it, as written,
upper and lower case kept apart. It is fooled by longer words: "Oman" stands in "Romania" only when case is ignored,
but "Paris" stands in "Parish" either way.

*Word* (ours): text and answer are normalised, and the answer must stand between word boundaries.

1. Case is folded, as Unicode does it ("Straße" is "strasse").
2. Accents go: combining marks U+0300..U+036F after decomposition, and the letters that do not decompose
   (ø o, ł l, đ d, ħ h, dotless i, ð d, þ th, æ ae, œ oe). Marks of other scripts (Devanagari, Thai, kana) stay.
3. Dotted initials are joined: "U.S.A." is "usa", "J. R. R." is "jrr". "&" is "and". All other punctuation, symbols
   and control characters separate words, so "Stratford-upon-Avon" is three words and "Paris's" holds the word "paris".
   "+" and "#" right behind a letter stay, so that "C" is not found in "C++".
4. The English articles a, an, the count for nothing on both sides ("The Hague" and "Hague" are one), unless the answer
   ends in one ("Vitamin A", "The The"): then they count.
5. Scripts written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar) have no word boundary to ask for: an end of an
   answer in such a script may touch other text.

Known gaps, as in every rule of this kind: "not Mark Twain" is a hit for Mark Twain under both rules, and a short
answer that is a common word ("The Band") is found wherever that word is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from knowshift.errors import InputError
from knowshift.facts.fact import Fact

_ARTICLES = frozenset(("a", "an", "the"))
_ACCENTS = re.compile("[\u0300-\u036f]+")
_UNDECOMPOSED = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "\u0131": "i", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe"}
)
# "U.S.A" and "N.E.R.D", else "U.S.A." and "J. R. R."; a blank inside only where the last letter has its dot.
_INITIALS = re.compile(r"(?<!\w)(?:(?:[^\W\d_]\.)+[^\W\d_](?![\w.])|(?:[^\W\d_]\. ?)+[^\W\d_]\.)")
# A word in ASCII: letters and digits, then any + or # that touches them. Everything else separates.
_WORD = re.compile(r"[^\W_]+[+#]*")
_PIECE = re.compile(r"[^+#]+[+#]*")  # the same, where only the characters of words are left
_UNSPACED = (
    "CJK ",
    "HIRAGANA ",
    "KATAKANA",
    "THAI ",
    "LAO ",
    "KHMER ",
    "MYANMAR ",
    "IDEOGRAPHIC ",
    "HALFWIDTH KATAKANA",
)


def _fold(text: str) -> str:
    """Case folded, accents removed, compatibility forms unified."""
    if text.isascii():
        return text.lower()
    # Folding may bring out what decomposes, and the other way round ("İ", "ΐ", "℡"): twice is enough (Unicode TR 31).
    text = unicodedata.normalize("NFKD", text).casefold()
    text = unicodedata.normalize("NFKD", text).casefold()
    text = _ACCENTS.sub("", text).translate(_UNDECOMPOSED)
    return unicodedata.normalize("NFC", text)


def _words(text: str) -> list[str]:
    """The words of ``text``, in order."""
    text = _fold(text).replace("&", " and ")
    if "." in text:
        text = _INITIALS.sub(lambda found: found[0].replace(".", "").replace(" ", "") + " ", text)
    if text.isascii():
        return _WORD.findall(text)
    # Not by regular expression: its word characters leave out the marks that many scripts spell with.
    kept = (c if c.isalnum() or c in "+#" or unicodedata.category(c)[0] == "M" else " " for c in text)
    return [word for piece in "".join(kept).split() for word in _PIECE.findall(piece)]


def normalise(text: str) -> str:
    """Steps 1 to 3 above: the words of ``text``, joined by single blanks. Articles stay. Idempotent."""
    return " ".join(_words(text))


def _unspaced(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_UNSPACED)


class _Words:
    """One accepted answer, ready for the word rule."""

    __slots__ = ("articles_count", "core", "free_end", "free_start")

    def __init__(self, answer: str) -> None:
        words = _words(answer)
        self.articles_count = bool(words) and words[-1] in _ARTICLES
        self.core = " ".join(words if self.articles_count else _without_articles(words))
        self.free_start = bool(self.core) and _unspaced(self.core[0])
        self.free_end = bool(self.core) and _unspaced(self.core[-1])

    def stands_in(self, full: str, plain: str) -> bool:
        """``full`` and ``plain``: the padded text with and without its articles."""
        text = full if self.articles_count else plain
        return f"{'' if self.free_start else ' '}{self.core}{'' if self.free_end else ' '}" in text


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
        self._words = tuple(_Words(answer) for answer in self.accepted)
        for answer, words in zip(self.accepted, self._words, strict=True):
            if not words.core:
                raise InputError(
                    f"{where}answer {answer!r} is empty after normalisation; expected at least one letter or digit"
                )

    @classmethod
    def of(cls, fact: Fact) -> Grader:
        """The grader of a fact's answer and aliases."""
        return cls(fact.accepted, fact.id)

    def substring(self, text: str) -> bool:
        """The paper's rule: any accepted answer occurs in ``text`` exactly as written."""
        return any(answer in text for answer in self.accepted)

    def word(self, text: str) -> bool:
        """Our rule: any accepted answer stands in ``text`` at word boundaries, both normalised."""
        words = _words(text)
        full = f" {' '.join(words)} "
        plain = f" {' '.join(_without_articles(words))} "
        return any(answer.stands_in(full, plain) for answer in self._words)


def gradable(answer: str) -> bool:
    """Whether anything of ``answer`` is left after normalising, so that :class:`Grader` takes it."""
    # The first character decides for nearly every answer, and a hundred thousand of them are asked about.
    return answer[:1].isalnum() or bool(normalise(answer))


def substring_hit(text: str, accepted: Sequence[str]) -> bool:
    """Grade one text by the paper's plain substring rule (case-sensitive); errors as :class:`Grader`."""
    return Grader(accepted).substring(text)


def word_hit(text: str, accepted: Sequence[str]) -> bool:
    """Grade one text at word boundaries, normalised; errors as :class:`Grader`."""
    return Grader(accepted).word(text)
