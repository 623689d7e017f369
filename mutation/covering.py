"""Which tests run a line: coverage of each test, and the rules for lines that run when a module is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

from coverage import CoverageData

from running import SHARED


class Covering:
    """Tests by line of the package's modules, from the coverage files of a measured run."""

    def __init__(self, data: Iterable[Path], root: Path, copies: Iterable[Path], tests: Iterable[str]) -> None:
        self.root = root
        of_file: dict[str, list[str]] = {}
        for test in tests:
            of_file.setdefault(SHARED + test.split("::")[0], []).append(test)
        self._tests: dict[str, dict[int, set[str]]] = {}
        for file in data:
            measured = CoverageData(basename=str(file))
            measured.read()
            for name in measured.measured_files():
                relative = next(
                    (Path(name).relative_to(c).as_posix() for c in copies if Path(name).is_relative_to(c)), ""
                )
                by_line = self._tests.setdefault(relative, {})
                for line, contexts in measured.contexts_by_lineno(name).items():
                    found = by_line.setdefault(line, set())
                    for context in filter(None, contexts):
                        found.update(of_file.get(context, [context]))
        self._texts = {name: (root / name).read_text(encoding="utf-8") for name in {t.split("::")[0] for t in tests}}
        self._by_function: dict[str, list[str]] = {}
        for test in tests:
            self._by_function.setdefault(test.split("[")[0], []).append(test)
        self._modules = {path: (root / path).read_text(encoding="utf-8") for path in self._tests if path}

    def of(self, path: str, line: int) -> set[str]:
        """Tests that run the statement at a line; for what runs at import, tests that name it or run what names it."""
        tree = ast.parse(self._modules.get(path) or (self.root / path).read_text(encoding="utf-8"))
        chain = _around(tree, line)
        inside = [node for node in chain if isinstance(node, ast.FunctionDef)]
        last = chain[-1]
        if inside and last is not inside[-1]:
            return self._between(path, last.lineno, _header_end(last))
        if isinstance(last, ast.FunctionDef):  # its signature or a decorator: the tests that run its body
            return self._between(path, last.body[0].lineno, last.end_lineno or 0) | self._mentioning(last.name)
        names = [*_targets(last), *(node.name for node in chain if isinstance(node, ast.ClassDef))]
        return set().union(*(self._naming(name) for name in names)) if names else self._between(path, 1, 10**9)

    def _between(self, path: str, first: int, last: int) -> set[str]:
        lines = self._tests.get(path, {})
        return set().union(*(lines[line] for line in lines if first <= line <= last)) if lines else set()

    def _naming(self, name: str) -> set[str]:
        word = re.compile(rf"\b{re.escape(name)}\b")
        found: set[str] = set()
        for path, text in self._modules.items():
            for number, line in enumerate(text.splitlines(), 1):
                if word.search(line):
                    found |= self._tests[path].get(number, set())
        return found | self._mentioning(name)

    def _mentioning(self, name: str) -> set[str]:
        """Tests with the name in their own text: those that compare a default or a constant with what it must be."""
        word = re.compile(rf"\b{re.escape(name)}\b")
        found: set[str] = set()
        for path, text in self._texts.items():
            if word.search(text):
                for node in ast.walk(ast.parse(text)):
                    if isinstance(node, ast.FunctionDef) and word.search(ast.get_source_segment(text, node) or ""):
                        found.update(self._by_function.get(f"{path}::{node.name}", ()))
        return found


def _around(tree: ast.Module, line: int) -> list[ast.stmt]:
    """Statements around a line, outermost first."""
    chain: list[ast.stmt] = []
    level: list[ast.AST] = list(ast.iter_child_nodes(tree))
    while level:
        node = level.pop()
        first = (
            min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            if hasattr(node, "lineno")
            else 0
        )
        if isinstance(node, ast.stmt):
            if first <= line <= (node.end_lineno or 0):
                chain.append(node)
                level = list(ast.iter_child_nodes(node))
        else:
            level += ast.iter_child_nodes(node)
    return chain or [ast.parse("pass").body[0]]


def _header_end(node: ast.stmt) -> int:
    body = getattr(node, "body", None)
    if not body or isinstance(body, ast.expr):
        return node.end_lineno or node.lineno
    return max(node.lineno, body[0].lineno - 1)


def _targets(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
