"""How well a model knows a fact: sampled hit rates over its completion prompts, and the five levels (paper 2.3)."""

from knowshift.facts.fact import LEVELS
from knowshift.probing.levels import level_of
from knowshift.probing.measure import MasteryRecord, Protocol, measure_mastery

__all__ = ["LEVELS", "MasteryRecord", "Protocol", "level_of", "measure_mastery"]
