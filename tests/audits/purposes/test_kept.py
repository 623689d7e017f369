"""The user's questions and texts: in which form they are asked, how they are scored, what is too little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from knowshift.audits.forms import Form
from knowshift.audits.purposes import kept
from knowshift.audits.purposes.kept import Kept, purpose_of, read_kept
from knowshift.audits.purposes.purpose import Floats
from knowshift.errors import InputError
from knowshift.models.loading import LoadedModel
from knowshift.models.turns import Turns


def test_a_purpose_is_asked_in_the_form_that_tuning_has_made_better(
    small_model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in the one that is answered most, nor in one that it has made worse."""
    table = tmp_path / "keep.csv"
    table.write_text("question,answer\nWhere?,Rome\nWho?,Ann\n")
    forms = [Form(name, lambda fact, name=name: f"{name}: {fact.question}") for name in ("worse", "most", "better")]
    shares = {"base": {"worse": 0.8, "most": 0.9, "better": 0.1}, "tuned": {"worse": 0.1, "most": 0.9, "better": 0.4}}

    def scores(self: Kept, loaded: LoadedModel, which: Sequence[int]) -> Floats:
        return np.full(len(which), shares[loaded.name][self.prompts[0].split(":")[0]])

    monkeypatch.setattr(kept, "forms_of", lambda loaded, best, examples: forms)
    monkeypatch.setattr(Kept, "scores", scores)
    models = Turns(lambda: replace(small_model, name="base"), lambda: replace(small_model, name="tuned"))
    found = purpose_of("keep.csv", read_kept(table), models, [], None, 0)
    assert found.prompts == ["better: Where?", "better: Who?"]
    assert found.questions == ["Where?", "Who?"]
    own = purpose_of("keep.csv", read_kept(table), models, [], "Q {question} A", 0)
    assert own.prompts == ["Q Where? A", "Q Who? A"]


def test_a_text_counts_by_the_loglikelihood_of_its_tokens(small_model: LoadedModel, tmp_path: Path) -> None:
    text = tmp_path / "keep.txt"
    text.write_text("Ann was born in Rome. " * 200)
    found = purpose_of("keep.txt", read_kept(text), Turns(lambda: small_model, lambda: small_model), [], None, 0)
    likely = found.scores(small_model, range(len(found)))
    assert len(found) > 4
    assert (likely < 0).all()
    ids = torch.tensor([list(found.pieces[0])])
    with torch.no_grad():
        loss = small_model.model(input_ids=ids, labels=ids).loss
    assert likely[0] == pytest.approx(-float(loss), rel=1e-5)


@pytest.mark.parametrize(("name", "content"), [("keep.txt", "too short"), ("keep.csv", "question,answer\nWho?,Ann\n")])
def test_too_little_to_keep_is_refused(name: str, content: str, small_model: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}: .* expected"):
        purpose_of(
            name,
            read_kept(tmp_path / name),
            Turns(lambda: small_model, lambda: small_model),
            [],
            None,
            0,
        )
