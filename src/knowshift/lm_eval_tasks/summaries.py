"""What the task of summaries names: ROUGE, by the package rouge-score, which comes with lm-eval."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

#: Overlap of words, of pairs of words, and the longest common subsequence (Lin 2004).
MEASURES = ("rouge1", "rouge2", "rougeL")


def rouge(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """F1 of each measure against the document's own summary, 0 to 1, words stemmed."""
    scores = _scorer().score(document["summary"], results[0].strip())
    return {name: float(scores[name].fmeasure) for name in MEASURES}


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(MEASURES, use_stemmer=True)
