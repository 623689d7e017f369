"""Links in a checkpoint's folder: those of the hub's cache and of the folder itself are followed, no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from knowshift.errors import InputError
from knowshift.parameters.files.companions import copy_files
from knowshift.parameters.files.restored import restore_checkpoints
from weights_pairs import save_pair


def test_a_link_to_elsewhere_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    secret = tmp_path / "private_key"
    secret.write_text("secret")
    (tuned / "notes.txt").symlink_to(secret)
    with pytest.raises(InputError, match=r"notes\.txt: a link to .*private_key, outside the folder"):
        restore_checkpoints(base, tuned, tmp_path / "out", {"0.5": 0.5}, writing=lambda size: pytest.fail("written"))
    assert not (tmp_path / "out").exists()
    (tuned / "notes.txt").unlink()
    (tuned / "additional_chat_templates").symlink_to(tmp_path)
    (tmp_path / "x.jinja").write_text("x")
    with pytest.raises(InputError, match=r"x\.jinja: a link to"):
        copy_files(tuned, tmp_path)


def test_links_inside_the_folder_and_the_folder_by_a_link(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    (tuned / "README.txt").write_text("text")
    (tuned / "notes.txt").symlink_to("README.txt")
    (tmp_path / "by-link").symlink_to(tuned)
    done = restore_checkpoints(base, tmp_path / "by-link", tmp_path / "out", {"0.5": 0.5})
    copy = done.output["0.5"] / "notes.txt"
    assert copy.read_text() == "text"
    assert not copy.is_symlink()


def test_a_snapshot_of_the_hubs_cache_is_links_to_its_blobs(tmp_path: Path) -> None:
    base, tuned = save_pair(tmp_path)
    cache = tmp_path / "hub" / "models--owner--name"
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, file in enumerate(sorted(tuned.iterdir())):
        blob = cache / "blobs" / f"{number:040x}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    done = restore_checkpoints(base, snapshot, tmp_path / "out", {"0.5": 0.5})
    config = done.output["0.5"] / "config.json"
    assert config.read_bytes() == (tuned / "config.json").read_bytes()
    assert not config.is_symlink()
