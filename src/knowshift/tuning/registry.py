"""The strategies by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from knowshift.errors import InputError, nearest
from knowshift.training.strategy import Strategy
from knowshift.tuning.after.intruders import Intruders
from knowshift.tuning.after.restored import (
    Breadcrumbs,
    Dare,
    DgHard,
    Fapm,
    Interpolate,
    Lines,
    Random,
    Restored,
    Ties,
)
from knowshift.tuning.data.forms import Forms
from knowshift.tuning.data.known import Known
from knowshift.tuning.data.known_last import KnownLast
from knowshift.tuning.data.mixed import Mixed
from knowshift.tuning.data.paraphrases import Paraphrases
from knowshift.tuning.data.parts import AnswerFrequency, AnswerLength, SubjectFrequency
from knowshift.tuning.data.relation_mix import RelationMix
from knowshift.tuning.data.replay import Replay
from knowshift.tuning.data.unknown import Unknown
from knowshift.tuning.loss.asft import Asft
from knowshift.tuning.loss.dft import Dft
from knowshift.tuning.loss.eaft import Eaft
from knowshift.tuning.loss.kl import Kl, KlTen
from knowshift.tuning.loss.self_distillation import SelfDistillation
from knowshift.tuning.loss.stm import Stm
from knowshift.tuning.recipe.best import Best, LoraKnown
from knowshift.tuning.step.average import Bema, Ema
from knowshift.tuning.step.early_stop import EarlyStop
from knowshift.tuning.step.mofo import Mofo
from knowshift.tuning.step.proximal import Proximal
from knowshift.tuning.step.restore_steps import RestoreSteps
from knowshift.tuning.weights.corda import Corda
from knowshift.tuning.weights.hft import Hft
from knowshift.tuning.weights.lora import Dora, Lora, LoraMlp, RsLora
from knowshift.tuning.weights.osf import Osf
from knowshift.tuning.weights.part import FrozenLayers, FrozenMlps
from knowshift.tuning.weights.shira import Shira

#: In the order in which they are listed.
STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind
    for kind in (
        *(Best, LoraKnown),
        *(Strategy, Lora, RsLora, Dora),
        *(LoraMlp, Osf, Corda, Shira, FrozenMlps, FrozenLayers, Hft),
        *(Mixed, Known, Replay, KnownLast, Forms),
        *(RelationMix, AnswerFrequency, SubjectFrequency, AnswerLength, Paraphrases, Unknown),
        *(Kl, KlTen, Dft, Asft, Eaft, Stm, SelfDistillation),
        *(Mofo, Ema, Bema, EarlyStop, RestoreSteps, Proximal),
        *(Restored, Random),
        *(Interpolate, Lines, Fapm, DgHard, Intruders, Dare, Breadcrumbs, Ties),
    )
}


def strategy_of(name: str, settings: Mapping[str, Any] | None = None, place: str = "finetune") -> Strategy:
    """The strategy of a name with these settings, and its defaults for all others; ``place`` names it in errors.

    Raises:
        InputError: no such strategy, a setting that it does not have, or a value that is no such setting's.
    """
    if name not in STRATEGIES:
        raise InputError(f"{place}: no strategy {name!r}{nearest(name, STRATEGIES)}")
    kind = STRATEGIES[name]
    known = [one.name for one in fields(kind)]
    for given in settings or {}:
        if given not in known:
            those = nearest(given, known) if known else "; it has no settings"
            raise InputError(f"{place}: strategy {name!r} has no setting {given!r}{those}")
    return kind(**settings or {})


def listed() -> list[dict[str, Any]]:
    """Every strategy: name, kind, what it is, source, cost, the rate to begin with, and its settings."""
    return [
        {
            **{key: getattr(kind, key) for key in ("name", "kind", "about", "source", "cost", "needs_base", "rate")},
            "settings": [
                {"name": one.name, "default": one.default, **{k: one.metadata[k] for k in ("about", "unit")}}
                for one in fields(kind)
            ],
        }
        for kind in STRATEGIES.values()
    ]
