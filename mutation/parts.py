"""The parts whose numbers people cite, and how many of their mutants a run looks at."""

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
    Part("facts", 50, ("facts/*.py",)),
    Part("mastery", 45, ("mastery/*.py",)),
    Part("token shift", 30, ("token_shift.py", "models/logits.py")),
    Part("evaluation", 30, ("evaluation.py", "accuracy.py")),
    Part("fine-tuning", 40, ("finetune/*.py",)),
    Part(
        "selection and change",
        55,
        (
            "weights/brackets.py",
            "weights/change.py",
            "weights/criteria.py",
            "weights/keys.py",
            "weights/methods.py",
            "weights/norms.py",
            "weights/published.py",
            "weights/radix.py",
            "weights/restore.py",
            "weights/rounding.py",
            "weights/selection.py",
            "weights/thresholds.py",
        ),
    ),
    Part("statistics", 45, ("study/statistics.py",)),
    Part("study", 40, ("study/cells.py", "study/content.py", "study/work.py")),
    Part("tables, claims and captions", 70, ("report/*.py",)),
)
