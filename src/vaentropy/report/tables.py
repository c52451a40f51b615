"""The tables of a report: plain cells, each with what it is sorted by."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vaentropy import ledger
from vaentropy.report.subject import Subject
from vaentropy.results import Evaluation

__all__ = ["Cell", "Table", "compared", "differing", "features", "history", "key_numbers", "latents", "terms"]

# What stands for a number that there is not.
NONE = "–"
# Rows of a history that are shown: as many as one reads, evenly over it, the last among them.
MOST_ROWS = 200
# Features that are shown, those with the largest residuals.
MOST_FEATURES = 200
# From here on numbers are shown with an exponent.
LARGE, SMALL = 1e6, 1e-4


class Cell(NamedTuple):
    """Text, and the number that the column is sorted by; texts sort by themselves."""

    text: str
    key: float | None = None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: short, for ids.
        caption: what it shows.
        columns: their names.
        rows: a cell for each column.
        sortable: whether rows may be put into another order.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = True

    @property
    def texts(self) -> tuple[int, ...]:
        """Columns of text, which stand to the left; numbers stand to the right."""

        def is_text(cell: Cell) -> bool:
            return cell.key is None and cell.text != NONE

        return tuple(i for i in range(len(self.columns)) if any(is_text(row[i]) for row in self.rows))


def as_cell(value: Any) -> Cell:
    """A cell of a number, a text or nothing."""
    if isinstance(value, bool) or value is None:
        return Cell(NONE if value is None else str(value).lower())
    if not isinstance(value, int | float):
        return Cell(str(value))
    if isinstance(value, int):
        return Cell(f"{value:,}", value)
    if not math.isfinite(value):
        return Cell(
            NONE if math.isnan(value) else f"{value:+}".replace("inf", "∞"), None if math.isnan(value) else value
        )
    size = abs(value)
    return Cell(f"{value:.3e}" if size >= LARGE or 0 < size < SMALL else f"{value + 0.0:.4f}", value)


def _table(name: str, caption: str, columns: Mapping[str, Iterable[Any]], **how: Any) -> Table:
    rows = [[as_cell(value) for value in row] for row in zip(*columns.values(), strict=True)]
    return Table(name, caption, tuple(columns), rows, **how)


def _error(error: float | None) -> Cell:
    known = error is not None and not math.isnan(error)
    return Cell(ledger.error(error), error) if known else Cell(NONE)


def terms(e: Evaluation, name: str, what: str) -> Table:
    """The ledger: every line adds up, to the printed digit."""
    rows = [
        [Cell(line), Cell(ledger.number(value), value), _error(mc), _error(stderr)]
        for line, value, mc, stderr in ledger.lines(e)
    ]
    caption = f"Terms of the ELBO, {what}: nats per data point, {e.num_points:,} data points"
    return Table(name, caption, ("term", "value", "Monte Carlo error", "standard error"), rows, sortable=False)


def latents(subject: Subject) -> Table | None:
    """Use of each latent."""
    found = subject.diagnosis.latents
    if found is None:
        return None
    names = {
        "latent": "latent",
        "status": "status",
        "kl": "KL",
        "encoder_entropy": "encoder entropy",
        "prior_entropy": "prior entropy",
        "mean": "mean of ν",
        "mean_variance": "variance of ν",
        "posterior_variance": "τ²",
        "prior_ratio": "E z²/α²",
        "information_bound": "information at most",
    }
    columns = found.columns()
    return _table("latents", "Latents, training data; nats", {names[key]: columns[key] for key in names})


def features(subject: Subject) -> Table | None:
    """Residual and variance of each feature."""
    e = subject.train
    if e.decoder_residuals is None:
        return None
    residuals = e.decoder_residuals.flatten()
    largest = residuals.abs().nan_to_num(posinf=math.inf).argsort(descending=True, stable=True)[:MOST_FEATURES]
    named = subject.columns if len(subject.columns) == len(residuals) else range(len(residuals))
    columns: dict[str, Iterable[Any]] = {
        "feature": [named[d] for d in largest.tolist()],
        "decoder residual": residuals[largest].tolist(),
    }
    gains = e.gains.feature_variance
    for name, values in (("optimal σ²", e.optimal_feature_variance), ("gain of a σ² of its own", gains)):
        if values is not None:
            columns[name] = values.flatten()[largest].tolist()
    if e.observed_fraction is not None:
        columns["observed"] = e.observed_fraction.flatten()[largest].tolist()
    some = (
        ""
        if len(largest) == len(residuals)
        else f", the {len(largest)} of {len(residuals):,} with the largest residuals"
    )
    return _table("features", f"Features, training data{some}; nats", columns)


def history(subject: Subject) -> Table | None:
    """Rows of the history."""
    rows = subject.history.rows
    if not rows:
        return None
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).round().astype(int))
    names = {
        "epoch": "epoch",
        "running_elbo": "ELBO",
        "running_entropy_sum": "entropy sum",
        "running_gap": "gap",
        "running_kl": "KL",
        "held_out_elbo": "held-out ELBO",
        "learning_rate": "learning rate",
        "beta": "β",
        "seconds": "seconds",
    }
    there = [key for key in names if key in subject.history.columns]
    some = "" if len(chosen) == len(rows) else f", {len(chosen)} of {len(rows):,} epochs"
    columns = {names[key]: [rows[i].get(key) for i in chosen] for key in there}
    return _table("history", f"Training{some}; nats per data point", columns)


def key_numbers(subject: Subject) -> list[tuple[str, str, str]]:
    """What one looks for first: a name, a number, and what goes with it."""
    e, held_out, found = subject.train, subject.held_out, subject.diagnosis.latents
    errors = f"± {ledger.error(e.stderr.elbo)}"
    numbers = [("ELBO", ledger.number(e.elbo), errors), ("entropy sum", ledger.number(e.entropy_sum), "")]
    numbers.append(("relative gap", f"{e.relative_gap:.1e}", "of the ELBO"))
    if held_out is not None:
        numbers.append(("held-out ELBO", ledger.number(held_out.elbo), f"± {ledger.error(held_out.stderr.elbo)}"))
    if found is not None:
        numbers.append(("latents in use", str(len(found) - len(found.which("collapsed"))), f"of {len(found)}"))
    return numbers


def compared(subjects: Sequence[Subject]) -> Table:
    """What came of each run."""

    def active(subject: Subject) -> int | None:
        found = subject.diagnosis.latents
        return None if found is None else len(found) - len(found.which("collapsed"))

    def held_out(subject: Subject, name: str) -> float | None:
        return None if subject.held_out is None else getattr(subject.held_out, name)

    columns: dict[str, Iterable[Any]] = {
        "run": [subject.name for subject in subjects],
        "ELBO": [subject.train.elbo for subject in subjects],
        "entropy sum": [subject.train.entropy_sum for subject in subjects],
        "relative gap": [subject.train.relative_gap for subject in subjects],
        "held-out ELBO": [held_out(subject, "elbo") for subject in subjects],
        "held-out ELBO, as stored": [held_out(subject, "data_elbo") for subject in subjects],
        "± error": [None if s.held_out is None else s.held_out.stderr.elbo for s in subjects],
        "bits per dimension": [s.train.bits_per_dim for s in subjects],
        "held-out bits per dimension": [held_out(subject, "bits_per_dim") for subject in subjects],
        "active latents": [active(subject) for subject in subjects],
        "problems": [len(subject.diagnosis.problems) for subject in subjects],
    }
    return _table("results", "Results; nats per data point", columns)


def differing(subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Names of the settings in which the runs differ."""
    names = dict.fromkeys(name for subject in subjects for name in subject.settings)
    return tuple(name for name in names if len({repr(subject.settings.get(name)) for subject in subjects}) > 1)


def settings_compared(subjects: Sequence[Subject]) -> Table | None:
    """Settings in which the runs differ."""
    names = differing(subjects)
    if not names:
        return None
    columns: dict[str, Iterable[Any]] = {"run": [subject.name for subject in subjects]}
    for name in names:
        columns[name] = [plain_text(subject.settings.get(name)) for subject in subjects]
    return _table("settings", "Settings in which the runs differ", columns)


def plain_text(value: Any) -> Any:
    """A setting as a cell takes it."""
    return ", ".join(map(str, value)) or NONE if isinstance(value, list | tuple) else value
