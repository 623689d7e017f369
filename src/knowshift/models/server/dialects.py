"""What each kind of completions server must be told, beyond OpenAI's own fields, to sample the whole distribution.

Versions of one server differ in how a field is spelled, so a dialect may hold several spellings of a field, which are
tried out in order. A neutral value is left out only where its absence is neutral too. vLLM and SGLang take what is not
sent of ``top_k``, ``min_p`` and ``repetition_penalty`` from the model's own generation configuration, so these are
never left out; whether a stop text stays is tried out anyway, so the fields that ask for it may be.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

#: The spelling of a field that is not sent.
LEFT_OUT: Final = object()


@dataclass(frozen=True)
class Dialect:
    """What a kind of server needs to be told beyond OpenAI's own fields."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    spellings: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # field -> its values by version
    without: tuple[str, ...] = ()  # fields that must not be sent
    generation_config: bool = False  # sampling is set by a JSON string of that name (`transformers serve`)

    def spelled(self) -> Iterator[Dialect]:
        """The dialect with one spelling of every field, in the order in which they are tried."""
        for chosen in itertools.product(*self.spellings.values()):
            sent = {name: value for name, value in zip(self.spellings, chosen, strict=True) if value is not LEFT_OUT}
            yield replace(self, fields={**self.fields, **sent}, spellings={})

    def tried(self) -> str:
        """All the spellings, for people."""
        return ", ".join(
            f"{name} {' or '.join('left out' if value is LEFT_OUT else str(value) for value in values)}"
            for name, values in self.spellings.items()
        )


DIALECTS = {
    # A model's own generation_config.json may set a repetition penalty, which both would apply unasked.
    "vllm": Dialect(
        "vllm",
        {"min_p": 0.0, "repetition_penalty": 1.0},
        # No top-k is 0 since vLLM 0.9 (pull request 17773), which still takes -1; before, 0 is refused.
        {"top_k": (0, -1), "include_stop_str_in_output": (True, LEFT_OUT)},
    ),
    "sglang": Dialect(
        "sglang", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}, {"no_stop_trim": (True, LEFT_OUT)}
    ),
    # Temperature alone in the chain of samplers; the rest for versions that apply a sampler outside it.
    "llamacpp": Dialect(
        "llamacpp",
        {
            "samplers": ["temperature"],
            "dynatemp_range": 0.0,
            "mirostat": 0,
            "top_k": 0,
            "min_p": 0.0,
            "typical_p": 1.0,
            "repeat_penalty": 1.0,
        },
    ),
    "tgi": Dialect("tgi", {"repetition_penalty": 1.0}, without=("top_p",)),  # refuses a top_p of 1
    "transformers": Dialect("transformers", generation_config=True),
    "openai": Dialect("openai"),
}
