"""Tables of what a study asks beside its grid: an instruct model's answers, and other tasks under restoration."""

from __future__ import annotations

from knowshift.html.table import Row, Table
from knowshift.reports.evidence.evidence import Evidence
from knowshift.reports.evidence.other import instruct_answers, task_scores
from knowshift.reports.tables.settings import DRAW_COLUMNS, draw_values
from knowshift.statistics.accuracy import domain_accuracy

#: What stands for the base model where a criterion says what was restored.
BASE = "base"
SCORED = ("task", "metric", "higher_is_better", "items", "score")


def instruct(evidence: Evidence) -> Table:
    """An instruct model on the test facts, by form and domain; accuracies are the plain means of the test levels'."""
    rows: list[Row] = []
    for one in instruct_answers(evidence.run):
        facts, hits, words = (int(x.sum()) for x in (one.facts, one.hits, one.word_hits))
        means = [domain_accuracy(x, one.facts) for x in (one.hits, one.word_hits)]
        rows.append((one.prompt, one.domain, facts, hits, means[0], words, means[1], one.empty / facts))
    columns = ("facts", "correct", "accuracy", "word_correct", "word_accuracy", "empty_rate")
    return Table("instruct", ("prompt", "domain", *columns), tuple(rows))


def other_tasks(evidence: Evidence) -> Table:
    """Every score of another task: of the base model, of each model as tuned and restored (paper, Table 5)."""
    rows: list[Row] = []
    for score in task_scores(evidence.run):
        row = score.row
        head: Row = (None,) * len(DRAW_COLUMNS)
        if not score.of_base:
            head = draw_values(score.cell.setting, score.cell.draw)
        criterion = BASE if score.of_base else row["criterion"]
        put_back = (criterion, row["fraction"], row["restored"], score.eligible)
        rows.append((*head, *put_back, *(row[name] for name in SCORED)))
    columns = ("criterion", "fraction", "restored", "eligible", *SCORED)
    return Table("other_tasks", (*DRAW_COLUMNS, *columns), tuple(rows))
