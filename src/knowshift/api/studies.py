"""The whole experiment, from facts to report; and a report anew from a run's records."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from knowshift.errors import InputError, check_whole, nearest

if TYPE_CHECKING:
    import pandas as pd

    from knowshift.reports.findings.claims import Finding
    from knowshift.studies.config import StudyConfig

#: Called after every unit with: units done, units in all, its title, the seconds it took, the seconds left.
OnUnit = Callable[[int, int, str, float, float], None]


@dataclass(frozen=True)
class Report:
    """The result of a report: its page, the paper's findings as measured in this run, and the file of every table."""

    output: Path
    findings: list[Finding]
    tables: dict[str, Path]  # CSV by name (docs/records.md)

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
    """What a study would do: its cells by kind, and how many of them are missing in the run folder."""

    name: str
    run: Path
    cells: dict[str, int]
    missing: dict[str, int]
    restored: int  # times that each restoration cell answers the test facts
    about: dict[str, Any]  # model and source, as in the manifest


@dataclass(frozen=True)
class Study:
    """A finished study."""

    run: Path
    report: Report
    seconds: float


def plan_study(
    config: str | Path | StudyConfig | None = None,
    *,
    preset: str | None = None,
    output_dir: str | Path | None = None,
    executor: str = "processes",
    workers: int | None = None,
) -> StudyPlan:
    """The plan of a study; nothing is run, nothing is written. What :func:`study` would refuse is refused here too.

    Raises:
        InputError: as :func:`study`.
    """
    from knowshift.studies.run import plan_of

    settings, run = _checked(config, preset, output_dir, executor, workers)
    plan, about = plan_of(settings)
    return StudyPlan(
        settings.name,
        run,
        dict(Counter(cell.kind for cell in plan.cells)),
        dict(Counter(cell.kind for unit in plan.units for cell in unit.missing(run))),
        len(settings.restoration.fractions) * len(settings.restoration.criteria),
        about,
    )


def study(
    config: str | Path | StudyConfig | None = None,
    *,
    preset: str | None = None,
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
        output_dir: the run folder; runs/NAME where not given.
        executor: "here" (this process), "processes" or "ray".
        workers: processes; one per core where not given.
        progress: show a bar or not; or a function, called after every unit.

    Raises:
        InputError: bad input of any kind, and a folder that holds the run of another configuration.
    """
    from knowshift.studies.config import Executor
    from knowshift.studies.run import run_study
    from knowshift.system.progress import bar

    settings, run = _checked(config, preset, output_dir, executor, workers)
    began = time.monotonic()
    with bar(f"study {settings.name}", None, "unit", False if callable(progress) else progress) as advance:
        on_unit = progress if callable(progress) else lambda done, total, title, seconds, left: advance(1)
        run_study(settings, run, executor=cast(Executor, executor), workers=workers, progress=on_unit)
    return Study(run, report(run), time.monotonic() - began)


def report(run: str | Path) -> Report:
    """Write RUN/tables, RUN/figures and RUN/report.html anew from a run's records, without a model.

    Raises:
        InputError: not the folder of a run, or a record that is damaged.
    """
    from knowshift.reports.page.page import write_report_with_findings

    page, findings = write_report_with_findings(Path(run))
    return Report(page, findings, {file.stem: file for file in sorted((Path(run) / "tables").glob("*.csv"))})


def _checked(
    config: str | Path | StudyConfig | None,
    preset: str | None,
    output_dir: str | Path | None,
    executor: str,
    workers: int | None,
) -> tuple[StudyConfig, Path]:
    """The configuration and the run folder of a call, after all its arguments are checked."""
    from knowshift.studies.config import Executor, StudyConfig, load_config, load_preset
    from knowshift.studies.folder import check_folder

    if (config is None) == (preset is None):
        raise InputError("study: give either a config file or --preset NAME")
    if preset is not None:
        settings = load_preset(preset)
    elif isinstance(config, (str, Path)):
        settings = load_config(Path(config))
    elif isinstance(config, StudyConfig):
        settings = config
    else:
        raise InputError(f"study: a configuration of type {type(config).__name__}; expected a file or a StudyConfig")
    if workers is not None:
        check_whole("workers", workers, 1)
    if executor not in get_args(Executor):
        raise InputError(f"study: no executor {executor!r}{nearest(executor, get_args(Executor))}")
    run = Path("runs") / settings.name if output_dir is None else Path(output_dir)
    check_folder(run, settings)
    return settings, run
