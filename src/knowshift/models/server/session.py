"""Drawing from prompts on servers, round by round, many requests at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from knowshift.models.sampling.cache import Ints
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.completions import Completions, Drawn

Found = TypeVar("Found")


@dataclass(frozen=True)
class Served:
    """One server, and how a session uses it."""

    completions: Completions
    concurrency: int  # requests under way at once, at most
    stopping: bool  # whether accepted answers are sent as stop texts

    def requests(self, at_once: int) -> int:
        """Requests of so many texts under way at once.

        A server with slots gets one more than they hold, which takes the place of the first that ends: what waits
        longer there may only run out of time.
        """
        slots = self.completions.slots
        return self.concurrency if slots is None else min(self.concurrency, slots // at_once + 1)


class Rounds(Generic[Found]):
    """Prompts to ask on one server or several of the same model, round by round.

    Args:
        servers: which share the prompts: each takes the next when it has room.
        prompts: what is continued.
        accepted: for each prompt, the texts one of which makes a draw a hit.
        sampling: temperature, tokens and seed.
        texts: the most that will be drawn of a prompt.
        streams: for each prompt, a name for its random numbers.

    Attributes:
        positions: the tokens the server says it has processed.
    """

    def __init__(
        self,
        servers: Sequence[Served],
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        texts: int,
        streams: Sequence[str],
    ) -> None:
        self.prompts, self.accepted = prompts, accepted
        self.sampling, self.streams = sampling, streams
        #: Each server with the texts that it gives at once.
        self._servers = [(served, served.completions.at_once(texts)) for served in servers]
        self.positions = 0

    def ask(self, index: int, numbers: Ints, drawing: Drawing) -> tuple[Found, int]:
        """What so many texts of one prompt come to, and the tokens processed; called by many threads."""
        raise NotImplementedError

    def take(self, index: int, numbers: Ints, found: Found) -> None:
        """Keep what has been asked; called by one thread."""
        raise NotImplementedError

    def draw(self, numbers: Sequence[Ints], begun: Callable[[int], None] = lambda count: None) -> None:
        """As many texts of every prompt as it is given numbers; ``begun`` hears of prompts that are done.

        A request that fails for good ends the others at once, and so does an interrupt: the threads that wait for an
        answer are not waited for.
        """
        asked = [index for index in range(len(self.prompts)) if len(numbers[index])]
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in asked:
            todo.put(index)
        done: queue.SimpleQueue[tuple[int, Found, int] | BaseException] = queue.SimpleQueue()
        stopped = threading.Event()

        def work(served: Served, at_once: int) -> None:
            while not stopped.is_set():
                try:
                    index = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put(
                        (index, *self.ask(index, numbers[index], Drawing(served, at_once, self.sampling, stopped)))
                    )
                except BaseException as error:
                    done.put(error)
                    return

        # In turns, so that a few prompts are shared too.
        turns = range(max(served.requests(at_once) for served, at_once in self._servers))
        workers = [server for turn in turns for server in self._servers if turn < server[0].requests(server[1])]
        for server in workers[: len(asked)]:
            threading.Thread(target=work, args=server, daemon=True).start()
        try:
            for _ in asked:
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                index, texts, used = found
                self.take(index, numbers[index], texts)
                self.positions += used
                begun(1)
        except BaseException:
            stopped.set()
            for served, _ in self._servers:
                served.completions.connection.hang_up()
            raise

    def key(self, index: int, numbers: Ints) -> str:
        """Names the random numbers of a prompt's round by its first number: no two rounds use the same."""
        return f"{self.streams[index]}/{int(numbers[0])}"


@dataclass(frozen=True)
class Drawing:
    """One server, from which the texts of one prompt are drawn."""

    served: Served
    at_once: int  # texts of one request at most
    sampling: Sampling
    stopped: threading.Event

    def texts(
        self, prompt: str, accepted: Collection[str], key: str, texts: int, *, likely: int = 0, most: int | None = None
    ) -> Drawn:
        """So many texts of a prompt, of ``most`` tokens at most; see :meth:`Completions.texts`."""
        sampling = self.sampling if most is None else replace(self.sampling, max_new_tokens=most)
        stops = tuple(accepted) if self.served.stopping else ()
        return self.served.completions.texts(
            prompt, stops, sampling, key, texts, self.stopped, at_once=self.at_once, likely=likely
        )


class ServerSession(Rounds[list[str]]):
    """Hits of prompts on servers.

    Attributes:
        hit: int8 [prompts, draws], 1 for a draw that holds an accepted answer, 0 for one that does not, -1 for one
            that has not been made.
    """

    def __init__(
        self,
        servers: Sequence[Served],
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        streams: Sequence[str],
    ) -> None:
        super().__init__(servers, prompts, accepted, sampling, sampling.draws_per_prompt, streams)
        self.hit = np.full((len(prompts), sampling.draws_per_prompt), -1, dtype=np.int8)

    def ask(self, index: int, numbers: Ints, drawing: Drawing) -> tuple[list[str], int]:
        drawn = drawing.texts(self.prompts[index], self.accepted[index], self.key(index, numbers), len(numbers))
        return drawn.texts, drawn.total

    def take(self, index: int, numbers: Ints, found: list[str]) -> None:
        self.hit[index, numbers] = [holds(self.accepted[index], text) for text in found]


def holds(accepted: Collection[str], text: str) -> bool:
    """Whether a text is a hit."""
    return any(answer in text for answer in accepted)
