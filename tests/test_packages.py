"""The wheel and the sdist: what is in them, and that each works where it is installed, with a C compiler and without.

Nothing is downloaded: the dependencies are those of the environment that runs the tests, put on the path of a new one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import knowshift

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NAME = f"knowshift-{knowshift.__version__}"
LIBRARIES = {
    "knowshift/parameters/kernels/_kernels.so",
    "knowshift/models/layers/_one_token.so",
    "knowshift/models/layers/_loops.so",
}
#: Whether a build finds a compiler where nothing hides it.
HAS_COMPILER = shutil.which("cc") is not None
#: Runs a command that computes, in the process that then says where knowshift was imported from and whether it has its
#: compiled loops: torch is imported once.
PROBE = """
import json, knowshift, sys
from knowshift.cli.app import main
sys.argv = ["knowshift", "weights", "world:tiny", "world:tiny", "--json"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
from knowshift.models.layers import attention
from knowshift.parameters.kernels import compiled
found = {module.library() is not None for module in (attention, compiled)}
assert len(found) == 1
print(json.dumps({"file": knowshift.__file__, "compiled": found.pop()}))
"""


def _run(*command: str | Path, **environment: str) -> str:
    """Standard output of a command that knows nothing of the checkout: not run in it, where "build" may be a folder."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "PYTHONPATH")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=Path(sys.prefix),
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _no_compiler(empty: Path) -> dict[str, str]:
    """An environment in which neither CC nor a search of PATH finds a compiler."""
    empty.mkdir(exist_ok=True)
    return {"CC": "/bin/false", "PATH": str(empty)}


def _files(folder: Path, pattern: str = "*") -> set[str]:
    """Files below a folder of the checkout that belong to it, with their paths from its root."""
    made = {"__pycache__", ".ipynb_checkpoints", "_build"}
    found = (path for path in folder.rglob(pattern) if path.is_file() and not made & set(path.parts))
    return {path.relative_to(ROOT).as_posix() for path in found if path.suffix != ".so"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What ``python -m build`` makes: the sdist, and the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def _wheel_of(sdist: Path, folder: Path, **environment: str) -> Path:
    """The wheel that pip makes of an sdist before it installs it."""
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    _run(*pip, "--wheel-dir", folder, sdist, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _installed(wheel: Path, folder: Path, **environment: str) -> Path:
    """The scripts of a new environment that holds the wheel; dependencies are found after it, by their folder.

    The packages of a folder that a .pth file names are found, its own .pth files are not read: the editable
    installation of the checkout stays out.
    """
    venv.create(folder, with_pip=False)
    scripts = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--quiet", "--no-deps", "--no-index")
    _run(*pip, wheel, **environment)
    (packages,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    return scripts


def _works(scripts: Path, **environment: str) -> bool:
    """Run the commands of an installation; whether it has compiled loops."""
    assert _run(scripts / "knowshift", "--version", **environment) == f"knowshift {knowshift.__version__}\n"
    assert "--fraction" in _run(scripts / "knowshift", "restore", "--help", **environment)
    said, probed = map(json.loads, _run(scripts / "python", "-c", PROBE, **environment).splitlines())
    assert said["eligible"] > 0
    assert said["changed_share"] == 0
    assert scripts.parent in Path(probed["file"]).parents
    return bool(probed["compiled"])


def test_what_is_in_the_packages(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    assert sdist.name == f"{NAME}.tar.gz"
    with tarfile.open(sdist) as archive:
        sources = {member.name.removeprefix(f"{NAME}/") for member in archive if member.isfile()}
    folders = ("benchmarks", "docs", "mutation", "src", "tests")
    files = {"CITATION.cff", "LICENSE", "Makefile", "README.md", "constraints.txt", "hatch_build.py", "pyproject.toml"}
    assert {name for name in sources if "/" not in name} >= files
    assert {name for name in sources if "/" in name} == set().union(*(_files(ROOT / name) for name in folders))

    assert wheel.name.startswith(f"{NAME}-py3-none-")
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(about).decode()
    assert installed - LIBRARIES == {name.removeprefix("src/") for name in _files(ROOT / "src")}
    assert "knowshift/py.typed" in installed
    assert "Classifier: Typing :: Typed\n" in metadata
    assert f"Version: {knowshift.__version__}\n" in metadata


def test_the_wheel_needs_no_compiler(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Compiled loops come with it; it is named for the platform that they are for."""
    _, wheel = built
    assert wheel.name.endswith("-any.whl") is not HAS_COMPILER
    hidden = _no_compiler(tmp_path / "empty")
    assert _works(_installed(wheel, tmp_path / "environment", **hidden), **hidden) is HAS_COMPILER


def test_the_sdist_with_the_compiler_of_this_machine(built: tuple[Path, Path], tmp_path: Path) -> None:
    sdist, _ = built
    assert _works(_installed(_wheel_of(sdist, tmp_path), tmp_path / "environment")) is HAS_COMPILER


def test_the_sdist_without_a_compiler(built: tuple[Path, Path], tmp_path: Path) -> None:
    """The same package for any platform, without the loops."""
    sdist, _ = built
    hidden = _no_compiler(tmp_path / "empty")
    none_on_path = _wheel_of(sdist, tmp_path / "first", PATH=hidden["PATH"])
    wheel = _wheel_of(sdist, tmp_path / "second", **hidden)
    assert wheel.name == none_on_path.name == f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert not LIBRARIES & set(archive.namelist())
    assert not _works(_installed(wheel, tmp_path / "environment", **hidden), **hidden)
