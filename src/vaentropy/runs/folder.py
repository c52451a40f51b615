"""`RunFolder`: the files of a run, where they may be, and who may write them.

RUN/config.yaml          everything needed to repeat it, seeds included
RUN/manifest.json        versions, device, data fingerprint, times, command line
RUN/initial.safetensors  weights that training began with, where these are another run's
RUN/scaling.safetensors  between data as stored and as the model sees them
RUN/history.jsonl        one row per epoch
RUN/checkpoints/         complete states to resume from
RUN/logs/                what live loggers write, where these were asked for
RUN/evaluation.json      the evaluations after the last epoch
RUN/model.safetensors    weights only
RUN/report.html          all of it to look at
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaentropy._typing import Tensor
from vaentropy.checks import require_counts, require_path
from vaentropy.config import RunConfig
from vaentropy.data.coding import Coding
from vaentropy.data.formats.reading import one_line
from vaentropy.data.scaling import Scaling
from vaentropy.errors import DataError, MissingExtraError, UsageError, shown
from vaentropy.files import (
    ASIDE,
    read_tensors,
    read_text,
    read_yaml,
    to_json,
    write_tensors,
    write_text,
    write_yaml,
)
from vaentropy.training import Checkpoints
from vaentropy.training.checkpoint import parse_row
from vaentropy.training.history import Row

__all__ = ["REPORT", "SCHEMA_VERSION", "RunFolder", "is_report"]

SCHEMA_VERSION = 2
# Of the scale: sums in another order differ by rounding.
SCALING_TOLERANCE = 1e-6
LOCK = ".lock"
INITIAL = "initial.safetensors"
# A file of this name may also be the user's own: ours says at its beginning, of so many bytes, what made it.
REPORT, REPORT_MARK, REPORT_BEGINNING = "report.html", b"vaentropy report", 1000
FILES = (
    "config.yaml",
    "manifest.json",
    INITIAL,
    "scaling.safetensors",
    "history.jsonl",
    "evaluation.json",
    "model.safetensors",
    REPORT,
)
# Live logs of the run, and what stands there: a folder of this name may also be the user's own.
LOGS, LOG_IDS = "logs", "runs.json"
LOG_FILES = {"tensorboard", "wandb", "mlflow.db", "mlflow.db-journal", "mlartifacts", LOG_IDS}
FOLDERS = ("checkpoints", LOGS)


def is_report(path: Path) -> bool:
    """Whether a file is a report that vaentropy has made."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return REPORT_MARK in file.read(REPORT_BEGINNING)


class RunFolder:
    """A folder that holds a run, or is to hold one.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str | Path):
        self.path = require_path("run", path)

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for writing; the operating system lets go of it when the process ends, however it ends.

        Raises:
            UsageError: another process holds it, or it cannot be written to.
        """
        try:
            from filelock import FileLock, Timeout
        except ImportError:
            raise MissingExtraError("filelock", "cli") from None
        try:
            lock = FileLock(self.file(LOCK), timeout=0).acquire()
        except Timeout:
            raise UsageError(f"{self} is in use by another process; wait for it, or name another folder") from None
        except OSError as error:
            raise UsageError(
                f"{self} cannot be written to: {error.strerror}; name another folder with --out"
            ) from error
        with lock:
            yield

    def has_begun(self) -> bool:
        """Whether its training has done anything that is worth keeping: a step in a checkpoint, or an epoch."""
        history = self.path / "history.jsonl"
        return any(Checkpoints(self.path).steps()) or (history.exists() and history.stat().st_size > 0)

    # Files.

    def file(self, name: str) -> Path:
        """Path of a file inside.

        Raises:
            DataError: it is a link that leads out of the folder, or something else than a file or folder.
        """
        path = self.path / name
        try:
            found, special = path.resolve(), path.exists() and not path.is_file() and not path.is_dir()
        except (OSError, RuntimeError) as error:  # links in a circle, a closed folder
            raise DataError(f"{path} cannot be read ({one_line(error)}); put the file of the run back") from error
        if not found.is_relative_to(self.path.resolve()):
            raise DataError(f"{path} leads out of the run's folder, to {found}; put the file itself there")
        if special:
            raise DataError(f"{path} is no regular file; put the file of the run back")
        return path

    def require_inside(self) -> None:
        """Refuse a folder that has a link in it through which something outside would be read or written.

        Raises:
            DataError: there is one.
        """
        for name in (*FILES, LOCK, *FOLDERS):
            self.file(name)
        for name in FOLDERS:
            for path in (self.path / name).iterdir() if (self.path / name).is_dir() else ():
                # What is left of an unfinished file is removed before one is written in its place.
                if not path.name.endswith(ASIDE):
                    self.file(f"{name}/{path.name}")

    def own(self) -> list[str]:
        """Names of the files and folders here that a run has made, config.yaml last."""
        there = [name for name in (*FOLDERS, *reversed(FILES)) if self.file(name).exists()]
        logs = self.file(LOGS)
        if LOGS in there and not (logs.is_dir() and {path.name for path in logs.iterdir()} <= LOG_FILES):
            there.remove(LOGS)
        if REPORT in there and not is_report(self.file(REPORT)):
            there.remove(REPORT)
        return there

    def _missing(self, name: str) -> DataError:
        if self.path.exists() and not self.path.is_dir():
            return DataError(f"{self} is a file, expected the folder of a run; train one with vaentropy train")
        if name != "config.yaml" and (self.path / "config.yaml").exists():
            how = f"go on with: vaentropy train --resume {shlex.quote(str(self))}"
            return DataError(f"{self} is no finished run: it has no {name}; {how}")
        return DataError(f"{self} is no run: it has no {name}; train one with vaentropy train")

    def _present(self, name: str) -> Path:
        path = self.file(name)
        if self.path.exists() and not self.path.is_dir():
            raise self._missing(name)
        return path

    def text(self, name: str) -> str:
        """Text of a file.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        try:
            return read_text(self._present(name))
        except FileNotFoundError:
            raise self._missing(name) from None

    def tensors(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tensors of a file, and the values beside them.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        try:
            return read_tensors(self._present(name))
        except FileNotFoundError:
            raise self._missing(name) from None

    def config(self) -> RunConfig:
        """The settings of the run.

        Raises:
            DataError: the folder is no run, its config.yaml cannot be read, or a newer vaentropy made it.
            UsageError: config.yaml holds an unknown key or a wrong value.
        """
        path = self.file("config.yaml")
        # First of all: a newer version may have other settings.
        if self.file("manifest.json").exists():
            self.manifest()
        try:
            return RunConfig.from_dict(read_yaml(self._present(path.name)), str(path))
        except FileNotFoundError:
            raise self._missing(path.name) from None

    def history(self) -> list[Row]:
        """The rows that history.jsonl holds; none where there is no such file.

        Raises:
            DataError: it is damaged.
        """
        path = self.file("history.jsonl")
        if not path.exists():
            return []
        rows, text = [], self.text(path.name)
        for number, line in enumerate(lines := text.splitlines()):
            try:
                rows.append(parse_row(line))
            except ValueError as error:
                # The last line may be half written at this moment.
                if number < len(lines) - 1 or text.endswith("\n"):
                    where = f"{path} is damaged in line {number + 1} ({' '.join(str(error).split())})"
                    raise DataError(f"{where}; put the file of the run back") from error
        return rows

    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds.

        Raises:
            DataError: there is none, it cannot be read, or a newer vaentropy made it.
        """
        text = self.text("manifest.json")
        try:
            manifest = json.loads(text)
            version = manifest["schema_version"]
            if not isinstance(manifest, dict) or isinstance(version, bool) or not isinstance(version, int):
                raise ValueError("no schema_version")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._no_manifest(one_line(error)) from error
        if version > SCHEMA_VERSION:
            raise DataError(
                f"{self} was made by a newer vaentropy (schema {version}, this one reads up to {SCHEMA_VERSION}); "
                "update it with: pip install --upgrade vaentropy"
            )
        data = manifest.get("data")
        if not isinstance(data, dict):
            raise self._no_manifest("it says nothing of data")
        for name in ("num_train", "num_held_out"):
            if isinstance(data.get(name), bool) or not isinstance(data.get(name), int):
                raise self._no_manifest(f"{name} is {shown(data.get(name))}, expected a whole number")
        return manifest

    def is_locked(self) -> bool:
        """Whether a process holds the folder at this moment."""
        try:
            with self.locked():
                return False
        except UsageError:
            return True

    def has_same_data(self, fingerprints: Mapping[str, str], scaling: Scaling) -> bool:
        """Whether data are those that the run was trained on.

        Args:
            fingerprints: of the data as they are now, by the manifest's names.
            scaling: of the data as they are now.

        Raises:
            DataError: the manifest does not say.
        """
        stored, before = self.manifest()["data"], self.scaling()
        # The values that the model sees do not tell of data that were shifted, and then scaled to the same mean.
        same = before.shift.shape == scaling.shift.shape and all(
            bool(((a - b).abs() <= SCALING_TOLERANCE * before.scale).all())
            for a, b in ((before.shift, scaling.shift), (before.scale, scaling.scale))
        )
        return same and all(stored.get(name) == value for name, value in fingerprints.items())

    def require_same_data(self, fingerprints: Mapping[str, str], scaling: Scaling) -> None:
        """Refuse data that are not those the run was trained on.

        Args:
            fingerprints, scaling: as for `has_same_data`.

        Raises:
            DataError: they are others, or the manifest does not say.
        """
        if not self.has_same_data(fingerprints, scaling):
            raise DataError(
                f"the data have changed since {self} was trained on them; put them back (to evaluate others, name them "
                "with --data)"
            )

    def _no_manifest(self, reason: str) -> DataError:
        return DataError(
            f"{self.path / 'manifest.json'} is not the manifest of a run ({reason}); put the file of the run back"
        )

    def data_shape(self) -> tuple[int, ...]:
        """Shape of a data point of the run.

        Raises:
            DataError: the manifest does not say.
        """
        try:
            return require_counts("data_shape", self.manifest()["data"].get("data_shape"))
        except UsageError as error:
            raise self._no_manifest(str(error)) from error

    def columns(self) -> tuple[str, ...]:
        """Names of the features of the run's table; () where they have none.

        Raises:
            DataError: the manifest is damaged.
        """
        names = self.manifest()["data"].get("columns", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self._no_manifest(f"columns are {shown(names)}")
        return tuple(names)

    def coding(self) -> Coding | None:
        """How columns became the condition that the run's model is given; None where it is given none.

        Raises:
            DataError: the manifest is damaged.
        """
        stored = self.manifest()["data"].get("condition")
        try:
            return None if stored is None else Coding.from_dict(stored)
        except ValueError as error:
            raise self._no_manifest(str(error)) from error

    def condition(self, values: Sequence[str]) -> Tensor:
        """One condition (k,) for the run's model, of values as a user writes them.

        Raises:
            UsageError: the model takes none, or one of other columns.
            DataError: a value that its columns do not have.
        """
        coding = self.coding()
        if coding is None:
            what = f"condition {','.join(values)} given for {self}"
            raise UsageError(f"{what}, whose model takes none; leave it out, or train with --condition")
        return coding.of_texts(values)

    def scaling(self) -> Scaling:
        """Scaling of the run's data; the trivial one where there is no file of it.

        Raises:
            DataError: the file is damaged, or holds no scaling of such data.
        """
        path = self.file("scaling.safetensors")
        if not path.exists():
            return Scaling.by(1.0)
        tensors, numbers = self.tensors(path.name)
        try:
            shift, scale, dequantised = tensors["shift"], tensors["scale"], bool(numbers["dequantised"])
        except KeyError as error:
            raise DataError(f"{path} is no scaling: it has no {error}; put the file of the run back") from error
        allowed = (), self.data_shape()
        if shift.shape != scale.shape or tuple(scale.shape) not in allowed:
            given = f"shapes {tuple(shift.shape)} and {tuple(scale.shape)}"
            raise DataError(f"{path} has {given}, expected {allowed[1]}; put the file of the run back")
        if not all(x.is_floating_point() and bool(x.isfinite().all()) for x in (shift, scale)) or bool(
            (scale <= 0).any()
        ):
            how = "expected finite numbers and positive scales; put the file of the run back"
            raise DataError(f"{path} holds numbers that scale nothing, {how}")
        return Scaling(shift.double(), scale.double(), dequantised)

    # Writing.

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml."""
        write_yaml(self.file("config.yaml"), config.to_dict())

    def write_scaling(self, scaling: Scaling) -> None:
        """Write scaling.safetensors."""
        tensors = {"shift": scaling.shift, "scale": scaling.scale}
        write_tensors(self.file("scaling.safetensors"), tensors, {"dequantised": scaling.dequantised})

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        write_text(self.file(name), to_json(values, indent=1) + "\n")
