"""knowshift: what fine-tuning did to what a language model knows, and how to repair it.

    import knowshift as ks

    known = ks.mastery("world:tiny", "world:tiny", limit=100)
    tuned = ks.finetune("world:tiny", "world:tiny", known, level=2, learning_rate=1e-3, output_dir="tuned")
    ks.evaluate(tuned.model, "world:tiny", known).accuracy
    ks.restore("world:tiny", "tuned", fraction=0.2, output_dir="restored")

The verbs are those of the commands, with the same names and defaults; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from knowshift.errors import InputError, KnowshiftWarning
from knowshift.version import __version__

if TYPE_CHECKING:
    from knowshift.api.auditing import audit
    from knowshift.api.change import restore, weights
    from knowshift.api.inputs import load_facts, load_model
    from knowshift.api.measures import evaluate, mastery, tokens
    from knowshift.api.screening import screen
    from knowshift.api.studies import plan_study, report, study
    from knowshift.api.tuning import finetune, strategies
    from knowshift.callback import AuditCallback

__all__ = [
    "AuditCallback",
    "InputError",
    "KnowshiftWarning",
    "__version__",
    "audit",
    "evaluate",
    "finetune",
    "load_facts",
    "load_model",
    "mastery",
    "plan_study",
    "report",
    "restore",
    "screen",
    "strategies",
    "study",
    "tokens",
    "weights",
]

#: Where each verb is defined.
_VERBS = {
    "api.auditing": ("audit",),
    "api.change": ("restore", "weights"),
    "api.inputs": ("load_facts", "load_model"),
    "api.measures": ("evaluate", "mastery", "tokens"),
    "api.screening": ("screen",),
    "api.studies": ("plan_study", "report", "study"),
    "api.tuning": ("finetune", "strategies"),
    "callback": ("AuditCallback",),
}


def __getattr__(name: str) -> Any:
    for module, verbs in _VERBS.items():
        if name in verbs:
            return getattr(importlib.import_module(f"knowshift.{module}"), name)
    raise AttributeError(f"module 'knowshift' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
