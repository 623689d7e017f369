"""ROUGE against formulas written out, and the task of summaries on documents of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from knowshift.lm_eval_tasks import FOLDER
from knowshift.lm_eval_tasks.summaries import MEASURES, rouge

#: Summary, what a model wrote, and the shared units over those of each side: words, pairs, longest common subsequence.
CASES = (
    ("the cat sat on the mat", "the cat lay on the mat", (5, 6, 6), (3, 5, 5), (5, 6, 6)),
    ("a storm hit the coast", "the coast a storm hit", (5, 5, 5), (3, 4, 4), (3, 5, 5)),
    ("ministers resign", "prices rise again", (0, 2, 3), (0, 1, 2), (0, 2, 3)),
)


@pytest.mark.parametrize(("summary", "text", "words", "pairs", "longest"), CASES)
def test_rouge_is_the_f1_of_shared_units(
    summary: str, text: str, words: tuple[int, ...], pairs: tuple[int, ...], longest: tuple[int, ...]
) -> None:
    found = rouge({"summary": summary}, [f" {text}\n"])
    # F1 of precision k / n and recall k / m is 2k / (n + m).
    assert found == {
        name: pytest.approx(2 * k / (n + m)) for name, (k, n, m) in zip(MEASURES, (words, pairs, longest), strict=True)
    }


def test_the_task_asks_for_a_summary_and_is_scored_by_rouge(tmp_path: Path) -> None:
    """The shipped file on two documents that stand here instead of the data set, which is fetched."""
    (tmp_path / "made.py").write_text(
        "from datasets import Dataset\n\ndef documents(**_):\n"
        "    return {'test': Dataset.from_list([{'document': 'D', 'summary': 'the cat sat'}] * 2)}\n"
    )
    text = f"include: {FOLDER / 'knowshift_xsum.yaml'}\ntask: made\ndataset_kwargs: {{}}\n"
    (tmp_path / "made.yaml").write_text(f"{text}custom_dataset: !function made.documents\n")
    task: Any = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["made"])["tasks"]["made"]
    document: Mapping[str, Any] = task.eval_docs[0]
    assert task.doc_to_text(document) == "Article: D\nSummary in one sentence:"
    assert task.process_results(document, ["the cat sat"]) == dict.fromkeys(MEASURES, 1.0)
    assert set(task.aggregation()) == set(MEASURES)
    assert all(task.higher_is_better().values())
