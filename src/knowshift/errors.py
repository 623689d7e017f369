"""Errors and warnings for users, texts made safe to print, and the border where a library's exception becomes ours.

Libraries raise whatever they like for a file that they cannot use, and no list of their exceptions stays complete.
:func:`border` is the one place where such an exception becomes an :class:`InputError`; what our own code raises is a
bug and passes through.
"""

from __future__ import annotations

import difflib
import errno
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Real

#: Characters of a library's message that are shown.
_LONGEST = 300
#: Types whose messages say little without the type's name: "KeyError: 'yarn'".
_TERSE = (LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, NameError)
#: Texts of failed memory allocations, for which torch raises exceptions of several types.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
#: Escape sequences of terminals, whole: colours and movements, titles and links, and two-character ones.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[ -~]"
)
_PACKAGE = __name__.partition(".")[0]
#: Longest message of ours, in characters: it may quote a name of any length from a damaged file.
_LONGEST_LINE = 2000
#: The system's texts for a disk that cannot be written to: full, the user's quota used up, the largest file reached.
_FULL = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded", errno.EFBIG: "File too large"}


class InputError(ValueError):
    """Bad input. The message is one line: the file, the row or tensor, what was found, what was expected.

    The command line turns it into exit status 2; nothing has been written when it is raised. What a message quotes of
    a file, a server or a model cannot steer a terminal, wherever the message is shown.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


class KnowshiftWarning(UserWarning):
    """The result stands but may mislead (a high empty-answer rate, a pad token equal to EOS)."""

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


@contextmanager
def said_before() -> Iterator[None]:
    """Within the block no :class:`KnowshiftWarning` is shown: this process, or the one that started it, has said it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KnowshiftWarning)
        yield


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error line: the nearest valid choice where one is near, and all the choices."""
    choices = sorted(valid)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"; nearest: {near[0]!r}" if near else ""
    return f"{hint}; available: {', '.join(choices)}"


@contextmanager
def border(doing: str) -> Iterator[None]:
    """Turn what a library raises inside the block into ``InputError(f"{doing}: {cause}")``, chained to its cause.

    ``doing`` names the input and what fails, e.g. "FOLDER: cannot load the model". An exception is a library's when
    its innermost frame lies outside this package, when its type is a library's (compiled ones leave no frame) or the
    system's (OSError), or when memory is lacking. Any other is a bug of ours and passes as it is, also where a library
    called our code and wrapped what that raised. Interrupts, SystemExit and an InputError pass too.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        inner = _origin(error)
        if isinstance(inner, InputError):
            raise inner from None
        if _is_ours(inner):
            raise
        raise InputError(f"{doing}: {cause_of(error)}") from error


def cause_of(error: BaseException) -> str:
    """An exception's message as part of one line: printable, at most 300 characters, with its type if need be."""
    lines = [printable(line) for line in str(error).splitlines()]
    lines = [line for line in lines if line]
    text = lines[0] if lines else ""
    if text.endswith(":") and len(lines) > 1:  # a headline: the reason is in the line below it
        text = f"{text} {lines[1]}"
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or any(sign in text.lower() for sign in _NO_MEMORY):
        text = f"not enough memory ({text})" if text else "not enough memory"
    elif not text:
        text = name
    elif " " not in text or isinstance(error, _TERSE):
        text = f"{name}: {text}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def printable(text: str) -> str:
    """Text as one line without what could steer a terminal (:func:`inert`); runs of blanks are one."""
    return " ".join(inert(text).split())


def inert(text: str) -> str:
    """Text without escape sequences; other characters that are not printable are blanks. Line breaks stay."""
    plain = _ESCAPES.sub("", text)
    return plain if plain.isprintable() else "".join(c if c == "\n" or c.isprintable() else " " for c in plain)


def disk_full(error: BaseException) -> str | None:
    """The system's text for a full disk, where that is the cause; None for any other exception.

    Libraries that write files (safetensors above all) raise types of their own, so texts are compared too.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return _FULL[cause.errno]
        if not isinstance(cause, OSError) and (found := [text for text in _FULL.values() if text in str(cause)]):
            return found[0]
        cause = cause.__cause__ or cause.__context__
    return None


def _one_line(message: str) -> str:
    line = inert(message).replace("\n", " ")
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 3] + "..."


def _origin(error: BaseException) -> BaseException:
    """The exception at the bottom of ``raise ... from ...``, if that is of ours; else the exception itself."""
    inner, seen = error, {id(error)}
    while inner.__cause__ is not None and id(inner.__cause__) not in seen:
        inner = inner.__cause__
        seen.add(id(inner))
    return inner if isinstance(inner, InputError) or _is_ours(inner) else error


def _is_ours(error: BaseException) -> bool:
    """Whether our own code raised it: see :func:`border`."""
    if isinstance(error, (OSError, MemoryError)) or not _is_of(type(error).__module__, ("builtins", _PACKAGE)):
        return False
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    return _is_of(str(trace.tb_frame.f_globals.get("__name__")), (_PACKAGE,))


def _is_of(module: str, packages: tuple[str, ...]) -> bool:
    return module.partition(".")[0] in packages


def check_number(name: str, value: object, expected: str, above: float, below: float) -> float:
    """A number between two others, as a float; refuse all else, truth values too.

    Raises:
        InputError: names the option, what was given and what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not above < float(value) < below:
        raise InputError(f"{name} {repr(value)[:80]}{expected}")
    return float(value)


def check_whole(name: str, value: object, least: int = 0, below: int = 2**31) -> None:
    """Refuse all but whole numbers from ``least`` to ``below`` - 1, as the options of the commands do.

    Raises:
        InputError: names the option, what was given and what was expected.
    """
    if type(value) is not int or not least <= value < below:
        raise InputError(f"{name} {repr(value)[:80]}: expected a whole number, {least} to {below - 1:,}")
