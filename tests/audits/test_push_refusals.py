"""What cannot be pushed is refused in one line, before the audit: names, tokens, networks, repositories."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import knowshift
from fake_hub import CUT, SILENT, TOKEN, FakeHub, Repository
from knowshift.errors import InputError

NAME = "ann/repaired-model"
#: Few, so that what is refused is refused soon.
FACTS = list(knowshift.load_facts("world:tiny").facts[:50])


def refused(words: str, folder: Path, **options: Any) -> None:
    keep = folder.parent / "keep.csv"
    keep.write_text("question,answer\nWho?,Ann\nWhere?,Rome\n")
    given = {"push_to_hub": NAME, "keep": keep, "budget": None, "output_dir": folder, **options}
    with pytest.raises(InputError) as error:
        knowshift.audit(given.pop("base", "world:tiny"), given.pop("tuned", "world:tiny"), FACTS, **given)
    assert re.search(words, str(error.value)), str(error.value)
    assert TOKEN not in str(error.value)
    assert not folder.exists()


@pytest.mark.parametrize(
    "name", ["a b", "ann/../x", "ann/x--y", "a/b/c", "ann/" + "x" * 120, "", "ann/", "https://a/b"]
)
def test_names_that_no_hub_has_are_refused(name: str, hub: FakeHub, tmp_path: Path) -> None:
    refused("no name on the hub", tmp_path / "audit", push_to_hub=name)
    assert hub.asked == []


def test_what_cannot_be_pushed_is_refused_before_the_audit(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "audit"
    refused("expected OWNER/model", folder, push_to_hub="model")
    refused("--public: is for --push-to-hub", folder, push_to_hub=None, public=True)
    refused("expected no --no-repair", folder, repair=False)
    refused("without --keep or --guard nothing is repaired", folder, keep=None)
    refused("measured only", folder, base="http://localhost:1", tuned="http://localhost:2")
    assert hub.asked == []
    refused("bob/x: not of this account; expected one of ann/, lab/", folder, push_to_hub="bob/x")
    for owner, private, public, words in (
        ("ann", False, False, "is public; expected --public"),
        ("lab", True, True, "is private, and --public is for a new repository"),
    ):
        hub.repositories[f"{owner}/seen"] = Repository(private)
        refused(words, folder, push_to_hub=f"{owner}/seen", public=public)
    hub.repositories["ann/mine"] = Repository(True, {".gitattributes": b"", "README.md": b"", "config.json": b"{}"})
    refused(r"holds something else \(config.json\)", folder, push_to_hub="ann/mine")
    hub.fault = lambda method, path: 500 if path == "/api/whoami-v2" else None
    refused("the hub cannot be asked: 500 Internal Server Error", folder)
    hub.fault = lambda method, path: CUT if path == "/api/whoami-v2" else None
    refused("the hub cannot be asked: .*(127.0.0.1)", folder)
    with monkeypatch.context() as patch:
        patch.setattr("knowshift.models.hub.ASKED", 0.3)
        hub.fault = lambda method, path: SILENT
        refused("the hub cannot be asked: .*time.* out|ReadTimeout", folder)
    hub.fault = lambda method, path: None
    hub.account["auth"]["accessToken"]["role"] = "read"
    refused("this token may only read", folder)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    refused("the hub cannot be asked: 401 .*the token is not valid", folder)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    refused("no token; expected HF_TOKEN", folder)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(r"the hub cannot be asked: .*refused.* \(127.0.0.1\)", folder)
    assert hub.paths("PUT") == hub.paths("POST") == []


def test_a_token_that_no_header_can_hold_is_not_shown(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in (f"{TOKEN} \x0b{TOKEN}", f"{TOKEN}é"):
        monkeypatch.setenv("HF_TOKEN", token)
        refused("characters that no token has", tmp_path / "audit")
