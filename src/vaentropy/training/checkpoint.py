"""`Checkpoints`: a folder from which training goes on after it was interrupted, to the same end, bit for bit."""

import json
import logging
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaentropy.checks import require_count, require_path
from vaentropy.errors import DataError, UsageError, shown
from vaentropy.files import (
    ASIDE,
    append_line,
    flush_to_disk,
    read_tensors,
    read_text,
    to_json,
    write_tensors,
    write_text,
)
from vaentropy.training.history import Row
from vaentropy.training.state import Snapshot

__all__ = ["Checkpoints", "parse_row"]

logger = logging.getLogger(__name__)

SECONDS_BETWEEN = 30.0
STEP, BEST = "step", "best"
NAME = re.compile(rf"({STEP}|{BEST})-(\d{{9,}})\.safetensors")
HISTORY = "history.jsonl"
ALWAYS = ("epoch", "step", "running_elbo", "running_entropy_sum", "seconds")  # what every row of it has
# In a checkpoint made within an epoch: the state at its beginning, to which a rollback would return.
START = "epoch_start."


class Checkpoints:
    """Checkpoints and the history of one training, in a folder.

        FOLDER/history.jsonl                          one row per epoch, append-only; cut back when training is resumed
        FOLDER/checkpoints/step-000000120.safetensors complete state, under a checksum, after so many steps
        FOLDER/checkpoints/best-000000080.safetensors complete state with the best held-out ELBO so far

    Args:
        folder: made if it is missing.
        every: steps between checkpoints; None makes one about every 30 seconds. Wherever they are made, training goes
            the same way.
        keep: how many of the newest are kept.

    Raises:
        UsageError: a count below 1.
    """

    def __init__(self, folder: str | Path, *, every: int | None = None, keep: int = 2):
        for name, count in (("every", every), ("keep", keep)):
            if count is not None:
                require_count(name, count)
        self.folder, self.every, self.keep = require_path("folder", folder), every, keep
        self._last_time = time.monotonic()

    @property
    def _states(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def _history(self) -> Path:
        return self.folder / HISTORY

    def _steps(self, kind: str) -> list[int]:
        if not self._states.is_dir():
            return []
        matches = (NAME.fullmatch(path.name) for path in self._states.iterdir())
        return sorted((int(match[2]) for match in matches if match and match[1] == kind), reverse=True)

    def _path(self, kind: str, step: int) -> Path:
        return self._states / f"{kind}-{step:09d}.safetensors"

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, the newest first."""
        return self._steps(STEP)

    def path(self, step: int) -> Path:
        """The file of the checkpoint made after so many steps."""
        return self._path(STEP, step)

    def best_path(self) -> Path | None:
        """The file of the state with the best held-out ELBO so far; None where there is none."""
        steps = self._steps(BEST)
        return self._path(BEST, steps[0]) if steps else None

    # Writing.

    def begin(self) -> None:
        """Make the folder ready for a training from its first step.

        Raises:
            UsageError: it holds a training already, or a history that no checkpoint goes with.
        """
        if self.steps():
            raise UsageError(
                f"{self.folder} holds a training already; pass resume=True to go on with it, or name another folder"
            )
        if self._history.exists():
            raise UsageError(
                f"{self.folder} holds a {HISTORY} that no checkpoint goes with; name another folder, or move it away"
            )
        try:
            self._states.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"{self.folder} cannot be made: {error.strerror}; name another folder") from error
        self._remove_unfinished()

    def append(self, row: Row) -> None:
        """Add a row to the history."""
        append_line(self._history, to_json(row))

    def due(self, step: int) -> bool:
        """Whether it is time for a checkpoint after this step."""
        if self.every is not None:
            return step % self.every == 0
        return time.monotonic() - self._last_time > SECONDS_BETWEEN

    def save(self, snapshot: Snapshot, settings: Mapping[str, Any], epoch_start: Snapshot | None = None) -> None:
        """Write a checkpoint, then remove what is older than the newest `keep`.

        Args:
            snapshot: the state.
            settings: that it was made under.
            epoch_start: the state that a rollback would return to, where it is another one.
        """
        # Before the checkpoint, which counts the rows.
        flush_to_disk(self._history)
        tensors, numbers = dict(snapshot.tensors), {**snapshot.numbers, "settings": settings}
        if epoch_start is not None:
            tensors |= {START + name: tensor for name, tensor in epoch_start.tensors.items()}
            numbers["epoch_start"] = epoch_start.numbers
        step, best_step = numbers["step"], numbers["best_step"]
        write_tensors(self.path(step), tensors, numbers)
        # Later ones are of a course that training has left, by a rollback or past a damaged file.
        kept = [other for other in self.steps() if other <= step][: self.keep]
        for other in {*self.steps()} - {*kept}:
            self.path(other).unlink(missing_ok=True)
        for other in {*self._steps(BEST)} - {best_step}:
            self._path(BEST, other).unlink(missing_ok=True)
        self._last_time = time.monotonic()

    def save_best(self, snapshot: Snapshot) -> None:
        """Write the state with the best held-out ELBO so far; the one before goes with the next checkpoint."""
        write_tensors(self._path(BEST, snapshot.numbers["step"]), *snapshot)

    # Reading.

    def newest(self) -> tuple[Snapshot, Snapshot, Mapping[str, Any]] | None:
        """The newest intact checkpoint: state, state to roll back to, settings. None where there is no checkpoint.

        Raises:
            DataError: there are checkpoints, and none of them can be read.
        """
        damaged: list[DataError] = []
        for step in self.steps():
            try:
                found = _parts(*read_tensors(self.path(step)), self.path(step))
            except DataError as error:
                damaged.append(error)
                continue
            for error in damaged:
                logger.warning("%s; going on from step %d", error, step)
            return found
        if damaged:
            what = f"none of the checkpoints in {self._states} can be read"
            raise DataError(f"{what}: {damaged[0]}; or start anew in another folder") from damaged[0]
        return None

    def best(self, step: int) -> Snapshot | None:
        """The best state, which was seen at this step; None where it is not there or damaged."""
        try:
            return Snapshot(*read_tensors(self._path(BEST, step)))
        except FileNotFoundError:
            return None
        except DataError as error:
            logger.warning("%s", error)
            return None

    def rows(self, count: int) -> list[Row]:
        """The first `count` rows of the history; what follows, made after the checkpoint, is cut off the file.

        Raises:
            DataError: fewer rows are there, or they are not rows.
        """
        self._remove_unfinished()
        try:
            lines = read_text(self._history).splitlines()
        except FileNotFoundError:
            lines = []
        rows = []
        for number, line in enumerate(lines[:count], 1):
            try:
                rows.append(parse_row(line))
            except ValueError as error:
                where = f"{self._history} is damaged in line {number} ({' '.join(str(error).split())})"
                raise DataError(f"{where}; put the whole file back, or start anew in another folder") from error
        if len(rows) < count:
            raise DataError(
                f"{self._history} holds {len(rows)} rows, expected at least {count} as the checkpoint says; put the "
                "whole file back, or start anew in another folder"
            )
        if len(lines) > count:
            write_text(self._history, "".join(line + "\n" for line in lines[:count]))
        return rows

    def _remove_unfinished(self) -> None:
        """Remove what a process left that was killed while it wrote a file."""
        for path in [*self._states.glob(f"*{ASIDE}"), *self.folder.glob(f"{HISTORY}{ASIDE}")]:
            path.unlink(missing_ok=True)


def _parts(
    tensors: dict[str, Any], numbers: dict[str, Any], path: Path
) -> tuple[Snapshot, Snapshot, Mapping[str, Any]]:
    if not isinstance(numbers.get("settings"), dict) or not isinstance(numbers.get("epoch_start", {}), dict):
        raise DataError(f"{path} is no checkpoint: it says nothing of settings; get a whole copy")
    now = Snapshot({name: t for name, t in tensors.items() if not name.startswith(START)}, numbers)
    if "epoch_start" not in numbers:
        return now, now, numbers["settings"]
    start = {name.removeprefix(START): t for name, t in tensors.items() if name.startswith(START)}
    return now, Snapshot(start, numbers["epoch_start"]), numbers["settings"]


def parse_row(line: str) -> Row:
    """A row of the history.

    Raises:
        ValueError: the line holds something else.
    """
    try:
        values = json.loads(line)
    except RecursionError as error:
        raise ValueError("brackets within brackets") from error
    if not isinstance(values, dict):
        raise ValueError(f"it holds {type(values).__name__}, expected numbers with names")
    for name in dict.fromkeys([*ALWAYS, *values]):
        value, per_latent = values.get(name), name.endswith("_per_latent")
        if per_latent and isinstance(value, list) and all(_is_number(each) for each in value):
            values[name] = [math.nan if each is None else each for each in value]
        elif not per_latent and name in values and _is_number(value):
            values[name] = math.nan if value is None else value
        else:
            raise ValueError(f"{name} is {shown(value)}, expected {'a list of numbers' if per_latent else 'a number'}")
    return values


def _is_number(value: Any) -> bool:
    """As JSON holds one; null stands for NaN."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
