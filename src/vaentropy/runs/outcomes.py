"""What became of the runs of a sweep: rows read off their folders, and the table of them."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vaentropy.diagnosis.latents import num_active
from vaentropy.errors import DataError, UsageError, printable
from vaentropy.files import write_text
from vaentropy.runs.combinations import SEED, Combination
from vaentropy.runs.folder import RunFolder
from vaentropy.runs.room import REPLACED, require_free

__all__ = ["BEGUN", "FAILED", "FINISHED", "NEW", "Sweep", "row_of", "state_of", "write_csv"]

NEW, BEGUN, FINISHED, FAILED = "waiting", "interrupted", "finished", "failed"
RESULTS = (
    "status",
    "epochs",
    "elbo",
    "entropy_sum",
    "gap",
    "relative_gap",
    "held_out_elbo",
    "held_out_stderr",
    "data_elbo",
    "held_out_data_elbo",
    "bits_per_dim",
    "active_latents",
    "seconds",
    "failure",
)
EVALUATION = "evaluation.json"
Row = Mapping[str, Any]


def state_of(folder: Path, run: Combination) -> str:
    """How far a run has come: "waiting", "interrupted" (also while it is trained), "finished" or "failed".

    Raises:
        UsageError: something else is in its place.
        DataError: its files are damaged.
    """
    place = RunFolder(folder / run.name)
    if not place.file("config.yaml").exists():
        if place.file(REPLACED).is_dir():  # killed while one that had failed was tried again
            return FAILED
        require_free(place, overwrite=False)
        return NEW
    if place.config() != run.config:
        how = "name another folder, or say to overwrite"
        raise UsageError(f"{place} holds a run with other settings than this sweep; {how}")
    status = str(place.manifest().get("status")) if place.file("manifest.json").exists() else BEGUN
    if status.startswith(FAILED):
        return FAILED
    whole = all(place.file(name).exists() for name in (EVALUATION, "model.safetensors"))
    return FINISHED if status == FINISHED and whole else BEGUN


def row_of(folder: Path, run: Combination, failure: str = "") -> dict[str, Any]:
    """A run's row of the table, as its folder has it; None for what there is not.

    Args:
        folder: of the sweep.
        run: which one.
        failure: why it could not be trained, if that is so.
    """
    place, state = RunFolder(folder / run.name), FAILED if failure else state_of(folder, run)
    history = place.history()
    row: dict[str, Any] = {"run": run.name, **run.varied, **dict.fromkeys(RESULTS)}
    row |= {"status": state, "epochs": len(history), "seconds": history[-1]["seconds"] if history else None}
    if state == FAILED:
        stored = place.manifest() if place.file("manifest.json").exists() else {}
        row["failure"] = failure or str(stored.get("status", "")).removeprefix(f"{FAILED}: ")
    return row | _results(place) if state == FINISHED else row


def _results(place: RunFolder) -> dict[str, Any]:
    try:
        stored = json.loads(place.text(EVALUATION))
        train, held_out = stored["train"], stored.get("held_out")
        results = {name: train[name] for name in ("elbo", "entropy_sum", "gap", "relative_gap", "data_elbo")}
        if held_out is not None:
            results |= {"held_out_elbo": held_out["elbo"], "held_out_stderr": held_out["stderr"]["elbo"]}
            results["held_out_data_elbo"] = held_out["data_elbo"]
        results["bits_per_dim"] = (held_out or train)["bits_per_dim"]
        results["active_latents"] = num_active(torch.tensor(train["kl_per_latent"], dtype=torch.float64))
    except (ValueError, KeyError, TypeError, RecursionError, RuntimeError) as error:
        where = f"{place}/{EVALUATION} is damaged ({' '.join(str(error).split())})"
        raise DataError(f"{where}; put the file of the run back") from error
    return results


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the table, whole or not at all; lists have a "-" between their values."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _shown(value) for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _shown(value: Any) -> Any:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else value


# --- For people -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Sweep:
    """What came of a sweep; printing it gives its table.

    Attributes:
        folder: where its runs are.
        vary: names of the settings that were varied.
        rows: one for each run, as in sweep.csv, the best first: by the held-out ELBO, or by the ELBO of the training
            data where none were held out; those that are not finished come last.
        kept: names of the runs that were finished before.
        others: names of runs of earlier calls in the folder, which were not asked for now.
    """

    folder: Path
    vary: tuple[str, ...]
    rows: tuple[Row, ...]
    kept: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def __post_init__(self):
        score = self.score  # which looks at all rows
        object.__setattr__(self, "rows", tuple(sorted(self.rows, key=lambda row: -_value(row, score))))

    @property
    def score(self) -> str:
        """The column that orders runs. Where they scaled their data differently it is in the units of these as stored:
        the others do not compare."""
        finished = [row for row in self.rows if row["status"] == FINISHED]
        held_out = "held_out_" if all(row["held_out_elbo"] is not None for row in finished) else ""
        jacobians = {round(row["data_elbo"] - row["elbo"], 6) for row in finished}
        return f"{held_out}{'data_' if len(jacobians) > 1 else ''}elbo"

    @property
    def failed(self) -> dict[str, str]:
        """Why runs failed, by name."""
        return {row["run"]: row["failure"] for row in self.rows if row["status"] == FAILED}

    @property
    def best(self) -> list[Path]:
        """Folders of the runs that are finished, the best first."""
        return [self.folder / row["run"] for row in self.rows if row["status"] == FINISHED]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """One row for each combination, the best first: how many of its runs are finished, the median of their score,
        its lowest and its highest value, and medians of relative gap and active latents; None where none is."""
        groups: dict[tuple[Any, ...], list[Row]] = {}
        names, score = [name for name in self.vary if name != SEED], self.score
        for row in self.rows:
            groups.setdefault(tuple(row[name] for name in names), []).append(row)
        each = [dict(zip(names, key, strict=True)) | _summary(rows, score) for key, rows in groups.items()]
        return sorted(each, key=lambda group: -_value(group, "median"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        about = {"folder": str(self.folder), "score": self.score, "kept": list(self.kept), "others": list(self.others)}
        return {**about, "failed": self.failed, "settings": self.settings, "runs": [dict(row) for row in self.rows]}

    def __repr__(self) -> str:
        return "\n".join(_lines(self))


def _value(row: Row, name: str) -> float:
    """A number to sort by; what is not there or is no number comes last."""
    value = row[name]
    return -math.inf if value is None or math.isnan(value) else value


def _summary(rows: Sequence[Row], score: str) -> dict[str, Any]:
    finished = [row for row in rows if row["status"] == FINISHED]

    def middle(name: str) -> float | int | None:
        values = [row[name] for row in finished if row[name] is not None]
        return median(values) if values else None

    values = [row[score] for row in finished if row[score] is not None]
    ends = {"lowest": min(values, default=None), "highest": max(values, default=None)}
    also = {"relative_gap": middle("relative_gap"), "active_latents": middle("active_latents")}
    return {"runs": len(rows), FINISHED: len(finished), "median": middle(score), **ends, **also}


RANGE = ("lowest", "highest")
NUMBERS = {"median": ".4f", "lowest": ".4f", "highest": ".4f", "relative_gap": ".1e", "active_latents": "g"}


def _lines(s: Sweep) -> Iterator[str]:
    groups, score = s.settings, "held-out ELBO" if s.score.startswith("held_out") else "ELBO"
    units = " in the units of the data as stored" if "data" in s.score else ""
    replicates = any(group["runs"] > 1 for group in groups)
    spread = ": median and range of the seeds" if replicates else ""
    yield f"{len(s.rows)} {'run' if len(s.rows) == 1 else 'runs'}; {score}{units}, nats per data point{spread}"
    yield ""
    names = [name for name in s.vary if name != SEED]
    shown = {name: how for name, how in NUMBERS.items() if replicates or name not in RANGE}
    head = [*names, FINISHED, *shown]
    table = [[(score if name == "median" and not replicates else name).replace("_", " ") for name in head]]
    for group in groups:
        settings = [printable(str(_shown(group[name]))) for name in names]
        numbers = ["-" if group[name] is None else format(group[name], how) for name, how in shown.items()]
        table.append([*settings, f"{group[FINISHED]} of {group['runs']}", *numbers])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        yield "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
