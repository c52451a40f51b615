"""`RunFolder`: the files of a run, where they may be, and who may write them.

RUN/config.yaml          everything needed to repeat it, seeds included
RUN/manifest.json        versions, device, data fingerprint, times, command line
RUN/scaling.safetensors  between data as stored and as the model sees them
RUN/history.jsonl        one row per epoch
RUN/checkpoints/         complete states to resume from
RUN/evaluation.json      the evaluations after the last epoch
RUN/model.safetensors    weights only
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vaentropy.config import RunConfig
from vaentropy.data.scaling import Scaling
from vaentropy.errors import DataError, MissingExtraError, UsageError
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

__all__ = ["SCHEMA_VERSION", "RunFolder"]

SCHEMA_VERSION = 2
RUNS = Path("runs")
LOCK, REPLACED = ".lock", ".replaced"
FILES = ("config.yaml", "manifest.json", "scaling.safetensors", "history.jsonl", "evaluation.json", "model.safetensors")


class RunFolder:
    """A folder that holds a run, or is to hold one.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.made = False

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def new(cls, out: str | Path | None, name: str, *, overwrite: bool = False) -> "RunFolder":
        """A folder for a new run: `out`, or the first of runs/name, runs/name-2, … that does not exist yet.

        Args:
            out: where, or None.
            name: of the run, where `out` is None.
            overwrite: allow a folder that holds a run.

        Raises:
            UsageError: `out` exists and is neither empty nor a run that may be overwritten, or it cannot be made.
        """
        if out is not None:
            folder = cls(out)
            folder.require_free(overwrite=overwrite)
            folder.made = not folder.path.exists()
            folder._make(exist_ok=True)
            return folder
        cls(RUNS)._make(exist_ok=True)
        number = 1
        while True:
            folder = cls(RUNS / (name if number == 1 else f"{name}-{number}"))
            try:
                folder._make(exist_ok=False)
            except FileExistsError:
                number += 1
            else:
                folder.made = True
                return folder

    def require_free(self, *, overwrite: bool) -> None:
        """Refuse a folder that holds something else than a run that may be overwritten.

        Raises:
            UsageError: it does.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UsageError(f"{self} exists and is not a folder; name another one with --out")
        if (self.path / "config.yaml").exists():
            if not overwrite:
                raise UsageError(
                    f"{self} holds a run; go on with it by --resume {self}, replace it with --overwrite, or name "
                    "another folder with --out"
                )
            return
        # What a run leaves that was killed while it wrote its first file.
        others = [p.name for p in self.path.iterdir() if p.name != LOCK and not p.name.endswith(ASIDE)]
        if others:
            raise UsageError(f"{self} exists and is not an empty folder; name another one with --out")

    def _make(self, *, exist_ok: bool) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=exist_ok)
        except FileExistsError as error:
            if exist_ok:  # a file, or a link that leads nowhere
                raise UsageError(f"{self} exists and is not a folder; name another folder with --out") from error
            raise
        except OSError as error:
            raise UsageError(f"{self} cannot be made: {error.strerror}; name another folder with --out") from error

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
            lock = FileLock(self.path / LOCK, timeout=0).acquire()
        except Timeout:
            raise UsageError(f"{self} is in use by another process; wait for it, or name another folder") from None
        except OSError as error:
            raise UsageError(
                f"{self} cannot be written to: {error.strerror}; name another folder with --out"
            ) from error
        with lock:
            yield

    # A run that is overwritten lies in a folder within until the new one has a checkpoint.

    def set_aside(self) -> None:
        """Move the run that the folder holds, if any, out of the way of a new one; nothing else is touched."""
        self.drop_set_aside()
        if not self.file("config.yaml").exists():
            return
        aside = self.file(REPLACED)
        aside.mkdir()
        # config.yaml last: until then the folder is a run, which may be overwritten.
        for name in ("checkpoints", *reversed(FILES)):
            if self.file(name).exists():
                self.file(name).replace(aside / name)

    def drop_set_aside(self) -> None:
        """Remove the run that was set aside, if any."""
        shutil.rmtree(self.file(REPLACED), ignore_errors=True)

    def take_back(self) -> None:
        """Remove a new run that came to nothing, and put back the one that was set aside, if any."""
        with suppress(OSError):
            for name in FILES:
                self.file(name).unlink(missing_ok=True)
            shutil.rmtree(self.file("checkpoints"), ignore_errors=True)
            if self.file(REPLACED).is_dir():
                for path in self.file(REPLACED).iterdir():
                    path.replace(self.path / path.name)
                self.file(REPLACED).rmdir()

    def has_begun(self) -> bool:
        """Whether its training has done anything that is worth keeping: a step in a checkpoint, or an epoch."""
        history = self.path / "history.jsonl"
        return any(Checkpoints(self.path).steps()) or (history.exists() and history.stat().st_size > 0)

    def remove_if_unused(self) -> None:
        """Remove the folder again if it was made for a run that came to nothing."""
        with suppress(OSError):
            if self.made and not (self.path / "config.yaml").exists():
                (self.path / LOCK).unlink(missing_ok=True)
                self.path.rmdir()

    # Files.

    def file(self, name: str) -> Path:
        """Path of a file inside.

        Raises:
            DataError: it is a link that leads out of the folder.
        """
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise DataError(f"{path} leads out of the run's folder, to {path.resolve()}; put the file itself there")
        return path

    def _missing(self, name: str) -> DataError:
        return DataError(f"{self} is no finished run: it has no {name}; train one with vaentropy train")

    def text(self, name: str) -> str:
        """Text of a file.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        try:
            return read_text(self.file(name))
        except FileNotFoundError:
            raise self._missing(name) from None

    def tensors(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tensors of a file, and the values beside them.

        Raises:
            DataError: there is none, or it cannot be read.
        """
        try:
            return read_tensors(self.file(name))
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
            return RunConfig.from_dict(read_yaml(path), str(path))
        except FileNotFoundError:
            raise self._missing(path.name) from None

    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds.

        Raises:
            DataError: there is none, it cannot be read, or a newer vaentropy made it.
        """
        path, text = self.path / "manifest.json", self.text("manifest.json")
        try:
            manifest = json.loads(text)
            version = manifest["schema_version"]
            if not isinstance(manifest, dict) or isinstance(version, bool) or not isinstance(version, int):
                raise ValueError("no schema_version")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is not the manifest of a run ({error!r}); put the file of the run back") from error
        if version > SCHEMA_VERSION:
            raise DataError(
                f"{self} was made by a newer vaentropy (schema {version}, this one reads up to {SCHEMA_VERSION}); "
                "update it with: pip install --upgrade vaentropy"
            )
        return manifest

    def is_locked(self) -> bool:
        """Whether a process holds the folder at this moment."""
        try:
            with self.locked():
                return False
        except UsageError:
            return True

    def require_same_data(self, fingerprints: Mapping[str, str]) -> None:
        """Refuse data that are not those a run was trained on.

        Args:
            fingerprints: of the data as they are now, by the manifest's names.

        Raises:
            DataError: one is another, or the manifest has none.
        """
        stored = self.manifest().get("data")
        for name, value in fingerprints.items():
            if not isinstance(stored, dict) or stored.get(name) != value:
                raise DataError(
                    f"the data have changed since {self} was trained on them; put them back, or name data to evaluate "
                    "with --data"
                )

    def data_shape(self) -> tuple[int, ...]:
        """Shape of a data point of the run.

        Raises:
            DataError: the manifest does not say.
        """
        manifest = self.manifest()
        try:
            shape = tuple(manifest["data"]["data_shape"])
            if not shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
                raise ValueError(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path / 'manifest.json'} is not the manifest of a run: no data_shape in it"
            ) from error
        return shape

    def scaling(self) -> Scaling:
        """Scaling of the run's data; the trivial one where there is no file of it.

        Raises:
            DataError: the file is damaged.
        """
        path = self.file("scaling.safetensors")
        if not path.exists():
            return Scaling.by(1.0)
        tensors, numbers = self.tensors(path.name)
        try:
            return Scaling(tensors["shift"], tensors["scale"], bool(numbers["dequantised"]))
        except KeyError as error:
            raise DataError(f"{path} is no scaling: it has no {error}; put the file of the run back") from error

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
