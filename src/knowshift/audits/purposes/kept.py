"""The user's own questions and answers, or a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from knowshift.audits.forms import Form, forms_of, own_form
from knowshift.audits.purposes.purpose import SUFFER, Floats
from knowshift.errors import InputError, border
from knowshift.evaluation import answered
from knowshift.facts.fact import Fact
from knowshift.facts.sources.load import load_facts
from knowshift.models.loading import LoadedModel
from knowshift.models.turns import Turns

#: Questions of the user's that are asked at most, and pieces of a text.
MOST = 400
#: Tokens of a piece, and of an answer at most.
PIECE, ANSWER = 128, 32
#: Questions by which the form is chosen.
PROBED = 64
#: Characters of a text that are read at most.
READ = 4_000_000


@dataclass(frozen=True)
class Kept:
    """Questions, or pieces of a text.

    A question counts 1 where the greedy answer holds an accepted one. A piece of a text counts its loglikelihood, from
    which :class:`knowshift.audits.repair.Search` makes the share of what tuning has gained.
    """

    name: str  # of the file
    prompts: Sequence[str] = ()
    accepted: Sequence[tuple[str, ...]] = ()
    pieces: Sequence[Sequence[int]] = ()
    first_line: bool = False  # whether only the first line of an answer counts
    questions: Sequence[str] = ()  # without the form

    @property
    def suffer(self) -> float:
        """How much of it a repair may lose: 2 points of the questions, a tenth of what a text has gained."""
        return 0.1 if self.is_text else SUFFER

    @property
    def is_text(self) -> bool:
        return bool(self.pieces)

    @property
    def texts(self) -> Sequence[str]:
        """Of each item the text whose hash says in which half it is: the question; of a piece its number."""
        return self.questions or [f"piece {i}" for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.prompts) or len(self.pieces)

    def scores(self, loaded: LoadedModel, which: Sequence[int]) -> Floats:
        """Of these items, float64 [items]: 1 for a right answer; of a piece of text its nats a token, negative."""
        if self.pieces:
            return _loglikelihoods(loaded, [self.pieces[i] for i in which])
        prompts, accepted = [self.prompts[i] for i in which], [self.accepted[i] for i in which]
        right = answered(loaded, prompts, accepted, first_line=self.first_line, max_new_tokens=ANSWER)
        return right.astype(float)


def read_kept(path: Path) -> str | tuple[Fact, ...]:
    """What a file that a repair must keep holds: a text (``.txt``), or questions and answers, read as facts are.

    Raises:
        InputError: a file that is neither, or with hardly anything in it.
    """
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected a text, or a table of questions and answers")
        with border(f"{path}: not readable as UTF-8 text"), path.open(encoding="utf-8") as file:
            return file.read(READ)
    facts = load_facts(str(path)).facts
    if len(facts) < 2:
        raise InputError(f"{path}: {len(facts)} questions; expected 2 at least")
    return facts


def purpose_of(
    name: str,
    kept: str | tuple[Fact, ...],
    models: Turns,
    examples: Sequence[Fact],
    prompt_format: str | None,
    seed: int,
) -> Kept:
    """The items of a file, a seeded choice where there are many; ``name`` is what pages call it.

    Questions are asked in the user's own form; without one, in the form that the tuned model answers most better in
    than the base, which is that of its training if it is among those that facts are asked in (:func:`.forms_of`).

    Raises:
        InputError: a text of hardly any tokens.
    """
    rng = np.random.default_rng([seed, 22])
    if isinstance(kept, str):
        ids = models.base.encoder.plain([kept])[0]
        pieces = [ids[start : start + PIECE] for start in range(0, len(ids) - PIECE + 1, PIECE)]
        if len(pieces) < 2:
            raise InputError(f"{name}: {len(ids)} tokens; expected {2 * PIECE} at least")
        chosen = sorted(rng.permutation(len(pieces))[:MOST].tolist())
        return Kept(name, pieces=[pieces[i] for i in chosen])
    some = [kept[i] for i in sorted(rng.permutation(len(kept))[:MOST].tolist())]
    best = _best_form(models, examples, some) if prompt_format is None else own_form(prompt_format)
    return _asked_in(best, some, name)


def _best_form(models: Turns, examples: Sequence[Fact], facts: Sequence[Fact]) -> Form:
    """By at most :data:`PROBED` questions."""
    some = facts[:PROBED]
    forms = [form for form in forms_of(models.tuned, {}, examples) if form.name != "completion"]

    def shares(loaded: LoadedModel) -> Floats:
        return np.array([_asked_in(form, some).scores(loaded, range(len(some))).mean() for form in forms])

    after = shares(models.tuned)
    return forms[int(np.argmax(after - shares(models.base)))]


def _asked_in(form: Form, facts: Sequence[Fact], name: str = "") -> Kept:
    return Kept(
        name,
        [form.prompt(fact) for fact in facts],
        [fact.accepted for fact in facts],
        (),
        form.first_line,
        [fact.question for fact in facts],
    )


@torch.inference_mode()
def _loglikelihoods(loaded: LoadedModel, pieces: Sequence[Sequence[int]]) -> Floats:
    found = []
    for piece in pieces:
        ids = torch.tensor([list(piece)], device=loaded.model.device)
        found.append(-float(loaded.model(input_ids=ids, labels=ids, use_cache=False).loss))
    return np.array(found)
