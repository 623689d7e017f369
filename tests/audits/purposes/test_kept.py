"""The user's questions and texts: in which form they are asked, how they are scored, what is too little."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from knowshift.audits.purposes.kept import purpose_of, read_kept
from knowshift.errors import InputError
from knowshift.models.loading import LoadedModel
from knowshift.models.turns import Turns


def test_a_purpose_is_asked_in_the_form_that_is_answered_best(small_model: LoadedModel, tmp_path: Path) -> None:
    table = tmp_path / "keep.csv"
    table.write_text("question,answer\nWhere?,Rome\nWho?,Ann\n")
    models = Turns(lambda: small_model, lambda: small_model)
    found = purpose_of("keep.csv", read_kept(table), models, [], None, 0)
    assert len(found) == 2
    assert found.prompts == ["Question: Where? Answer:", "Question: Who? Answer:"]
    assert found.scores(small_model, [0, 1]).shape == (2,)


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
