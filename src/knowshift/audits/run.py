"""Measuring an audit: the base twice, the tuned model once, and both models' answers in each form, as records.

Records lie in the audit's folder and are kept: a run that was stopped goes on where it was, and every number of the
page can be computed again from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from knowshift.audits.evidence import Answered, Evidence, Shifted
from knowshift.audits.forms import FEW_SHOT, Form, forms_of, own_form
from knowshift.audits.moves import Rates
from knowshift.audits.plan import Asked, Manner
from knowshift.audits.screening import screen
from knowshift.errors import InputError, border
from knowshift.evaluation import evaluate
from knowshift.facts.fact import LEVELS, Fact, completion_prompts
from knowshift.files import check_parent, read_json, write_json
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.turns import Turns
from knowshift.models.vocabulary import Vocabulary
from knowshift.probing.budget.plan import Budget, Plan
from knowshift.probing.engines import EngineSpec
from knowshift.probing.measure import Protocol
from knowshift.probing.run import facts_digest, run_mastery
from knowshift.records import ANSWERS, MASTERY, TOKEN_SHIFT, read_table
from knowshift.system.allocator import give_back
from knowshift.token_shift import best_prompts, leading, select_items, shared_ids, shift_from

#: Share of what is left of a budget for the base's first measurement; two more follow, and answers, and repairs.
SHARE = 0.17
#: In the audit's folder: what it is an audit of.
MANIFEST = "manifest.json"
#: In the audit's folder: the repaired model, where there is one.
REPAIRED = "repaired"
#: Names of the three measurements; the first two are of the base.
FIRST, SECOND, AFTER = "base", "base-again", "tuned"

#: Tells of (what is measured, facts done, facts in all).
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Pair:
    """The two models: how mastery opens each, and each loaded in this process; servers only answer samples."""

    base: EngineSpec
    tuned: EngineSpec
    workers: int

    @property
    def on_servers(self) -> bool:
        return self.base.is_server or self.tuned.is_server

    def turns(self) -> Turns:
        """The two, one in this process at a time."""
        return Turns(lambda: _loaded(self.base), lambda: _loaded(self.tuned))

    @property
    def alone(self) -> bool:
        """Whether this process measures too, and not others."""
        return self.workers == 1 and not self.on_servers


def _loaded(spec: EngineSpec) -> LoadedModel:
    return load_model(
        spec.name,
        revision=spec.revision,
        dtype=spec.dtype,
        device=spec.devices[0],
        base=spec.base,
        base_revision=spec.base_revision,
    )


def check_audit_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Start the folder of an audit, or make sure that the one that is there is of the same.

    Raises:
        InputError: it holds something else, or cannot be written.
    """
    manifest = folder / MANIFEST
    recorded = (folder / "records").is_dir() and any((folder / "records").iterdir())
    repaired = folder / REPAIRED
    if repaired.is_symlink() or (repaired.exists() and not (repaired / "knowshift.json").exists()):
        raise InputError(f"{repaired}: is no repaired model of an audit; expected it to be free")
    if manifest.exists() and recorded:
        told = read_json(manifest).get("settings")
        if told != settings:
            held = told if isinstance(told, dict) else {}
            key = next((key for key in settings if held.get(key) != settings[key]), "settings")
            raise InputError(
                f"{folder}: holds another audit ({key} {str(held.get(key))[:60]!r}, now {str(settings.get(key))[:60]!r}"
                "); it stays as it is, choose another --output-dir"
            )
        return
    if folder.exists() and not manifest.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is not empty and is not an audit; choose another --output-dir")
    check_parent(folder / "records")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(manifest, {"settings": settings})


def measure(
    pair: Pair,
    models: Turns,
    asked: Asked,
    manner: Manner,
    folder: Path,
    seed: int,
    budget: Budget | None,
    prompt_format: str | None,
    tell: Tell = lambda what, done, total: None,
    pacing: Callable[[int], None] = lambda measured: None,
    planned: Callable[[Plan], None] = lambda plan: None,
) -> Evidence:
    """All measurements of an audit; those that are recorded are read.

    ``models`` are those of ``pair``: first the base is asked, then the tuned model, and the base has the last word.

    Raises:
        InputError: a model that cannot be asked, a budget too small for one fact.
    """
    records = folder / "records"
    chosen: list[Plan] = []

    def keep(plan: Plan) -> None:
        chosen.append(plan)
        planned(plan)

    def mastery(
        name: str,
        facts: Sequence[Fact],
        own_seed: int,
        given: Budget | None = None,
        order: Sequence[int] | None = None,
    ) -> Path:
        output = records / f"{name}.parquet"
        spec = pair.tuned if name == AFTER else pair.base
        if pair.alone:
            spec = replace(spec, loaded=models.tuned if name == AFTER else models.base)
        else:
            models.close()  # workers hold copies of their own
        # As many draws in all as the paper's, over fewer prompts, so that levels mean the same.
        draws = max(10, round(210 / len(completion_prompts(facts[0]))))
        run_mastery(
            replace(spec, facts_of_part=manner.part),
            facts,
            output,
            Protocol(draws, max_new_tokens=manner.tokens, seed=own_seed, estimate="expected", texts=manner.texts),
            workers=pair.workers,
            budget=given,
            pacing=pacing,
            planned=keep,
            order=order,
            progress=lambda done, total, positions: tell(name, done, total),
        )
        give_back()
        return output

    if budget is not None and budget.left <= 0:
        raise InputError(f"budget {budget.seconds:g} s: the start alone took longer; expected more")
    screened = None
    if budget is not None:

        def look(done: int, total: int) -> None:
            tell("a first look", done, total)

        screened = screen(pair.base, lambda: models.base, asked.facts, records, seed + 3, budget, look)
        give_back()
    order = None if screened is None else screened.order(seed)
    share = None if budget is None else budget.share(SHARE)
    first = mastery(FIRST, asked.facts, seed, share, order)
    facts = chosen[0].facts if chosen else asked.facts
    second = mastery(SECOND, facts, seed + 1)
    rows = read_table(first, MASTERY, "mastery")[0].to_pylist()
    levels = {row["fact"]: row["level"] for row in rows}
    hits, draws = ({row["fact"]: row[name] for row in rows} for name in ("prompt_hits", "prompt_draws"))
    best = best_prompts(facts, hits, draws)
    asked_again = (facts, levels, best, asked.examples, prompt_format, records, tell)
    before: dict[str, _Told] = {}
    now: dict[str, _Told] = {}
    shift = None
    shifted = records / "token-shift.parquet"
    vocabulary = None
    if not pair.on_servers:
        before = _answers(lambda: models.base, "base", *asked_again)
        vocabulary = None if shifted.exists() else models.base.vocabulary
    after = mastery(AFTER, facts, seed + 2)
    if not pair.on_servers:
        now = _answers(lambda: models.tuned, "tuned", *asked_again)
        well_known = [fact for fact in facts if levels[fact.id] == LEVELS - 1]
        shift = _shift(pair, models, vocabulary, well_known, best, prompt_format, shifted)
    again, later = (read_table(path, MASTERY, "mastery")[0].to_pylist() for path in (second, after))
    return Evidence(
        facts,
        Rates.of(rows),
        Rates.of(again),
        Rates.of(later),
        np.array([levels[fact.id] for fact in facts]),
        [_paired(form, before.get(form), now.get(form)) for form in dict.fromkeys((*before, *now))],
        screened,
        shift,
    )


_Told = dict[str, list[Any]]


def _answers(
    opened: Callable[[], LoadedModel],
    who: str,
    facts: Sequence[Fact],
    levels: dict[str, int],
    best: dict[str, int],
    examples: Sequence[Fact],
    prompt_format: str | None,
    records: Path,
    tell: Tell,
) -> dict[str, _Told]:
    """Columns of the answers of one model, by form; the model is opened only where a record is missing."""
    listed = records / f"answers-{who}.json"
    if listed.exists():
        names = read_json(listed)["forms"]
        return {name: _columns(records / _file(name, who)) for name in names}
    loaded = opened()
    forms = forms_of(loaded, best, examples, prompt_format)
    found = {}
    for done, form in enumerate(forms):
        tell(f"answers, {who}", done, len(forms))
        path = records / _file(form.name, who)
        if not path.exists():
            _answer(loaded, form, facts, levels).write(path, {**loaded.about(), "facts": facts_digest(facts)})
            give_back()
        found[form.name] = _columns(path)
    write_json(listed, {"forms": [form.name for form in forms]})
    tell(f"answers, {who}", len(forms), len(forms))
    return found


def _shift(
    pair: Pair,
    models: Turns,
    vocabulary: Vocabulary | None,
    facts: Sequence[Fact],
    best: dict[str, int],
    prompt_format: str | None,
    path: Path,
) -> Shifted:
    """Of facts of level 4; where it cannot be measured, all else is told without it, and why.

    ``vocabulary`` is the base's, where nothing is recorded yet. The tuned model reads all prompts before the base says
    of which facts its completion begins with the answer: so each is loaded once.
    """
    own = own_form(prompt_format) if prompt_format else None
    if not path.exists():
        try:
            with border("token shift"):
                tuned, about = models.tuned, {"tuned": models.tuned.about()}
                assert vocabulary is not None
                shared = shared_ids(vocabulary, tuned.vocabulary, pair.base.name, tuned.name)
                asked = [own.prompt(fact) if own else completion_prompts(fact)[best[fact.relation]] for fact in facts]
                led = leading(tuned, shared, asked)
                del tuned
                items = select_items(models.base, facts, best)
                shift = shift_from(models.base, items, led.of(items.kept))
        except InputError as error:
            return Shifted(None, 0, "", str(error))
        shift.write(path, {"base": models.base.about(), **about, "facts": facts_digest(facts)})
    kl = [value for value in read_table(path, TOKEN_SHIFT, "token shift")[0]["kl"].to_pylist() if value is not None]
    return Shifted(float(np.mean(kl)) if kl else None, len(kl), "completion" if own is None else own.name)


def _answer(loaded: LoadedModel, form: Form, facts: Sequence[Fact], levels: dict[str, int]) -> Any:
    """Answers in one form: the record's question is the whole prompt."""
    asked = [replace(fact, question=form.prompt(fact)) for fact in facts]
    return evaluate(loaded, asked, levels, ask=lambda prompt: prompt, first_line=form.first_line)


def _file(form: str, who: str) -> str:
    return f"answers-{form.replace(' ', '-')}-{who}.parquet"


def _columns(path: Path) -> _Told:
    found: _Told = read_table(path, ANSWERS, "answers")[0].to_pydict()
    return found


def _paired(form: str, before: _Told | None, after: _Told | None) -> Answered:
    def right(columns: _Told | None) -> Any:
        return None if columns is None else np.array([bool(hit) for hit in columns["substring_hit"]])

    def texts(columns: _Told | None) -> Any:
        return None if columns is None else columns["text"]

    prompts = None if after is None else after["question"]
    return Answered(form, texts(before), texts(after), right(before), right(after), prompts, form == FEW_SHOT)
