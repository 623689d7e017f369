"""Drawing from prompts on a server, round by round, many requests at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np

from knowshift.models.sampling.cache import Ints
from knowshift.models.sampling.settings import Sampling
from knowshift.models.server.completions import Completions


class ServerSession:
    """Prompts to draw from on a server, round by round.

    Args:
        completions: of the server.
        prompts: what is continued.
        accepted: for each prompt, the texts one of which makes a draw a hit.
        sampling: draws, temperature, tokens and seed.
        streams: for each prompt, a name for its random numbers.
        concurrency: requests under way at once.
        stopping: whether accepted answers are sent as stop texts.

    Attributes:
        hit: int8 [prompts, draws], 1 for a draw that holds an accepted answer, 0 for one that does not, -1 for one
            that has not been made.
        positions: the tokens the server says it has processed.
    """

    def __init__(
        self,
        completions: Completions,
        prompts: Sequence[str],
        accepted: Sequence[Sequence[str]],
        sampling: Sampling,
        streams: Sequence[str],
        *,
        concurrency: int,
        stopping: bool,
    ) -> None:
        self._completions, self._prompts, self._accepted = completions, prompts, accepted
        self._sampling, self._streams = sampling, streams
        self._concurrency, self._stopping = concurrency, stopping
        self._many = completions.gives(sampling.draws_per_prompt)
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

        def work() -> None:
            while not stopped.is_set():
                try:
                    index = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((index, *self._texts(index, numbers[index], stopped)))
                except BaseException as error:
                    done.put(error)
                    return

        threads = [threading.Thread(target=work, daemon=True) for _ in asked[: self._concurrency]]
        for thread in threads:
            thread.start()
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
            self._completions.connection.hang_up()
            raise

    def _texts(self, index: int, numbers: Ints, stopped: threading.Event) -> tuple[list[str], int]:
        # The first number names the round, so that no two rounds of a prompt use the same seeds.
        key = f"{self._streams[index]}/{int(numbers[0])}"
        stops = self._accepted[index] if self._stopping else ()
        prompt, draws = self._prompts[index], len(numbers)
        return self._completions.texts(prompt, stops, self._sampling, key, draws, stopped, many=self._many)
