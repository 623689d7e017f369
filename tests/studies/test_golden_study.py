"""A whole study on seventeen facts: every number of every record and table, by hand or by a formula of its own.

What is written down here was worked out from the facts and the logits of ``golden_world``: a model answers every
question with the word it was tuned on (of two words the one that the base finds likelier); the base model, and a
model that is restored whole, answer nothing. Numbers that rest on a training's arithmetic are computed again with
plain torch and numpy.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

import golden_leakage
import golden_tables
import golden_tasks
from golden_compare import compare, compare_findings, rows_of
from golden_records import Records
from golden_weights import hold_change, seed_of, weights_of
from golden_world import DRAWS, FACTS, LEVEL, NEXT, PROMPTS, WORDS, prompts_of, question_of, write_facts, write_model
from knowshift.parameters.selection.select import exact_count
from knowshift.reports.tables.build import build_tables
from knowshift.studies.config import parse_config
from knowshift.studies.run import run_study

pytestmark = pytest.mark.slow

TABLES = {**golden_tables.TABLES, **golden_leakage.TABLES, **golden_tasks.TABLES}
SEED, RATE, SLOW = 30, 0.002, 0.00002
FRACTIONS = (0.2, 1.0)

CONFIG = f"""
name: golden
model: MODEL
instruct: CHATTING
facts: FACTS
levels: [0, 4]
sizes: [1, 2]
draws: 2
seed: {SEED}
control_rate: 0.01
control_draws: 1
mastery: {{draws_per_prompt: {DRAWS}, max_new_tokens: 3}}
training: {{learning_rate: {RATE}, batch_size: 2, epochs: 3}}
evaluation: {{few_shot: 2}}
restoration:
  fractions: {list(FRACTIONS)}
  criteria: [relative, random]
  region: all
  tasks: [text_loss, completion]
  texts: TEXT
"""

#: A text whose loss is measured: two pieces of 128 words, and some that are not read.
TEXT = [WORDS[4 + (7 * i * i + 3 * i) % 34] for i in range(300)]

#: Level, size, draw, whether it is the control: the training facts in order, and the answer to every question.
TUNED = {
    (0, 1, 0, False): (["a2"], "Lima"),
    (0, 1, 1, False): (["a1"], "Oslo"),
    (0, 2, 0, False): (["a2", "b1"], "Rome"),  # Lima and Rome
    (0, 2, 1, False): (["a1", "b1"], "Rome"),  # Oslo and Rome
    (0, 2, 0, True): (["a2", "b1"], ""),
    (4, 1, 0, False): (["b3"], "Lima"),
    (4, 1, 1, False): (["b2"], "Rome"),
    (4, 2, 0, False): (["b3", "a3"], "Lima"),  # Lima both
    (4, 2, 1, False): (["b2", "a3"], "Rome"),  # Rome and Lima
    (4, 2, 0, True): (["b3", "a3"], ""),
}

ASKED = ["b5", "a6", "b6", "a4", "a5", "b4", "c4", "c3", "c1", "c2"]  # by domain and level

#: Of the test levels that have facts, in-domain 0, 1, 3, 4 (one, one, one, three facts), out-of-domain 0, 2, 4 (one,
#: one, two): hits of a model that gives this answer to every question.
HITS = {
    "": ([0, 0, 0, 0], [0, 0, 0]),
    "Oslo": ([1, 0, 0, 2], [0, 0, 1]),
    "Rome": ([0, 1, 0, 1], [0, 1, 1]),
    "Lima": ([0, 0, 1, 0], [1, 0, 0]),
}
ACCURACY = {"": (0, 0), "Oslo": (5 / 12, 1 / 6), "Rome": (1 / 3, 1 / 2), "Lima": (1 / 4, 1 / 3)}


@dataclass(frozen=True)
class Study:
    run: Path
    model: Path

    @cached_property
    def cells(self) -> list[tuple[str, dict[str, Any], Path]]:
        manifest = json.loads((self.run / "manifest.json").read_text())
        return [(c["kind"], c["key"], self.run / "cells" / c["kind"] / c["digest"]) for c in manifest["cells"]]

    def of(self, kind: str) -> list[tuple[tuple[int, int, int, bool], Path]]:
        """Place in the grid and folder of each cell."""
        found = []
        for its, key, folder in self.cells:
            if its == kind:
                assert key["learning_rate"] == pytest.approx(SLOW if key["control"] else RATE)
                assert key["control"] in (None, "learning_rate")
                found.append(((key["level"], key["size"], key["draw"], bool(key["control"])), folder))
        return found

    def tuned(self, where: tuple[int, int, int, bool]) -> Any:
        return AutoModelForCausalLM.from_pretrained(dict(self.of("tuned"))[where] / "model")

    def base(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.model)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("golden")
    model, facts = write_model(folder / "model"), write_facts(folder / "facts.jsonl")
    shutil.copytree(model, folder / "chatting")
    (folder / "chatting" / "chat_template.jinja").write_text("{{ messages[0]['content'] }} ~Lima")
    (folder / "text.txt").write_text(" ".join(TEXT))
    paths = {"CHATTING": folder / "chatting", "MODEL": model, "FACTS": facts, "TEXT": folder / "text.txt"}
    text = CONFIG
    for name, path in paths.items():
        text = text.replace(f": {name}\n", f": {path}\n")
    config = parse_config(text, "golden")
    run_study(config, folder / "run", executor="here")
    build_tables(folder / "run").write(folder / "run" / "tables")
    assert {file.stem for file in (folder / "run" / "tables").iterdir()} == {*TABLES, "findings"}
    return Study(folder / "run", model)


def ids_of(text: str) -> list[int]:
    return [WORDS.index(word) for word in ("<s>", *text.split())]


def asked(fact: str) -> str:
    return f"<|question|> {question_of(fact)} <|answer|>"


def logits_of(model: Any, text: str) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids_of(text)])).logits[0, -1]
    return found


def answer_of(model: Any, text: str) -> str:
    """Greedy decoding, word by word."""
    words: list[str] = []
    while len(words) < 16 and (word := WORDS[int(logits_of(model, " ".join([text, *words])).argmax())]) != "</s>":
        words.append(word)
    return " ".join(words)


def test_every_file_of_the_run_is_held(study: Study) -> None:
    held = {
        "mastery": {"mastery.parquet"},
        "base": {"answers.parquet", "answers_few_shot.parquet", "answers_plain.parquet"},
        "tuned": {"record.json", "model"},
        "evaluation": {"answers.parquet"},
        "token_shift": {"token_shift.parquet"},
        "weight_change": {"change.json"},
        "restoration": {*(f"answers-{c}-{f}.parquet" for c in ("relative", "random") for f in ("0.2", "1"))}
        | {"restored.json"},
        "train_set": {*(f"answers-{name}.parquet" for name in TRAINED), "restored.json"},
        "layer_groups": {"answers-0-1.parquet", "answers-random.parquet", "restored.json"},
        "instruct": {f"answers{form}.parquet" for form in ("", "_few_shot", "_plain", "_chat")},
        "base_tasks": {"items.parquet", "scores.json"},
        "tasks": {"items.parquet", "scores.json"},
    }
    for kind, _, folder in study.cells:
        assert {file.name for file in folder.iterdir()} == held[kind], kind
    restored = ("restoration", "train_set", "layer_groups", "tasks")
    alone = ("mastery", "base", "instruct", "base_tasks")
    counts = {kind: sum(its == kind for its, _, _ in study.cells) for kind in held}
    assert counts == {**dict.fromkeys(held, 10), **dict.fromkeys(alone, 1), **dict.fromkeys(restored, 4)}


def test_mastery(study: Study) -> None:
    rows = pq.read_table(next(f for k, _, f in study.cells if k == "mastery") / "mastery.parquet").to_pylist()
    assert [row["fact"] for row in rows] == list(FACTS)
    for row in rows:
        relation, split, domain, _, exposures, right = FACTS[row["fact"]]
        assert row == {
            "fact": row["fact"],
            "relation": relation,
            "split": split,
            "domain": domain,
            "exposures": exposures,
            "prompt_hits": [DRAWS * (prompt in right) for prompt in range(PROMPTS)],
            "prompt_draws": [DRAWS] * PROMPTS,
            "hits": DRAWS * len(right),
            "draws": DRAWS * PROMPTS,
            "rate": len(right) / PROMPTS,
            "level": LEVEL[len(right)],
        }


def hold_answers(file: Path, said: str) -> None:
    rows = pq.read_table(file).to_pylist()
    assert [row["fact"] for row in rows] == ASKED
    for row in rows:
        relation, split, domain, answer, _, right = FACTS[row["fact"]]
        assert row == {
            "fact": row["fact"],
            "relation": relation,
            "split": split,
            "domain": domain,
            "level": LEVEL[len(right)],
            "question": question_of(row["fact"]),
            "answer": answer,
            "text": said,
            "substring_hit": said == answer,
            "word_hit": said == answer,
            "reason": None,
        }, file
    hits = {row["fact"] for row in rows if row["substring_hit"]}
    groups = (["b5"], ["a6"], ["b6"], ["a4", "a5", "b4"]), (["c4"], ["c3"], ["c1", "c2"])
    assert tuple([len(hits.intersection(group)) for group in its] for its in groups) == HITS[said]


def test_answers_of_the_base_model(study: Study) -> None:
    (folder,) = [f for kind, _, f in study.cells if kind == "base"]
    hold_answers(folder / "answers.parquet", "")
    hold_answers(folder / "answers_few_shot.parquet", "")
    hold_answers(folder / "answers_plain.parquet", "Rome")
    prompt = "<|question|> QUESTION <|answer|>"
    forms = {"answers": (prompt, 0), "answers_plain": ("Question: QUESTION Answer:", 0)}
    # Two of the training facts of level 4: of a3, b2 and b3 the generator of the seed and 7 draws the last two.
    examples = "".join(f"<|question|> {question_of(fact)} <|answer|> {FACTS[fact][3]}\n" for fact in ("b2", "b3"))
    forms["answers_few_shot"] = (examples + prompt, 2)
    for name, (form, shown) in forms.items():
        about = json.loads(pq.read_schema(folder / f"{name}.parquet").metadata[b"knowshift"])
        assert (about["prompt"], about["shown"]) == (form, shown)


def test_answers_of_the_instruct_model(study: Study) -> None:
    """Here the base itself, but that it has a chat template, which ends in a word that is followed by Lima."""
    (folder,) = [f for kind, _, f in study.cells if kind == "instruct"]
    for name, said in {"answers": "", "answers_few_shot": "", "answers_plain": "Rome", "answers_chat": "Lima"}.items():
        hold_answers(folder / f"{name}.parquet", said)
        about = json.loads(pq.read_schema(folder / f"{name}.parquet").metadata[b"knowshift"])
        assert Path(about["model"]).name == "chatting"
    assert about["prompt"] == "QUESTION ~Lima"


#: Test facts that were written: those that are completed.
WRITTEN = ["a4", "a5", "a6", "b4", "b6", "c1", "c2", "c3"]


def hold_tasks(rows: list[dict[str, Any]], scores: list[dict[str, Any]], model: Any) -> None:
    """The loss of both pieces, and whether the answer comes next: by plain torch."""
    losses, completed = ([row for row in rows if row["task"] == task] for task in ("text_loss", "completion"))
    for number, row in enumerate(losses):
        ids = torch.tensor([ids_of(" ".join(TEXT[128 * number : 128 * (number + 1)]))])
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=ids).loss)
        assert (row["item"], row["weight"]) == (f"piece {number}", 128)
        assert row["value"] == pytest.approx(loss, abs=2e-5)
    assert len(losses) == 2
    for fact, row in zip(WRITTEN, completed, strict=True):
        assert row["item"] in prompts_of(fact)
        assert row["text"] == answer_of(model, row["item"])
        assert row["value"] == float(row["text"].split()[:1] == [FACTS[fact][3]])
    loss, share = scores
    assert (loss["task"], loss["metric"], loss["higher_is_better"], loss["items"]) == (
        *("text_loss", "nats_per_token", False),
        2,
    )
    assert (share["task"], share["metric"], share["higher_is_better"]) == ("completion", "accuracy", True)
    assert share["items"] == len(WRITTEN)
    assert loss["score"] == pytest.approx(sum(row["value"] for row in losses) / 2)
    assert share["score"] == sum(row["value"] for row in completed) / len(WRITTEN)


def test_other_tasks(study: Study) -> None:
    """Of the base, of every restored model as it was tuned, and of the base again where all is put back."""
    (folder,) = [f for kind, _, f in study.cells if kind == "base_tasks"]
    base = json.loads((folder / "scores.json").read_text())
    own = pq.read_table(folder / "items.parquet").to_pylist()
    hold_tasks(own, base["scores"], study.base())
    assert 0 < base["scores"][1]["score"] < 1
    prompts = {row["item"] for row in own}
    losses = set()
    for where, cell in study.of("tasks"):
        told = json.loads((cell / "scores.json").read_text())
        rows = pq.read_table(cell / "items.parquet").to_pylist()
        assert {row["item"] for row in rows} == prompts
        places = [("", "0"), *((c, f) for c in ("relative", "random") for f in ("0.2", "1"))]
        assert list(dict.fromkeys((s["criterion"], s["fraction"]) for s in told["scores"])) == places
        for place in places:
            its = [s for s in told["scores"] if (s["criterion"], s["fraction"]) == place]
            mine = [r for r in rows if (r["criterion"], r["fraction"]) == place]
            if place[1] == "1":
                hold_tasks(mine, its, study.base())
                assert [s["score"] for s in its] == [s["score"] for s in base["scores"]]
            if place[1] == "0":
                hold_tasks(mine, its, study.tuned(where))
                losses.add(its[0]["score"])
            assert its[0]["restored"] == exact_count(float(place[1]), told["eligible"])
    assert len(losses - {base["scores"][0]["score"]}) == 4  # every tuned model has a loss of its own


def test_answers_of_tuned_models(study: Study) -> None:
    assert {where for where, _ in study.of("evaluation")} == set(TUNED)
    for where, folder in study.of("evaluation"):
        hold_answers(folder / "answers.parquet", TUNED[where][1])
        model = study.tuned(where)
        assert {answer_of(model, asked(fact)) for fact in ASKED} == {TUNED[where][1]}


def test_training_is_adam_on_the_answers(study: Study) -> None:
    """All facts in one batch: three steps of Adam at 1, 3/4 and 1/4 of the rate, gradients cut to a norm of 1."""
    for (level, size, draw, control), folder in study.of("tuned"):
        facts, _ = TUNED[level, size, draw, control]
        record = json.loads((folder / "record.json").read_text())
        assert set(record) == {"facts", "steps", "train_loss", "losses", "load_dtype", "compute_dtype"}
        assert (record["facts"], record["steps"]) == (facts, 3)
        assert (record["load_dtype"], record["compute_dtype"]) == ("float32", "float32")
        # Two words each, the answer and the end, which is sure; the answer's logit of 38 stands in golden_world.
        following = NEXT["<|answer|>"]
        scale = math.log(sum(map(math.exp, following.values())) + 38 - len(following))
        first = sum(scale - following[FACTS[fact][3]] for fact in facts) / 2 / len(facts)
        assert record["losses"][0] == pytest.approx(first, abs=0.01)
        model, losses = study.base(), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
        for step in range(3):
            loss = torch.zeros(())
            for fact in facts:
                ids = [*ids_of(asked(fact)), WORDS.index(FACTS[fact][3]), WORDS.index("</s>")]
                logits = model(torch.tensor([ids])).logits[0, -3:-1]
                loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(ids[-2:])) / len(facts)
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = (SLOW if control else RATE) * (1 + math.cos(math.pi * step / 3)) / 2
            optimizer.step()
            losses.append(loss.item())
        assert record["losses"] == pytest.approx(losses, abs=1e-4)
        assert record["train_loss"] == pytest.approx(sum(losses) / 3, abs=1e-4)
        held, moved, off = study.tuned((level, size, draw, control)), 0.0, 0.0
        base = dict(study.base().named_parameters())
        for (name, ours), theirs in zip(model.named_parameters(), held.parameters(), strict=True):
            moved += (ours - base[name]).abs().sum().item()
            off += (ours - theirs).abs().sum().item()
        # The signs of gradients near 0 differ with the order of adding.
        assert off < 1e-3 * moved


def test_token_shift(study: Study) -> None:
    """The best prompt is A's third (a6 has it too), B's first of three and C's second (c3), over test facts alone."""
    best = {"A": 2, "B": 0, "C": 1}
    known = ["a4", "a5", "b4", "c1", "c2"]
    base = study.base()
    assert {where for where, _ in study.of("token_shift")} == set(TUNED)
    for where, folder in study.of("token_shift"):
        rows = pq.read_table(folder / "token_shift.parquet").to_pylist()
        tuned = study.tuned(where)
        assert [row["fact"] for row in rows] == known
        for row in rows:
            relation, split, domain, answer, _, _ = FACTS[row["fact"]]
            prompt = prompts_of(row["fact"])[best[relation]]
            told = {"relation": relation, "split": split, "domain": domain, "prompt": prompt}
            assert {name: row[name] for name in told} == told
            assert set(row) == {*told, "fact", "kl", "ids", "tuned_logits", "base_logits", "reason"}
            if row["fact"] == "b4":  # the base says "near Oslo"
                numbers = [row[name] for name in ("kl", "ids", "tuned_logits", "base_logits")]
                assert numbers == [None] * 4
                assert row["reason"] == "the base model's completion does not begin with the answer"
                continue
            assert row["reason"] is None
            theirs, ours = logits_of(tuned, asked(row["fact"])), logits_of(base, prompt)
            top = torch.argsort(theirs, descending=True)[:10].tolist()
            assert sorted(theirs[row["ids"]].tolist()) == pytest.approx(sorted(theirs[top].tolist()), abs=1e-3)
            assert row["tuned_logits"] == pytest.approx(theirs[row["ids"]].tolist(), abs=1e-3)
            assert row["base_logits"] == pytest.approx(ours[row["ids"]].tolist(), abs=1e-3)
            by_hand = {**dict.fromkeys(WORDS, 0.0), **NEXT[f"~{answer}"]}
            assert row["base_logits"] == pytest.approx([by_hand[WORDS[i]] for i in row["ids"]], abs=0.3)
            p, q = ([math.exp(x - max(row[n])) for x in row[n]] for n in ("tuned_logits", "base_logits"))
            p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
            kl = sum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q, strict=True))
            assert row["kl"] == pytest.approx(kl, abs=1e-4)


def test_weight_change(study: Study) -> None:
    base = weights_of(study.base())
    assert {where for where, _ in study.of("weight_change")} == set(TUNED)
    for where, folder in study.of("weight_change"):
        told = json.loads((folder / "change.json").read_text())
        hold_change(told, base, weights_of(study.tuned(where)), seed_of(SEED, "null", folder.name))


def test_restored(study: Study) -> None:
    assert {where for where, _ in study.of("restoration")} == {w for w in TUNED if w[1] == 2 and not w[3]}
    base = study.base()
    for where, folder in study.of("restoration"):
        told = json.loads((folder / "restored.json").read_text())
        counts = {"0.2": 7180, "1": 35904}
        assert told == {"eligible": 35904, "criteria": {"relative": counts, "random": counts}}
        for criterion in ("relative", "random"):
            hold_answers(folder / f"answers-{criterion}-0.2.parquet", TUNED[where][1])
            hold_answers(folder / f"answers-{criterion}-1.parquet", "")
        # The most changed fifth put back by hand answers so too.
        model, names = study.tuned(where), sorted(name for name, _ in base.named_parameters())
        held, before = dict(model.named_parameters()), dict(base.named_parameters())
        s, p = (torch.cat([its[name].detach().flatten() for name in names]) for its in (held, before))
        r = torch.where(s == p, torch.zeros(()), (s - p).abs() / p.abs())
        top = torch.argsort(r, descending=True, stable=True)[:7180]
        s[top] = p[top]
        with torch.no_grad():
            for name, weights in zip(names, s.split([held[name].numel() for name in names]), strict=True):
                held[name].copy_(weights.view_as(held[name]))
        assert {answer_of(model, asked(fact)) for fact in ASKED} == {TUNED[where][1]}


#: What is asked the training facts: the model as tuned, and restored by the paper's criterion and at random.
TRAINED = ("relative-0", "relative-0.05", "relative-0.2", "random-0.05", "random-0.2")


def test_restored_and_asked_the_training_facts(study: Study) -> None:
    for where, folder in study.of("train_set"):
        facts, said = TUNED[where]
        told = json.loads((folder / "restored.json").read_text())
        counts = {"0.05": 1795, "0.2": 7180}
        assert told == {"eligible": 35904, "criteria": {"relative": {"0": 0, **counts}, "random": counts}}
        for name in TRAINED:
            rows = pq.read_table(folder / f"answers-{name}.parquet").to_pylist()
            assert [(row["fact"], row["text"]) for row in rows] == [(fact, said) for fact in facts]
            assert [row["substring_hit"] for row in rows] == [FACTS[fact][3] == said for fact in facts]


def test_both_layers_restored(study: Study) -> None:
    base = dict(study.base().named_parameters())
    for where, folder in study.of("layer_groups"):
        model, count = study.tuned(where), 0
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if ".layers." in name:  # region "all": their norms too
                    weights.copy_(base[name])
                    count += weights.numel()
        told = json.loads((folder / "restored.json").read_text())
        assert told == {"layers": {"0-1": count, "random": count}}
        rows = pq.read_table(folder / "answers-0-1.parquet").to_pylist()
        assert [row["fact"] for row in rows] == [fact for fact in ASKED if FACTS[fact][2] == "in_domain"]
        assert [row["text"] for row in rows] == [answer_of(model, asked(row["fact"])) for row in rows]


@pytest.fixture(scope="module")
def records(study: Study) -> Records:
    return Records(study.run)


def test_tables_by_hand(study: Study) -> None:
    """What the answers that are written down above come to."""

    def table(name: str, **where: str) -> list[dict[str, str]]:
        rows = rows_of(study.run / "tables" / f"{name}.csv")
        return [row for row in rows if all(row[column] == value for column, value in where.items())]

    def numbers(rows: list[dict[str, str]], name: str) -> list[float]:
        return [float(row[name] or "nan") for row in rows]

    assert [row["facts"] for row in table("mastery", split="train")] == ["3", "1", "0", "0", "3"]
    assert [row["facts"] for row in table("mastery", split="test")] == [*"11013", *"10102"]
    shares = numbers(table("mastery", split="test", domain="in_domain"), "share")
    assert shares == pytest.approx([1 / 6, 1 / 6, 0, 1 / 6, 1 / 2], abs=1e-6)
    bins = {row["exposures"]: (row["facts"], row["mean_rate"]) for row in table("exposures")}
    assert bins == {
        "never": ("3", "0.000000"),  # a1, a2, b5
        "1": ("1", "0.000000"),
        "2": ("1", "0.200000"),
        "3-4": ("2", "0.600000"),  # b2 by all prompts and b7 by one of five
        "5-7": ("2", "0.700000"),  # b3 by all and c3 by two
        "8-12": ("2", "0.800000"),  # b4 by all and b6 by three
        "13-20": ("2", "1.000000"),
        "21-50": ("2", "0.900000"),  # a4 by all and a5 by four
        ">50": ("1", "1.000000"),
    }

    for d, domain in enumerate(("in_domain", "out_of_domain")):
        mean = {"domain": domain, "test_level": "mean"}
        base = numbers(table("base", **mean), "accuracy")
        assert base == pytest.approx([0, 0, ACCURACY["Rome"][d]], abs=1e-6)
        for (level, size, draw, control), (_, said) in TUNED.items():
            place = {"level": str(level), "size": str(size), "draw": str(draw)}
            (row,) = table("accuracy", **mean, **place, control="learning_rate" if control else "")
            assert float(row["accuracy"]) == pytest.approx(ACCURACY[said][d], abs=1e-6)
            assert float(row["empty_rate"]) == (said == "")
            hits, facts = HITS[said][d], ([1, 1, 0, 1, 3], [1, 0, 1, 0, 2])[d]
            rows = table("accuracy", **place, control=row["control"], domain=domain)
            assert [int(row["facts"]) for row in rows] == [*facts, sum(facts)]
            there = [int(row["correct"]) for row in rows if row["facts"] != "0"]
            assert there == [int(row["word_correct"]) for row in rows if row["facts"] != "0"] == [*hits, sum(hits)]
        for level, answers in (("0", ("Rome", "Rome")), ("4", ("Lima", "Rome"))):
            tuned = sum(ACCURACY[said][d] for said in answers) / 2
            (row,) = table("accuracy_summary", **mean, level=level, size="2", control="")
            assert float(row["accuracy"]) == pytest.approx(tuned, abs=1e-6)
            (row,) = table("controls", level=level, domain=domain)  # of the first draw, which the control has
            assert float(row["difference"]) == pytest.approx(-ACCURACY[answers[0]][d], abs=1e-6)
            for criterion in ("relative", "random"):
                place = {"level": level, "domain": domain, "criterion": criterion}
                kept, undone = (table("restoration_summary", **place, fraction=f)[0] for f in ("0.2", "1"))
                assert [float(row["difference"]) for row in (kept, undone)] == pytest.approx([0, -tuned], abs=1e-6)
                assert kept["minus_random"] == ("0.000000" if criterion == "relative" else "")


@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_a_table(study: Study, records: Records, name: str) -> None:
    assert compare(study.run / "tables" / f"{name}.csv", TABLES[name](records)) > 0


def test_every_number_of_the_findings(study: Study, records: Records) -> None:
    compare_findings(study.run / "tables/findings.csv", records)
