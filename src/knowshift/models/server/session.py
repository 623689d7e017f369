"""Drawing from prompts on servers, round by round, many requests at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from knowshift.models.sampling.cache import Ints
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.completions import Completions


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


class ServerSession:
    """Prompts to draw from on one server or several of the same model, round by round.

    Args:
        servers: which share the prompts: each takes the next when it has room.
        prompts: what is continued.
        accepted: for each prompt, the texts one of which makes a draw a hit.
        sampling: draws, temperature, tokens and seed.
        streams: for each prompt, a name for its random numbers.

    Attributes:
        hit: int8 [prompts, draws], 1 for a draw that holds an accepted answer, 0 for one that does not, -1 for one
            that has not been made.
        positions: the tokens the server says it has processed.
    """

    def __init__(
        self,
        servers: Sequence[Served],
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        streams: Sequence[str],
    ) -> None:
        self._prompts, self._accepted = prompts, accepted
        self._sampling, self._streams = sampling, streams
        #: Each server with the texts that it gives at once.
        self._servers = [(served, served.completions.at_once(sampling.draws_per_prompt)) for served in servers]
        self.hit = np.full((len(prompts), sampling.draws_per_prompt), -1, dtype=np.int8)
        self.positions = 0

    def draw(self, numbers: Sequence[Ints], begun: Callable[[int], None] = lambda count: None) -> None:
        """As many draws of every prompt as it is given numbers; ``begun`` hears of prompts that are done.

        A request that fails for good ends the others at once, and so does an interrupt: the threads that wait for an
        answer are not waited for.
        """
        asked = [index for index in range(len(self._prompts)) if len(numbers[index])]
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in asked:
            todo.put(index)
        done: queue.SimpleQueue[tuple[int, list[str], int] | BaseException] = queue.SimpleQueue()
        stopped = threading.Event()

        def work(served: Served, at_once: int) -> None:
            while not stopped.is_set():
                try:
                    index = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((index, *self._texts(served, at_once, index, numbers[index], stopped)))
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
                accepted = self._accepted[index]
                self.hit[index, numbers[index]] = [any(answer in text for answer in accepted) for text in texts]
                self.positions += used
                begun(1)
        except BaseException:
            stopped.set()
            for served, _ in self._servers:
                served.completions.connection.hang_up()
            raise

    def _texts(
        self, served: Served, at_once: int, index: int, numbers: Ints, stopped: threading.Event
    ) -> tuple[list[str], int]:
        # The first number names the round, so that no two rounds of a prompt use the same seeds.
        key = f"{self._streams[index]}/{int(numbers[0])}"
        stops = self._accepted[index] if served.stopping else ()
        prompt, draws = self._prompts[index], len(numbers)
        return served.completions.texts(prompt, stops, self._sampling, key, draws, stopped, at_once=at_once)
