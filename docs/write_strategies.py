"""Writes docs/every_strategy.md from the registry of strategies: ``python docs/write_strategies.py``.

tests/docs/test_strategies.py fails where the page is not what the registry says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from knowshift.tuning.registry import STRATEGIES, listed

PAGE = Path(__file__).with_name("every_strategy.md")
#: What benchmarks/strategies.py wrote, for the columns of these names; a column without its file is left out.
MEASURED = Path(__file__).with_name("measured")
COLUMNS = {"time": "strategies_time.json", "memory": "strategies_memory.json"}
#: Seconds that are told, of what is done once.
SECONDS = 0.1

HEAD = """\
# Every strategy

`docs/write_strategies.py` writes this page from the registry (`knowshift.tuning.registry`);
`knowshift finetune --strategy help` prints the same.

A strategy is a way of fine-tuning on facts, with as many updates as any other: it may train other weights, take other
facts or another loss, act at each step, or change the tuned weights afterwards. `sft` is plain supervised fine-tuning,
the paper's. How they are used, which of them to use and what they do to knowledge: [strategies.md](strategies.md).

- **Rate** is the learning rate to begin with, in rates of plain fine-tuning: adapters need larger ones.
- **Cost** is beside plain fine-tuning, which has gradients and Adam's two moments of all weights.
- The tuned checkpoint is a whole one: adapters are merged, and the model has its own modules.
- After an error or an interrupt nothing is written; a loaded model stays as it is.
- Where a strategy needs facts that the base knows, they are training facts of mastery levels 3 and 4: test facts are
  never looked at.
"""

KINDS = {
    "recipe": ("Recipes", "What won [the bench](strategies.md#the-bench)."),
    "weights": ("Which weights are trained", "Adapters, and models of which a part stays as it is."),
    "data": ("Which facts are trained on", "As many examples as plain fine-tuning has."),
    "loss": ("Which loss", "Of each token of the answer."),
    "step": ("What happens at each step", "On gradients, weights or the number of steps."),
    "after": ("What happens after training", "Plain fine-tuning, or LoRA, and then a change of its weights."),
}


#: What each measured column is; braces are filled in from its file.
ABOUT = {
    "time": """\
- **Time** is the processor time of an update in those of plain fine-tuning beside it, in turns: median of {turns}
  pairs (smallest to largest), of {updates} updates each but the first. What is done once, before or after the updates,
  does not grow with their number and is told in seconds, above those of plain fine-tuning, from {seconds:g} s.
  {origin} Other work ran beside half of them;
  `sft` is plain fine-tuning beside itself and shows what is chance. An empty cell was not measured ({measured} of {all}
  were). On another model ratios are others: this one is small, and what is done for each tensor counts for more.
""",
    "memory": """\
- **Memory** is the highest resident memory of a training above that of plain fine-tuning, in copies of all weights;
  plain fine-tuning holds four (weights, gradients, two moments). {origin} The model is the shipped one, made deeper
  until its weights outweigh activations ({millions:.0f} million; rank 8 is 7% of a matrix there, and less on wider
  models). A copy of the base is in it where one is asked or gone back to. A study, whose base is there anyway, and the
  refusal of a device that is too small reckon with these numbers (`Strategy.held`), less that copy.
""",
}


def page(measured: Path = MEASURED) -> str:
    """The whole page, as Markdown, with the columns that are in the folder ``measured``."""
    found = {
        name: json.loads((measured / file).read_text()) for name, file in COLUMNS.items() if (measured / file).exists()
    }
    return "\n".join([HEAD + "".join(_about(name, told) for name, told in found.items()), *_sections(found)])


def _about(column: str, told: Mapping[str, Any]) -> str:
    """A measured column, with command, machine and date."""
    machine, threads = told["machine"], told["machine"]["threads"]
    origin = (
        f"`{told['command']}`, {machine['date']}: {threads} {'thread' if threads == 1 else 'threads'} on "
        f"{machine['cores']} cores, {machine['processor']}, torch {machine['torch']}, PEFT {machine['peft']}."
    )
    return ABOUT[column].format(
        turns=told["turns"],
        updates=told["size"] // told["batch_size"],
        seconds=SECONDS,
        origin=origin,
        measured=len(told["strategies"]),
        all=len(STRATEGIES),
        millions=told["weights"] / 1e6,
    )


def _cell(column: str, told: Mapping[str, Any]) -> str:
    """What was measured of one strategy."""
    if column == "memory":
        return f"{told['memory']:+.1f}".replace("-0.0", "+0.0")
    clock = told["processor"]
    ratio = clock["ratio"]
    text = f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
    once = [f"{clock[part]:.1f} s {part}" for part in ("before", "after") if clock[part] >= SECONDS]
    return "; ".join([text, *once])


def _sections(found: Mapping[str, Any]) -> Iterator[str]:
    columns = ["name", "what it does", "settings", "rate", "cost", *found, "source"]
    for kind, (title, about) in KINDS.items():
        yield f"## {title}\n\n{about}\n"
        yield f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
        for one in listed():
            if one["kind"] == kind:
                yield _row(one, found)
        yield ""


def _row(one: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    ranges = {field.name: field.metadata for field in fields(STRATEGIES[one["name"]])}
    settings = "; ".join(_setting(setting, ranges[setting["name"]]) for setting in one["settings"])
    name = one["name"]
    measured = [
        _cell(column, told["strategies"][name]) if name in told["strategies"] else "" for column, told in found.items()
    ]
    cells = (f"`{name}`", one["about"], settings, f"{one['rate']:g}", one["cost"], *measured, one["source"])
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _setting(setting: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """``rank=8``: what it is, in which unit, of which range."""
    least, most = about["least"], about["most"]
    more = [setting["unit"]] if setting["unit"] else []
    if least is not None:
        more.append(f"{least:g} to {most:g}" if most is not None else f"at least {least:g}")
    value = str(setting["default"]).lower() if isinstance(setting["default"], bool) else setting["default"]
    return f"`{setting['name']}={value}`: {setting['about']}{' (' + ', '.join(more) + ')' if more else ''}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
