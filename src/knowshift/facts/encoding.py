"""Whether a text can be written at all."""

from __future__ import annotations


def encodable(text: str) -> bool:
    r"""False for a text with half of a surrogate pair, which JSON can spell ("\ud83d") and no UTF-8 file can hold."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
