"""Expected hits on a server: where a text begins with an answer, what it shows of tokens takes the place of draws.

A text is *direct* if its first tokens spell an accepted answer, or begin one and go on to spell it. Its probability D
is computed along the few ways to begin an answer, from the most likely tokens that the server shows at each position,
and the draws are corrected by it:

    value of a text = hit - b (direct - d),    E[d] = E[direct] = D,  so that E[value] = R whatever b

A server shows log-probabilities at a temperature of 1, and only of the most likely tokens. Those at the sampling
temperature are known among these, but not the share of all others. So d has a factor for each position: the probability
among the tokens shown, if a draw at this position is one of them, else 0. The draw at the first position is the text's
own first token; at each later one it is a text of one token, drawn for this alone. These draws are independent, so the
product is unbiased.

``b`` is the share of texts without a hit among those that are not direct, with which the variance is smallest. It is
taken from other prompts of the same answers, so that it does not depend on the texts that it weighs. docs/servers.md
has the derivation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from knowshift.models.sampling.cache import Ints
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.completions import Drawn
from knowshift.models.server.logprobs import Position, Shown
from knowshift.models.server.session import Drawing, Rounds, Served, holds

Floats = NDArray[np.float64]

#: The least probability of a beginning that is followed. Texts that begin in a rarer way count as they are drawn.
FOLLOWED = 0.02
#: What stands for bytes that are no text: a token that holds it may be any of several.
UNREADABLE = "\ufffd"


@dataclass(frozen=True)
class Begun:
    """Where a text stands that has begun in a way to an answer: what the next token may do.

    Attributes:
        completing: tokens that complete an answer.
        onward: what follows a token that goes on with an answer.
    """

    completing: Collection[str]
    onward: dict[str, Begun] = field(default_factory=dict)

    def direct(self, positions: Sequence[Position]) -> bool:
        """Whether a text that goes on with these tokens is direct."""
        if not positions:
            return False
        token = positions[0].token
        return token in self.completing or (token in self.onward and self.onward[token].direct(positions[1:]))


@dataclass(frozen=True)
class Corrected:
    """The texts of one prompt and round, by text."""

    hit: list[bool]
    direct: list[bool]
    chance: Floats  # d


class DirectSession(Rounds[Corrected]):
    """Expected hits of prompts on servers.

    Args:
        shown: what the servers show of a position.
        texts: the most that will be drawn of a prompt.

    Attributes:
        value: float64 [prompts, texts], what each text came to; its expectation is the prompt's R. NaN for texts that
            have not been made.
    """

    def __init__(
        self,
        servers: Sequence[Served],
        shown: Shown,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        texts: int,
        streams: Sequence[str],
    ) -> None:
        super().__init__(servers, prompts, accepted, sampling, texts, streams)
        self._shown = shown
        shape = (len(prompts), texts)
        self._made, self._hit, self._direct = (np.zeros(shape, dtype=bool) for _ in range(3))
        self._chance = np.zeros(shape)

    @property
    def value(self) -> Floats:
        missed = ((~self._hit) & self._made).sum(axis=1)
        indirect = (self._made & ~self._direct).sum(axis=1)
        groups = [tuple(answers) for answers in self.accepted]
        whole = {group: np.zeros(2) for group in groups}
        for group, counts in zip(groups, zip(missed, indirect, strict=True), strict=True):
            whole[group] += counts
        others = np.array([whole[group] for group in groups]) - np.stack([missed, indirect], axis=1)
        factor = np.divide(others[:, 0], others[:, 1], out=np.ones(len(groups)), where=others[:, 1] > 0)
        value = self._hit - factor[:, None] * (self._direct - self._chance)
        result: Floats = np.where(self._made, value, np.nan)
        return result

    def read(self) -> Floats:
        """What prompts promise, which is not known before texts are drawn: float64 [prompts], infinite."""
        return np.full(len(self.prompts), np.inf)

    def draw(  # type: ignore[override]
        self,
        numbers: Sequence[Ints],
        share: Floats | None = None,
        begun: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Make the texts ``numbers[p]`` of every prompt p; all stay whole, whatever the ``share``."""
        super().draw(numbers, begun)

    def ask(self, index: int, numbers: Ints, drawing: Drawing) -> tuple[Corrected, int]:
        prompt, accepted, key = self.prompts[index], self.accepted[index], self.key(index, numbers)
        drawn = drawing.texts(prompt, accepted, key, len(numbers), likely=self._shown.count)
        chance = np.zeros(len(numbers))
        behind: dict[str, Drawn] = {"": drawn}  # by what is begun; two spellings of one text are asked once

        def look(begun: str, weight: Floats, chances: Sequence[dict[str, float]], depth: int, sure: float) -> Begun:
            """Add what completes an answer behind ``begun`` to ``chance``, and follow what goes on with one."""
            first = chances[0]
            found = Begun({token for token in first if UNREADABLE not in token and holds(accepted, begun + token)})
            chance[:] += weight * [sum(own.get(token, 0.0) for token in found.completing) for own in chances]
            for token, its in first.items():
                goes_on = UNREADABLE not in token and begins(begun + token, accepted)
                if not goes_on or sure * its < FOLLOWED or depth + 1 >= self.sampling.max_new_tokens:
                    continue
                way = begun + token
                if way not in behind:
                    behind[way] = drawing.texts(
                        prompt + way, (), f"{key}/{way}", len(numbers), likely=self._shown.count, most=1
                    )
                after = behind[way]
                # Text that is read as other tokens than those that a model has drawn is another way.
                if after.read is None or drawn.read is None or after.read != drawn.read + depth + 1:
                    continue
                inside, ahead = self._ahead(after.shown)
                onward = weight * [own.get(token, 0.0) for own in chances] * inside
                found.onward[token] = look(way, onward, ahead, depth + 1, sure * its)
            return found

        inside, chances = self._ahead(drawn.shown)
        start = look("", inside, chances, 0, 1.0)
        direct = [start.direct(positions) for positions in drawn.shown]
        used = sum(one.total for one in behind.values())
        return Corrected([holds(accepted, text) for text in drawn.texts], direct, chance), used

    def _ahead(self, shown: Sequence[Sequence[Position]]) -> tuple[Floats, list[dict[str, float]]]:
        """Of each text's first position: whether its token is among those shown, and their probabilities."""
        firsts = [positions[0] if positions else Position("", {}) for positions in shown]
        chances = [self._shown.chances(position, self.sampling.temperature) for position in firsts]
        inside = [float(position.token in own) for position, own in zip(firsts, chances, strict=True)]
        return np.array(inside), chances

    def take(self, index: int, numbers: Ints, found: Corrected) -> None:
        self._made[index, numbers] = True
        self._hit[index, numbers], self._direct[index, numbers] = found.hit, found.direct
        self._chance[index, numbers] = found.chance


def begins(text: str, accepted: Collection[str]) -> bool:
    """Whether a text, but for space before it, is the beginning of an accepted answer and not yet one."""
    bare = text.lstrip()
    return bool(bare) and any(len(bare) < len(answer) and answer.startswith(bare) for answer in accepted)
