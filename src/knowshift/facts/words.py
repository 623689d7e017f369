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
_INSIDE = re.compile(r"'(?<=[^\W\d_]')(?!(?:[smtd]|ll|re|ve)(?![^\W_]))(?=[^\W\d_])", re.IGNORECASE)
# A word in its own spelling, with the apostrophes and accents inside it.
_SPELLED = re.compile("[^\\W_](?:[^\\W_]|['\u0300-\u036f])*")
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
# Signs are hyphens and dashes too; the currency may stand between sign and digits ("-$5", "-US$5").
_NUMBER = re.compile(
    r"(?:(?P<sign>[-\u2010\u2012\u2013\u2212])(?:(?P<money>[a-z]{0,3})[$€£¥])?(?=\.?[0-9]))?"
    r"(?P<digits>(?:(?<![\w.])\.)?[0-9]+(?:[.,'][0-9]+)*)(?P<plus>[+#]*)"
)
# What is before a hyphen that is no sign: the end of a number with its mark ("5%-10", "**5**-10", "5.-10. May") or
# of a bracket, or a dash typed as two hyphens ("1914--1918"), unless the number before it is negative ("-10--5").
_NO_SIGN = re.compile(r"[0-9](?:[.'\"%‰°€$£¥]|[*_]{1,2})$|[)\]}”’]$|[^\W_]-$")
_NEGATIVE = re.compile(r"(?<![^\W_])[-\u2010\u2012\u2013\u2212][0-9][0-9.,']*-$")
# What counts things in a script without blanks, between a number and a hyphen: "1914年-1918年".
_COUNTER = re.compile(r"[0-9] ?[^\W\d_]{1,2}$")
_ENGLISH = re.compile(
    r"(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?:'[0-9]{3})+"  # 1,500,000 and 1'500'000
    r"|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}"  # 15,00,000
    r"|0|[1-9][0-9]*|(?=\.)|[0-9]{3}(?=\.))(?:\.(?P<fraction>[0-9]+))?"
)
# Groups of digits with one blank between them. They are one number where all but the first have three digits and one
# of these begins with 0, which no separate number does.
_GROUPS = re.compile(r"(?<![0-9.])(?<![0-9][,' ])[1-9][0-9]{0,2}(?: [0-9]{3})+(?! ?[0-9])")
# Unicode's limit for marks on one character (UAX 15, stream-safe text); sorting a longer run takes quadratic time.
_MARKS = 30
_LONG_RUN = re.compile(rf"[^\w\s\x00-\x7f]{{{_MARKS + 1},}}")
_LETTER = re.compile(r"[^\W\d_]")
_LONG_BEFORE_DOT = re.compile(r"[^\W\d_]{2}\W*$")


class _Spelling(dict[int, str]):
    """Character code to plain spelling, for :meth:`str.translate`; worked out when a character is first met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        # Zero-width characters, soft hyphens, direction marks; enclosing rings and boxes; variation selectors.
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


def closed_words(text: str) -> list[tuple[str, bool]]:
    """The words that lose an apostrophe in the second reading of ``text``, and whether each begins with a capital."""
    spelled = [found[0] for found in _SPELLED.finditer(_typed(text)) if _INSIDE.search(found[0])]
    return [(next(readings(_INSIDE.sub("", word)))[0], _capital(word)) for word in spelled]


def holds(text: str, word: str, capital: bool) -> bool:
    """Whether ``text`` has this word, without apostrophes inside it, and with or without a capital at its beginning."""
    spelled = (found[0] for found in _SPELLED.finditer(_INSIDE.sub("", _typed(text))))
    return any(_capital(one) is capital and next(readings(one))[:1] == [word] for one in spelled)


def _capital(word: str) -> bool:
    return word[0] != word[0].lower()


def _typed(text: str) -> str:
    """The text as written, with one apostrophe and without invisible characters."""
    return text.translate(_SPELLING).replace("`", "'")


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
        return _joined(text.lower().replace("`", "'"))
    text = _THIN.sub("'", text.translate(_SPELLING))
    text = _joined(_RAISED.sub("  ", _LONG_RUN.sub(_fewer_marks, text)))
    # Folding may bring out what decomposes, and the other way round ("İ", "ΐ", "℡"): twice is enough (Unicode TR 31).
    text = unicodedata.normalize("NFKD", text).casefold()
    text = unicodedata.normalize("NFKD", text).casefold()
    text = _ACCENTS.sub("", text).translate(_UNDECOMPOSED)
    return unicodedata.normalize("NFC", text).replace("`", "'")


def _joined(text: str) -> str:
    """Groups of digits that are one number without their blanks. Before folding, which turns other things to blanks."""
    return _GROUPS.sub(_group, text) if " 0" in text else text


def _group(found: re.Match[str]) -> str:
    before = found.string[found.start() - 1 : found.start()]
    whole = " 0" in found[0] and (not before.isalnum() or unspaced(before))
    return found[0].replace(" ", "") if whole else found[0]


def _fewer_marks(found: re.Match[str]) -> str:
    """At most 30 marks on one character."""
    kept: list[str] = []
    marks = 0
    for character in found[0]:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= _MARKS:
            kept.append(character)
    return "".join(kept)


def _split(text: str) -> list[str]:
    """The words of a folded text."""
    text = text.replace("&", " and ")
    if text.find(".", 0, -1) >= 0:  # a single one at the end follows no initial
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
    if numbers and ("P" in text or "M" in text):  # points and minus signs as people write them
        return [word.replace("P", ".").replace("M", "−") for word in words]
    return words


def _has_digit(text: str) -> bool:
    return (  # no loop and no regular expression: this runs for every text
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
    sign, money, digits, plus = found.groups()
    if not (sign or plus or digits[0] == "0") and digits.isdigit():  # nearly every number, in half the time
        plain = digits
    else:
        parts = [digits] if _plain(digits) else re.split("[,']", digits)
        plain = " ".join(_plain(part) or part.replace(".", " ").strip() for part in parts)
    if sign:
        minus = "M" if plain.split()[0] != "0" and _is_sign(found) else ""
        plain = f"{money or ''} {minus}{plain}"
    return f"{'' if _behind_letter(found) else ' '}{plain}{' ' if plus else ''}"


def _behind_letter(found: re.Match[str]) -> bool:
    """Whether a match begins with a digit right behind a letter, with which it makes one word."""
    at = found.start()
    return not found["sign"] and at > 0 and found.string[at - 1].isalnum()


def _is_sign(found: re.Match[str]) -> bool:
    """Whether the hyphen or minus at the beginning of a match belongs to its number alone."""
    text, at = found.string, found.start()
    before = text[at - 1 : at]
    if before.isalnum() or unicodedata.category(before or " ")[0] == "M":
        if not unspaced(before):
            return False
        counter = _COUNTER.search(text, max(0, at - 4), at)
        return counter is None or not all(map(unspaced, counter[0][1:].strip()))
    if before == "-" and _NEGATIVE.search(text, max(0, at - 24), at):
        return True
    return _NO_SIGN.search(text, max(0, at - 3), at) is None


def _plain(digits: str) -> str:
    """Digits without separators and without zeros that end a fraction; "" where they are no number in English."""
    found = _ENGLISH.fullmatch(digits)
    if found is None:
        return ""
    fraction = (found["fraction"] or "").rstrip("0")
    return (re.sub("[,']", "", found["whole"]) or "0") + (f"P{fraction}" if fraction else "")
