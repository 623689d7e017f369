"""A grammar of damage: JSON documents with hostile values, keys and nesting, and bytes that were hit afterwards."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st


@dataclass(frozen=True)
class Literal:
    """Text that stands in the document as it is."""

    text: str


@dataclass(frozen=True)
class Twice:
    """An object whose keys all stand twice, the second time with another value."""

    content: dict[str, Any]


NUMBERS = (0, 1, -1, 2, 0.5, 1.0, 1e-5, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400)
LITERALS = ("NaN", "Infinity", "-Infinity", "1e400", "-0", "9" * 5000, "1" * 4000, "[" * 5000, "[" * 300 + "]" * 300)
DEEP = '{"a":' * 90 + "1" + "}" * 90
STEERING = ("[/y]", "\x1b[31mred", "\x1b]0;title\x07", "\0", "a\nb", ":smile:")
TEXTS = (*STEERING, "", "../x", "/etc/passwd", "\ud800", "x" * 5000)
PLAIN: Any = st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.text(max_size=8))
VALUES: Any = st.one_of(
    PLAIN,
    st.sampled_from((*LITERALS, DEEP)).map(Literal),
    st.lists(PLAIN, max_size=3),
    st.dictionaries(st.sampled_from(("a", "dtype", "[/y]", "")), PLAIN, max_size=2),
    st.builds(lambda: [[[]]]),  # a list of its own each time: another value may be put inside
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    yield path
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        yield from places(value, (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@st.composite
def trees(draw: Any, document: Any, most: int = 2) -> Any:
    """The document with up to so many values, keys or objects spoilt."""
    tree = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, most))):
        spots = [path for path in places(tree) if path]
        if not spots:
            break
        *outer, last = draw(st.sampled_from(spots))
        holder = at(tree, tuple(outer))
        what = draw(st.sampled_from(("value", "value", "value", "drop", "twice", "key", "copy")))
        if what == "value":
            holder[last] = draw(VALUES)
        elif what == "drop":
            del holder[last]
        elif what == "twice" and isinstance(holder[last], dict):
            holder[last] = Twice(holder[last])
        elif what == "key" and isinstance(holder, dict):
            holder[draw(st.sampled_from(TEXTS))] = holder.pop(last)
        else:
            holder[last] = copy.deepcopy(at(tree, draw(st.sampled_from(spots))))
    return tree


def emit(tree: Any) -> str:
    """The document as text; as JSON wherever it is one."""
    if isinstance(tree, Literal):
        return tree.text
    if isinstance(tree, Twice):
        pairs = [*tree.content.items(), *((key, 7) for key in tree.content)]
        return "{" + ",".join(f"{json.dumps(key)}:{emit(value)}" for key, value in pairs) + "}"
    if isinstance(tree, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{emit(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ",".join(map(emit, tree)) + "]"
    return "1" + "0" * 400 if tree == 10**400 else json.dumps(tree)


@st.composite
def hit(draw: Any, data: bytes) -> bytes:
    """Bytes as they are, or cut, flipped, lengthened, filled or encoded otherwise."""
    how = draw(st.sampled_from(("", "", "", "cut", "flip", "more", "zero", "utf-16", "insert")))
    where = draw(st.integers(0, max(0, len(data) - 1)))
    if how == "cut":
        return data[:where]
    if how == "flip" and data:
        return data[:where] + bytes([data[where] ^ draw(st.integers(1, 255))]) + data[where + 1 :]
    if how == "more":
        return data + draw(st.binary(min_size=1, max_size=20))
    if how == "zero":
        return data[:where] + bytes(min(16, len(data) - where)) + data[where + 16 :]
    if how == "insert":
        return data[:where] + draw(st.binary(min_size=1, max_size=4)) + data[where:]
    if how == "utf-16":
        return data.decode("utf-8", "replace").encode("utf-16")
    return data


@st.composite
def documents(draw: Any, document: Any, most: int = 2) -> bytes:
    """A spoilt document as bytes, which may have been hit too."""
    text = emit(draw(trees(document, most)))
    return bytes(draw(hit(text.encode("utf-8", "surrogatepass"))))
