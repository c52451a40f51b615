"""`reproduce`: run studies, each into a folder of its own, and write an index of all that are there."""

import csv
import io
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch

from vaentropy import __version__
from vaentropy.checks import require_function, require_instance, require_path
from vaentropy.engines import Engine, Here, engine_or_here
from vaentropy.engines.shared import appears
from vaentropy.errors import TrainingError, UsageError, nearest, shown
from vaentropy.files import to_json, write_text
from vaentropy.progress import Report, progress_bar
from vaentropy.runs.build import torch_device
from vaentropy.studies.experiments import STUDIES
from vaentropy.studies.index import check_index, write_index
from vaentropy.studies.record import FIGURE, RECORD, TABLE, Record, read_record
from vaentropy.studies.study import Outcome, Plan, Study

__all__ = ["Reproduction", "reproduce"]

ALL = "all"


@dataclass(frozen=True)
class Reproduction:
    """What `reproduce` did.

    Attributes:
        folder: where the results are.
        records: of the studies asked for, by name, that are there now.
        kept: which of them were there before, made by the same plan.
        failed: why the others are not there, one line each.
    """

    folder: Path
    records: Mapping[str, Record]
    kept: Sequence[str]
    failed: Mapping[str, str]


def reproduce(
    names: Sequence[str] = (ALL,),
    plan: Plan | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    engine: Engine | None = None,
    on_study: Callable[[Record], None] | None = None,
) -> Reproduction:
    """Run studies; each leaves in `out`/NAME its table (CSV), figure (SVG) and all its numbers (JSON).

    A study that is there already, made by the same plan and version, is kept, so that an interrupted call can be
    repeated. A study that fails, say for want of its data, does not stop the others.

    Args:
        names: of studies, as in `STUDIES`; "all" stands for all of them.
        plan: how large they are made; None is `Plan()`.
        out: folder of the results and their index.html; by default one under reproduced/, named after the scale.
        overwrite: replace studies that are there.
        engine: where studies run, such as `vaentropy.engines.Processes(4)`; None runs one after the other, here.
        on_study: called with the record of each study as it is done, or was found.

    Raises:
        UsageError: an unknown name, an argument with a wrong value, another plan's results in the folder, or one that
            cannot be written to.
        DataError: results in the folder are damaged.
        OSError: the files of the only study asked for cannot be written.
        VaentropyError: the only study asked for failed.
    """
    chosen = _studies(names)
    plan = plan or Plan()
    require_instance("plan", plan, Plan, "a Plan")
    engine = engine_or_here(engine)
    require_function("on_study", on_study)
    _check_data(chosen, plan)
    if not engine.other_machines:
        torch_device(plan.device)
    folder = require_path("out", out) if out is not None else Path("reproduced") / _name(plan)
    folder = Path(os.path.abspath(folder))
    check_index(folder)
    _check_place(chosen, folder, overwrite=overwrite)
    there = {study.name: _found(study, plan, folder, overwrite=overwrite) for study in chosen}
    records = {name: record for name, record in there.items() if record is not None}
    kept, failed = list(records), {}
    for record in records.values():
        if on_study:
            on_study(record)
    # The longest first, so that none of the processes is left with it alone.
    todo = sorted((study for study in chosen if study.name not in records), key=lambda study: -study.cost)
    if len(todo) == 1 and not engine.other_machines:
        engine = Here()
    call = _Running(replace(plan, progress=False) if engine.elsewhere else plan, folder)
    names = [study.name for study in todo]
    with (
        progress_bar(len(todo), "studies", show=plan.progress if engine.elsewhere else False) as report,
        closing(engine.run(call, names, report=report)) as answers,
    ):
        for number, _, error in answers:
            study = todo[number]
            place = folder / study.name
            if error is None and not appears(place, partial(_is_whole, place)):
                how = "the folder has to be one that all machines share: name such a one"
                error = TrainingError(f"{place} is not here after its run; {how}")
            if error is not None:
                failed[study.name] = str(error)
                if len(chosen) == 1:
                    raise error
                continue
            records[study.name] = read_record(place)
            # After each, so that it is there whatever happens to the next.
            write_index(folder, STUDIES)
            if on_study:
                on_study(records[study.name])
            report("", 1)
    if kept and not todo:
        write_index(folder, STUDIES)
    ordered = {study.name: records[study.name] for study in chosen if study.name in records}
    return Reproduction(folder, ordered, kept, failed)


def _studies(names: Any) -> list[Study]:
    """The studies meant, in the order of the catalogue."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise UsageError(f"names={shown(names)} given, expected a list of names of studies, or ['{ALL}']")
    if not names:
        raise UsageError(f"no study named, expected {ALL} or some of {', '.join(STUDIES)}")
    for name in names:
        if name not in (*STUDIES, ALL):
            hint = nearest(name, [*STUDIES, ALL])
            raise UsageError(f"unknown study {shown(name)}; {hint}expected {ALL} or some of {', '.join(STUDIES)}")
    return [study for study in STUDIES.values() if ALL in names or study.name in names]


def _check_data(chosen: Sequence[Study], plan: Plan) -> None:
    """Refuse data for studies that bring their own."""
    if plan.data is None:
        return
    takers = [name for name, study in STUDIES.items() if study.takes_data]
    for study in chosen:
        if not study.takes_data:
            raise UsageError(
                f"data={shown(plan.data)} given for {study.name}, which has data of its own; name one of "
                f"{', '.join(takers)}"
            )
    if len(chosen) > 1:
        raise UsageError(f"data={shown(plan.data)} given for {len(chosen)} studies, expected one that they are for")
    if not Path(plan.data).exists():
        raise UsageError(f"data={shown(plan.data)} given, but there is no such file or folder; name one that is there")


def _check_place(chosen: Sequence[Study], folder: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a folder that cannot take the results, or whose index could not be written.

    Raises:
        UsageError: there is a file where a folder has to be, or no permission to write.
        DataError: another study of the folder is damaged.
    """
    for place in (folder, *(folder / study.name for study in chosen)):
        nearest_there = next(path for path in (place, *place.parents) if path.exists() or path.is_symlink())
        if not nearest_there.is_dir() or not os.access(nearest_there, os.W_OK | os.X_OK):
            reason = "is no folder" if not nearest_there.is_dir() else "may not be written to"
            raise UsageError(f"{place} given to write to, but {nearest_there} {reason}; name another folder")
    for name in STUDIES:
        replaced = overwrite and any(study.name == name for study in chosen)
        if not replaced and (folder / name / RECORD).exists():
            read_record(folder / name)


def _name(plan: Plan) -> str:
    return f"{plan.scale}-exact" if plan.exact_settings else plan.scale


def _decisive(plan: Plan) -> dict[str, Any]:
    """What of a plan decides on results, plain values."""
    values = asdict(plan)
    del values["progress"], values["data_folder"]
    if values["data"] is not None:
        values["data"] = os.path.abspath(values["data"])
        stat = os.stat(values["data"])
        # A file of the same name may hold other rows by now.
        values["data_size"], values["data_modified"] = stat.st_size, stat.st_mtime_ns
    return values


def _found(study: Study, plan: Plan, folder: Path, *, overwrite: bool) -> Record | None:
    """The record of a study that need not be run again.

    Raises:
        UsageError: other results are in its place.
    """
    place = folder / study.name
    if overwrite or not place.exists():
        return None
    how = "name another folder, or say to overwrite"
    if not (place / RECORD).exists():
        if any((place / name).exists() for name in (TABLE, FIGURE)):
            raise UsageError(f"{place} is in the way: it holds no {RECORD}; {how}")
        return None
    record = read_record(place)
    if record.version != __version__:
        raise UsageError(f"{place} was made by vaentropy {record.version}, this is {__version__}; {how}")
    for name, value in _decisive(plan).items():
        if record.plan.get(name) != value:
            raise UsageError(f"{place} was made with {name}={shown(record.plan.get(name))}, not {shown(value)}; {how}")
    # An interrupted call may have left a record alone.
    return record if _is_whole(place) else None


def _is_whole(place: Path) -> bool:
    return all((place / name).is_file() for name in (RECORD, TABLE, FIGURE))


# --- One study ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Running:
    """What an engine does with the name of a study."""

    plan: Plan
    folder: Path

    def __call__(self, name: str, report: Report) -> None:
        report(name, 0)
        _run(STUDIES[name], self.plan, self.folder)


def _run(study: Study, plan: Plan, folder: Path) -> None:
    """Run a study and write its files, after all the work: an interruption before leaves what was there as it is."""
    start, cpu_start = time.perf_counter(), time.process_time()
    outcome = study.run(plan)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    table, figure = _csv(outcome), _svg(outcome)
    record = Record(
        name=study.name,
        title=study.title,
        about=study.about,
        finding=outcome.finding,
        notes=list(outcome.notes),
        rows=[dict(row) for row in outcome.rows],
        details=dict(outcome.details),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        plan=_decisive(plan),
        version=__version__,
        environment={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(torch_device(plan.device)),
            "threads": torch.get_num_threads(),
        },
    )
    place = folder / study.name
    place.mkdir(parents=True, exist_ok=True)
    # A record alone, as an interruption here leaves it, is made again; none stands beside the numbers of another.
    for name in (TABLE, FIGURE):
        (place / name).unlink(missing_ok=True)
    for name, text in ((RECORD, to_json(asdict(record), indent=1)), (TABLE, table), (FIGURE, figure)):
        write_text(place / name, text)


def _csv(outcome: Outcome) -> str:
    columns = list(dict.fromkeys(name for row in outcome.rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(outcome.rows)
    return text.getvalue()


def _svg(outcome: Outcome) -> str:
    text = io.StringIO()
    # The same numbers give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "vaentropy"}):
        outcome.figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()
