"""Commands in processes of their own that need not import torch and transformers anew, which takes seconds.

They are forks of one process a test run, which has imported :mod:`imported` and done nothing else. What tests the start
of a command, or needs what a library reads from the environment when it is imported, starts Python itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import connection, forkserver
from multiprocessing.reduction import DupFd
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")


class Command:
    """A running ``knowshift WORDS``, with the part of :class:`subprocess.Popen` that tests use.

    It leads a process group of its own. ``before`` is Python code that runs before the command does.
    """

    def __init__(self, words: Sequence[str], *, before: str = "", env: Mapping[str, str] | None = None) -> None:
        (out, its_out), (err, its_err) = os.pipe(), os.pipe()
        environment = dict(os.environ if env is None else env)
        self._process = _CONTEXT.Process(target=_Forked(list(words), before, environment, its_out, its_err))
        self._process.start()
        os.close(its_out)
        os.close(its_err)
        self._said: list[str] = ["", ""]
        self._readers = [threading.Thread(target=self._read, args=pipe, daemon=True) for pipe in enumerate((out, err))]
        for reader in self._readers:
            reader.start()

    def _read(self, which: int, pipe: int) -> None:
        with open(pipe, encoding="utf-8") as file:
            self._said[which] = file.read()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it has written to standard output and error, when it and all that it started have ended."""
        for thing in (*self._readers, self._process):
            thing.join(timeout)
        if self._process.exitcode is None or any(reader.is_alive() for reader in self._readers):
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self._said[0], self._said[1]


def run(words: Sequence[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """A command that has ended."""
    command = Command(words)
    out, err = command.communicate(timeout)
    assert command.returncode is not None
    return subprocess.CompletedProcess(list(words), command.returncode, out, err)


def _fork_workers() -> None:
    """Fork the process that workers of this one are forks of, which else is a new Python and imports for seconds.

    As that one would, it is in this one's group and ends with it.
    """
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    with socket.socket(socket.AF_UNIX) as listener:
        address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
        listener.bind(address)
        listener.listen()
        ended, open_here = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(open_here)
                forkserver.main(listener.detach(), ended, [])
            finally:
                os._exit(0)
        os.close(ended)
    os.close(server._forkserver_alive_fd)
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, open_here, pid


class _Forked:
    """What the forked process does. Its pipes are handed to it while it is started."""

    def __init__(self, words: list[str], before: str, environment: dict[str, str], out: int, err: int) -> None:
        self._given = words, before, environment, os.getcwd()
        self._pipes = out, err

    def __getstate__(self) -> tuple[Any, ...]:
        return self._given, tuple(DupFd(pipe) for pipe in self._pipes)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._given, pipes = state
        self._pipes = tuple(pipe.detach() for pipe in pipes)

    def __call__(self) -> None:
        words, before, environment, folder = self._given
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, pipe in enumerate(self._pipes, start=1):
            os.dup2(pipe, number)
            os.close(pipe)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # asked for again
        os.chdir(folder)
        _fork_workers()
        sys.argv = ["knowshift", *words]
        exec(before, {})
        from knowshift.cli.app import main

        main()
