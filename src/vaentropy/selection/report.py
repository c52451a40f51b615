"""What `select` says: a table of the candidates, the best first, and a verdict."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from vaentropy import markup
from vaentropy.errors import UsageError
from vaentropy.linear import LinearVAE
from vaentropy.vae import VAE

__all__ = ["Candidate", "Selection"]

DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One number of latents; scores and their differences in nats per data point, None where there is none.

    Attributes:
        latent_dim: H.
        active: latents that are not collapsed (a KL of at least 0.01 nats and of 1 % of the largest).
        num_parameters: of decoder, likelihood and prior.
        seed: of the training that is shown: of several, the one with the best ELBO of the training data.
        elbo: of the data held out.
        stderr: its standard error for the population that the data came from.
        elbo_diff: best `elbo` of all candidates less this one.
        elbo_error: standard error of `elbo_diff`, from the paired differences of the points and from training noise.
        spread: largest less smallest `elbo` of the seeds.
        train_elbo: of the training data; for a linear model the log-likelihood.
        entropy_sum: of the training data.
        gap: train_elbo - entropy_sum.
        bic: train_elbo - k log N/(2N), k parameters and N training points; more is better.
        bic_diff: best `bic` of all candidates less this one.
        bic_error: standard error of `bic_diff`, as for `elbo_diff`.
        reliable: False where the choice would be another if training brought as many nats as the gap has, or where a
            smaller candidate, which it contains, was trained better.
        remarks: what a user should know besides.
    """

    latent_dim: int
    active: int | None = None
    num_parameters: int | None = None
    seed: int | None = None
    elbo: float | None = None
    stderr: float | None = None
    elbo_diff: float | None = None
    elbo_error: float | None = None
    spread: float | None = None
    train_elbo: float | None = None
    entropy_sum: float | None = None
    gap: float | None = None
    bic: float | None = None
    bic_diff: float | None = None
    bic_error: float | None = None
    reliable: bool = True
    remarks: tuple[str, ...] = ()

    def to_best(self, score: str) -> tuple[float | None, float | None]:
        """How far it is below the best by this score, and the error."""
        return (self.elbo_diff, self.elbo_error) if score == "held_out" else (self.bic_diff, self.bic_error)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON."""
        return {**asdict(self), "remarks": list(self.remarks)}


class _Column(NamedTuple):
    group: str
    name: str
    width: int
    field: str


COLUMNS = (
    _Column("", "latents", 7, "latent_dim"),
    _Column("", "active", 7, "active"),
    _Column("held out", "ELBO", 11, "elbo"),
    _Column("held out", "error", 8, "stderr"),
    _Column("held out", "below", 9, "elbo_diff"),
    _Column("held out", "error", 8, "elbo_error"),
    _Column("held out", "seeds", 8, "spread"),
    _Column("training data", "ELBO", 12, "train_elbo"),
    _Column("training data", "entropies", 11, "entropy_sum"),
    _Column("training data", "gap", 9, "gap"),
    _Column("BIC", "value", 12, "bic"),
    _Column("BIC", "below", 9, "bic_diff"),
    _Column("BIC", "error", 8, "bic_error"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """What `select` returns: it prints as a table, the best candidate first, and ends with the verdict.

    Attributes:
        candidates: the best score first; those that are not possible last.
        supported: the smallest latent_dim that the data support.
        undecided: larger ones that may be better, by which the evidence does not decide.
        used: latents that are needed: fewer than supported where its own are collapsed and fewer were not offered.
        score: what decides: "held_out", the ELBO of held-out data; "bic" where none are held out.
        model: "linear", a family, or the name of your function.
        data: what they are, and in which units; "" where unknown.
        num_train: data points that were trained on.
        num_held_out: data points that decided.
        num_errors: standard errors that a difference had to have to count.
        training_noise: standard deviation of a candidate's score from one training to the next, a part of the errors;
            None where there was one training of each, so that it is unknown, or none.
        models: by latent_dim, trained; of several seeds the one that is shown.
    """

    candidates: tuple[Candidate, ...]
    supported: int
    undecided: tuple[int, ...]
    used: int
    score: Literal["held_out", "bic"]
    model: str
    data: str
    num_train: int
    num_held_out: int
    num_errors: float
    training_noise: float | None
    models: Mapping[int, VAE | LinearVAE] = field(repr=False)

    def __getitem__(self, latent_dim: int) -> Candidate:
        """The candidate of so many latents; KeyError where there is none."""
        for candidate in self.candidates:
            if candidate.latent_dim == latent_dim:
                return candidate
        given = ", ".join(str(c.latent_dim) for c in self.candidates)
        raise KeyError(f"no candidate with latent_dim {latent_dim!r}; there are {given}")

    @property
    def verdict(self) -> str:
        """One sentence."""
        return "".join(_verdict(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON; without `models`."""
        names = ("supported", "undecided", "used", "verdict", "score", "model", "data", "num_train", "num_held_out")
        named = {name: getattr(self, name) for name in (*names, "num_errors", "training_noise")}
        return {**named, "undecided": list(self.undecided), "candidates": [c.to_dict() for c in self.candidates]}

    def to_frame(self) -> Any:
        """One row per candidate, as a pandas DataFrame with the index latent_dim.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UsageError("pandas is not installed; run: pip install pandas, or use to_dict()") from None
        return pandas.DataFrame([c.to_dict() for c in self.candidates]).set_index("latent_dim")

    def __repr__(self) -> str:
        """Table, remarks and verdict."""
        lines = [*_heading(self), "", *_table(self), ""]
        lines += [f"{c.latent_dim}: {remark}" for c in self.candidates for remark in c.remarks]
        return "\n".join([*lines, self.verdict])

    def _repr_html_(self) -> str:
        head = [f"{column.group} {column.name}".strip() for column in COLUMNS]
        rows = [[_text(c, column) for column in COLUMNS] for c in self.candidates]
        title, *rest = _heading(self)
        remarks = [f"{c.latent_dim}: {remark}" for c in self.candidates for remark in c.remarks]
        candidates = markup.table(head, rows, caption=title)
        return f"{markup.paragraph(*rest)}{candidates}{markup.listed(remarks)}{markup.paragraph(self.verdict)}"


def _heading(s: Selection) -> list[str]:
    sizes = f"{s.num_train:,} data points to train on, {s.num_held_out:,} held out; nats per data point"
    if s.training_noise is not None:
        noise = f"; another training moves an ELBO by ± {s.training_noise:.2g}"
    else:
        trained = any(c.seed is not None for c in s.candidates)
        noise = "; one training of each: what another would change is not known" if trained else ""
    return [
        f"{s.model}{f' on {s.data}' if s.data else ''}",
        sizes,
        f"below: how far from the best, with the error of that paired difference{noise}",
    ]


def _text(candidate: Candidate, column: _Column) -> str:
    value = getattr(candidate, column.field)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    # Rounding leaves negative zeros.
    return f"{value:,}" if isinstance(value, int) else f"{round(value, DIGITS) + 0.0:.{DIGITS}f}"


def _table(s: Selection) -> Iterator[str]:
    groups = list(dict.fromkeys(column.group for column in COLUMNS))
    yield "".join(
        group.center(sum(c.width for c in COLUMNS if c.group == group) - 2, "-" if group else " ").rjust(
            sum(c.width for c in COLUMNS if c.group == group)
        )
        for group in groups
    )
    yield "".join(column.name.rjust(column.width) for column in COLUMNS)
    for candidate in s.candidates:
        yield "".join(_text(candidate, column).rjust(column.width) for column in COLUMNS)


def _listed(numbers: tuple[int, ...]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def _verdict(s: Selection) -> Iterator[str]:
    """The parts of the sentence."""
    possible = sorted(c.latent_dim for c in s.candidates if c.active is not None)
    if not s.used:
        yield "no latent is supported" + (": all are collapsed" if s.supported else "")
    else:
        yield f"{s.supported} {'latent is' if s.supported == 1 else 'latents are'} supported"
        yield f", {s.used} of them used" if s.used < s.supported else ""
    fewer = [h for h in possible if h < s.supported]
    if fewer:
        best = next(c for c in s.candidates if c.latent_dim in fewer)
        value, error = best.to_best(s.score)
        yield f"{':' if s.used else ';'} {best.latent_dim} would cost {value:.4f} ± {error:.4f} nats"
    if s.undecided:
        yield f"; whether {_listed(s.undecided)} would be better, this evidence does not decide"
    elif any(h > s.supported for h in possible):
        yield "; more bring nothing that counts"
    if possible[-1] == s.supported or possible[-1] in s.undecided:
        yield f"; offer more than {possible[-1]}"
    if not fewer and s.supported > (0 if s.model == "linear" else 1):
        yield f"; fewer than {s.supported} were not offered"
    if doubtful := tuple(sorted(c.latent_dim for c in s.candidates if not c.reliable)):
        yield f"; not to be relied on, since training of {_listed(doubtful)} has not come to a good end"
    yield "."
