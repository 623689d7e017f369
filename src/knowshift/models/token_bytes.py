"""What each token adds to a text, as bytes, so that a growing text is searched without decoding it again.

A fast tokenizer's decoder is a table for the two kinds in use (byte-level, and SentencePiece with "▁" for a space).
The table is used only if it reproduces the tokenizer's own decoding of random ids; otherwise texts are
decoded whole, which is right for every tokenizer and slower.
"""

from __future__ import annotations

import random
import re

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_pieces(tokenizer: PreTrainedTokenizerBase, size: int) -> list[bytes] | None:
    """The bytes of every id below ``size`` (special tokens: none), or None if texts must be decoded whole."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    added = backend.get_added_tokens_decoder()
    special = set(tokenizer.all_special_ids)
    tokens = [backend.id_to_token(i) for i in range(size)]
    for of_token in (_byte_level, _sentence_piece):
        table: list[bytes] = []
        for i, token in enumerate(tokens):
            if token is None or i in special or (i in added and added[i].special):
                table.append(b"")
            else:
                table.append(token.encode() if i in added else of_token(token))
        if _agrees(tokenizer, table, [i for i, token in enumerate(tokens) if token is not None]):
            return table
    return None


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    if all(char in _ALPHABET for char in token):
        return bytes(_ALPHABET[char] for char in token)
    return token.encode()


def _sentence_piece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _agrees(tokenizer: PreTrainedTokenizerBase, table: list[bytes], ids: list[int], trials: int = 64) -> bool:
    """Whether the table spells random texts as the tokenizer does, a leading space and broken UTF-8 aside."""
    if not ids:
        return False
    chance = random.Random(0)
    for _ in range(trials):
        text = [chance.choice(ids) for _ in range(12)]
        ours = b"".join(table[i] for i in text).decode("utf-8", "replace")
        theirs = tokenizer.decode(text, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if _comparable(ours) != _comparable(theirs):
            return False
    return True


def _comparable(text: str) -> str:
    return re.sub("�+", "�", text).removeprefix(" ")
