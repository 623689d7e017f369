"""Where cosmic-ray's operators can change a module, less what changes no number: which mutants there are.

Left out, since their mutants are the same program or fail at once whatever the tests check: annotations, ``==`` for
``is`` and the other way, arithmetic replaced by bit operators, a sign replaced by one of them, operators on texts,
paths and lists (nothing else can be done with those), the words of an error's message, how a dataclass is made (frozen,
with slots), ``strict`` of zip, and code that only a type checker reads. What is no longer Python is no mutant.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}
_ORDER = {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"}
_IDENTITY = {"Is", "IsNot"}


@dataclass(frozen=True)
class Site:
    """One mutant: ``occurrence`` of ``operator`` in ``path``; ``key`` stays while its line and function do."""

    part: str
    path: str
    operator: str
    occurrence: int
    line: int
    column: int
    function: str
    source: str
    key: str

    def mutated(self, text: str) -> str:
        changed = mutate_code(text, get_operator(self.operator)(), self.occurrence)
        assert changed is not None
        return str(changed)

    def is_python(self, text: str) -> bool:
        try:
            compile(self.mutated(text), self.path, "exec")
        except (SyntaxError, AttributeError):  # the operator for exceptions knows names, not attributes of modules
            return False
        return True

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def _operators() -> Iterator[tuple[str, Any]]:
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments():
            continue  # names of variables to replace would have to be given by hand
        words = name.rsplit("_", 2)
        if (
            "BinaryOperator" in name
            and ({words[1], words[2]} & _ARITHMETIC)
            and not {words[1], words[2]} <= _ARITHMETIC
        ):
            continue
        if "ComparisonOperator" in name and not ({words[1], words[2]} <= _ORDER or {words[1], words[2]} <= _IDENTITY):
            continue
        if "UnaryOperator" in name and "Delete" not in name:
            continue
        yield name, operator()


def _quiet(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Ranges that no mutant may begin in: annotations, and blocks for type checkers."""
    found: list[ast.AST] = []
    made: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            found += [node.returns] if node.returns else []
        elif isinstance(node, ast.arg | ast.AnnAssign):
            found += [node.annotation] if node.annotation else []
        elif isinstance(node, ast.Raise) and node.exc is not None:
            found.append(node.exc)  # the words of a message
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            found.append(node.value)  # a check of ours, of lengths that are equal
        elif isinstance(node, ast.ClassDef):
            made += [((d.lineno, 0), (d.end_lineno or 0, d.end_col_offset or 0)) for d in node.decorator_list]
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            found.append(node)
        elif (
            isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr)
        ):
            found.append(node)  # an alias of a union of types
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("cast", "isinstance"):
            found += node.args[:1] if node.func.id == "cast" else node.args[1:]
    between = [
        ((n.left.end_lineno or 0, n.left.end_col_offset or 0), (n.right.lineno, n.right.col_offset))
        for n in ast.walk(tree)
        if isinstance(n, ast.BinOp) and (_no_number(n.left) or _no_number(n.right))
    ]
    return made + between + [((n.lineno, n.col_offset), (n.end_lineno or 0, n.end_col_offset or 0)) for n in found]  # type: ignore[attr-defined]


def _no_number(node: ast.expr) -> bool:
    text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return text or isinstance(node, ast.JoinedStr | ast.List | ast.Dict | ast.Tuple | ast.ListComp | ast.DictComp)


def _functions(tree: ast.Module) -> list[tuple[int, int, str]]:
    spans = []

    def walk(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = outer
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{outer}.{child.name}" if outer else child.name
                spans.append((child.lineno, child.end_lineno or 0, name))
            walk(child, name)

    walk(tree, "")
    return spans


def sites(part: str, path: Path, root: Path) -> list[Site]:
    """Every mutant of one module; of several at one place, each is listed."""
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    quiet, functions = _quiet(tree), _functions(tree)
    nodes = list(ast_nodes(get_ast(text)))
    relative = path.relative_to(root).as_posix()
    found: list[Site] = []
    seen: dict[str, int] = {}
    for name, operator in _operators():
        places = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, (line, column) in enumerate(places):
            if any(begin <= (line, column) < end for begin, end in quiet):
                continue
            inside = [span for span in functions if span[0] <= line <= span[1]]
            function = min(inside, key=lambda span: span[1] - span[0])[2] if inside else ""
            source = lines[line - 1].strip()
            told = f"{relative}|{function}|{source}|{column - len(lines[line - 1]) + len(source)}|{name}"
            seen[told] = seen.get(told, -1) + 1
            key = hashlib.sha256(f"{told}|{seen[told]}".encode()).hexdigest()[:10]
            found.append(Site(part, relative, name, occurrence, line, column, function, source, key))
    return found


def sample(candidates: list[Site], count: int, seed: int, root: Path) -> list[Site]:
    """So many of them, one for each place, in an order that a change elsewhere in the code leaves as it is."""

    def rank(site: Site) -> str:
        return hashlib.sha256(f"{seed}|{site.key}".encode()).hexdigest()

    texts = {path: (root / path).read_text(encoding="utf-8") for path in {site.path for site in candidates}}
    chosen: dict[tuple[str, int, int], Site] = {}
    for site in sorted(candidates, key=rank):
        place = (site.path, site.line, site.column)
        if place not in chosen and site.is_python(texts[site.path]):
            chosen[place] = site
        if len(chosen) == count:
            break
    return list(chosen.values())
