"""The words of a text as the word rule compares them: case, accents, punctuation, apostrophes and numbers.

docs/facts.md says what counts as equal, with a table of cases that the tests check.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_ACCENTS = re.compile("[\u0300-\u036f]+")
_UNDECOMPOSED = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "\u0131": "i", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe"}
)
# Letters, quotes and primes that are typed where others type "'"; the ASCII one "`" is replaced apart.
_APOSTROPHES = (
    "\u00b4\u02b9\u02bb\u02bc\u02bd\u02be\u02bf\u02c0\u02c8\u02ca\u02cb\u0374\u055a\u05f3\u07f4\u07f5"
    "\u1fbd\u1fbf\u2018\u2019\u201b\u2032\u2035\ua78b\ua78c\uff07"
)
# "U.S.A" and "N.E.R.D", else "U.S.A." and "J. R. R."; a blank inside only where the last letter has its dot.
_INITIALS = re.compile(r"(?<!\w)[^\W\d_]\.(?:(?:[^\W\d_]\.)*[^\W\d_](?![\w.])|(?: ?[^\W\d_]\.)+)")
# An apostrophe inside a word, but not that of "Paris's", "can't" or "he'll".
_INSIDE = re.compile(r"'(?<=[^\W\d_]')(?!(?:[smtd]|ll|re|ve)(?![^\W_]))(?=[^\W\d_])")
# A word in ASCII: letters and digits, then any + or # that touches them. Everything else separates.
_WORD = re.compile(r"[^\W_]+[+#]*")
_PIECE = re.compile(r"[^+#]+[+#]*")  # the same, where only the characters of words are left
_SEPARATED = "".join(chr(code) if chr(code).isalnum() else " " for code in range(128))
_UNSPACED = (
    *("CJK ", "HIRAGANA ", "KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR "),
    *("IDEOGRAPHIC ", "HALFWIDTH KATAKANA"),
)

# Blanks that typesetting puts between groups of digits.
_THIN = re.compile("(?<=[0-9])[\u00a0\u2007\u2009\u202f](?=[0-9])")
# "10⁵" is not 105, and "5½" is not 51⁄2.
_RAISED = re.compile("(?<=[0-9])(?=[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2089\u2150-\u215e])")
_BESIDE_DIGIT = re.compile(r"(?<=[0-9])(?=[^\x00-\x7f])|(?<=[^\x00-\x7f])(?=[0-9])")
# A sign stands behind a blank, an opening bracket or quote, or an operator: "1914-1918" and "Apollo-11" have none.
# A hyphen behind a number and a blank is a range ("1914 -1918"); the minus of mathematics is not.
_NUMBER = re.compile(
    r"(?:(?<![^\s(\[{\"'“„«=<>~:;,$€£¥])(?P<minus>−|(?<![0-9] )[-–])[$€£¥]?(?=\.?[0-9])"
    r"|(?<![^\W_])(?P<letters>[^\W\d_]*))"
    r"(?P<digits>(?:(?<![\w.])\.)?[0-9]+(?:[.,'][0-9]+)*)(?P<plus>[+#]*)"
)
_ENGLISH = re.compile(
    r"(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?:'[0-9]{3})+"  # 1,500,000 and 1'500'000
    r"|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}"  # 15,00,000
    r"|0|[1-9][0-9]*|(?=\.)|[0-9]{3}(?=\.))(?:\.(?P<fraction>[0-9]+))?"
)
# Groups of digits between blanks. They are one number where one of them begins with 0, as no number of its own does.
_GROUPS = re.compile(r"(?<![^ ])M?[1-9][0-9]{0,2}(?: [0-9]{3})+(?:P[0-9]+)?(?![^ ])")
_LETTER = re.compile(r"[^\W\d_]")
_LONG_BEFORE_DOT = re.compile(r"[^\W\d_]{2}\W*$")


class _Spelling(dict[int, str]):
    """Character code to plain spelling, for :meth:`str.translate`; worked out when a character is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        # Zero-width characters, soft hyphens, direction marks; rings and boxes round a character, its other looks.
        if kind in ("Cf", "Me") or 0xFE00 <= code <= 0xFE0F:
            plain = ""
        elif kind == "Nd":
            plain = str(unicodedata.decimal(character))
        else:
            plain = character
        self[code] = plain
        return plain


# Beside the apostrophes: the decimal and thousands separators of Arabic, and a letter that decomposes to an apostrophe.
_SPELLING = _Spelling({**dict.fromkeys(map(ord, _APOSTROPHES), "'"), 0x066B: ".", 0x066C: ",", 0x0149: "'n"})


def readings(text: str) -> Iterator[list[str]]:
    """The words of ``text``, in order; and once more with "hawai'i" as one word, where an apostrophe is inside one."""
    text = _fold(text)
    yield _split(text)
    if "'" in text:
        closed = _INSIDE.sub("", text)
        if closed != text:
            yield _split(closed)


def settled(text: str) -> str:
    """The longest beginning of ``text`` that is known to keep its words whatever follows, or "".

    The last word may go on, take an accent or a "+". A letter with a dot may turn out to be one of several initials
    ("J. R. R."), and a number may get another group ("10 000"). So it ends behind a word that is neither.
    """
    head = text[: max(text.rfind(" "), text.rfind("\n")) + 1].rstrip()
    last = _fold(head[max(head.rfind(" "), head.rfind("\n")) + 1 :])
    if not _LETTER.search(last) or _has_digit(last):
        return ""
    return head if "." not in last or _LONG_BEFORE_DOT.search(last) else ""


def unspaced(character: str) -> bool:
    """Whether the character's script is written without blanks between words."""
    return not character.isascii() and unicodedata.name(character, "").startswith(_UNSPACED)


def _fold(text: str) -> str:
    """Case folded, accents and invisible characters removed, compatibility forms, digits and apostrophes unified."""
    if text.isascii():
        return text.lower().replace("`", "'")
    text = _THIN.sub("'", text.translate(_SPELLING))
    text = _RAISED.sub(" ", text)
    # Folding may bring out what decomposes, and the other way round ("İ", "ΐ", "℡"): twice is enough (Unicode TR 31).
    text = unicodedata.normalize("NFKD", text).casefold()
    text = unicodedata.normalize("NFKD", text).casefold()
    text = _ACCENTS.sub("", text).translate(_UNDECOMPOSED)
    return unicodedata.normalize("NFC", text).replace("`", "'")


def _split(text: str) -> list[str]:
    """The words of a folded text."""
    text = text.replace("&", " and ")
    if text.find(".", 0, -1) >= 0:  # one at the end alone is no initial's
        text = _INITIALS.sub(lambda found: found[0].replace(".", "").replace(" ", "") + " ", text)
    numbers = _has_digit(text)
    if numbers:
        if not text.isascii():
            text = _BESIDE_DIGIT.sub(_apart, text)
        text = _NUMBER.sub(_number, text)
    if not text.isascii():
        # Not by regular expression: its word characters leave out the marks that many scripts spell with.
        kept = (c if c.isalnum() or c in "+#" or unicodedata.category(c)[0] == "M" else " " for c in text)
        words = [word for piece in "".join(kept).split() for word in _PIECE.findall(piece)]
    elif "+" in text or "#" in text:
        words = _WORD.findall(text)
    else:
        words = text.translate(_SEPARATED).split()
    return _whole(words) if numbers else words


def _has_digit(text: str) -> bool:
    return (  # no loop and no regular expression: every text is asked
        "1" in text
        or "0" in text
        or "2" in text
        or "9" in text
        or "5" in text
        or "3" in text
        or "4" in text
        or "6" in text
        or "7" in text
        or "8" in text
    )


def _apart(found: re.Match[str]) -> str:
    """A blank between a digit and a script that is written without blanks."""
    at = found.start()
    return " " if unspaced(found.string[at - 1]) or unspaced(found.string[at]) else ""


def _number(found: re.Match[str]) -> str:
    """A number as one word. After folding no capital is left, so P stands for its point and M for its minus."""
    digits, letters = found["digits"], found["letters"] or ""
    parts = [digits] if _plain(digits) else re.split("[,']", digits)
    plain = " ".join(_plain(part) or part.replace(".", " ").strip() for part in parts)
    minus = "M" if found["minus"] and plain.split()[0] != "0" else ""
    return f"{letters or ' '}{minus}{plain}{' ' if found['plus'] else ''}"


def _plain(digits: str) -> str:
    """Digits without separators and without zeros that end a fraction; "" where they are no number in English."""
    found = _ENGLISH.fullmatch(digits)
    if found is None:
        return ""
    fraction = (found["fraction"] or "").rstrip("0")
    return (re.sub("[,']", "", found["whole"]) or "0") + (f"P{fraction}" if fraction else "")


def _whole(words: list[str]) -> list[str]:
    """Groups of digits that are one number joined; points and minus signs as people write them."""
    line = _GROUPS.sub(lambda found: found[0].replace(" ", "") if " 0" in found[0] else found[0], " ".join(words))
    return line.replace("P", ".").replace("M", "−").split()
