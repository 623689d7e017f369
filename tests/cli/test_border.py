"""Errors of libraries become one line and status 2 wherever an input is loaded; our own bugs show a traceback."""

from __future__ import annotations

import ast
import json
import pkgutil
import re
import shutil
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

import knowshift
from knowshift.cli.app import main
from knowshift.errors import InputError, border, cause_of, printable
from knowshift.models import loading
from knowshift.models.loading import load_model
from knowshift.records import MASTERY, write_table

SOURCE = Path(knowshift.__file__).parent


class OddError(Exception):
    """An exception that no list of types could have."""


RAISED: dict[str, tuple[Callable[[], BaseException], str]] = {
    "ImportError": (lambda: ImportError("it needs bitsandbytes"), "it needs bitsandbytes"),
    "RuntimeError": (lambda: RuntimeError("the first line\nthe second"), "the first line"),
    "KeyError": (lambda: KeyError("yarn"), "KeyError: 'yarn'"),
    "TypeError": (lambda: TypeError("int() argument must be a string"), "TypeError: int() argument must be a string"),
    "OddError": (lambda: OddError("\x1b[31mred\x1b[0m and\ttabbed"), "red and tabbed"),
    "MemoryError": (MemoryError, "not enough memory"),
    "OutOfMemoryError": (lambda: torch.OutOfMemoryError("CUDA: tried 2 GiB"), "not enough memory (CUDA: tried 2 GiB)"),
    "OSError": (lambda: OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
    "RecursionError": (lambda: RecursionError("maximum recursion depth"), "maximum recursion depth"),
}


def raising(error: Callable[[], BaseException]) -> Callable[..., Any]:
    """A library's function that fails: its frame is of this file, so outside the package."""

    def fails(*args: Any, **options: Any) -> Any:
        raise error()

    return fails


def within(module: types.ModuleType, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as if it stood in ``module``."""
    return types.FunctionType(function.__code__, vars(module), closure=function.__closure__)


# -- the border itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RAISED)
def test_a_librarys_exception_becomes_one_line_that_keeps_its_cause(kind: str) -> None:
    error, says = RAISED[kind]
    with pytest.raises(InputError) as caught, border("model: cannot load"):
        raising(error)()
    assert str(caught.value) == f"model: cannot load: {says}"
    assert type(caught.value.__cause__).__name__ == kind


@pytest.mark.parametrize("kind", [TypeError, AssertionError, KeyError, AttributeError, RuntimeError, ImportError])
def test_a_bug_of_ours_passes_also_through_a_library_and_from_under_its_exception(kind: type[Exception]) -> None:
    bug = within(loading, raising(lambda: kind("ours")))

    def calls_back() -> None:
        bug()

    def wraps() -> None:
        try:
            bug()
        except kind as error:
            raise OddError("a callback failed") from error

    for library in (bug, calls_back, wraps):
        with pytest.raises((kind, OddError)) as caught, border("model: cannot load"):
            library()
        assert not isinstance(caught.value, InputError)


def test_a_refusal_of_ours_is_told_as_it_was_also_from_under_a_librarys_exception() -> None:
    def wraps() -> None:
        try:
            raise InputError("row 3: no question")
        except InputError as error:
            raise OddError("generation failed") from error

    for library in (raising(lambda: InputError("row 3: no question")), wraps):
        with pytest.raises(InputError, match=r"^row 3: no question$"), border("model: cannot load"):
            library()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_program_passes(kind: type[BaseException]) -> None:
    with pytest.raises(kind), border("model: cannot load"):
        raising(kind)()


def test_compiled_libraries_which_leave_no_frame_are_told_by_their_type() -> None:
    # As if our own module had called them: its frame is the innermost one.
    for error in (SafetensorError("header too large"), OSError("disk"), MemoryError()):
        with pytest.raises(InputError), border("file: cannot be read"):
            within(loading, raising(lambda error=error: error))()  # type: ignore[misc]


@given(st.text(max_size=50), st.sampled_from([ValueError, KeyError, OddError, RuntimeError, MemoryError]))
@settings(deadline=None)
def test_any_message_is_one_printable_line(text: str, kind: type[Exception]) -> None:
    said = cause_of(kind(text))
    assert said
    assert said.isprintable()
    assert len(cause_of(kind(text * 100))) <= 300


def test_messages_without_content_are_told_by_type_and_headlines_with_what_follows() -> None:
    assert cause_of(OddError()) == "OddError"
    assert cause_of(OddError("\n \n")) == "OddError"
    assert cause_of(OddError("\x1b]0;title\x07")) == "OddError"
    assert cause_of(OddError("torch")) == "OddError: torch"
    assert cause_of(OddError("Validation error:\n    hidden_size is 'abc'")) == "Validation error: hidden_size is 'abc'"
    assert cause_of(RuntimeError("CUDA error: out of memory")) == "not enough memory (CUDA error: out of memory)"
    assert printable("a\x1b[2Jb\x9b1mc\x1b]8;;http://x\x1b\\d\r\ne\x00") == "abcd e"


# -- every library call on the way in -------------------------------------------------------------------------


class Folders:
    """A small world, a mastery record, a study's config and run folder, and an output."""

    def __init__(self, world: Path, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.record = folder / "mastery.parquet"
        columns: dict[str, list[Any]] = {name: [] for name in MASTERY.names}
        write_table(self.record, MASTERY, columns, {})
        (folder / "study.yaml").write_text("name: a\nmodel: world:tiny\nfacts: world:tiny\n")
        (folder / "run").mkdir()
        (folder / "run" / "manifest.json").write_text('{"cells": []}')
        (folder / "o.parquet.parts").mkdir()
        (folder / "o.parquet.parts" / "about.json").write_text("{}")

    def command(self, *words: str) -> list[str]:
        return [word.format(**vars(self)) for word in words]


@pytest.fixture
def folders(small_world: Path, tmp_path: Path) -> Folders:
    return Folders(small_world, tmp_path)


def library(place: str, **functions: Any) -> types.SimpleNamespace:
    """The module that is called ``place``, with other functions."""
    module = pkgutil.resolve_name(place)
    return types.SimpleNamespace(**{**vars(module), **functions})


MASTER = ["mastery", "world:{world}", "--facts", "world:{world}", "--limit", "2", "--workers", "1"]
RECORD = ["--output", "{folder}/o.parquet"]
EVALUATE = ["evaluate", "world:{world}", "--facts", "world:{world}", "--mastery", "{record}", "--output", "{folder}/a"]
STUDY = ["study", "{folder}/study.yaml", "--output-dir", "{folder}/run"]

#: (where a library is called, as what it is called there, the command, what the line begins with and says)
CALLS: dict[str, tuple[str, str | None, list[str], str]] = {
    "the model": (
        "knowshift.models.loading.AutoModelForCausalLM.from_pretrained",
        None,
        [*MASTER, "--output", "{folder}/new"],
        "world:{world}: cannot load the model: ",
    ),
    "the device": (
        "transformers.PreTrainedModel.to",
        None,
        [*MASTER, "--output", "{folder}/new"],
        "world:{world}: cannot move the model to cpu: ",
    ),
    "the tokenizer": (
        "knowshift.models.loading.AutoTokenizer.from_pretrained",
        None,
        [*MASTER, "--output", "{folder}/new"],
        "world:{world}: cannot load the tokenizer: ",
    ),
    "the identity": (
        "pathlib.Path.read_bytes",
        None,
        [*MASTER, "--output", "{folder}/new"],
        "{world}: cannot be read: ",
    ),
    "the hub": (
        "huggingface_hub.snapshot_download",
        None,
        ["mastery", "someone/model", *MASTER[2:], "--output", "{folder}/new"],
        "someone/model: no such folder, and the hub did not give it: ",
    ),
    "a name": (
        "knowshift.models.finding.expanded",
        None,
        [*MASTER, "--output", "{folder}/new"],
        "world:{world}: cannot be looked up as a model folder: ",
    ),
    "a table": ("knowshift.records.pq", "read_table", EVALUATE, "{world}/facts.parquet: not a Parquet file: "),
    "what a record says": (
        "knowshift.files.json",
        "loads",
        EVALUATE,
        "{record}: not a mastery record: its metadata: not readable as JSON: ",
    ),
    "parts of a record": (
        "knowshift.files.json",
        "loads",
        [*MASTER, *RECORD],
        "{folder}/o.parquet.parts: exists, but holds no parts of a mastery run "
        "({folder}/o.parquet.parts/about.json: not readable as JSON: ",
    ),
    "a study": ("knowshift.studies.config.yaml", "safe_load", STUDY, "{folder}/study.yaml: not YAML: "),
    "a manifest": (
        "knowshift.files.json",
        "loads",
        STUDY,
        "{folder}/run/manifest.json: not a readable manifest; choose another --output-dir "
        "({folder}/run/manifest.json: not readable as JSON: ",
    ),
    "a run": (
        "knowshift.files.json",
        "loads",
        ["report", "{folder}/run"],
        "{folder}/run/manifest.json: not readable as JSON: ",
    ),
    "a world": (
        "knowshift.files.json",
        "loads",
        ["world", "describe", "world:{world}"],
        "{world}/world.json: not readable as JSON: ",
    ),
    "a weight file": (
        "knowshift.parameters.files.checkpoint.json",
        "loads",
        ["weights", "{world}", "{world}"],
        "{world}/model.safetensors: not a readable safetensors file: ",
    ),
}


def called(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["knowshift", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def inject(monkeypatch: pytest.MonkeyPatch, place: str, function: str | None, fails: Callable[..., Any]) -> None:
    monkeypatch.setattr(place, fails if function is None else library(place, **{function: fails}))


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_at_any_library_call_is_one_line_and_status_2(
    call: str, kind: str, folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, function, command, begins = CALLS[call]
    error, says = RAISED[kind]
    before = sorted(folders.folder.rglob("*"))
    inject(monkeypatch, place, function, raising(error))
    assert called(monkeypatch, folders.command(*command)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    ends = ")" if "(" in begins else ""
    assert err.strip().splitlines() == [f"knowshift: {begins.format(**vars(folders))}{says}{ends}"]
    monkeypatch.undo()
    assert sorted(folders.folder.rglob("*")) == before


@pytest.mark.parametrize("kind", [TypeError, AssertionError])
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_in_our_own_code_at_the_same_place_shows_as_a_bug(
    call: str, kind: type[Exception], folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, function, command, _ = CALLS[call]
    inject(monkeypatch, place, function, within(loading, raising(lambda: kind("a bug"))))
    monkeypatch.setattr(sys, "argv", ["knowshift", *folders.command(*command)])
    with pytest.raises(kind, match="a bug"):
        main()


# -- real folders ---------------------------------------------------------------------------------------------


@pytest.fixture
def copy(small_world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_world, tmp_path / "model"))


def told(**values: Any) -> Callable[[Path], None]:
    """Set values of config.json."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return edit


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def quantised(method: str, **options: Any) -> Callable[[Path], None]:
    return told(quantization_config={"quant_method": method, **options})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(quantised("bitsandbytes", load_in_8bit=True), "bitsandbytes", id="bitsandbytes 8 bits"),
        pytest.param(quantised("bitsandbytes", load_in_4bit=True), "bitsandbytes", id="bitsandbytes 4 bits"),
        pytest.param(quantised("gptq", bits=4), "GPTQ.*(optimum|gptqmodel)", id="gptq"),
        pytest.param(quantised("awq", bits=4), "AWQ.*(gptqmodel|autoawq)", id="awq"),
        pytest.param(quantised("compressed-tensors", format="int-quantized"), "compressed-tensors", id="compressed"),
        pytest.param(told(hidden_size="abc"), "hidden_size", id="a size that is no number"),
        pytest.param(told(num_attention_heads=0), "ZeroDivisionError", id="no heads"),
        pytest.param(told(rope_parameters={"rope_type": "nonsense"}), "KeyError: 'nonsense'", id="rope"),
        pytest.param(told(rope_parameters=[1]), "rope_parameters", id="rope list"),
        pytest.param(told(hidden_act="none such"), "none such", id="activation"),
        pytest.param(told(vocab_size=-1), "negative dimension", id="vocabulary"),
        pytest.param(told(model_type="no-such"), "model type `no-such`", id="type"),
        pytest.param(told(dtype="float31"), "float31", id="dtype"),
        pytest.param(written("config.json", "["), "config.json", id="config"),
        pytest.param(written("config.json", "[" * 100_000), "cannot load", id="deep config"),
        pytest.param(written("generation_config.json", "{"), "generation_config.json", id="generation config"),
        pytest.param(written("generation_config.json", "[1]"), "cannot load", id="generation list"),
        pytest.param(written("tokenizer.json", "{"), "cannot load the tokenizer", id="tokenizer"),
        pytest.param(written("tokenizer.json", '{"version": "1.0"}'), "cannot load the tokenizer", id="no model"),
        pytest.param(written("tokenizer_config.json", "[]"), "cannot load the tokenizer", id="tokenizer config"),
        pytest.param(written("model.safetensors", "x" * 100), "truncated or not a safetensors file", id="weights"),
    ],
)
def test_real_folders_that_cannot_be_loaded_are_refused_by_command(
    copy: Path,
    spoil: Callable[[Path], None],
    says: str,
    small_world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(copy)
    words = ["mastery", str(copy), "--facts", f"world:{small_world}", "--limit", "2", "--workers", "1"]
    transformers.utils.logging.set_verbosity_error()  # its warnings of an odd config are lines of their own
    assert called(monkeypatch, [*words, "--output", str(copy.parent / "o")]) == 2
    transformers.utils.logging.set_verbosity_warning()
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert (out, len(lines)) == ("", 1), err
    assert re.match(rf"knowshift: {re.escape(str(copy))}(/\S+)?: ", lines[0])
    assert re.search(says, lines[0]), lines[0]
    assert not (copy.parent / "o").exists()


VALUES = st.sampled_from(
    [None, True, False, -1, 0, 1, 3, 1.5, "", "abc", "auto", [], {}, [1, "a"], {"a": 1}, [None], "\x1b[31m", "gelu"]
).map(deepcopy)  # further values are put into them
FILES = ("config.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture(scope="module")
def spoilt(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(small_world, tmp_path_factory.mktemp("fuzz") / "model"))


def refusal(folder: Path) -> str | None:
    """What is said of a folder that cannot be loaded; None of one that can."""
    try:
        load_model(str(folder))
    except InputError as refused:
        return str(refused)
    return None


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of nested objects."""
    if isinstance(value, dict):
        for key, held in value.items():
            yield (*path, key)
            yield from places(held, (*path, key))


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_anywhere_in_a_models_settings_loads_or_is_refused(spoilt: Path, data: st.DataObject) -> None:
    kept = {name: (spoilt / name).read_text() for name in FILES}
    try:
        name = data.draw(st.sampled_from(FILES))
        content = json.loads(kept[name])
        for _ in range(data.draw(st.integers(1, 2))):
            known = [*places(content), ("max_length",), ("quantization_config",), ("auto_map",), ("rope_scaling",)]
            *outer, last = data.draw(st.sampled_from(known))
            inner = content
            for key in outer:
                inner = inner[key] if isinstance(inner.get(key), dict) else inner.setdefault("other", {})
            inner[last] = data.draw(VALUES)
        (spoilt / name).write_text(json.dumps(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = refusal(spoilt)
        assert said is None or (said.startswith(f"{spoilt}: ") and said.isprintable())
    finally:
        for name, text in kept.items():
            (spoilt / name).write_text(text)


@pytest.mark.parametrize("text", ["name: 2024-13-45", "a: [1, 2", "- - -\n" + "[" * 5000, "? [a]\n: 1", "a: \x00"])
def test_a_study_that_is_no_yaml_is_refused_whatever_its_library_raises(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text(text)
    assert called(monkeypatch, ["study", str(tmp_path / "s.yaml"), "--output-dir", str(tmp_path / "o")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_config_nested_beyond_the_parsers_depth_is_refused_by_the_weights_too(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "config.json").write_text('{"a":' * 100_000)
    assert called(monkeypatch, ["weights", str(copy), str(copy)]) == 2
    assert capsys.readouterr().err.startswith(f"knowshift: {copy / 'config.json'}: not readable as JSON: ")


def test_the_hubs_own_refusal_of_a_name_keeps_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert issubclass(huggingface_hub.errors.HFValidationError, ValueError)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"^a--b\.\.c: no such folder, and not a hub id of the form owner/name$"):
        load_model("a--b..c")


# -- siblings -------------------------------------------------------------------------------------------------

#: Library calls that read what users bring, by the last part of their name, or the last two where one is too common.
READS = {
    *("from_pretrained", "from_file", "snapshot_download", "hf_hub_download", "load_dataset", "safe_open", "load_file"),
    *("merge_and_unload", "safe_load", "pq.read_table", "pq.read_schema", "pq.ParquetFile", "json.loads", "json.load"),
}
#: Files that treat such errors in another way: folder or file, and why.
ELSEWHERE = {
    "facts": "tables name the row that cannot be read",
    "models/server/connection.py": "answers of a server are not files; each has its own refusal",
}


def outside_a_border(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls of READS that no ``with border(...)`` of the same function encloses."""

    def visit(node: ast.AST, inside: bool) -> Iterator[ast.Call]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = False
        if isinstance(node, ast.With):
            inside = inside or any(
                isinstance(item.context_expr, ast.Call) and ast.unparse(item.context_expr.func) == "border"
                for item in node.items
            )
        if isinstance(node, ast.Call) and not inside:
            name = ast.unparse(node.func)
            if READS & {name.rpartition(".")[2], ".".join(name.split(".")[-2:])}:
                yield node
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(tree, False)


def test_nothing_is_read_by_a_library_outside_a_border() -> None:
    found, seen = [], 0
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        tree = ast.parse(path.read_text())
        seen += sum(ast.unparse(node).startswith("border(") for node in ast.walk(tree) if isinstance(node, ast.Call))
        if place not in ELSEWHERE and place.partition("/")[0] not in ELSEWHERE:
            found += [f"{place}:{call.lineno}: {ast.unparse(call.func)}" for call in outside_a_border(tree)]
    assert not found
    assert seen > 15


def test_the_guard_sees_what_stands_outside() -> None:
    text = """
with border("x"):
    pq.read_table(a)
    def later(): return AutoModel.from_pretrained(b)
with open("x") as stream:
    json.load(stream)
read_table(path, MASTERY, "mastery")
"""
    assert [call.lineno for call in outside_a_border(ast.parse(text))] == [4, 6]
