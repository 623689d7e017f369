"""Every file that is parsed, damaged by one grammar: read, or refused in one line; nothing else, and never slow.

A few seconds by default. ``KNOWSHIFT_FUZZ_SECONDS=3600`` spreads an hour over the kinds of files, with new seeds.
"""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from damage import Literal, documents, emit, hit, trees
from knowshift.cli.world import describe
from knowshift.errors import InputError
from knowshift.facts.sources.load import load_facts
from knowshift.files import read_json, write_json
from knowshift.parameters.files.adapter import read_adapter
from knowshift.parameters.files.checkpoint import StoredTensors, read_shard
from knowshift.parameters.files.pair import open_pair
from knowshift.parameters.regions import Scope
from knowshift.probing.certainty_record import write_certainty
from knowshift.probing.run import _check_parts, _outcome
from knowshift.records import ANSWERS, EXPECTED, MASTERY, read_about, read_columns, read_table, write_table
from knowshift.reports.page.page import compose
from knowshift.reports.tables.build import build_tables
from knowshift.studies.config import load_config, load_preset, parse_config
from knowshift.studies.folder import check_folder
from knowshift.world.record import read_world_record
from report_run import Shape, build_run
from small_questions import small_rows, write_zip
from weights_pairs import save_pair

SECONDS = float(os.environ.get("KNOWSHIFT_FUZZ_SECONDS", "0"))
EXAMPLES = 16
#: Bytes of address space that the tests of this file may add: a few lines of YAML must not be expanded.
MEMORY = 4 << 30
#: Seconds of processor that one small damaged file may take.
SLOW = 10.0
KINDS = 16  # tests below that share the seconds


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def holds(strategy: Any, read: Callable[[Any], object], examples: int = EXAMPLES) -> None:
    """Draw damage until the time of this kind is up; ``read`` succeeds or refuses in one printable line."""
    until = time.monotonic() + SECONDS / KINDS
    number = 0
    while number == 0 or time.monotonic() < until:

        @seed(number)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def every(damaged: Any) -> None:
            began = time.process_time()  # a machine may be busy
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read(damaged)
            except InputError as refusal:
                said = str(refusal)
            else:
                said = "read"
            assert said.isprintable()
            assert 0 < len(said) <= 2000
            assert time.process_time() - began < SLOW

        every()
        number += 1


# -- weights ----------------------------------------------------------------------------------------------------

HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "empty": {"dtype": "F16", "shape": [0, 5], "data_offsets": [32, 32]},
    "one": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
}


def test_safetensors_headers_and_the_reference_agrees(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    accepted = refused = 0

    def read(damaged: tuple[bytes, int]) -> None:
        nonlocal accepted, refused
        header, more = damaged
        path.write_bytes((len(header) + more).to_bytes(8, "little", signed=False) + header + bytes(40))
        try:
            with safe_open(path, "np") as reference:
                known = {name: tuple(reference.get_slice(name).get_shape()) for name in reference.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError:
            known = None
        try:
            shard = read_shard(path)
        except InputError:
            refused += 1
            raise
        # The other way need not hold: two keys of one name, for one, are refused here alone.
        assert known == {name: tensor.shape for name, tensor in shard.tensors.items()}
        accepted += 1

    more = st.sampled_from((0, 0, 0, 0, 1, 8, 2**40, 2**63 - 10_000))
    holds(st.tuples(documents(HEADER), more), read, 8 * EXAMPLES)
    assert accepted > 5
    assert refused > 20


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        ({"dtype": ["F32"]}, "dtype is no text"),
        ({"dtype": 5}, "dtype is no text"),
        ({"dtype": "F33"}, "dtype 'F33', which is not known; nearest: 'F32'"),
        ({"shape": [Literal("Infinity")]}, "shape is no list"),
        ({"shape": [Literal("1" * 5000)]}, "not a readable safetensors file"),
        ({"shape": [Literal("1" * 4000)]}, "shape is no list"),
        ({"shape": [2.0, 3.0]}, "shape is no list"),
        ({"shape": [Literal("-0"), 5]}, "not a readable safetensors file: -0 is no size"),
        ({"shape": [True, 6]}, "shape is no list"),
        ({"shape": [-2, -3]}, "shape is no list"),
        ({"shape": [1] * 65 + [6]}, "shape is no list of at most 64"),
        ({"shape": [0, 2**62, 2**62]}, "beyond any file"),
        ({"shape": [2**62, 2**62]}, "beyond any file"),
        ({"data_offsets": [0, Literal("NaN")]}, "data_offsets are no two offsets"),
        ({"data_offsets": [0, 24, 24]}, "data_offsets are no two offsets"),
        ({"data_offsets": [24, 0]}, "shape (2, 3) has -24 bytes"),
        ({"data_offsets": [1, 25]}, "begins at the wrong byte"),
        ({"shape": Literal("[" * 5000 + "]" * 5000)}, "not a readable safetensors file"),
        ({"more": 1}, "expected dtype, shape and data_offsets"),
    ],
)
def test_each_fault_of_a_header_is_named(spoilt: dict[str, Any], says: str, tmp_path: Path) -> None:
    header = emit({**HEADER, "a": {**HEADER["a"], **spoilt}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(40))
    with pytest.raises(InputError) as told:
        read_shard(path)
    assert says in str(told.value)
    assert str(path) in str(told.value)


def test_two_keys_half_a_pair_and_metadata_that_is_none(tmp_path: Path) -> None:
    one = emit(HEADER["a"])
    path = tmp_path / "model.safetensors"
    for header, says in (
        (f'{{"a":{one},"a":{one}}}', "a key stands twice"),
        (f'{{"\\ud800":{one}}}', "surrogates not allowed"),
        (f'{{"a":{one},"__metadata__":[]}}', "__metadata__ is no object"),
        (f'{{"a":{one},"b":{one}}}', "begins at the wrong byte"),  # they overlap
    ):
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(24))
        with pytest.raises(InputError, match=says):
            read_shard(path)


def test_indexes_of_checkpoints(tmp_path: Path) -> None:
    _, tuned = save_pair(tmp_path, shard="12KB")
    index = tuned / "model.safetensors.index.json"
    tree = json.loads(index.read_text())

    def read(damaged: bytes) -> None:
        index.write_bytes(damaged)
        StoredTensors(tuned)

    holds(documents(tree), read)


def test_an_index_that_names_a_shard_too_long_for_any_file(tmp_path: Path) -> None:
    _, tuned = save_pair(tmp_path, shard="12KB")
    index = tuned / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    tree["weight_map"] = dict.fromkeys(tree["weight_map"], "x" * 5000)
    index.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"names shard .x{50}"):
        StoredTensors(tuned)


def test_configurations_of_checkpoints(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    config = tuned / "config.json"
    tree = json.loads(config.read_text())

    def read(damaged: bytes) -> None:
        config.write_bytes(damaged)
        open_pair(base, tuned, Scope("layers"))

    holds(documents(tree), read)


def test_configurations_of_adapters(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    tree = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "rank_pattern": {"q_proj": 2},
        "base_model_name_or_path": "base",
    }

    def read(damaged: bytes) -> None:
        config.write_bytes(damaged)
        read_adapter(tmp_path)

    holds(documents(tree), read)


# -- studies ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = Shape(facts_per_level=4, sizes=(60,), levels=(0, 4), draws=2)
    return build_run(tmp_path_factory.mktemp("runs") / "small", shape=small)


def damaged_in_place(path: Path, read: Callable[[], object]) -> Callable[[bytes], None]:
    """Write the damage, read, and put the file back."""
    kept = path.read_bytes()

    def one(damaged: bytes) -> None:
        path.write_bytes(damaged)
        try:
            read()
        finally:
            path.write_bytes(kept)

    return one


def write_page(run: Path) -> None:
    compose(build_tables(run), {}).encode()


def test_manifests_of_studies(run: Path) -> None:
    manifest = run / "manifest.json"
    preset = load_preset("tiny")

    def read() -> None:
        try:
            check_folder(run, preset)
        except InputError:
            write_page(run)
            raise

    tree = json.loads(manifest.read_text())
    # Of many cells that are alike, damage should find one of each kind.
    tree["cells"].sort(key=lambda cell: cell["kind"])
    holds(documents(tree), damaged_in_place(manifest, read), EXAMPLES // 4)


@pytest.mark.parametrize("name", ["change.json", "restored.json"])
def test_cells_of_studies(name: str, run: Path) -> None:
    file = next(run.glob(f"cells/*/*/{name}"))
    tree = json.loads(file.read_text())
    holds(documents(tree), damaged_in_place(file, lambda: write_page(run)), EXAMPLES // 4)


#: 400 bytes that expand to 9^10 words; the error of a missing key quotes what was found.
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)
ODD_YAML = ("levels: &a [*a]", "a: !!python/object:os.system {}", "? [a]\n: b", "- 1", LAUGHS, "\t")


@pytest.mark.parametrize("text", ODD_YAML)
def test_a_configuration_that_is_odd_yaml_is_refused_at_once(text: str) -> None:
    began = time.process_time()
    with pytest.raises(InputError) as told:
        parse_config(text, "study.yaml")
    assert len(str(told.value)) < 2000
    assert time.process_time() - began < SLOW


def test_configurations_of_studies(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    tree = load_preset("tiny").as_record()
    odd = st.sampled_from(ODD_YAML)

    def read(damaged: bytes) -> None:
        path.write_bytes(damaged)
        load_config(path)

    holds(st.one_of(documents(tree), odd.map(str.encode)), read)  # JSON is YAML in its flow style


def test_records_of_worlds(tmp_path: Path, small_world: Path) -> None:
    record = tmp_path / "world.json"
    for file in small_world.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tree = json.loads(record.read_text())

    def read() -> None:
        read_world_record(tmp_path)
        describe(f"world:{tmp_path}", as_json=True)

    holds(documents(tree), damaged_in_place(record, read))


# -- records ----------------------------------------------------------------------------------------------------


def mastery_rows() -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {name: ["a", "b"] for name in ("fact", "relation", "split", "domain")}
    rows |= {"exposures": [1, None], "prompt_hits": [[1, 0], [0, 0]], "prompt_draws": [[10, 10], [10, 10]]}
    return rows | {"hits": [1, 0], "draws": [20, 20], "rate": [0.05, 0.0], "level": [1, 0]}


def expected_rows() -> dict[str, list[Any]]:
    rows = mastery_rows() | {"prompt_hits": [[0.6, 0.1], [0.0, 0.0]], "prompt_squares": [[0.2, 0.01], [0.0, 0.0]]}
    rows |= {"prompt_draws": [[2, 2], [2, 2]], "hits": [0.7, 0.0], "draws": [4, 4], "rate": [0.175, 0.0]}
    return rows | {"variance": [0.01, 0.0], **{f"level_{level}": [0.2, 0.2] for level in range(5)}}


@pytest.mark.parametrize("column", ["prompt_hits", "prompt_draws", "hits", "draws", "rate", "level"])
def test_a_mastery_record_with_a_gap_is_refused(column: str, tmp_path: Path) -> None:
    path = tmp_path / "mastery.parquet"
    rows = mastery_rows()
    write_table(path, MASTERY, rows | {column: [rows[column][0], None]}, {})
    readers: list[Callable[[], object]] = [
        lambda: read_table(path, MASTERY, "mastery"),
        lambda: read_columns(path, ["fact", column]),
    ]
    if column not in ("hits", "draws"):
        readers.append(lambda: write_certainty(path, tmp_path / "certainty.parquet"))
    for reads in readers:
        with pytest.raises(InputError, match=rf"column '{column}' has rows without a value"):
            reads()


@pytest.mark.parametrize(
    ("hits", "says"),
    [
        ([[None, 0], [0, 0]], "'prompt_hits' has rows without a value"),
        ([[1], [0, 0]], "hits of more or fewer prompts"),
        ([[1, 0], [0, 11]], "a prompt has fewer than 0 hits, or more than draws"),
        ([[-1, 0], [0, 0]], "a prompt has fewer than 0 hits, or more than draws"),
    ],
)
def test_prompts_of_a_mastery_record_that_do_not_fit_are_refused(hits: list[Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "mastery.parquet"
    write_table(path, MASTERY, mastery_rows() | {"prompt_hits": hits}, {})
    for reads in (
        lambda: read_table(path, MASTERY, "mastery"),
        lambda: read_columns(path, ["prompt_hits", "prompt_draws"]),
        lambda: write_certainty(path, tmp_path / "certainty.parquet"),
    ):
        with pytest.raises(InputError, match=says):
            reads()


def test_expected_hits_of_more_than_one_a_text_are_read_by_all(tmp_path: Path) -> None:
    """Random truncation gives texts weights above 1; a reader that asks for few columns must know that too."""
    path = tmp_path / "mastery.parquet"
    write_table(path, EXPECTED, expected_rows() | {"prompt_hits": [[2.5, 0.1], [0.0, 0.0]]}, {})
    assert read_table(path, MASTERY, "mastery")[0]["prompt_hits"][0].as_py() == [2.5, 0.1]
    assert read_columns(path, ["prompt_hits", "prompt_draws"])["prompt_hits"][0].as_py() == [2.5, 0.1]
    write_certainty(path, tmp_path / "certainty.parquet")


@pytest.mark.parametrize("schema", [MASTERY, EXPECTED], ids=["hits", "expected"])
def test_a_mastery_record_without_facts_is_refused_as_such_and_one_without_prompts_is_read(
    schema: pa.Schema, tmp_path: Path
) -> None:
    path = tmp_path / "mastery.parquet"
    rows = mastery_rows() if schema is MASTERY else expected_rows()
    write_table(path, schema, {name: [] for name in schema.names}, {})
    with pytest.raises(InputError, match="it holds no fact"):
        read_table(path, MASTERY, "mastery")
    without: dict[str, list[Any]] = {name: [[], []] for name in schema.names if name.startswith("prompt_")}
    write_table(path, schema, rows | without, {})
    assert read_table(path, MASTERY, "mastery")[0].num_rows == 2
    write_certainty(path, tmp_path / "certainty.parquet")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt_squares": [[0.2], [0.0, 0.0]]}, "hits of more or fewer prompts"),
        ({"prompt_hits": [[0.6, None], [0.0, 0.0]]}, "'prompt_hits' has rows without a value"),
        ({"prompt_hits": [[0.6, float("nan")], [0.0, 0.0]]}, "'prompt_hits' has values that are not finite"),
        ({"prompt_hits": [[0.6, -0.1], [0.0, 0.0]]}, "a prompt has fewer than 0 hits, or more than draws"),
        ({"rate": [float("inf"), 0.0]}, "'rate' has values that are not finite"),
        ({"prompt_draws": [[2, 1], [2, 2]]}, "expected hits of 1 texts; expected at least 2"),
    ],
)
def test_expected_hits_that_cannot_be_are_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "mastery.parquet"
    write_table(path, EXPECTED, expected_rows() | change, {})
    readers: list[Callable[[], object]] = [lambda: read_table(path, MASTERY, "mastery")]
    if "rate" not in change:
        readers.append(lambda: write_certainty(path, tmp_path / "certainty.parquet"))
    for reads in readers:
        with pytest.raises(InputError, match=says):
            reads()


@pytest.mark.parametrize("schema", [MASTERY, EXPECTED], ids=["hits", "expected"])
def test_what_records_say_about_themselves(schema: pa.Schema, tmp_path: Path) -> None:
    path = tmp_path / "mastery.parquet"
    write_table(path, schema, mastery_rows() if schema is MASTERY else expected_rows(), {})
    table = pq.read_table(path)

    def read(damaged: bytes) -> None:
        pq.write_table(table.replace_schema_metadata({"knowshift": damaged}), path)
        read_about(path, "mastery")
        read_table(path, MASTERY, "mastery")
        _outcome(path)
        write_certainty(path, tmp_path / "certainty.parquet")

    holds(documents({"positions": 5, "draws_per_prompt": 10, "facts": {"a": ["x"]}}), read)


def test_a_record_that_allows_more_draws_than_any_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mastery.parquet"
    write_table(path, MASTERY, mastery_rows(), {"draws_per_prompt": 2**63 - 1})
    with pytest.raises(InputError, match="draws_per_prompt is '9223372036854775807'; expected a count below"):
        write_certainty(path, tmp_path / "certainty.parquet")


@pytest.mark.parametrize("where", [b"level", b"P999"])
def test_names_and_texts_of_parquet_that_are_no_utf8_are_refused(where: bytes, tmp_path: Path) -> None:
    path, facts = tmp_path / "mastery.parquet", tmp_path / "facts.parquet"
    rows = mastery_rows() | {"relation": ["P999", "P999"]}
    table = pa.table({name: rows[name] for name in MASTERY.names}, schema=MASTERY)
    pq.write_table(table, path, compression="none", store_schema=False)
    pq.write_table(pa.table({"question": ["P999"], "level": ["x"]}), facts, compression="none", store_schema=False)
    for file in (path, facts):
        file.write_bytes(file.read_bytes().replace(where, b"\xf0" + where[1:]))
    with pytest.raises(InputError):
        read_table(path, MASTERY, "mastery")
    with pytest.raises(InputError):
        load_facts(str(facts))


@pytest.mark.parametrize("schema", [MASTERY, EXPECTED], ids=["hits", "expected"])
def test_records_whose_bytes_were_hit(schema: pa.Schema, tmp_path: Path) -> None:
    path = tmp_path / "mastery.parquet"
    write_table(path, schema, mastery_rows() if schema is MASTERY else expected_rows(), {"positions": 1})

    def read() -> None:
        read_table(path, MASTERY, "mastery")
        write_certainty(path, tmp_path / "certainty.parquet")
        read_table(path, ANSWERS, "answers")

    holds(hit(path.read_bytes()), damaged_in_place(path, read))


def test_labels_of_unfinished_records(tmp_path: Path) -> None:
    label = tmp_path / "about.json"
    about = {"seed": 0, "identity": "abc", "facts": "digest", "protocol": {"draws": 10}}
    write_json(label, about)
    holds(documents(about), damaged_in_place(label, lambda: _check_parts(tmp_path, about, [])))


# -- facts ------------------------------------------------------------------------------------------------------

ROWS = [
    {"id": "1", "question": "Capital of Peru?", "subject": "Peru", "answers": ["Lima", "Ciudad"], "exposures": 3},
    {"id": "2", "question": "Who wrote Emma?", "subject": "Emma", "answers": ["Jane Austen"], "split": "test"},
]


def test_tables_of_facts(tmp_path: Path) -> None:
    def comma(tree: Any) -> bytes:
        out = io.StringIO()
        writer = csv.writer(out)
        for row in [["id", "question", "subject", "answers"], *tree]:
            cells = row if isinstance(row, list) else [row]
            writer.writerow([cell if isinstance(cell, str) else emit(cell) for cell in cells])
        return out.getvalue().encode("utf-8", "surrogatepass")

    def parquet(tree: Any) -> bytes:
        out = io.BytesIO()
        try:
            pq.write_table(pa.Table.from_pylist(json.loads(emit(tree))), out)
        except Exception:
            pq.write_table(pa.table({"question": ["q"]}), out)
        return out.getvalue()

    def lines(tree: Any) -> bytes:
        return "\n".join(map(emit, tree)).encode("utf-8", "surrogatepass")

    flat = [[row["id"], row["question"], row["subject"], emit(row["answers"])] for row in ROWS]
    popqa = [
        ["subj", "prop", "obj", "question", "possible_answers"],
        ["Peru", "capital", "Lima", "Capital?", '["Lima"]'],
    ]

    def tabs(tree: Any) -> bytes:
        return "\n".join(
            "\t".join(c if isinstance(c, str) else emit(c) for c in (row if isinstance(row, list) else [row]))
            for row in tree
        ).encode("utf-8", "surrogatepass")

    trivia = {"Data": [{"Question": "q", "QuestionId": "i", "Answer": {"Value": "a", "Aliases": ["b"]}}]}
    kinds = {
        "facts.csv": trees(flat).map(comma),
        "facts.jsonl": trees(ROWS).map(lines),
        "facts.parquet": trees(ROWS).map(parquet),
        "popqa:p.tsv": trees(popqa).map(tabs),
        "nq-open:nq.jsonl": trees([{"question": "q", "answer": ["a", "b"]}]).map(lines),
        "triviaqa:t.json": trees(trivia).map(lambda tree: emit(tree).encode("utf-8", "surrogatepass")),
    }

    def read(damaged: tuple[str, bytes]) -> None:
        source, data = damaged
        scheme, _, name = source.rpartition(":")
        (tmp_path / name).write_bytes(data)
        load_facts(f"{scheme}:{tmp_path / name}" if scheme else str(tmp_path / name))

    one = st.sampled_from(sorted(kinds)).flatmap(lambda kind: st.tuples(st.just(kind), kinds[kind].flatmap(hit)))
    holds(one, read, 3 * EXAMPLES)


def test_zips_of_entity_questions(tmp_path: Path) -> None:
    members = small_rows()
    name = "dataset/train/P17.train.json"
    whole = write_zip(tmp_path / "whole.zip", members).read_bytes()
    path = tmp_path / "damaged.zip"

    def member(content: bytes) -> bytes:
        made = io.BytesIO(whole)
        with zipfile.ZipFile(made) as archive:
            kept = {info.filename: archive.read(info) for info in archive.infolist()}
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive:
            for entry, data in {**kept, name: content}.items():
                archive.writestr(entry, data)
        return made.getvalue()

    def read(damaged: bytes) -> None:
        path.write_bytes(damaged)
        load_facts(f"entity-questions:{path}")

    holds(st.one_of(documents(members[name]).map(member), hit(whole)), read)


def test_a_zip_of_entity_questions_with_a_number_of_5000_digits(tmp_path: Path) -> None:
    members = dict.fromkeys(small_rows(), b"[" + b"9" * 5000 + b"]")
    with pytest.raises(InputError, match="broken JSON"):
        load_facts(f"entity-questions:{write_zip(tmp_path / 'dataset.zip', members)}")


def test_a_json_file_is_an_object_of_bounded_depth(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text, says in (
        ("[]", "expected a JSON object, found list"),
        ('{"a":' * 80 + "1" + "}" * 80, "nested deeper than 64"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"a": ' + "1" * 5000 + "}", "not readable as JSON"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            read_json(path)
    path.write_text('{"a":' * 60 + "1" + "}" * 60)
    assert read_json(path)["a"]
    path.write_text('{"time_step_limit": [0.0, Infinity]}')  # as transformers writes a Mamba's configuration
    assert read_json(path)["time_step_limit"][1] == float("inf")
