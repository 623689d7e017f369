"""Worker processes: what they have of the process that starts them, and how they are started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from knowshift.errors import InputError, KnowshiftWarning
from knowshift.system import workers
from knowshift.system.workers import LastingPool, process_pool, worker_context


def _seen(name: str) -> tuple[str | None, str, str]:
    return os.environ.get(name), tempfile.gettempdir(), os.getcwd()


def _product(threads: int) -> float:
    torch.set_num_threads(threads)
    return float((torch.ones(600, 600) @ torch.ones(600, 600)).sum())


def test_the_environment_is_that_of_the_moment_a_pool_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process_pool(1) as pool:  # from now on there is a process to fork, which keeps its own
        assert pool.submit(_seen, "KNOWSHIFT_TEST").result()[0] is None
    monkeypatch.setenv("KNOWSHIFT_TEST", "set")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("HOME")
    monkeypatch.chdir(tmp_path)
    with process_pool(1) as pool:
        assert pool.submit(_seen, "KNOWSHIFT_TEST").result() == ("set", str(tmp_path), str(tmp_path))
        assert pool.submit(_seen, "HOME").result()[0] is None


def test_threads_of_torch_work_whatever_this_process_has_done_with_them() -> None:
    before = torch.get_num_threads()
    try:
        expected = _product(2)
    finally:
        torch.set_num_threads(before)
    with process_pool(2) as pool:
        assert [pool.submit(_product, threads).result(timeout=120) for threads in (1, 2, 2)] == [expected] * 3


#: A program that has another copy of the package before the installed one, and what its workers import.
ELSEWHERE = """
import sys
sys.path.insert(0, sys.argv[1])
from knowshift.system.workers import process_pool
if __name__ == "__main__":
    with process_pool(1) as pool:
        print(pool.submit(eval, "__import__('knowshift').__file__").result())
"""


def test_workers_import_what_this_process_would(tmp_path: Path) -> None:
    package = Path(workers.__file__).parents[1]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "knowshift").symlink_to(package)
    program = tmp_path / "program.py"
    program.write_text(ELSEWHERE)
    command = [sys.executable, str(program), str(tmp_path / "other")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(tmp_path / "other" / "knowshift" / "__init__.py")


#: A program that has a module imported beside it, and refuses its input or does not.
BESIDE = """
import sys
from knowshift.system.workers import imported_beside, process_pool
if __name__ == "__main__":
    with imported_beside("slow"):
        if sys.argv[1] == "refuse":
            sys.exit("refused")
        with process_pool(1) as pool:
            print(pool.submit(eval, "('slow' in __import__('sys').modules, __import__('gc').isenabled())").result())
"""


#: A refusal, and then pools of this package and of the program.
AFTERWARDS = """
import gc, multiprocessing
from knowshift.system.workers import imported_beside, process_pool
def tell(queue):
    queue.put(gc.isenabled())
if __name__ == "__main__":
    try:
        with imported_beside("slow"):
            raise ValueError
    except ValueError:
        pass
    with process_pool(1) as pool:
        print(pool.submit(int).result())
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    context.Process(target=tell, args=(queue,)).start()
    print(queue.get(timeout=60))
"""


def test_after_a_refusal_pools_are_as_ever(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(2)")
    program = tmp_path / "program.py"
    program.write_text(AFTERWARDS)
    said = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True, timeout=300)
    assert said.stdout == "0\nTrue\n"


@pytest.mark.skipif(
    worker_context().get_start_method() != "forkserver" or workers.cores() < 2, reason="nothing is imported beside"
)
def test_a_module_is_imported_beside_and_what_imports_it_ends_with_a_refusal(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(BESIDE)
    for word, seconds, said in (("run", 1, "(True, True)\n"), ("refuse", 600, "refused\n")):
        (tmp_path / "slow.py").write_text(f"import time\ntime.sleep({seconds})")
        command = [sys.executable, str(program), word]
        # What has the program's output open keeps who reads it waiting.
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert ended.stdout + ended.stderr == said


def test_with_a_gpu_workers_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_GPUS", ())
    assert worker_context().get_start_method() == ("forkserver" if sys.platform == "linux" else "spawn")
    monkeypatch.setattr(workers, "_GPUS", (str(tmp_path),))
    assert worker_context().get_start_method() == "spawn"
    with process_pool(2, _begin, "given") as pool:
        assert pool.submit(_began).result(timeout=120)[0] == "given"


_mine: list[object] = []


def _begin(*given: object) -> None:
    _mine.extend(given)


def _began() -> list[object]:
    return _mine


def _fragile(number: int, folder: str, lives: int) -> int:
    """Ends its process, unless it has done so as often as it lives."""
    if number == 3 and len(os.listdir(folder)) < lives:
        Path(folder, str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * number


def test_a_worker_that_is_killed_costs_its_call_alone(tmp_path: Path) -> None:
    calls = [(number, str(tmp_path), 2) for number in range(6)]
    names = [f"call {number}" for number in range(6)]
    killed = "call 3: its worker was killed, as the system does where memory runs out; it is done again"
    with LastingPool(2, imports=workers.__name__) as pool:
        with pytest.warns(KnowshiftWarning, match=f"^{killed}$") as warned:
            assert sorted(pool.results(_fragile, calls, names)) == [0, 10, 20, 30, 40, 50]
        assert sorted(pool.results(_fragile, calls, names)) == [0, 10, 20, 30, 40, 50]  # a second stage
    assert len(warned) == len(os.listdir(tmp_path)) == 2


@pytest.mark.filterwarnings("ignore::knowshift.errors.KnowshiftWarning")
def test_a_call_that_workers_die_of_is_refused_by_name(tmp_path: Path) -> None:
    with (
        LastingPool(1, imports=workers.__name__) as pool,
        pytest.raises(InputError, match=r"^call 3: 3 workers died of it, the last one was killed"),
    ):
        list(pool.results(_fragile, [(3, str(tmp_path), 9)], ["call 3"]))
    assert len(os.listdir(tmp_path)) == 3


def test_what_a_call_raises_is_not_tried_again(tmp_path: Path) -> None:
    with LastingPool(1, imports=workers.__name__) as pool, pytest.raises(FileExistsError):
        list(pool.results(os.mkdir, [(str(tmp_path / "new"),), (str(tmp_path),)], ["new", "there"]))
    assert (tmp_path / "new").is_dir()
