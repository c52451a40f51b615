"""A report on a run, or on several beside each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaentropy.checks import require_instance, require_path
from vaentropy.errors import UnsupportedError, UsageError
from vaentropy.expectation import Expectation
from vaentropy.files import write_text
from vaentropy.runs.diagnose import diagnosed
from vaentropy.runs.folder import REPORT, RunFolder, is_report
from vaentropy.training import History

if TYPE_CHECKING:
    from vaentropy.report import Subject

__all__ = ["report_run"]

# Data sets whose points are images that are stored flat.
FLAT_IMAGES = {"digits": (8, 8), "mnist": (28, 28), "fashion-mnist": (28, 28)}


def report_run(
    runs: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    data_folder: str | None = None,
    expectation: Expectation | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> Path:
    """Write one self-contained HTML page about a run, or about several beside each other.

    Args:
        runs: folder of a finished run, or several.
        out: the file; by default report.html in the folder of the run, or in the current one for several runs. A report
            that is there already is replaced.
        overwrite: replace another file as well.
        data_folder: where the files of a named data set are, if no longer where the run found them.
        expectation: how to average over the posterior; None does it as the run's training did.
        device: as in `RunConfig`.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        The file.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
        VaentropyError: a run or its data cannot be used, or the file holds something else than a report.
    """
    # What is neither is refused as the folder of a run.
    folders: list[Any] = list(runs) if isinstance(runs, list | tuple) else [runs]
    if not folders:
        raise UsageError("no runs given to report on, expected one or more folders of finished runs")
    if expectation is not None:
        require_instance("expectation", expectation, Expectation, "an Expectation such as MonteCarlo(16)")
    from vaentropy.report import render

    path = _room(folders, out, overwrite=overwrite)
    how: dict[str, Any] = {"data_folder": data_folder, "expectation": expectation}
    how |= {"device": device, "progress": progress}
    subjects = [_subject(folder, **how) for folder in folders]
    write_text(path, render(subjects))
    return path


def _room(folders: Sequence[str | Path], out: str | Path | None, *, overwrite: bool) -> Path:
    """Where to write, before any work is done."""
    for folder in folders:
        # A run, finished or not: what is no run gets no file.
        RunFolder(folder).config()
    if out is not None:
        path = require_path("out", out)
    else:
        path = RunFolder(folders[0]).file(REPORT) if len(folders) == 1 else Path(REPORT)
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder" if path.is_dir() else f"given to write to, but there is no folder {path.parent}"
        raise UsageError(f"{path} {reason}; name a file with --out")
    if path.exists() and not overwrite and not is_report(path):
        how = "name another file with --out, or replace it with --overwrite"
        raise UsageError(f"{path} exists and is no report; {how}")
    return path


def _subject(run: str | Path, **how: Any) -> "Subject":
    from vaentropy.figures import look
    from vaentropy.report import Subject

    folder, config, model, data, diagnosis = diagnosed(run, **how)
    options: dict[str, Any] = {"labels": data.train_labels, "columns": data.columns, "scaling": data.scaling}
    view, without_view = None, ""
    try:
        view = look(model, data.train, missing=config.missing, **options)  # type: ignore[arg-type]
    except UnsupportedError as error:
        without_view = f"No pictures of the model: {error}."
    return Subject(
        name=str(folder),
        description=f"{config.model} trained on {config.data} ({data.description})",
        diagnosis=diagnosis,
        history=History(folder.history()),
        view=view,
        settings=config.to_dict(),
        environment=folder.manifest(),
        columns=data.columns,
        shape=FLAT_IMAGES.get(config.data) if len(data.data_shape) == 1 else None,
        without_view=without_view,
    )
