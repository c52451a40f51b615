"""What a diagnosis says: findings with verdict, evidence and remedy, and how they print."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vaentropy import markup
from vaentropy.diagnosis.gradients import GradientCheck
from vaentropy.diagnosis.latents import Latents
from vaentropy.errors import UsageError
from vaentropy.results import Evaluation

__all__ = ["Diagnosis", "Finding", "Level", "Number"]

Level = Literal["problem", "note"]

WIDTH = 110


@dataclass(frozen=True)
class Number:
    """One number of the evidence.

    Attributes:
        what: it is.
        value: of it.
        error: its standard error; None where it has none.
        unit: "" for a pure number.
    """

    what: str
    value: float
    error: float | None = None
    unit: str = "nats"

    def __str__(self) -> str:
        # An error of 0 is that of a closed form.
        error = f" ± {self.error:.2g}" if self.error and not math.isnan(self.error) else ""
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.what} {self.value:.4g}{error}{unit}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding.

    Attributes:
        kind: a short name for programs.
        level: "problem", worth acting on; "note", worth knowing.
        nats: what is at stake, per data point: what the remedy brings where that is known, else the size of the
            difference that the finding is about.
        error: its standard error; None where it has none.
        verdict: one line.
        evidence: the numbers.
        remedy: what to change, by how much, what it brings.
    """

    kind: str
    level: Level
    nats: float
    error: float | None
    verdict: str
    evidence: tuple[Number, ...]
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        numbers = [{"what": n.what, "value": n.value, "error": n.error, "unit": n.unit} for n in self.evidence]
        named = {name: getattr(self, name) for name in ("kind", "level", "nats", "error", "verdict", "remedy")}
        return {**named, "evidence": numbers}

    def __str__(self) -> str:
        """Verdict, evidence, remedy."""
        return "\n".join(_lines(self))


def _wrapped(label: str, text: str) -> list[str]:
    lines, line = [], f"  {label:<9}"
    for word in text.split():
        if len(line) + 1 + len(word) > WIDTH and line.strip():
            lines.append(line.rstrip())
            line = " " * 11
        line += word + " "
    return [*lines, line.rstrip()]


def _lines(finding: Finding) -> list[str]:
    at_stake = str(Number("", finding.nats, finding.error)).strip()
    return [
        f"{finding.level}[{finding.kind}]: {finding.verdict} ({at_stake})",
        *_wrapped("evidence", "; ".join(map(str, finding.evidence))),
        *_wrapped("remedy", finding.remedy),
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """What `diagnose` returns. Nothing in it says "converged": it says what was tested, and what was found.

    Attributes:
        findings: problems, then notes, each ordered by nats, the largest first.
        tested: what was tested, with its outcome.
        untested: what was not, and why.
        latents: the table of latents; None where posterior or prior are not normal with independent elements.
        train: evaluation of the training data.
        held_out: evaluation of the held-out data; None without any.
        gradients: the gradient check; None where it was not made.
    """

    findings: tuple[Finding, ...]
    tested: tuple[Number, ...]
    untested: tuple[str, ...]
    latents: Latents | None = field(repr=False)
    train: Evaluation = field(repr=False)
    held_out: Evaluation | None = field(repr=False)
    gradients: GradientCheck | None = field(repr=False)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Findings worth acting on."""
        return tuple(finding for finding in self.findings if finding.level == "problem")

    @property
    def clean(self) -> bool:
        """Whether no problem was found in what was tested."""
        return not self.problems

    @property
    def headline(self) -> str:
        """One line: how many problems and notes, on which data."""

        def count(number: int, what: str) -> str:
            return f"{number or 'no'} {what}{'' if number == 1 else 's'}"

        num_problems = len(self.problems)
        found = f"{count(num_problems, 'problem')}, {count(len(self.findings) - num_problems, 'note')}"
        return f"{found}; {self.train.num_points:,} data points, ELBO {self.train.elbo:.4f}, nats per data point"

    def __getitem__(self, kind: str) -> Finding:
        """The finding of a kind; KeyError where there is none."""
        for finding in self.findings:
            if finding.kind == kind:
                return finding
        raise KeyError(f"no finding {kind!r}; there are {', '.join(f.kind for f in self.findings) or 'none'}")

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __contains__(self, kind: object) -> bool:
        return any(finding.kind == kind for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        tested = [{"what": n.what, "value": n.value, "error": n.error, "unit": n.unit} for n in self.tested]
        return {
            "clean": self.clean,
            "findings": [finding.to_dict() for finding in self.findings],
            "tested": tested,
            "untested": list(self.untested),
            "latents": None if self.latents is None else self.latents.columns(),
            "train": self.train.to_dict(vectors=False),
            "held_out": None if self.held_out is None else self.held_out.to_dict(vectors=False),
            "gradients": None if self.gradients is None else self.gradients.to_dict(),
        }

    def to_frame(self) -> Any:
        """One row per finding, as a pandas DataFrame.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UsageError("pandas is not installed; run: pip install pandas, or use to_dict()") from None
        columns = ("kind", "level", "nats", "error", "verdict", "remedy")
        return pandas.DataFrame([[getattr(f, name) for name in columns] for f in self.findings], columns=list(columns))

    def __repr__(self) -> str:
        """All of it, as text."""
        return "\n".join(_report(self))

    def _repr_html_(self) -> str:
        head = ("", "verdict", "nats", "evidence", "remedy")
        rows = [(f.level, f.verdict, f"{f.nats:.4g}", "; ".join(map(str, f.evidence)), f.remedy) for f in self.findings]
        findings = markup.table(head, rows, caption=self.headline, texts=[0, 1, 3, 4])
        return findings + markup.preformatted(_tail(self))


def _tail(d: Diagnosis) -> Sequence[str]:
    lines = ["tested"]
    lines += [f"  {n.what:<66}{n.value:>12.4f}{_error(n.error)} {n.unit}".rstrip() for n in d.tested]
    if d.untested:
        lines += ["not tested", *(f"  {reason}" for reason in d.untested)]
    if d.latents is not None:
        lines += ["", repr(d.latents)]
    return lines


def _error(error: float | None) -> str:
    return f" ± {error:<9.2g}" if error and not math.isnan(error) else " " * 12


def _report(d: Diagnosis) -> list[str]:
    lines = [d.headline]
    for finding in d.findings:
        lines += ["", *_lines(finding)]
    if d.clean:
        lines += ["", "Nothing tested calls for action. That is not convergence: these are the tests."]
    return [*lines, "", *_tail(d)]
