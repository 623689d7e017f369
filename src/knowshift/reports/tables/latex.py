"""A table as LaTeX: a ``tabular`` in the style of the package booktabs, to be read by ``\\input``."""

from __future__ import annotations

from knowshift.html.table import Row, Table, is_missing

#: What LaTeX reads as something else, or cannot print. After the end of a row, "[" and "*" would be its arguments.
_ESCAPED = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "%": r"\%",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",
        "*": "{*}",
        "\N{MINUS SIGN}": "$-$",
    }
)

#: A column with a longer text is set in lines.
_LONG = 60


def escape(text: str) -> str:
    """A text as LaTeX prints it: special characters escaped, each run of white space or control characters a space."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split()).translate(_ESCAPED)


def to_latex(table: Table) -> str:
    """A ``tabular``: numbers to the right, four decimals, proportions of ``table.percent`` in percent with two.

    What is missing is empty. A number that four decimals write as 0 keeps its first digit.
    """
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.columns)
    form = "".join(_alignment(values) for values in columns)
    heads = [_head(name, name in table.percent) for name in table.columns]
    percent = [name in table.percent for name in table.columns]
    lines = [r"\begin{tabular}{" + form + "}", r"\toprule", _line(heads), r"\midrule"]
    lines += [_line([_cell(value, share) for value, share in zip(row, percent, strict=True)]) for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _alignment(values: Row) -> str:
    texts = [value for value in values if isinstance(value, str)]
    if not texts:
        return "r"
    return "p{80mm}" if max(map(len, texts)) > _LONG else "l"


def _head(name: str, percent: bool) -> str:
    return escape(name.replace("_", " ")) + (r" (\%)" if percent else "")


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(value: str | int | float | bool | None, percent: bool) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        digits = 2 if percent else 4
        number = 100 * value if percent else value
        text = f"{number:.{digits}f}"
        if float(text) == 0:
            text = f"{number:.0e}" if number else text.removeprefix("-")
        return escape(text).replace("-", "$-$", 1) if text.startswith("-") else escape(text)
    return escape(str(value))
