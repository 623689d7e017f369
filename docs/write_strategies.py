"""Writes docs/strategies.md from the registry of strategies: ``python docs/write_strategies.py``.

tests/docs/test_strategies.py fails where the page is not what the registry says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from knowshift.tuning.registry import STRATEGIES, listed

PAGE = Path(__file__).with_name("strategies.md")

HEAD = """\
# Strategies of fine-tuning

`docs/write_strategies.py` writes this page from the registry (`knowshift.tuning.registry`);
`knowshift finetune --strategy help` prints the same.

A strategy is a way of fine-tuning on facts, with as many updates as any other: it may train other weights, take other
facts or another loss, act at each step, or change the tuned weights afterwards. `sft` is plain supervised fine-tuning,
the paper's.

```sh
knowshift mastery MODEL --facts SOURCE --output mastery.parquet
knowshift finetune MODEL --facts SOURCE --mastery mastery.parquet --level 2 --size 240 \\
  --strategy lora --option rank=4 --option alpha=8 --learning-rate 1e-4 --output-dir tuned
```

`--option KEY=VALUE` is a setting, and may be repeated; what is not given has the default below. A setting that a
strategy does not have, or a value outside its range, is refused before anything is loaded. From Python:
`knowshift.finetune(..., strategy="lora", settings={"rank": 4})`, and `knowshift.strategies()` for the list. In a study
a [variant](study.md#the-config) has `strategy` and `settings`.

- **Rate** is the learning rate to begin with, in rates of plain fine-tuning: adapters need larger ones.
- **Cost** is beside plain fine-tuning, which has gradients and Adam's two moments of all weights.
- The tuned checkpoint is a whole one: adapters are merged, and the model has its own modules.
- After an error or an interrupt nothing is written; a loaded model stays as it is.
- Where a strategy needs facts that the base knows, they are training facts of mastery levels 3 and 4: test facts are
  never looked at.
"""

KINDS = {
    "recipe": ("The default recipe", "What won the bench, below."),
    "weights": ("Which weights are trained", "Adapters, and models of which a part stays as it is."),
    "data": ("Which facts are trained on", "As many examples as plain fine-tuning has."),
    "loss": ("Which loss", "Of each token of the answer."),
    "step": ("What happens at each step", "On gradients, weights or the number of steps."),
    "after": ("What happens after training", "Plain fine-tuning, or LoRA, and then a change of its weights."),
}


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([HEAD, *_sections()])


def _sections() -> Iterator[str]:
    for kind, (title, about) in KINDS.items():
        yield f"## {title}\n\n{about}\n"
        yield "| name | what it does | settings | rate | cost | source |\n|---|---|---|---|---|---|"
        for one in listed():
            if one["kind"] == kind:
                yield _row(one)
        yield ""


def _row(one: Mapping[str, Any]) -> str:
    ranges = {field.name: field.metadata for field in fields(STRATEGIES[one["name"]])}
    settings = "; ".join(_setting(setting, ranges[setting["name"]]) for setting in one["settings"])
    cells = (f"`{one['name']}`", one["about"], settings, f"{one['rate']:g}", one["cost"], one["source"])
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
