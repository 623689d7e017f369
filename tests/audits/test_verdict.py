"""The five verdicts, on evidence made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hand_evidence import DRAWS, evidence, without
from knowshift.audits.moves import Rates
from knowshift.audits.verdict import reach_verdict


def test_nothing_changed() -> None:
    verdict = reach_verdict(evidence())
    assert verdict.kind == "unchanged"
    assert verdict.points == pytest.approx(0.0, abs=0.6)
    assert verdict.excluded is not None
    assert 0 < verdict.excluded < 5
    assert "excluded" in " ".join(verdict.sentences)


def test_base_against_base_is_called_unchanged_nearly_always() -> None:
    kinds = [reach_verdict(evidence(seed=seed)).kind for seed in range(60)]
    assert kinds.count("unchanged") >= 57


def test_what_is_gone_in_every_form_is_lost_knowledge() -> None:
    found = without(evidence(), 0.2, ("completion", "question"), sampled=True)
    verdict = reach_verdict(found)
    assert verdict.kind == "knowledge-lost"
    assert verdict.points is not None
    assert -30 < verdict.points < -10
    assert verdict.interval is not None
    assert verdict.interval[0] < verdict.points < verdict.interval[1] < 0
    assert found.moves.counts()["lost"] > 20
    assert found.noise.counts()["lost"] <= 1


@pytest.mark.parametrize(("forms", "sampled"), [(("question",), False), (("completion",), True)])
def test_what_is_there_in_another_form_is_a_lost_form(forms: tuple[str, ...], sampled: bool) -> None:
    verdict = reach_verdict(without(evidence(), 0.3, forms, sampled))
    assert verdict.kind == "form-lost"
    assert forms[0] in " ".join(verdict.sentences)


def test_what_was_not_known_and_is_now_is_a_gain() -> None:
    found = evidence()
    new = found.first.rate < 0.1
    hits = np.where(new & (np.arange(len(new)) % 4 == 1), 0.9 * DRAWS, found.after.hits)
    verdict = reach_verdict(replace(found, after=Rates(hits / DRAWS, hits, DRAWS - hits)))
    assert verdict.kind == "gained"


def test_twenty_facts_say_how_little_they_show() -> None:
    verdict = reach_verdict(evidence(count=20))
    assert verdict.kind == "cannot-tell"
    assert verdict.facts_needed is not None
    assert verdict.facts_needed > 40
    assert verdict.excluded is None


def test_a_loss_that_much_testing_at_once_leaves_unsure_is_called_likely() -> None:
    found = [without(evidence(count=30, seed=seed), 0.2, ("completion", "question"), True, seed) for seed in range(30)]
    verdicts = [(reach_verdict(one), one.knowledge.by_fact) for one in found]
    unsure = [
        one for one, knowledge in verdicts if one.kind == "cannot-tell" and one.facts_needed and knowledge.high < 0
    ]
    assert unsure
    assert all("A loss is likely, and not sure" in " ".join(one.sentences) for one in unsure)


def test_a_base_that_knows_nothing_cannot_tell() -> None:
    found = evidence()
    none = Rates(np.zeros(400), np.zeros(400), np.full(400, DRAWS))
    wrong = [replace(form, right_before=np.zeros(400, bool), right_after=np.zeros(400, bool)) for form in found.forms]
    verdict = reach_verdict(replace(found, first=none, second=none, after=none, forms=wrong))
    assert verdict.kind == "cannot-tell"
    assert verdict.points is None
    assert verdict.interval is None


def test_one_relation_is_found_among_others() -> None:
    found = evidence()
    mine = np.array([fact.relation == "P3" for fact in found.facts])
    hits = np.where(mine, 0.0, found.after.hits)
    forms = [replace(form, right_after=form.right_after & ~mine) for form in found.forms]  # type: ignore[operator]
    lost = replace(found, after=Rates(hits / DRAWS, hits, DRAWS - hits), forms=forms)
    changes = {name: knowledge.by_fact.value for name, (knowledge, _) in lost.by_relation().items()}
    assert changes["P3"] == pytest.approx(-1.0, abs=0.05)
    assert all(abs(value) < 0.05 for name, value in changes.items() if name != "P3")
