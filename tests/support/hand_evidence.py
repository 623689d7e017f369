"""Evidence of an audit made by hand: half of the facts are known; a share may be gone after tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from knowshift.audits.evidence import Answered, Evidence
from knowshift.audits.moves import Rates
from knowshift.facts.fact import Fact

DRAWS = 400.0


def rates(values: Any, seed: int) -> Rates:
    """As a measurement with some error finds them."""
    hits = np.random.default_rng(seed).binomial(int(DRAWS), values).astype(float)
    return Rates(hits / DRAWS, hits, DRAWS - hits)


def evidence(count: int = 400, seed: int = 0) -> Evidence:
    """Half of the facts are known, in completions and in questions; nothing changed."""
    rng = np.random.default_rng(seed)
    truth = np.where(np.arange(count) % 2 == 0, rng.uniform(0.5, 1.0, count), rng.uniform(0.0, 0.05, count))
    facts = [Fact(f"f{i}", f"P{i % 5}", "test", "in_domain", "s", "q", "a") for i in range(count)]
    right = truth > 0.5
    texts = ["a" if one else "b" for one in right]
    forms = [Answered(name, texts, texts, right, right) for name in ("completion", "question")]
    first, second, after = (rates(truth, 10 * seed + i) for i in range(3))
    level = np.ceil(4 * first.rate).astype(np.int64)
    return Evidence(facts, first, second, after, level, forms)


def without(found: Evidence, share: float, forms: tuple[str, ...], sampled: bool, seed: int = 0) -> Evidence:
    """The same where a share of all facts is gone in these forms, and in sampled completions."""
    gone = np.random.default_rng(seed + 50).random(len(found.facts)) < share
    after = found.after
    if sampled:
        hits = np.where(gone, 0.0, after.hits)
        after = Rates(hits / DRAWS, hits, DRAWS - hits)
    answers = [
        replace(form, right_after=form.right_after & ~gone) if form.form in forms else form  # type: ignore[operator]
        for form in found.forms
    ]
    return replace(found, after=after, forms=answers)
