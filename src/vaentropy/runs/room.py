"""Room for a new run: a folder of its own, or one whose run it replaces, which is there again if the new one fails."""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vaentropy.checks import require_path
from vaentropy.errors import UsageError
from vaentropy.files import ASIDE
from vaentropy.runs.folder import INITIAL, LOCK, RunFolder

__all__ = [
    "REPLACED",
    "drop_replaced",
    "filled",
    "make_folder",
    "mend",
    "remove",
    "require_free",
    "require_room_beside",
]

RUNS = Path("runs")
CONFIG = "config.yaml"
# Where the run lies that is replaced, until the new one is there.
REPLACED = ".replaced"


@contextmanager
def filled(out: str | Path | None, name: str, *, overwrite: bool = False) -> Iterator[RunFolder]:
    """Hold a folder while it is filled with a new run: `out`, or the first of runs/name, runs/name-2, … that is free.

    If that comes to nothing its files are removed, and a run that it would have replaced is there again.

    Args:
        out: where, or None.
        name: of the run, where `out` is None.
        overwrite: allow a folder that holds a run.

    Raises:
        UsageError: `out` exists and is neither empty nor a run that may be overwritten, another process holds it, or it
            cannot be made or written to.
    """
    folder, made = _new(name) if out is None else _named(out, overwrite=overwrite)
    try:
        with folder.locked():
            # Once more: a run may have ended here since the folder was made.
            require_free(folder, overwrite=overwrite)
            _set_aside(folder)
            try:
                yield folder
            except BaseException:
                if not folder.has_begun():
                    _take_back(folder)
                raise
            finally:
                drop_replaced(folder)
    finally:
        with suppress(OSError):
            if made and not (folder.path / CONFIG).exists():
                (folder.path / LOCK).unlink(missing_ok=True)
                folder.path.rmdir()


def require_free(folder: RunFolder, *, overwrite: bool) -> None:
    """Refuse a folder that holds something else than a run that may be overwritten.

    Raises:
        UsageError: it does.
    """
    path = folder.path
    if not path.exists():
        return
    if not path.is_dir():
        raise UsageError(f"{folder} exists and is not a folder; name another one with --out")
    if (path / CONFIG).exists():
        if not overwrite:
            raise UsageError(
                f"{folder} holds a run; go on with it by --resume {shlex.quote(str(folder))}, replace it with "
                "--overwrite, or name another folder with --out"
            )
        return
    if (path / REPLACED).exists() and not overwrite:
        raise UsageError(
            f"{folder} holds a run that was being replaced when the process was killed, in {path / REPLACED}; move its "
            "files back, replace it with --overwrite, or name another folder with --out"
        )
    # What a run leaves that was killed while it wrote its first files.
    left = (INITIAL, LOCK, REPLACED)
    if any(found.name not in left and not found.name.endswith(ASIDE) for found in path.iterdir()):
        raise UsageError(f"{folder} exists and is not an empty folder; name another one with --out")


def require_room_beside(run: RunFolder, out: str | Path | None, *, overwrite: bool) -> None:
    """Refuse a folder for what is made of a run, before any work is done; None is always free.

    Raises:
        UsageError: it is that of the run itself, or holds something else than a run that may be overwritten.
    """
    if out is None:
        return
    if require_path("out", out).resolve() == run.path.resolve():
        raise UsageError(f"{out} given as the folder of the new run, expected another one than that of the run itself")
    require_free(RunFolder(out), overwrite=overwrite)


def remove(folder: RunFolder) -> None:
    """Remove the run that a folder holds, if any, and the folder where nothing else is in it.

    Raises:
        UsageError: another process holds it.
    """
    if not folder.path.is_dir():
        return
    with folder.locked():
        _unlink(folder)
        drop_replaced(folder)
    with suppress(OSError):
        (folder.path / LOCK).unlink(missing_ok=True)
        folder.path.rmdir()


def drop_replaced(folder: RunFolder) -> None:
    """Remove the run that was replaced, if any."""
    aside = folder.file(REPLACED)
    if aside.is_dir():
        # config.yaml last: what is there without it is a run that was being set aside, not one that was being removed.
        for path in sorted(aside.iterdir(), key=lambda path: path.name == CONFIG):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(aside, ignore_errors=True)


def mend(folder: RunFolder) -> None:
    """Put back what a process had begun to set aside when it was killed."""
    aside = folder.file(REPLACED)
    if aside.is_dir() and not (aside / CONFIG).exists():
        _put_back(folder)
        folder.require_inside()


def _named(out: str | Path, *, overwrite: bool) -> tuple[RunFolder, bool]:
    """A folder, and whether it was made."""
    folder = RunFolder(require_path("out", out))
    require_free(folder, overwrite=overwrite)
    made = not folder.path.exists()
    make_folder(folder.path, exist_ok=True)
    return folder, made


def _new(name: str) -> tuple[RunFolder, bool]:
    make_folder(RUNS, exist_ok=True)
    number = 1
    while True:
        path = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            make_folder(path, exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return RunFolder(path), True


def make_folder(path: Path, *, exist_ok: bool) -> None:
    """Make a folder.

    Raises:
        FileExistsError: it is there, and may not be.
        UsageError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError as error:
        if exist_ok:  # a file, or a link that leads nowhere
            raise UsageError(f"{path} exists and is not a folder; name another folder with --out") from error
        raise
    except OSError as error:
        raise UsageError(f"{path} cannot be made: {error.strerror}; name another folder with --out") from error


def _set_aside(folder: RunFolder) -> None:
    """Move the run that the folder holds, if any, out of the way of a new one; nothing else is touched."""
    if not folder.file(CONFIG).exists():
        # What a process that was killed has set aside is still there; weights without settings are those that it wrote
        # first for its own run, and no other run is to begin with them.
        folder.file(INITIAL).unlink(missing_ok=True)
        return
    mend(folder)
    drop_replaced(folder)
    aside = folder.file(REPLACED)
    aside.mkdir()
    # config.yaml last: until then the folder is a run, which may be overwritten, and is mended before it is resumed.
    for name in folder.own():
        folder.file(name).replace(aside / name)


def _take_back(folder: RunFolder) -> None:
    """Remove a new run that came to nothing, and put back the one that was set aside, if any."""
    with suppress(OSError):
        _unlink(folder)
        if folder.file(REPLACED).is_dir():
            _put_back(folder)


def _unlink(folder: RunFolder) -> None:
    # config.yaml first: without it this is no run that could be resumed, and the one set aside is not dropped.
    for name in reversed(folder.own()):
        path = folder.file(name)
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def _put_back(folder: RunFolder) -> None:
    """Move what was set aside back."""
    aside = folder.file(REPLACED)
    for path in aside.iterdir():
        path.replace(folder.path / path.name)
    aside.rmdir()
