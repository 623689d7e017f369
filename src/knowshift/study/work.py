"""What each kind of cell does, on one worker that keeps the base model loaded."""

from __future__ import annotations

import copy
import gc
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knowshift.evaluation import Ask, evaluate, few_shot, plain_question
from knowshift.facts.fact import DOMAINS, Fact, tuning_prompt
from knowshift.facts.sources import load_facts
from knowshift.files import digest, folder_beside, write_json
from knowshift.finetune.draws import draw_training_set
from knowshift.heap import steady_heap
from knowshift.mastery import measure_mastery
from knowshift.models.loading import LoadedModel, load_model
from knowshift.models.saving import save_model
from knowshift.records import read_columns
from knowshift.study.cells import Cell, Unit, make_plan, probed_facts
from knowshift.study.config import StudyConfig
from knowshift.token_shift import ShiftItems, best_prompts, select_items, token_shift
from knowshift.weights.change import measure_change
from knowshift.weights.restore import RestorationSweep

#: Fractions at which the concentration of change is told (paper, Table 3).
CONCENTRATION = (0.01, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6)


def seed_of(*parts: object) -> int:
    """A seed that belongs to these parts and no others: 31 bits."""
    return int(digest([str(part) for part in parts]), 16) % (1 << 31)


class Worker:
    """Runs units of one study. Everything expensive is made once, on first use."""

    def __init__(self, run: Path, config: StudyConfig) -> None:
        steady_heap()
        torch.set_num_threads(config.threads)
        self.run, self.config = run, config
        self.source = load_facts(config.facts)
        self.base: LoadedModel = load_model(
            config.model, revision=config.revision, dtype=config.dtype, device=config.device
        )
        self.plan = make_plan(config, self.source.facts, self.source.digest(), self.base.identity)
        self.base_weights = {name: tensor.detach().clone() for name, tensor in self.base.model.named_parameters()}
        self._in_memory: tuple[str, LoadedModel] | None = None

    def do(self, unit: Unit) -> float:
        """Make what is missing of a unit; seconds taken."""
        began = time.perf_counter()
        for cell in unit.missing(self.run):
            with folder_beside(cell.folder(self.run)) as folder:
                getattr(self, f"_{cell.kind}")(cell, unit, folder)
        return time.perf_counter() - began

    # What several cells need.

    @cached_property
    def _facts(self) -> dict[str, Fact]:
        return {fact.id: fact for fact in self.source.facts}

    @cached_property
    def _mastery_rows(self) -> list[dict[str, Any]]:
        cells = [cell for unit in self.plan.probes for cell in unit.cells]
        columns = ["fact", "relation", "split", "domain", "prompt_hits", "prompt_draws", "level"]
        return [
            row
            for cell in cells
            for row in read_columns(cell.folder(self.run) / "mastery.parquet", columns, "mastery").to_pylist()
        ]

    @cached_property
    def _levels(self) -> dict[str, int | None]:
        return {row["fact"]: row["level"] for row in self._mastery_rows}

    @cached_property
    def _asked(self) -> list[Fact]:
        """The test facts that every model answers: at most so many of each domain and level, seeded."""
        most = self.config.evaluation.facts_per_level
        groups: dict[tuple[str, int], list[str]] = {}
        for row in self._mastery_rows:
            if row["split"] == "test" and row["level"] is not None:
                groups.setdefault((row["domain"], row["level"]), []).append(row["fact"])
        chosen: list[Fact] = []
        for domain in DOMAINS:
            for level in range(5):
                members = groups.get((domain, level), [])
                rng = np.random.default_rng([self.config.seed, 6, DOMAINS.index(domain), level])
                picked = sorted(rng.permutation(len(members))[:most].tolist())
                chosen.extend(self._facts[members[index]] for index in picked)
        return chosen

    @cached_property
    def _shift_items(self) -> ShiftItems:
        tests = [self._facts[row["fact"]] for row in self._mastery_rows if row["split"] == "test"]
        hits = {row["fact"]: row["prompt_hits"] for row in self._mastery_rows}
        draws = {row["fact"]: row["prompt_draws"] for row in self._mastery_rows}
        known = [fact for fact in self._asked if self._levels[fact.id] == 4]
        return select_items(self.base, known, best_prompts(tests, hits, draws))

    def _tuned_model(self, unit: Unit) -> LoadedModel:
        """The unit's tuned model: from memory, from its cell, or made again if its checkpoint was not kept."""
        cell = unit.cells[0]
        if self._in_memory is None or self._in_memory[0] != cell.digest:
            checkpoint = cell.folder(self.run) / "model"
            if checkpoint.is_dir():
                model = load_model(str(checkpoint), dtype=self.config.dtype, device=self.config.device)
                self._in_memory = (cell.digest, model)
            else:
                self._train(cell)
        assert self._in_memory is not None
        return self._in_memory[1]

    @cached_property
    def _training(self) -> Any:
        """The module that trains: TRL takes seconds to import, and what only plans or probes has no use for it."""
        from knowshift.finetune import training

        # What is here by now stays. A Trainer collects garbage when it starts, and would look through all of it.
        gc.collect()
        gc.freeze()
        return training

    def _train(self, cell: Cell) -> tuple[list[str], dict[str, Any]]:
        training, key = self._training, cell.key
        train = {row["fact"]: row for row in self._mastery_rows if row["split"] == "train"}
        members = draw_training_set(
            {fact: row["level"] for fact, row in train.items()},
            {fact: row["relation"] for fact, row in train.items()},
            level=key["level"],
            size=key["size"],
            draw=key["draw"],
            seed=self.config.seed,
        )
        tuned = replace(self.base, model=copy.deepcopy(self.base.model), name=f"tuned {cell.digest}")
        recipe = training.TrainingRecipe(
            **{**self.config.training.model_dump(), "learning_rate": key["learning_rate"]},
        )
        # One seed for a draw at every size and rate: what differs between cells is what was meant to differ.
        seed = seed_of(self.config.seed, "training", key["level"], key["draw"])
        record = training.finetune(tuned, [self._facts[fact] for fact in members], recipe, seed=seed)
        self._in_memory = (cell.digest, tuned)
        return members, record

    def _about(self, cell: Cell) -> dict[str, Any]:
        return {**self.base.about(), "cell": cell.digest, "kind": cell.kind, **cell.key}

    # The kinds of cells, by name.

    def _mastery(self, cell: Cell, unit: Unit, folder: Path) -> None:
        size = self.config.mastery.facts_per_cell
        probed = probed_facts(self.source.facts, self.config)
        members = probed[cell.key["part"] * size : (cell.key["part"] + 1) * size]
        record = measure_mastery(
            self.base,
            [self.source.facts[index] for index in members],
            draws_per_prompt=self.config.mastery.draws_per_prompt,
            temperature=self.config.mastery.temperature,
            max_new_tokens=self.config.mastery.max_new_tokens,
            seed=self.config.seed,
            stopping=self.config.mastery.stopping,
        )
        record.write(folder / "mastery.parquet", self._about(cell))

    def _base(self, cell: Cell, unit: Unit, folder: Path) -> None:
        rng = np.random.default_rng([self.config.seed, 7])
        known = [row["fact"] for row in self._mastery_rows if row["split"] == "train" and row["level"] == 4]
        picked = sorted(rng.permutation(len(known))[: self.config.evaluation.few_shot].tolist())
        examples = [self._facts[known[index]] for index in picked]
        asks: dict[str, Ask] = {"answers": tuning_prompt, "answers_plain": plain_question}
        if examples:
            asks["answers_few_shot"] = few_shot(examples)
        for name, ask in asks.items():
            shown = len(examples) if name == "answers_few_shot" else 0
            answers = evaluate(self.base, self._asked, self._levels, ask=ask, first_line=shown > 0)
            answers.write(folder / f"{name}.parquet", {**self._about(cell), "prompt": ask("QUESTION"), "shown": shown})

    def _tuned(self, cell: Cell, unit: Unit, folder: Path) -> None:
        members, record = self._train(cell)
        write_json(folder / "record.json", {"facts": members, **record})
        if self.config.keep_checkpoints:
            (folder / "model").mkdir()
            save_model(self._tuned_model(unit), folder / "model")

    def _evaluation(self, cell: Cell, unit: Unit, folder: Path) -> None:
        evaluate(self._tuned_model(unit), self._asked, self._levels).write(
            folder / "answers.parquet", self._about(cell)
        )

    def _token_shift(self, cell: Cell, unit: Unit, folder: Path) -> None:
        token_shift(self.base, self._tuned_model(unit), self._shift_items).write(
            folder / "token_shift.parquet", self._about(cell)
        )

    def _weight_change(self, cell: Cell, unit: Unit, folder: Path) -> None:
        change = measure_change(
            self.base_weights,
            self._tuned_model(unit).model,
            CONCENTRATION,
            seed=seed_of(self.config.seed, "null", cell.digest),
            region=self.config.restoration.region,
        )
        write_json(folder / "change.json", change.to_json())

    def _restoration(self, cell: Cell, unit: Unit, folder: Path) -> None:
        tuned = self._tuned_model(unit)
        counts: dict[str, dict[str, int]] = {}
        eligible = 0
        for criterion in self.config.restoration.criteria:
            sweep = RestorationSweep(
                tuned.model,
                self.base_weights,
                criterion=criterion,
                region=self.config.restoration.region,
                seed=seed_of(self.config.seed, "restore", cell.key["level"], cell.key["size"], cell.key["draw"]),
            )
            counts[criterion] = {}
            for fraction, count in sweep.run(list(self.config.restoration.fractions)):
                name = f"answers-{criterion}-{fraction:g}"
                about = {**self._about(cell), "criterion": criterion, "fraction": fraction, "restored": count}
                evaluate(tuned, self._asked, self._levels).write(folder / f"{name}.parquet", about)
                counts[criterion][f"{fraction:g}"] = count
            sweep.undo()
            eligible = sweep.eligible
        write_json(folder / "restored.json", {"eligible": eligible, "criteria": counts})
