"""What the package asks for is what its code imports, and importing a part loads only what that part uses."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import knowshift

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCE = Path(knowshift.__file__).parent
#: Needed without an import of ours, with the reason.
NOT_IMPORTED = {"attrs": "PEFT's CorDA imports it, and does not ask for it"}
#: For people who work on the project.
OF_CONTRIBUTORS = {"dev", "docs", "mutants"}
#: Libraries that take long to load, by the names of their modules.
HEAVY = set(
    "accelerate datasets evaluate huggingface_hub jinja2 lm_eval matplotlib ml_dtypes numpy pandas peft pyarrow "
    "pydantic ray rich safetensors scipy tokenizers torch transformers trl typer".split()
)
#: Those of them that importing every module of a part may load. What needs a model (the rest) loads torch.
MAY_LOAD = {
    "knowshift": set(),
    "knowshift.errors": set(),
    "knowshift.files": set(),
    "knowshift.version": set(),
    "knowshift.system": {"rich"},
    "knowshift.records": {"numpy", "pyarrow"},
    "knowshift.known_facts": {"numpy", "pyarrow"},
    "knowshift.statistics": {"numpy", "scipy"},
    "knowshift.html": {"jinja2", "matplotlib", "numpy", "scipy"},
    "knowshift.facts": {"numpy", "pyarrow", "rich"},
    "knowshift.facts.fact": set(),
    "knowshift.facts.grading": set(),
    "knowshift.models.finding": {"ml_dtypes", "numpy"},
    "knowshift.models.server.dialects": set(),
    "knowshift.parameters.files": {"ml_dtypes", "numpy"},
    "knowshift.parameters.selection": {"ml_dtypes", "numpy"},
    "knowshift.parameters.change": {"ml_dtypes", "numpy"},
    "knowshift.studies.plan": {"ml_dtypes", "numpy", "pydantic"},
    "knowshift.reports": {"jinja2", "matplotlib", "ml_dtypes", "numpy", "pyarrow", "scipy"},
    "knowshift.reports.findings": {"ml_dtypes", "numpy", "pyarrow", "scipy"},
    "knowshift.reports.tables": {"ml_dtypes", "numpy", "pyarrow", "scipy"},
    "knowshift.api": {"ml_dtypes", "numpy", "pyarrow", "rich"},
    "knowshift.cli": {"rich", "typer"},
}


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def _imported() -> set[str]:
    """Distributions whose modules src imports, wherever the import stands."""
    modules = set()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules.add(node.module.partition(".")[0])
    providers = importlib.metadata.packages_distributions()
    foreign = modules - set(sys.stdlib_module_names) - {"knowshift"}
    return {canonicalize_name(name) for module in foreign for name in set(providers[module])}


def test_every_module_that_is_imported_belongs_to_a_declared_dependency() -> None:
    declared, extras = _names(PROJECT["dependencies"]), PROJECT["optional-dependencies"]
    assert _imported() == (declared - set(NOT_IMPORTED)) | _names(extras["ray"]) | _names(extras["lm-eval"])


def test_ray_and_lm_eval_are_all_that_a_user_adds() -> None:
    assert set(PROJECT["optional-dependencies"]) - OF_CONTRIBUTORS == {"lm-eval", "ray"}


def test_the_citation_is_of_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == knowshift.__version__


def _modules(part: str) -> list[str]:
    """``part`` and every module below it. Of the package itself, the package alone."""
    place = SOURCE.joinpath(*part.split(".")[1:])
    if part == "knowshift" or not place.is_dir():
        return [part]
    files = [file.relative_to(SOURCE.parent).with_suffix("") for file in place.rglob("*.py")]
    return sorted(".".join(file.parts).removesuffix(".__init__") for file in files)


def _loaded(code: str, *arguments: str) -> set[str]:
    """The modules that a new interpreter holds after ``code``; it finds ``arguments`` in sys.argv."""
    code = f"import sys, json, importlib\n{code}\nprint(json.dumps(list(sys.modules)), file=sys.stderr)"
    said = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(json.loads(said.stderr))


@pytest.mark.parametrize("part", MAY_LOAD)
def test_importing_a_part_loads_only_what_it_uses(part: str) -> None:
    loaded = _loaded("for name in sys.argv[1:]: importlib.import_module(name)", *_modules(part))
    assert set(_modules(part)) <= loaded
    assert loaded & HEAVY <= MAY_LOAD[part]


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["restore", "--help"], ["study", "--help"]], ids=" ".join)
def test_help_loads_nothing_that_only_work_needs(words: list[str]) -> None:
    """It is this that keeps start-up short (benchmarks/startup.py); typer checks what options may be with pydantic."""
    code = "from knowshift.cli.app import main\ntry: main()\nexcept SystemExit as end: assert not end.code"
    assert _loaded(code, *words) & HEAVY <= {"rich", "typer", "pydantic"}
