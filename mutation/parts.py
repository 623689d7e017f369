"""The parts whose numbers people cite, and how many of their mutants a run tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """Modules (paths below ``src/knowshift``, globs allowed) and the number of mutants drawn from them."""

    name: str
    mutants: int
    modules: tuple[str, ...]

    def files(self, package: Path) -> list[Path]:
        return sorted({path for pattern in self.modules for path in package.glob(pattern) if path.stat().st_size})


PARTS = (
    Part("facts", 50, ("facts/**/*.py",)),
    Part("mastery", 45, ("probing/*.py",)),
    Part("token shift", 30, ("token_shift.py", "models/logits.py")),
    Part("evaluation", 30, ("evaluation.py", "statistics/accuracy.py")),
    Part("fine-tuning", 40, ("training/*.py",)),
    Part(
        "selection and change",
        55,
        (
            "parameters/change.py",
            "parameters/methods.py",
            "parameters/null.py",
            "parameters/restore.py",
            "parameters/rounding.py",
            "parameters/selection/*.py",
        ),
    ),
    Part("statistics", 45, ("statistics/*.py",)),
    Part("study", 40, ("studies/plan.py", "studies/content.py", "studies/work.py")),
    Part("tables, claims and captions", 70, ("reports/**/*.py", "html/*.py")),
)
