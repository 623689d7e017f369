"""The tables of the paper (Ye et al., EMNLP 2025) in its form: this run's rows, and beside each what is published.

They are made from the report's long tables. Rows stand in the order of what they are about, the run's before those of
the paper's models; what was not measured, or is not published, is missing. Columns ``level_0`` to ``level_4`` are the
training facts' mastery level. Models of the main grid alone take part, not the learning-rate control; in the table of
strategies variants of mixed levels and an instruct model too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from knowshift.facts.fact import DOMAINS, LEVELS
from knowshift.html.table import Row, Table
from knowshift.reports.evidence.restored import first_layer
from knowshift.reports.evidence.sizes import Size, place_of, rows_by_size
from knowshift.reports.findings.claims import mean_of
from knowshift.reports.published import published
from knowshift.reports.tables.answers import TEST_LEVELS, level_name
from knowshift.reports.tables.other import AS_TUNED, BASE

BY_LEVEL = tuple(f"level_{level}" for level in range(LEVELS))
#: The fractions of the paper's tables on concentration and restoration.
FRACTIONS = ("0.01", "0.03", "0.05", "0.1", "0.2", "0.4", "0.6")
#: A metric that is no share: the loss on texts, in nats a token.
NATS = "nats_per_token"
#: What restores the paper's models, and the name of what is restored nowhere: the model as tuned.
RELATIVE = "relative"


def paper_tables(tables: Mapping[str, Table], rate: str, mixed: Mapping[str, bool]) -> list[Table]:
    """Every table in the paper's form; ``rate`` is the grid's learning rate, as tables write it.

    ``mixed`` names the variants that trained on mixed levels, and says whether by LoRA.
    """
    return [
        paper_mastery(tables["mastery"]),
        paper_accuracy(tables["accuracy_summary"], rate),
        level_4(tables["accuracy_summary"], tables["token_shift_summary"], rate),
        paper_concentration(tables["concentration"], rate),
        paper_restoration(tables["accuracy_summary"], tables["restoration_summary"], rate),
        paper_other_tasks(tables["other_tasks"], rate),
        paper_train_set(tables["train_set"], rate),
        paper_strategies(tables["accuracy_summary"], tables["restoration_summary"], tables["instruct"], rate, mixed),
        paper_layer_groups(tables["accuracy_summary"], tables["layer_groups"], rate),
    ]


def paper_mastery(mastery: Table) -> Table:
    """Facts of each split at each mastery level, and their shares (Tables 1 and 8)."""
    counts: dict[tuple[str, str], dict[int, int]] = {}
    for row in mastery.where():
        if row["level"] != "unscored":
            split = f"{row['split']}_{row['domain']}"
            counts.setdefault((split, "run"), {})[int(row["level"])] = row["facts"]
    for row in published("mastery_distribution"):
        counts.setdefault((row["split"], row["model"]), {})[int(row["level"])] = int(row["facts"])
    splits = list(dict.fromkeys(split for split, _ in counts))
    rows: list[Row] = []
    for (split, source), facts in sorted(counts.items(), key=lambda item: splits.index(item[0][0])):
        total = sum(facts.values())
        shares = [facts[level] / total if total else None for level in range(LEVELS)]
        rows.append((split, source, total, *(facts[level] for level in range(LEVELS)), *shares))
    shared = tuple(f"share_{level}" for level in range(LEVELS))
    return Table("paper_mastery", ("split", "source", "facts", *BY_LEVEL, *shared), tuple(rows), frozenset(shared))


def paper_accuracy(summary: Table, rate: str) -> Table:
    """Accuracy by test level with its standard deviation over draws (Table 2; by size, its Figures 2 and 6).

    The paper has every test level at 1,920 samples; at 240 it prints the mean of LLaMA-3-8B alone (Table 4, nothing
    restored), and all facts of a level it draws without printing numbers. ``samples`` is the number of training facts,
    also where the size is "all".
    """
    found: dict[tuple[Size, int, str, str], dict[str, tuple[Any, Any]]] = {}
    samples: dict[tuple[Size, int], int] = {}
    for row in rows_by_size(summary, learning_rate=rate):
        place: tuple[Size, int, str, str] = (row["size"], row["level"], row["domain"], "run")
        found.setdefault(place, {})[row["test_level"]] = (row["accuracy"], row["deviation"])
        samples[row["size"], row["level"]] = row["samples"]
    for one in published("restoration"):
        if (one["train_size"], one["restored_fraction"]) == ("240", "0"):
            place = (240, int(one["train_level"]), one["domain"], one["model"])
            found[place] = {"mean": (float(one["accuracy_percent"]) / 100, None)}
    for one in published("accuracy_1920"):
        place = (int(one["train_size"]), int(one["train_level"]), one["domain"], one["model"])
        pair = (float(one["accuracy_percent"]) / 100, float(one["deviation"]) / 100)
        found.setdefault(place, {})[one["test_level"]] = pair
    names = [level_name(level) for level in TEST_LEVELS]
    columns = [name if name == "mean" else f"test_{name}" for name in names]
    deviations = [f"deviation_{name}" for name in names]
    rows: list[Row] = []
    for place in sorted(found, key=lambda at: (place_of(at[0]), _domain(at[2]), at[1], _rank(at[3]))):
        size, level, domain, source = place
        pairs = [found[place].get(name, (None, None)) for name in names]
        about = (size, domain, level, source, samples.get((size, level), size))
        rows.append((*about, *(value for value, _ in pairs), *(spread for _, spread in pairs)))
    places = ("size", "domain", "level", "source", "samples")
    return Table("paper_accuracy", (*places, *columns, *deviations), tuple(rows), frozenset((*columns, *deviations)))


def level_4(summary: Table, shifts: Table, rate: str) -> Table:
    """Accuracy on the best-known test facts, beside the KL to the base, by size (Figures 4 and 5; nats).

    ``samples`` is the number of training facts, also where the size is "all".
    """
    kl = {(row["size"], row["level"], row["domain"]): row for row in rows_by_size(shifts, learning_rate=rate)}
    rows: list[Row] = []
    best = rows_by_size(summary, learning_rate=rate, test_level=str(LEVELS - 1))
    for row in sorted(best, key=lambda row: (_domain(row["domain"]), row["level"], place_of(row["size"]))):
        place = (row["size"], row["level"], row["domain"])
        shift = kl.get(place, {})
        told = [shift.get(name) for name in ("facts", "kl_mean", "low", "high")]
        rows.append(
            (
                row["domain"],
                row["level"],
                row["size"],
                row["samples"],
                row["facts"],
                *(row[k] for k in ("accuracy", "low", "high")),
                *told,
            )
        )
    columns = (
        "domain",
        "level",
        "size",
        "samples",
        "facts",
        "accuracy",
        "low",
        "high",
        "kl_facts",
        "kl_mean",
        "kl_low",
        "kl_high",
    )
    return Table("level_4", columns, tuple(rows), frozenset(("accuracy", "low", "high")))


def paper_concentration(concentration: Table, rate: str) -> Table:
    """Share of the summed relative change in the top 1 to 60% of weights, beside the no-signal null (Table 3)."""
    found: dict[tuple[int, int, str], dict[str, float]] = {}
    for source in ("run", "null"):
        for row in concentration.where(source=source, control="", learning_rate=rate, measure="relative"):
            found.setdefault((row["size"], row["level"], source), {})[row["top_fraction"]] = row["share"]
    for one in published("update_concentration"):
        place = (int(one["train_size"]), int(one["train_level"]), one["model"])
        found.setdefault(place, {})[one["top_fraction"]] = float(one["share_of_relative_change_percent"]) / 100
    columns = tuple(f"top_{round(100 * float(name))}" for name in FRACTIONS)
    rows: list[Row] = [
        (*place, *(found[place].get(name) for name in FRACTIONS))
        for place in sorted(found, key=lambda at: (at[0], at[1], _rank(at[2])))
    ]
    return Table("paper_concentration", ("size", "level", "source", *columns), tuple(rows), frozenset(columns))


def paper_restoration(summary: Table, restored: Table, rate: str) -> Table:
    """Accuracy after restoring each fraction, by training level (Table 4); fraction 0 is the model as tuned."""
    found: dict[tuple[int, str, str, str, str], dict[int, float]] = {}
    sizes = set()
    for row in restored.where(control="", learning_rate=rate):
        if row["level"] != "mean":
            sizes.add(row["size"])
            place = (row["size"], row["domain"], row["criterion"], row["fraction"], "run")
            found.setdefault(place, {})[int(row["level"])] = row["accuracy"]
    for row in summary.where(control="", learning_rate=rate, test_level="mean"):
        if row["size"] in sizes:
            found.setdefault((row["size"], row["domain"], AS_TUNED, "0", "run"), {})[row["level"]] = row["accuracy"]
    for one in published("restoration"):
        fraction = one["restored_fraction"]
        criterion = RELATIVE if float(fraction) else AS_TUNED
        place = (int(one["train_size"]), one["domain"], criterion, fraction, one["model"])
        found.setdefault(place, {})[int(one["train_level"])] = float(one["accuracy_percent"]) / 100
    rows = by_training_level(found, lambda at: (at[0], _domain(at[1]), _criterion(at[2]), float(at[3])))
    columns = ("size", "domain", "criterion", "fraction", "source", *BY_LEVEL)
    return Table("paper_restoration", columns, rows, frozenset(BY_LEVEL))


def paper_train_set(trained: Table, rate: str) -> Table:
    """Accuracy on the training facts after restoring, by training level, mean over draws (Table 6)."""
    found: dict[tuple[int, str, str, str], dict[int, float]] = {}
    for (size, criterion, fraction, level), values in _over_draws(trained, rate, "criterion", "fraction").items():
        kind = criterion if float(fraction) else AS_TUNED
        found.setdefault((size, kind, fraction, "run"), {})[level] = mean_of(values)
    for one in published("restoration_train_set"):
        fraction = one["restored_fraction"]
        kind = RELATIVE if float(fraction) else AS_TUNED
        place = (int(one["train_size"]), kind, fraction, one["model"])
        found.setdefault(place, {})[int(one["train_level"])] = float(one["train_accuracy_percent"]) / 100
    rows = by_training_level(found, lambda at: (at[0], _criterion(at[1]), float(at[2])))
    return Table("paper_train_set", ("size", "criterion", "fraction", "source", *BY_LEVEL), rows, frozenset(BY_LEVEL))


#: The scores of the paper's Table 5: its columns, and the task and metric that measure the same here.
OTHER_SCORES = {
    "xsum_rouge1": ("knowshift_xsum", "rouge1"),
    "xsum_rouge2": ("knowshift_xsum", "rouge2"),
    "xsum_rougeL": ("knowshift_xsum", "rougeL"),
    "gsm8k_accuracy": ("gsm8k", "exact_match"),
}
#: Of a published score, what its column is called where it is in percent.
_PUBLISHED_SCORES = {"gsm8k_accuracy": "gsm8k_accuracy_percent"}


def score_name(row: Mapping[str, Any]) -> str:
    """The column of a score in the table "paper_other_tasks", of a row with its task and metric."""
    named = {about: name for name, about in OTHER_SCORES.items()}
    return named.get((row["task"], row["metric"])) or f"{row['task']}_{row['metric']}"


def paper_other_tasks(scores: Table, rate: str) -> Table:
    """Other tasks after restoring each fraction (Table 5), a column for each task's score.

    Of a run, the mean over training levels of the mean over draws. The columns of the paper come first, then the
    run's own. The paper does not say what its model was tuned on, so its rows have no size.
    """
    found: dict[tuple[int | None, str, str, str], dict[str, dict[int, list[float]]]] = {}
    shares: dict[str, bool] = dict.fromkeys(OTHER_SCORES, True)
    for row in scores.where():
        of_base = row["criterion"] == BASE
        if not of_base and (row["control"] or row["learning_rate"] != rate):
            continue
        name = score_name(row)
        shares[name] = shares.get(name, True) and row["metric"] != NATS and 0 <= row["score"] <= 1
        place = (row["size"], row["criterion"], row["fraction"], "run")
        by_level = found.setdefault(place, {}).setdefault(name, {})
        by_level.setdefault(-1 if of_base else row["level"], []).append(row["score"])
    values = {
        place: {name: mean_of([mean_of(held) for held in by_level.values()]) for name, by_level in by_name.items()}
        for place, by_name in found.items()
    }
    for one in published("restoration_other_tasks"):
        fraction = one["restored_fraction"]
        place = (None, RELATIVE if float(fraction) else AS_TUNED, fraction, one["model"])
        values[place] = {name: float(one[_PUBLISHED_SCORES.get(name, name)]) / 100 for name in OTHER_SCORES}
    columns = [*OTHER_SCORES, *sorted(set(shares) - set(OTHER_SCORES))]
    order = sorted(values, key=lambda at: (at[0] or 0, *_criterion(at[1]), float(at[2] or 0), *_rank(at[3])))
    rows: list[Row] = [(*place, *(values[place].get(name) for name in columns)) for place in order]
    percent = frozenset(name for name in columns if shares[name])
    return Table("paper_other_tasks", ("size", "criterion", "fraction", "source", *columns), tuple(rows), percent)


#: The strategies of Table 7 that a study has numbers of, by the names there.
INSTRUCT, DIVIDED, RESTORED = "vendor instruct model", "SFT divided by mastery", "parameter restoration"
MIXED_SFT, MIXED_LORA = "SFT mixed", "LoRA mixed"


def paper_strategies(summary: Table, restored: Table, instruct: Table, rate: str, mixed: Mapping[str, bool]) -> Table:
    """The best model of each strategy (Table 7), in-domain and out-of-domain: of mixed data of all sizes and variants,
    by level and restored at the largest size.

    As in the paper the best is chosen, by the mean of both domains, on the facts that it is then measured on: the
    numbers are too high by what luck gives to the best of many, most where there are most to choose from. An instruct
    model is one model; the best is the form of the question that it answers best, and the paper does not say its own.
    """
    domains: tuple[str, ...] = DOMAINS
    rows: list[Row] = []
    grid = summary.where(control="", learning_rate=rate, test_level="mean")
    size = max((row["size"] for row in grid), default=0)
    tried: dict[str, dict[str, dict[str, float]]] = {
        strategy: {} for strategy in (INSTRUCT, MIXED_SFT, DIVIDED, MIXED_LORA, RESTORED)
    }
    forms = len({row["prompt"] for row in instruct.where()})
    for row in instruct.where():
        name = f"{row['prompt']}, best of {forms} forms"
        tried[INSTRUCT].setdefault(name, {})[row["domain"]] = row["accuracy"]
    for row in summary.where(level="mixed", test_level="mean"):
        if row["control"] in mixed:
            strategy = MIXED_LORA if mixed[row["control"]] else MIXED_SFT
            tried[strategy].setdefault(f"{row['control']}, {row['size']}", {})[row["domain"]] = row["accuracy"]
    for row in grid:
        if row["size"] == size:
            tried[DIVIDED].setdefault(f"level {row['level']}, {size}", {})[row["domain"]] = row["accuracy"]
    for row in restored.where(control="", learning_rate=rate, size=size, criterion=RELATIVE):
        if row["level"] != "mean":
            name = f"level {row['level']}, {size}, {100 * float(row['fraction']):g}%"
            tried[RESTORED].setdefault(name, {})[row["domain"]] = row["accuracy"]
    for strategy, models in tried.items():
        known = {name: held for name, held in models.items() if all(value == value for value in held.values())}
        if known:
            best = max(known, key=lambda name: mean_of(list(known[name].values())))
            rows.append((strategy, "run", best, *(known[best].get(domain) for domain in domains)))
    for one in published("strategies"):
        strategy, _, chosen = one["strategy"].removesuffix(")").partition(" (")
        shares = [float(one[f"{domain}_percent"]) / 100 for domain in domains]
        rows.append((strategy, one["model"], chosen, *shares))
    order = list(dict.fromkeys(one["strategy"].partition(" (")[0] for one in published("strategies")))
    rows.sort(key=lambda row: (order.index(str(row[0])), _rank(str(row[1]))))
    return Table("paper_strategies", ("strategy", "source", "chosen", *domains), tuple(rows), frozenset(domains))


def paper_layer_groups(summary: Table, groups: Table, rate: str) -> Table:
    """In-domain accuracy with a group of layers restored, by training level, mean over draws (Table 11).

    ``layers`` is empty for the model as tuned, and "random" for as many weights at random as the largest group has. The
    paper does not say its training size; its values match the rows of 240 samples in Table 4, whence the row of its
    model as tuned is.
    """
    found: dict[tuple[int, str, str], dict[int, float]] = {}
    for (size, layers, level), values in _over_draws(groups, rate, "layers").items():
        found.setdefault((size, layers, "run"), {})[level] = mean_of(values)
    sizes = {size for size, _, _ in found}
    for row in summary.where(control="", learning_rate=rate, domain="in_domain", test_level="mean"):
        if row["size"] in sizes:
            found.setdefault((row["size"], "", "run"), {})[row["level"]] = row["accuracy"]
    for one in published("restored_layers"):
        place = (int(one["train_size"]), one["restored_layers"], one["model"])
        found.setdefault(place, {})[int(one["train_level"])] = float(one["in_domain_percent"]) / 100
    for one in published("restoration"):
        if (one["train_size"], one["domain"], one["restored_fraction"]) == ("240", "in_domain", "0"):
            level, share = int(one["train_level"]), float(one["accuracy_percent"]) / 100
            found.setdefault((240, "", one["model"]), {})[level] = share
    rows = by_training_level(found, lambda at: (at[0], _rank(at[2]), first_layer(at[1]) if at[1] else -1))
    return Table("paper_layer_groups", ("size", "layers", "source", *BY_LEVEL), rows, frozenset(BY_LEVEL))


def _over_draws(table: Table, rate: str, *names: str) -> dict[tuple[Any, ...], list[float]]:
    """The accuracies of all draws by size, the columns ``names`` and training level."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in table.where(control="", learning_rate=rate):
        if row["accuracy"] is not None:
            place = (row["size"], *(row[name] for name in names), row["level"])
            found.setdefault(place, []).append(row["accuracy"])
    return found


def by_training_level(
    found: Mapping[tuple[Any, ...], Mapping[int, float]], order: Callable[[tuple[Any, ...]], tuple[Any, ...]]
) -> tuple[Row, ...]:
    """A row for each place, which ends with its source: the values of the training levels, missing where none is."""
    places = sorted(found, key=lambda at: (*order(at), *_rank(at[-1])))
    return tuple((*place, *(found[place].get(level) for level in range(LEVELS))) for place in places)


def _domain(name: str) -> int:
    names: tuple[str, ...] = DOMAINS
    return names.index(name)


def _criterion(name: str) -> tuple[int, str]:
    """The base model, as tuned, then the paper's criterion, then the others."""
    first = (BASE, AS_TUNED, RELATIVE)
    return (first.index(name) if name in first else len(first)), name


def _rank(source: str) -> tuple[int, str]:
    """The run, its null, then the paper's models: the one that most of its tables are about first."""
    own = ("run", "null", "LLaMA-3-8B")
    return (own.index(source) if source in own else len(own)), source
