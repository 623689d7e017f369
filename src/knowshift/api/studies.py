"""The whole experiment, from facts to report; and a report anew from a run's records."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from knowshift.api.inputs import Named, values_of
from knowshift.errors import InputError, check_whole, nearest

if TYPE_CHECKING:
    import pandas as pd

    from knowshift.reports.findings.claims import Finding
    from knowshift.studies.config import StudyConfig
    from knowshift.studies.cost import Estimate

#: Values of fields of a study's configuration by dotted key, or texts KEY=VALUE with the value in YAML.
#: Values by dotted key, or texts KEY=VALUE with values in YAML.
Overrides = Named

#: Called after every unit with: units done, units in all, its title, the seconds it took, the seconds left.
OnUnit = Callable[[int, int, str, float, float], None]


@dataclass(frozen=True)
class Report:
    """The result of a report: its page, the paper's findings as measured in this run, and the file of every table."""

    output: Path | str  # the page, or its URL
    findings: list[Finding]
    tables: dict[str, Path]  # CSV by name (docs/records.md); of a URL, those of its local copy

    def to_pandas(self, table: str) -> pd.DataFrame:
        """One table as a DataFrame.

        Raises:
            InputError: no table of that name.
        """
        import pandas as pd

        if table not in self.tables:
            raise InputError(f"no table {table!r}{nearest(table, self.tables)}")
        return pd.read_csv(self.tables[table])


@dataclass(frozen=True)
class StudyPlan:
    """What a study would do and take: its cells by kind, how many are missing in the run folder, and at what cost."""

    name: str
    run: Path | str  # the run folder, or its URL
    cells: dict[str, int]
    missing: dict[str, int]
    restored: int  # times that each restoration cell answers the test facts
    about: dict[str, Any]  # model and source, as in the manifest where both are at hand
    estimate: Estimate | None  # time, disk and memory of what is missing; None where the model's size is not known
    have_ready: tuple[str, ...]  # what is not at hand, one line each
    assumed: tuple[str, ...]  # what the estimate takes for granted, one line each


@dataclass(frozen=True)
class Study:
    """A finished study."""

    run: Path | str  # the run folder, or its URL
    report: Report
    seconds: float


def plan_study(
    config: str | Path | StudyConfig | None = None,
    *,
    preset: str | None = None,
    model: str | None = None,
    facts: str | None = None,
    tasks: str | Sequence[str] | None = None,
    overrides: Overrides = (),
    output_dir: str | Path | None = None,
    executor: str = "processes",
    workers: int | None = None,
) -> StudyPlan:
    """The plan of a study and what it takes; nothing is run, written or fetched.

    A model of the hub or facts that are not at hand are no obstacle: their known sizes stand for them. What
    :func:`study` would refuse of what is at hand is refused here too.

    Raises:
        InputError: as :func:`study`.
    """
    from knowshift.studies.config import Executor
    from knowshift.studies.folder import local_copy
    from knowshift.studies.run import preview

    settings, run = _checked(config, preset, _replaced(model, facts, tasks, overrides), output_dir, executor, workers)
    seen = preview(settings, local_copy(run)[0], cast(Executor, executor))
    return StudyPlan(
        settings.name,
        run,
        dict(Counter(cell.kind for cell in seen.plan.cells)),
        dict(Counter(cell.kind for cell in seen.missing)),
        len(settings.restoration.fractions) * len(settings.restoration.criteria),
        seen.about,
        seen.estimate,
        seen.ready.to_do,
        tuple(seen.assumed),
    )


def study(
    config: str | Path | StudyConfig | None = None,
    *,
    preset: str | None = None,
    model: str | None = None,
    facts: str | None = None,
    tasks: str | Sequence[str] | None = None,
    overrides: Overrides = (),
    output_dir: str | Path | None = None,
    executor: str = "processes",
    workers: int | None = None,
    progress: bool | OnUnit | None = None,
) -> Study:
    """Run a study, or resume one: mastery, fine-tuning, evaluation, token shift, weights, restoration, report.

    It may be interrupted at any moment; the same call resumes it and ends in the same records.

    Args:
        config: a study's YAML file, or a configuration.
        preset: a shipped study instead, such as "tiny".
        model: another model than that of the configuration, whose revision, base and instruct model are then dropped.
        facts: another source of facts.
        tasks: other tasks that base, tuned and restored models are asked: names with commas between them, or a list
            (``restoration.tasks``).
        overrides: other values of fields, by dotted key: {"training.learning_rate": 3e-5}, or texts in YAML:
            ["training.learning_rate=3e-5"].
        output_dir: the run folder, or a URL that fsspec opens ("s3://BUCKET/runs/NAME"); runs/NAME where not given.
        executor: "here" (this process), "processes" or "ray".
        workers: processes; one per core where not given.
        progress: show a bar or not; or a function, called after every unit.

    Raises:
        InputError: bad input of any kind, and a folder that holds the run of another configuration.
    """
    from knowshift.system.workers import imported_beside

    replaced = _replaced(model, facts, tasks, overrides)
    # A study with a report has most probably nothing left for workers to do.
    reported = (Path("runs") / (preset or "") if output_dir is None else Path(output_dir)) / "report.html"
    early = executor != "here" and not reported.exists()
    with imported_beside("knowshift.studies.executors") if early else nullcontext():
        settings, run = _checked(config, preset, replaced, output_dir, executor, workers)
        from knowshift.studies.config import Executor
        from knowshift.studies.run import run_study  # for which no refusal of the above waits
        from knowshift.system.progress import bar

        began = time.monotonic()
        with bar(f"study {settings.name}", None, "unit", False if callable(progress) else progress) as advance:
            on_unit = progress if callable(progress) else lambda done, total, title, seconds, left: advance(1)
            run_study(settings, run, executor=cast(Executor, executor), workers=workers, progress=on_unit)
        return Study(run, report(run), time.monotonic() - began)


def report(run: str | Path) -> Report:
    """Write RUN/tables, RUN/figures and RUN/report.html anew from a run's records, without a model.

    Args:
        run: a run folder, or its URL.

    Raises:
        InputError: not the folder of a run, or a record that is damaged.
    """
    from knowshift.remote import RemoteRun, is_url
    from knowshift.reports.page.page import write_report_with_findings

    remote = RemoteRun(str(run)) if is_url(run) else None
    folder = Path(run)
    if remote is not None:
        folder = remote.local
        if not remote.fetch_file("manifest.json"):
            raise InputError(f"{run}: not a run folder: manifest.json is missing")
        remote.follow()
        # A report reads records only, and a checkpoint may have gigabytes.
        complete = [path.relative_to(folder).as_posix() for path in folder.glob("cells/*/[!.]*")]
        remote.fetch(complete, lambda file: not file.startswith("model/"))
    page, findings = write_report_with_findings(folder)
    tables = {file.stem: file for file in sorted((folder / "tables").glob("*.csv"))}
    if remote is not None:
        remote.publish("tables", "figures", page.name)
        return Report(f"{remote.url}/{page.name}", findings, tables)
    return Report(page, findings, tables)


#: Fields that belong to the model of a configuration, and are dropped where another is named.
_OF_MODEL = ("revision", "base", "base_revision", "instruct", "instruct_revision")


def _replaced(
    model: str | None, facts: str | None, tasks: str | Sequence[str] | None, overrides: Overrides
) -> dict[str, Any]:
    """All values that replace those of a configuration, by dotted key; a key that is set counts last."""
    values: dict[str, Any] = {}
    if model is not None:
        values |= {"model": model, **dict.fromkeys(_OF_MODEL)}
    if facts is not None:
        values["facts"] = facts
    if tasks is not None:
        values["restoration.tasks"] = [one.strip() for one in (tasks.split(",") if isinstance(tasks, str) else tasks)]
    return values | values_of(overrides, "--set", "training.learning_rate=3e-5")


def _checked(
    config: str | Path | StudyConfig | None,
    preset: str | None,
    replaced: Mapping[str, Any],
    output_dir: str | Path | None,
    executor: str,
    workers: int | None,
) -> tuple[StudyConfig, Path | str]:
    """The configuration and the run folder of a call, or its URL, after all its arguments are checked."""
    from knowshift.remote import is_url
    from knowshift.studies.config import Executor, StudyConfig, load_config, load_preset, parse_config
    from knowshift.studies.folder import check_folder, local_copy

    if (config is None) == (preset is None):
        raise InputError("study: give either a config file or --preset NAME")
    if preset is not None:
        settings = load_preset(preset, replaced)
    elif isinstance(config, (str, Path)):
        settings = load_config(Path(config), replaced)
    elif isinstance(config, StudyConfig):
        text = json.dumps(config.as_record(), ensure_ascii=False)
        settings = parse_config(text, "the configuration", replaced)
    else:
        raise InputError(f"study: a configuration of type {type(config).__name__}; expected a file or a StudyConfig")
    if workers is not None:
        check_whole("workers", workers, 1)
    if executor not in get_args(Executor):
        raise InputError(f"study: no executor {executor!r}{nearest(executor, get_args(Executor))}")
    run: Path | str = Path("runs") / settings.name if output_dir is None else Path(output_dir)
    if output_dir is not None and is_url(output_dir):
        run = str(output_dir)
    check_folder(local_copy(run)[0], settings, run)
    return settings, run
