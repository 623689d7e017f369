"""Invented facts with known truth: subjects, answers, and how often each fact will be written.

Names are new words, so that nothing can be known but what the corpus says. Answer pools are shared between relations
of one kind and drawn with a popularity (Zipf), as in real data: a popular answer can be guessed, a rare one cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from knowshift.errors import InputError
from knowshift.facts.fact import Fact, Split
from knowshift.facts.relations import IN_DOMAIN, OUT_OF_DOMAIN, RELATIONS

_ONSETS = "b d f g h j k l m n p r s t v z br dr tr st".split()
_VOWELS = "a e i o u".split()
_CODAS = ["", "", "l", "n", "r", "s"]

# The second word of a subject, by kind; persons get an invented family name instead.
_SECOND_WORDS: dict[str, Sequence[str]] = {
    "place": "Hill Bay Ford Valley Island Bridge Park Harbour Castle Field Lake Plain Ridge Abbey Tower Square".split()
    + "Heath Point Gate Cross Moor Dale Falls Forest Shore Mill Rock Grove Haven Mount".split(),
    "organisation": "Works Group Press Bank Union Trust Motors League Society Brothers Lines Foods Studio Guild".split()
    + "Systems Partners Club Traders Institute Mining Films Airways Steel Choir Band Museum Energy House".split(),
    "work": "Song Letters Dream Story Garden Winter Journey Dance Mirror River Night Portrait Ballad Return".split()
    + "Engine Waltz Silence Crown Secret Voyage Promise Shadow Summer Key Road Cantata Legend Fire".split(),
}

_POOL_SIZES = {
    "country": 90,
    "city": 420,
    "place": 320,
    "school": 240,
    "person": 320,
    "organisation": 240,
    "work": 240,
    "profession": 70,
    "genre": 70,
    "language": 70,
    "position": 40,
}


@dataclass(frozen=True)
class ExposureBand:
    """A share of the facts whose number of exposures is log-uniform between two whole numbers, both included."""

    share: float
    low: int
    high: int


#: Bands that fill all levels: the middle one, where mastery rises, holds most facts (levels 2 and 3 are scarce).
DEFAULT_BANDS = (
    ExposureBand(0.07, 0, 0),
    ExposureBand(0.09, 1, 4),
    ExposureBand(0.07, 5, 21),
    ExposureBand(0.72, 22, 44),
    ExposureBand(0.05, 45, 400),
)


@dataclass(frozen=True)
class Repetition:
    """A second corpus: facts written ``low`` to ``high`` times are written ``least`` to ``most`` times more.

    When facts compete for one pass over a corpus, few of them reach levels 2 and 3, however often they are written
    (docs/results.md); the last ones are remembered best, and a short second corpus fills those levels.
    """

    low: int
    high: int
    least: int
    most: int
    learning_rate: float = 1e-3
    seed: int = 2  # of the second corpus: its wordings and its order


DEFAULT_REPETITION = Repetition(22, 400, 2, 10)


def draw_repetitions(exposures: Sequence[int], repetition: Repetition, seed: int) -> list[int]:
    """How often each fact is written more, log-uniform within the repetition's bounds; 0 for those outside.

    Raises:
        InputError: bounds that are no bounds, or no fact within them.
    """
    low, high, least, most = repetition.low, repetition.high, repetition.least, repetition.most
    if not 0 <= low <= high or not 1 <= least <= most:
        raise InputError(f"repetition {low}-{high}:{least}-{most}: expected LOW-HIGH:LEAST-MOST, ascending, LEAST >= 1")
    if not any(low <= count <= high for count in exposures):
        raise InputError(f"repetition {low}-{high}:{least}-{most}: no fact is written {low} to {high} times")
    rng = np.random.default_rng([seed, 9])
    bounds = np.log(least), np.log(most + 1)
    return [int(np.floor(np.exp(rng.uniform(*bounds)))) if low <= count <= high else 0 for count in exposures]


def draw_exposures(count: int, bands: Sequence[ExposureBand], rng: np.random.Generator) -> NDArray[np.int32]:
    """How often each of ``count`` facts is written: int32 of shape (count,).

    Raises:
        InputError: the shares do not sum to 1, or a band is empty.
    """
    shares = [band.share for band in bands]
    if not np.isclose(sum(shares), 1.0) or any(band.low > band.high or band.low < 0 for band in bands):
        raise InputError(f"exposure bands: shares sum to {sum(shares):.3f} (expected 1) or a band has low > high")
    which = rng.choice(len(bands), size=count, p=shares)
    low = np.array([band.low for band in bands])[which]
    high = np.array([band.high for band in bands])[which]
    # log-uniform over [low, high + 1), floored, so that both ends can be drawn
    drawn = np.exp(rng.uniform(np.log(np.maximum(low, 1)), np.log(np.maximum(high, 1) + 1)))
    return np.where(high == 0, 0, np.clip(np.floor(drawn), low, high)).astype(np.int32)


def _new_words(count: int, syllables: Sequence[int], rng: np.random.Generator, taken: set[str]) -> list[str]:
    """Distinct capitalised invented words, none of which is part of another that was taken before."""
    words: list[str] = []
    while len(words) < count:
        size = int(rng.choice(syllables))
        parts = [str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) for _ in range(size)]
        word = ("".join(parts) + str(rng.choice(_CODAS))).capitalize()
        if word not in taken:
            taken.add(word)
            words.append(word)
    return words


def _without_substrings(words: list[str]) -> list[str]:
    """The words that do not occur inside another one: substring grading must not confuse two answers."""
    joined = "\n".join(words)
    return [word for word in words if joined.count(word) == 1]


def _zipf(size: int) -> NDArray[np.float64]:
    weights = 1.0 / (np.arange(size) + 6.0) ** 0.8
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def invent_facts(
    seed: int, *, train_per_relation: int, test_per_relation: int, out_of_domain_per_relation: int
) -> list[Fact]:
    """Facts of the 24 relations, without exposures; the same seed gives the same facts.

    Raises:
        InputError: more subjects are asked for than there are names of a kind.
    """
    rng = np.random.default_rng([seed, 1])
    taken: set[str] = set()
    # Half as many again as needed, because the ones inside others are dropped.
    answer_words = _without_substrings(_new_words(int(sum(_POOL_SIZES.values()) * 1.5), (2, 2, 3), rng, taken))
    pools: dict[str, list[str]] = {}
    for kind, size in _POOL_SIZES.items():
        pools[kind], answer_words = answer_words[:size], answer_words[size:]
        assert len(pools[kind]) == size, f"too few answer words for {kind}"
    first_words = _new_words(500, (2,), rng, taken)
    family_words = _new_words(300, (2,), rng, taken)

    facts: list[Fact] = []
    used: dict[str, set[int]] = {}
    for relation_id in (*IN_DOMAIN, *OUT_OF_DOMAIN):
        relation = RELATIONS[relation_id]
        seconds = _SECOND_WORDS.get(relation.subject_kind, family_words)
        splits: list[tuple[Split, int]] = (
            [("train", train_per_relation), ("test", test_per_relation)]
            if relation.domain == "in_domain"
            else [("test", out_of_domain_per_relation)]
        )
        wanted = sum(count for _, count in splits)
        taken_names = used.setdefault(relation.subject_kind, set())
        free = np.setdiff1d(np.arange(len(first_words) * len(seconds)), np.fromiter(taken_names, dtype=np.int64))
        if wanted > len(free):
            raise InputError(
                f"{relation_id}: {wanted} subjects asked, {len(free)} names of kind {relation.subject_kind} left"
            )
        names = rng.choice(free, size=wanted, replace=False)
        taken_names.update(int(name) for name in names)
        pool = pools[relation.answer_kind]
        popularity = _zipf(len(pool))[rng.permutation(len(pool))]
        answers = rng.choice(len(pool), size=wanted, p=popularity)
        at = 0
        for split, count in splits:
            for index in range(count):
                first, second = divmod(int(names[at]), len(seconds))
                subject = f"{first_words[first]} {seconds[second]}"
                facts.append(
                    Fact(
                        id=f"{relation_id}.{split}.{index}",
                        relation=relation_id,
                        split=split,
                        domain=relation.domain,
                        subject=subject,
                        question=relation.question.replace("{subject}", subject),
                        answer=pool[int(answers[at])],
                    )
                )
                at += 1
    return facts


def with_exposures(facts: Sequence[Fact], seed: int, bands: Sequence[ExposureBand] = DEFAULT_BANDS) -> list[Fact]:
    """The same facts, each with the number of times that the corpus will write it."""
    counts = draw_exposures(len(facts), bands, np.random.default_rng([seed, 2]))
    return [replace(fact, exposures=int(count)) for fact, count in zip(facts, counts, strict=True)]
