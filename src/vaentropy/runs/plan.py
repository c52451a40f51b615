"""A sweep's folder: what it was asked for, its runs, and the table of them."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaentropy.engines.shared import appears
from vaentropy.errors import DataError, UsageError, VaentropyError, shown
from vaentropy.files import ASIDE, read_text, to_json, write_text
from vaentropy.runs.combinations import LONGEST_NAME, SEED, Combination, settings_named
from vaentropy.runs.folder import LOCK, RunFolder
from vaentropy.runs.outcomes import FINISHED, NEW, row_of, state_of, write_csv
from vaentropy.runs.room import remove, require_free

__all__ = ["REQUEST", "TABLE", "Plan", "names_in"]

REQUEST, TABLE = "sweep.json", "sweep.csv"
SCHEMA_VERSION = 1


@dataclass
class Plan:
    """The runs of a sweep, and its files."""

    folder: Path
    runs: Sequence[Combination]
    request: Mapping[str, Any]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def states(self, overwrite: bool) -> dict[Combination, str]:
        """How far each run has come; all are new where a sweep is to be replaced.

        Raises:
            UsageError: the folder holds something else.
            DataError: files in it are damaged.
        """
        stored = self._stored(overwrite)
        if overwrite:
            return dict.fromkeys(self.runs, NEW)
        if stored is None:
            for name in self.others():
                config = RunFolder(self.folder / name).config().to_dict()
                self._require_same(config, settings_named(name))
        else:
            self._require_same(stored["config"], stored["vary"])
        return {run: state_of(self.folder, run) for run in self.runs}

    def _require_same(self, config: Mapping[str, Any], vary: Collection[str]) -> None:
        """Refuse to go on with runs of other settings, or of others varied; values of these and seeds may differ."""
        how = "name another folder with --out, or replace it with --overwrite"
        before, asked = (sorted({*names} - {SEED}) for names in (vary, self.request["vary"]))
        if before != asked:
            there, wanted = (", ".join(names) or "the seed alone" for names in (before, asked))
            raise UsageError(f"{self.folder} holds a sweep that varies {there}, not {wanted}; {how}")
        for name, value in self.request["config"].items():
            if name != SEED and config.get(name) != value:
                there, wanted = ("null" if each is None else shown(each) for each in (config.get(name), value))
                raise UsageError(f"{self.folder} holds a sweep with {name}={there}, not {wanted}; {how}")

    def all_there(self) -> list[str]:
        """Names of the folders here that runs of a sweep are in, or were begun in."""
        return [name for name in names_in(self.folder) if settings_named(name) and self._holds_run(name)]

    def others(self) -> list[str]:
        """Names of runs here that are not asked for."""
        asked = {run.name for run in self.runs}
        return [name for name in self.all_there() if name not in asked and self._is_run(name)]

    def _is_run(self, name: str) -> bool:
        return (self.folder / name / "config.yaml").exists()

    def _holds_run(self, name: str) -> bool:
        """Whether a folder holds a run, or what is left of one that was killed as it began."""
        try:
            require_free(RunFolder(self.folder / name), overwrite=True)
        except UsageError:
            return False
        return (self.folder / name).is_dir()

    def _strange(self) -> list[str]:
        """Names of what is here and not of a sweep."""
        ours = {REQUEST, TABLE, LOCK, *self.all_there()}
        return [name for name in names_in(self.folder) if name not in ours and not name.endswith(ASIDE)]

    def _stored(self, overwrite: bool) -> dict[str, Any] | None:
        """What was asked for before; None in a folder that is new or empty, or does not say."""
        if not self.folder.exists():
            return None
        if not self.folder.is_dir():
            raise UsageError(f"{self.folder} exists and is not a folder; name another one with --out")
        path = self.folder / REQUEST
        if not path.exists():
            strange, runs = self._strange(), any(map(self._is_run, self.all_there()))
            # Runs without a table may have been put here one by one: they are kept, but not replaced.
            if (strange and not runs) or (overwrite and (strange or (runs and not (self.folder / TABLE).exists()))):
                raise UsageError(f"{self.folder} exists and is not an empty folder; name another one with --out")
            return None
        try:
            stored = json.loads(read_text(path))
            kinds = {"schema_version": int, "config": dict, "vary": dict, "num_seeds": int}
            if not all(isinstance(stored[name], kind) for name, kind in kinds.items()):
                raise ValueError("its values are of other kinds")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, VaentropyError):
                raise
            strange = self._strange()
            if overwrite and not strange:
                return None
            how = "put it back, remove it (the same command writes it anew), or replace the sweep with --overwrite"
            if strange:
                how = f"put it back, or name another folder with --out ({strange[0]} beside it is of no sweep)"
            reason = " ".join(str(error).split())
            raise DataError(f"{path} does not say what sweep this is ({reason}); {how}") from error
        if stored["schema_version"] > SCHEMA_VERSION:
            raise DataError(f"{path} was made by a newer vaentropy; update it with: pip install --upgrade vaentropy")
        return stored

    def begin(self, overwrite: bool) -> None:
        """Write what is asked for and the table; what is replaced is gone before."""
        stored = self._stored(overwrite) if overwrite else None
        for name in self.all_there() if overwrite else ():
            # A run of another kind was put there by the user.
            if stored is None or {*settings_named(name)} == {*stored["vary"], SEED} or len(name) >= LONGEST_NAME:
                remove(RunFolder(self.folder / name))
        request = {"schema_version": SCHEMA_VERSION, **self.request}
        write_text(self.folder / REQUEST, to_json(request, indent=1) + "\n")
        self.read()

    def read(self) -> None:
        """Make the table anew."""
        self.rows = {run.name: row_of(self.folder, run, self.failures.get(run.name, "")) for run in self.runs}
        write_csv(self.folder / TABLE, list(self.rows.values()))

    def end(self, run: Combination, failure: Exception | None) -> Mapping[str, Any]:
        """Put a run that has ended into the table; its row."""
        reason = "" if failure is None else _reason(failure)
        if not reason and not self._appears(run):
            reason = (
                f"{self.folder / run.name} is not here after its training; the folder has to be one that all machines "
                "share: name such a one with --out"
            )
        if reason:  # of a run that came to nothing there is no folder that says so
            self.failures[run.name] = reason
        self.rows[run.name] = row_of(self.folder, run, reason)
        write_csv(self.folder / TABLE, list(self.rows.values()))
        return self.rows[run.name]

    def _appears(self, run: Combination) -> bool:
        return appears(self.folder, lambda: state_of(self.folder, run) == FINISHED)


def _reason(failure: Exception) -> str:
    if isinstance(failure, OSError) and failure.strerror:  # a full disk
        return f"{failure.filename or 'a file'} cannot be written or read: {failure.strerror}"
    return str(failure)


def names_in(folder: Path) -> list[str]:
    """Names of what is in a folder, in order; none where there is no such folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
