"""Record files: what is refused when one is read, and which paths are refused before work begins."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from knowshift.errors import InputError
from knowshift.files import check_output_file, check_parent
from knowshift.records import FACTS, read_table, write_table

ROW = {
    "id": ["a"],
    "relation": ["P19"],
    "split": ["train"],
    "domain": ["in_domain"],
    "subject": ["s"],
    "question": ["q"],
    "answer": ["x"],
    "aliases": [["y"]],
    "exposures": [3],
}


def test_a_table_comes_back_with_what_was_said_about_it(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", FACTS, ROW, {"seed": 1})
    table, about = read_table(tmp_path / "t.parquet", FACTS, "facts")
    assert table.to_pylist() == [{name: values[0] for name, values in ROW.items()}]
    assert about == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_other_writers_types_are_read_and_wrong_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    wide = pa.table({**ROW, "exposures": pa.array([3], pa.int64()), "aliases": pa.array([None], pa.null())})
    pq.write_table(wide, path)
    table, _ = read_table(path, FACTS, "facts")
    assert table["exposures"].type == pa.int32()
    assert table["aliases"].to_pylist() == [None]
    for column, values in (("exposures", ["many"]), ("aliases", [4]), ("exposures", [2.5])):
        pq.write_table(pa.table({**ROW, column: values}), path)
        with pytest.raises(InputError, match=r"t\.parquet: not a facts record"):
            read_table(path, FACTS, "facts")
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(InputError, match="column 'relation' is missing"):
        read_table(path, FACTS, "facts")
    path.write_text("no table")
    with pytest.raises(InputError, match="not a Parquet file"):
        read_table(path, FACTS, "facts")


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    check_output_file(tmp_path / "new" / "folders" / "file")
    with pytest.raises(InputError, match="is a folder"):
        check_output_file(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        check_parent(tmp_path / "file" / "below")
    if Path("/proc/self").is_dir():  # where even root may not make files
        with pytest.raises(InputError, match="/proc cannot be written to"):
            check_output_file(Path("/proc/file"))
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(InputError, match="cannot be written to"):
            check_output_file(tmp_path / "locked" / "file")
