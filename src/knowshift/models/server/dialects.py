"""What each kind of completions server must be told, beyond OpenAI's own fields, to sample the whole distribution.

Versions of one server differ in the fields that they know and in how a field is spelled, so a dialect may hold several
spellings of a field, which are tried out in order. A neutral value is left out only where its absence is neutral too.
vLLM and SGLang take what is not sent of ``top_k``, ``min_p`` and ``repetition_penalty`` from the model's own generation
configuration, so these are left out only where the server has no such sampler: it refuses an ordinary value
(:data:`ORDINARY`) as it does the neutral one. Whether a stop text stays is tried out anyway, so the fields that ask for
it may be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

#: The spelling of a field that is not sent.
LEFT_OUT: Final = object()
#: For samplers that may be left out where the server has none: a value that shapes a distribution, which no server
#: with that sampler refuses.
ORDINARY: Final[Mapping[str, Any]] = {
    "top_k": 5,
    "min_p": 0.5,
    "typical_p": 0.5,
    "repetition_penalty": 1.5,
    "repeat_penalty": 1.5,
}


@dataclass(frozen=True)
class Dialect:
    """What a kind of server needs to be told beyond OpenAI's own fields."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    spellings: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # field -> its values by version
    without: tuple[str, ...] = ()  # fields that must not be sent
    generation_config: bool = False  # sampling is set by a JSON string of that name (`transformers serve`)

    def values(self) -> dict[str, tuple[Any, ...]]:
        """The values of every field, in the order in which they are tried."""
        return {**{name: (value,) for name, value in self.fields.items()}, **self.spellings}

    def sending(self, chosen: Mapping[str, Any]) -> Dialect:
        """The dialect with these values of its fields and no other."""
        return replace(
            self, fields={name: value for name, value in chosen.items() if value is not LEFT_OUT}, spellings={}
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
            # A prompt that it remembers may be answered as another one after a request of several texts (seen in
            # build 11549, docs/servers.md), so every prompt is read anew.
            "cache_prompt": False,
        },
    ),
    "tgi": Dialect("tgi", {"repetition_penalty": 1.0}, without=("top_p",)),  # refuses a top_p of 1
    "transformers": Dialect("transformers", generation_config=True),
    "openai": Dialect("openai"),
}
