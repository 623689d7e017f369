"""Every input of a cell is in its digest: fields of a configuration, facts, model, packages, coordinates, version."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from knowshift.facts.fact import Fact
from knowshift.files import digest
from knowshift.known_facts import KnownFacts
from knowshift.probing.run import facts_digest
from knowshift.reports.evidence.run_folder import AT
from knowshift.studies import content
from knowshift.studies import plan as cells
from knowshift.studies.config import StudyConfig
from knowshift.studies.plan import CONTENT, EVERYWHERE, HARMLESS, LATER, PACKAGES, Cell, Plan, make_plan, outline
from knowshift.training.draws import draw_training_set
from knowshift.tuning.registry import STRATEGIES

FACTS = tuple(
    Fact(
        f"f{i}",
        f"r{i % 3}",
        "train" if i < 9 else "test",
        "in_domain",
        f"S{i}",
        f"Q{i}",
        f"A{i}",
        prompts=(f"S{i} is",),
    )
    for i in range(15)
)

#: Another value of every field of a configuration, from that of ``SMALL``.
SMALL: dict[str, Any] = {
    "name": "small",
    "model": "a model",
    "facts": "some facts",
    "levels": [0, 1],
    "sizes": [2, 4],
    "draws": 2,
    "instruct": "an instruct model",
    "restoration": {"tasks": ["text_loss"]},
    "bench": {"strategies": {"sft": {}, "mixed": {}}, "rates": [1.0]},  # one on plain facts, one on its own
    "mastery": {"estimate": "expected", "facts_per_cell": 4, "train_facts": 8, "test_facts": 5},
}
OTHER: dict[str, Any] = {
    "name": "other",
    "model": "another model",
    "facts": "other facts",
    "revision": "main",
    "base": "a base",
    "base_revision": "main",
    "instruct": "another",
    "instruct_revision": "main",
    "dtype": "bfloat16",
    "devices": 2,
    "device": "cuda",
    "threads": 2,
    "seed": 1,
    "levels": [0, 2],
    "sizes": [2, 3, 4],
    "draws": 3,
    "control_rate": 0.5,
    "control_draws": 1,
    "keep_checkpoints": False,
    "variants": {"mixed": {"levels": "mixed"}},
    "bench.strategies": {"lora": {"rank": 2}},
    "bench.rates": [0.5],
    "bench.levels": [0],
    "bench.sizes": [2],
    "bench.draws": 1,
    "bench.train_facts": 5,
    "bench.texts": 6,
    "mastery.draws_per_prompt": 11,
    "mastery.temperature": 0.8,
    "mastery.max_new_tokens": 33,
    "mastery.stopping": "exact",
    "mastery.estimate": "hits",
    "mastery.texts": 3,
    "mastery.least_weight": 0.5,
    "mastery.train_facts": 7,
    "mastery.test_facts": 4,
    "mastery.facts_per_cell": 5,
    "mastery.dtype": "bfloat16",
    "mastery.servers": ["http://here:1"],
    "training.learning_rate": 2e-5,
    "training.batch_size": 9,
    "training.epochs": 2,
    "training.schedule": "linear",
    "training.bfloat16": True,
    "training.gradient_checkpointing": True,
    "training.shared_prefix": True,
    "training.shards": 2,
    "training.report_to": "wandb",
    "evaluation.levels": [0, 1],
    "evaluation.facts_per_level": 3,
    "evaluation.few_shot": 5,
    "restoration.fractions": [0.01],
    "restoration.criteria": ["random", "relative"],
    "restoration.region": "mlp",
    "restoration.sizes": [2, 4],
    "restoration.train_set_fractions": [0.05],
    "restoration.train_set_facts": 3,
    "restoration.layer_group": 2,
    "restoration.tasks": ["completion"],
    "restoration.tasks_limit": 5,
    "restoration.texts": "t.txt",
}

#: Of the fields that are no setting of a cell, those that say which facts are probed change every cell; those that say
#: which cells there are leave the cells that stay as they were; that servers answer changes what reads mastery; the
#: others change nothing.
PROBED = {"mastery.train_facts", "mastery.test_facts", "mastery.facts_per_cell"}
WHICH = {
    *("levels", "sizes", "draws", "control_rate", "control_draws", "variants"),
    *("training.learning_rate", "restoration.sizes"),
    *("bench.strategies", "bench.rates", "bench.levels", "bench.sizes", "bench.draws"),
}


def _leaves(model: type[BaseModel] = StudyConfig, before: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _leaves(field.annotation, f"{name}.")
        else:
            yield before + name


def _config(field: str | None = None) -> StudyConfig:
    record = StudyConfig.model_validate(SMALL).as_record()
    if field is not None:
        section, _, name = field.rpartition(".")
        (record[section] if section else record)[name] = OTHER[field]
    return StudyConfig.model_validate(record)


def _plan(config: StudyConfig, facts: tuple[Fact, ...] = FACTS, told: str = "facts", model: str = "model") -> Plan:
    return make_plan(config, facts, told, model)


def _digests(plan: Plan) -> dict[tuple[str, str], str]:
    found = {(cell.kind, json.dumps(cell.coordinates, sort_keys=True)): cell.digest for cell in plan.cells}
    assert len(found) == len(plan.cells) == len(set(found.values()))
    return found


def _kinds_that_depend_on(field: str) -> set[str]:
    if field in EVERYWHERE:
        return set(CONTENT)
    kinds = {kind for kind, what in CONTENT.items() if field in what.fields}
    while more := {kind for kind, what in CONTENT.items() if kinds & {*what.earlier}} - kinds:
        kinds |= more
    return kinds


def test_every_field_is_declared_once_or_is_harmless_with_a_reason() -> None:
    declared = {field for what in CONTENT.values() for field in what.fields}
    leaves = list(_leaves())
    assert sorted(leaves) == sorted([*declared, *EVERYWHERE, *HARMLESS])
    assert set(OTHER) == set(leaves)
    assert all(HARMLESS.values())


@pytest.mark.parametrize("field", sorted(_leaves()))
def test_a_field_changes_the_digests_of_what_depends_on_it_and_no_others(field: str) -> None:
    before, after = _digests(_plan(_config())), _digests(_plan(_config(field)))
    stayed = {where for where in before if after.get(where) == before[where]}
    changed = {where[0] for where in before if where in after and where not in stayed}
    if field in PROBED:
        # Other tasks of the base are about no parts of mastery, and about the same facts in other parts.
        assert {kind for kind, _ in stayed} <= ({"base_tasks"} if field == "mastery.facts_per_cell" else set())
    elif field in WHICH:
        assert set(before) != set(after)
        assert not changed
    elif field == "mastery.servers":
        assert changed == _kinds_that_depend_on("mastery.stopping")
        elsewhere = StudyConfig.model_validate({**SMALL, "mastery": {**SMALL["mastery"], "servers": ["http://there"]}})
        assert _digests(_plan(elsewhere)) == after
    else:
        assert set(before) == set(after)
        assert changed == (set() if field in HARMLESS else _kinds_that_depend_on(field))
        assert {kind for kind, _ in stayed} == set(CONTENT) - changed


def test_model_facts_prompts_packages_and_version_change_every_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config()
    before = set(_digests(_plan(config)).values())
    prompted = tuple(replace(fact, prompts=(f"{fact.subject} was",)) for fact in FACTS)
    others = [_plan(config, told="others"), _plan(config, model="another"), _plan(config, prompted)]
    for plan in others:
        assert not before & set(_digests(plan).values())
    version = importlib.metadata.version
    for package in PACKAGES:
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", lambda name, p=package: "0" if name == p else version(name))
            assert not before & set(_digests(_plan(config)).values()), package
    monkeypatch.setattr(cells, "CONTENT_VERSION", cells.CONTENT_VERSION + 1)
    assert not before & set(_digests(_plan(config)).values())


#: Digests of the cells of each kind, before any had a revision.
OF_VERSION_3 = {
    "mastery": "a52559daa547d4e7",
    "base": "d3c86102b775dbe3",
    "instruct": "a6ab8362ca714061",
    "base_tasks": "73a81360ed231ef8",
    "tuned": "4ca5a92cdcffbdfa",
    "evaluation": "07a12726001f45bf",
    "token_shift": "7fe2ac0fa97c1b02",
    "weight_change": "6250e0affc5f65e9",
    "restoration": "df57a01d5fd599f5",
    "train_set": "164a8980b34ac4a6",
    "layer_groups": "e94713182e25d68e",
    "tasks": "715c86bdec5ef9fb",
}


def test_another_content_of_one_kind_leaves_the_digests_of_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run made before keeps every cell but those of the kind that has a revision."""
    monkeypatch.setattr(cells, "CONTENT_VERSION", 3)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0")
    config = {**SMALL, "restoration": {"tasks": ["text_loss"], "layer_group": 1, "train_set_fractions": [0.2]}}
    config["bench"] = {}  # which came later
    config["mastery"] = {**SMALL["mastery"], "estimate": "hits"}
    mixed = {"variants": {"mixed": {"levels": "mixed"}, "longer": {"epochs": 2}}}
    found: dict[str, list[str]] = {}
    for cell in _plan(StudyConfig.model_validate({**config, **mixed})).cells:
        found.setdefault(cell.kind, []).append(cell.digest)
    assert set(found) == set(CONTENT) - {"learned", "learned_own"}
    told = {kind: digest(digests) for kind, digests in found.items()}
    revised = {kind for kind, what in CONTENT.items() if what.revision}
    assert revised == {"weight_change", "train_set", "layer_groups"}
    assert {kind: name for kind, name in told.items() if OF_VERSION_3[kind] != name}.keys() == revised
    for kind in revised:
        monkeypatch.setitem(CONTENT, kind, replace(CONTENT[kind], revision=0))
    every = _plan(StudyConfig.model_validate({**config, **mixed})).cells
    for kind in revised:
        assert digest([cell.digest for cell in every if cell.kind == kind]) == OF_VERSION_3[kind]


def test_the_coordinates_of_a_cell_are_called_key_in_manifests_and_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other names there would part a run from its cells, and a folder from the reports of earlier versions."""
    for cell in _plan(_config()).cells:
        assert cell.as_record() == {"kind": cell.kind, "digest": cell.digest, "key": cell.coordinates}
        assert cell.inputs["key"] == cell.coordinates
        assert "coordinates" not in cell.inputs
    monkeypatch.setattr(cells, "CONTENT_VERSION", 3)
    grid = {"level": 2, "size": 60, "draw": 1, "learning_rate": 1e-05, "control": None}
    cell = cells.Cell("tuned", grid, {"model": "m", "key": grid, "settings": {"seed": 0}, "earlier": {}})
    assert cell.digest == "b8afe9c1afdf8b62"


def test_a_cell_is_given_the_settings_of_its_kind_alone() -> None:
    for cell in _plan(_config()).cells:
        # Fields that came later are left out at the value of before, so that cells of before keep their digests.
        assert tuple(cell.settings) == tuple(field for field in CONTENT[cell.kind].fields if field not in LATER)
        assert set(cell.inputs["earlier"]) == set(CONTENT[cell.kind].earlier)


@pytest.mark.parametrize("field", sorted(LATER))
def test_a_field_that_came_later_is_a_setting_at_another_value(field: str) -> None:
    common = field in EVERYWHERE
    given = [(cell.kind, cell.inputs if common else cell.settings) for cell in _plan(_config(field)).cells]
    kinds = {kind for kind, what in CONTENT.items() if common or field in what.fields}
    assert {kind for kind, values in given if field in values} == kinds
    assert all(values[field] == OTHER[field] for _, values in given if field in values)
    assert not any(field in values for cell in _plan(_config()).cells for values in (cell.inputs, cell.settings))
    assert all(cells.field_of(StudyConfig.model_validate(SMALL), name) == value for name, value in LATER.items())


def test_units_have_the_titles_that_people_read() -> None:
    config = StudyConfig.model_validate({**SMALL, "levels": [3], "sizes": [2, 4, "all"], "control_draws": 1})
    plan = make_plan(config, FACTS, "facts", "model")
    assert [unit.title for unit in plan.probes] == [f"mastery, part {i} of 4" for i in (1, 2, 3, 4)]
    assert [unit.title for unit in plan.tuned] == [
        "the base model's own answers",
        "the instruct model's answers",
        "the base model's other tasks",
        "level 3, all facts, draw 1",
        "level 3, all facts, draw 2",
        "level 3, 4 facts, draw 1",
        "level 3, 4 facts, draw 2",
        "level 3, 4 facts, draw 1, rate 3.3e-06",
        "mixed levels, 4 facts, draw 1, sft@1e-05",
        "mixed levels, 4 facts, draw 2, sft@1e-05",
        "mixed levels, 4 facts, draw 1, mixed@1e-05",
        "mixed levels, 4 facts, draw 2, mixed@1e-05",
        "level 3, 2 facts, draw 1",
        "level 3, 2 facts, draw 2",
    ]
    assert (plan.train, plan.test) == (8, 5)


def test_all_facts_of_a_level_are_as_many_as_mastery_tells() -> None:
    config = StudyConfig.model_validate({**SMALL, "sizes": [2, 4, "all"]})
    before = make_plan(config, FACTS, "facts", "model")
    after = make_plan(config, FACTS, "facts", "model", levels=[5, 4, 0, 0, 0])
    assert (before.settled, after.settled) == (False, True)
    assert sorted(unit.title for unit in before.tuned) == sorted(unit.title for unit in after.tuned)
    found = {
        (c.coordinates["level"], c.coordinates["draw"]): c.coordinates["size"]
        for c in after.cells
        if c.kind == "tuned" and c.coordinates["control"] == "all"
    }
    assert found == {(0, 0): 5, (0, 1): 5, (1, 0): 4, (1, 1): 4}
    # The rest of the grid is that of a study without them: the control and restoration are at the largest number.
    grid = _digests(make_plan(_config(), FACTS, "facts", "model"))
    told = _digests(after)
    assert grid.items() <= told.items()
    assert {kind for kind, where in told.keys() - grid.keys()} == {
        "tuned",
        "evaluation",
        "token_shift",
        "weight_change",
    }


def test_variants_stand_beside_a_grid_that_stays_as_it_is() -> None:
    """What a variant changes is in its coordinates, so that two variants of one name and other settings differ."""
    variants: dict[str, Any] = {
        "mixed": {"levels": "mixed", "sizes": [2, 4]},
        "longer": {"epochs": 3, "levels": [1], "draws": 1, "learning_rate": 2e-3},
        "few": {"distinct_facts": 2, "draws": 9, "lora": {"rank": 4}},
    }
    grid, plan = _plan(_config()), _plan(StudyConfig.model_validate({**SMALL, "variants": variants}))
    assert _digests(grid).items() <= _digests(plan).items()
    added = [unit for unit in plan.tuned if unit.cells[0].digest not in {c.digest for c in grid.cells}]
    assert {unit.title for unit in added} == {
        *(f"mixed levels, {size} facts, draw {draw}, mixed" for size in (2, 4) for draw in (1, 2)),
        "level 1, 4 facts, draw 1, longer",
        *(f"level {level}, 4 facts, draw {draw}, few" for level in (0, 1) for draw in (1, 2)),
    }
    told = {unit.title: unit.cells[0].coordinates for unit in added}
    assert told["mixed levels, 2 facts, draw 2, mixed"] == {
        "level": None,
        "size": 2,
        "draw": 1,
        "learning_rate": 1e-5,
        "control": "mixed",
        "training": {"levels": [0, 1]},
    }
    longer, few = told["level 1, 4 facts, draw 1, longer"], told["level 0, 4 facts, draw 1, few"]
    assert (longer["learning_rate"], longer["training"]) == (2e-3, {"epochs": 3})
    assert few["training"] == {"distinct_facts": 2, "lora": {"rank": 4, "alpha": 16.0}}
    assert {cell.kind for unit in added for cell in unit.cells} == {
        "tuned",
        "evaluation",
        "token_shift",
        "weight_change",
    }
    for changed in ({"epochs": 4}, {"batch_size": 2}, {"schedule": "linear"}, {"dtype": "bfloat16"}, {"lora": {}}):
        other = _plan(StudyConfig.model_validate({**SMALL, "variants": {"longer": {**variants["longer"], **changed}}}))
        digests = {unit.title: unit.cells[0].digest for unit in other.tuned}
        assert digests["level 1, 4 facts, draw 1, longer"] not in {cell.digest for cell in plan.cells}, changed


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_cell_of_a_strategy_depends_on_all_its_settings_also_those_left_to_their_defaults(name: str) -> None:
    """Or results of one version would stand for those of the next, whose defaults are others."""

    def tuned(settings: dict[str, Any]) -> Cell:
        (unit,) = [
            unit
            for unit in _plan(
                StudyConfig.model_validate(
                    {**SMALL, "bench": {"strategies": {name: settings}, "rates": [1.0], "draws": 1, "sizes": [2]}}
                )
            ).tuned
            if AT in str(unit.cells[0].coordinates.get("control"))
        ]
        return unit.cells[0]

    defaults = {one.name: one.default for one in fields(STRATEGIES[name])}
    assert tuned({}).coordinates["training"].get("settings", {}) == defaults
    assert tuned(defaults).digest == tuned({}).digest


def test_an_outline_has_the_cells_of_the_plan() -> None:
    """What stands for a plan whose facts or model are not at hand has the same grid and the same parts."""
    for sizes in ([2, 4], [2, 4, "all"]):
        config = StudyConfig.model_validate({**SMALL, "sizes": sizes})
        real, outlined = make_plan(config, FACTS, "facts", "model"), outline(config, 8, 5)
        assert [(c.kind, c.coordinates) for c in outlined.cells] == [(c.kind, c.coordinates) for c in real.cells]
        assert [c.inputs["probed"]["count"] for c in outlined.cells if c.kind == "mastery"] == [4, 4, 4, 1]
        assert (outlined.train, outlined.test) == (real.train, real.test)


def test_the_digest_of_a_mastery_runs_facts_is_over_all_that_its_record_holds() -> None:
    """A record with another split, domain, relation or exposures is another run's."""
    other: dict[str, Any] = {
        "id": "other",
        "relation": "P19",
        "split": "test",
        "domain": "out_of_domain",
        "answer": "another",
        "aliases": ("alias",),
        "exposures": 3,
        "prompts": ("S0 was",),
    }
    asked_by_prompts_alone = {"subject", "question"}
    assert {field.name for field in fields(Fact)} == set(other) | asked_by_prompts_alone
    before = facts_digest(FACTS)
    for name, value in other.items():
        assert facts_digest([replace(FACTS[0], **{name: value}), *FACTS[1:]]) != before, name
    assert facts_digest([FACTS[1], FACTS[0], *FACTS[2:]]) != before


def test_the_test_facts_that_are_asked() -> None:
    known = KnownFacts({fact.id: fact for fact in FACTS}, [{"fact": f.id, "level": n % 5} for n, f in enumerate(FACTS)])
    every = content.asked_facts(known, {"seed": 3, "evaluation.facts_per_level": None})
    assert {fact.id for fact in every} == {fact.id for fact in known.of("test")}
    for levels in ([0, 3], (3, 0, 3), [4]):
        some = content.asked_facts(known, {"seed": 3, "evaluation.levels": levels, "evaluation.facts_per_level": None})
        assert some == [fact for fact in every if known.levels[fact.id] in levels]
    few = {"seed": 3, "evaluation.facts_per_level": 1}
    chosen = content.asked_facts(known, few)  # the same of a level whatever the others
    assert content.asked_facts(known, {**few, "evaluation.levels": [1]}) == [
        fact for fact in chosen if known.levels[fact.id] == 1
    ]


def _golden() -> dict[str, str]:
    """Content that chance decides, where no processor's last digits come in: what is drawn, asked and paired."""
    known = KnownFacts({fact.id: fact for fact in FACTS}, [{"fact": fact.id, "level": 4} for fact in FACTS])
    asked = content.asked_facts(known, {"seed": 3, "evaluation.facts_per_level": 4})
    trained = {fact.id: replace(fact, split="train") for fact in FACTS}
    drawn = draw_training_set(KnownFacts(trained, known.rows), level=4, size=6, draw=1, seed=3)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, generator=generator).to(torch.bfloat16).float()
    change = 0.01 * torch.randn(16, 16, generator=generator).to(torch.bfloat16).float()
    tuned = torch.nn.Linear(16, 16, bias=False)
    tuned.weight = torch.nn.Parameter(weight + change)
    null = content.weight_change({"weight": weight}, tuned, "a digest", {"seed": 3, "restoration.region": "all"}).null
    shares = {f: round(share, 6) for f, share in null["relative"].items() if share is not None}
    probed = cells.probed_facts(FACTS, _config())
    grid = {"level": 4, "size": 6, "draw": 1}
    trained_by = KnownFacts(trained, known.rows)
    again = content.trained_facts(trained_by, grid, {"seed": 3, "restoration.train_set_facts": 3})
    return {
        "probed": digest(probed),
        "asked": digest([fact.id for fact in asked]),
        "drawn": digest([fact.id for fact in drawn]),
        "trained": digest([fact.id for fact in again]),
        "seeds": digest([content.seed_of(3, "training", 4, 1), content.seed_of(3, "restore", 4, 6, 1)]),
        "null": digest(shares),
    }


#: Content by version. Content that changes for equal inputs needs a version of its own: raise CONTENT_VERSION and add
#: a line here, so that no cell of an earlier version is taken for one of this.
GOLDEN: dict[int, dict[str, str]] = {
    3: {
        "probed": "b00ce82108ef40d2",
        "asked": "ec83cccf8334c160",
        "drawn": "d72de52e6b8ea131",
        "trained": "8a499bd3353f6ba5",
        "seeds": "73549d88441245c9",
        "null": "ce8a12be5359de4d",
    },
}


def test_content_that_changes_demands_another_version() -> None:
    assert max(GOLDEN) == cells.CONTENT_VERSION
    assert _golden() == GOLDEN[cells.CONTENT_VERSION]
