"""What a dry run looks at: nothing is fetched, and what is damaged is one line."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest

from knowshift.errors import InputError
from knowshift.models.loading import load_model
from knowshift.studies.config import StudyConfig, load_preset
from knowshift.studies.readiness import cached_model, readiness, shape_at_hand


def _config(model: str, **fields: object) -> StudyConfig:
    return load_preset("tiny", {"model": model, **fields})


def test_the_base_of_an_adapter_is_not_fetched(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tmp_path / "adapter"
    model = peft.get_peft_model(load_model(str(small_world)).model, peft.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(adapter)
    about = adapter / "adapter_config.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "base_model_name_or_path": "nobody/nothing"}))

    def asked(*given: object, **more: object) -> str:
        assert more["local_files_only"]
        return str(small_world)

    assert cached_model(_config(str(adapter))) is None
    assert readiness(_config(str(adapter)), "here").to_do
    monkeypatch.setattr("knowshift.studies.readiness.snapshot_download", asked)
    assert cached_model(_config(str(adapter))) == small_world
    assert cached_model(_config(str(adapter), base=str(small_world))) == small_world


def test_a_damaged_configuration_is_one_line(small_world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in small_world.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    for text in ("{", "[]"):
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json"):
            shape_at_hand(_config(str(folder)))


def test_an_instruct_model_and_tasks_of_lm_eval_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*given: object, **more: object) -> str:
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr("knowshift.studies.readiness.snapshot_download", offline)
    ready = readiness(_config("world:tiny", instruct="nobody/chat"), "here")
    assert ready.to_do == ("model: nobody/chat is fetched from the hub at the first run",)
    assert not ready.model
    assert readiness(_config("world:tiny", instruct="world:tiny"), "here").all
    with pytest.raises(InputError, match="no such model folder"):
        readiness(_config("world:tiny", instruct=str(tmp_path / "none")), "here")
    fields = {"restoration.tasks": ["text_loss", "knowshift_world_tiny", "knowshift_xsum"]}
    ready = readiness(_config("world:tiny", **fields), "here")
    assert ready.to_do == (
        "data: lm-eval fetches the data sets of knowshift_xsum at the first run, if they are not cached",
    )
    assert ready.all
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    ready = readiness(_config("world:tiny", **fields), "here")
    assert ready.to_do[0] == "package: pip install 'knowshift[lm-eval]', for restoration.tasks"
    assert not ready.all


@pytest.mark.parametrize("package", ["", "no.such.package", "."])
def test_a_service_that_is_no_package_is_one_to_install(package: str) -> None:
    told = readiness(_config("world:tiny", **{"training.report_to": package}), "here").to_do
    assert [line for line in told if line.startswith(f"package: pip install {package}")]
