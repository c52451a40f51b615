"""What the rules share: when something counts, and how numbers become evidence."""

from collections.abc import Callable, Sequence

from vaentropy._typing import Tensor
from vaentropy.diagnosis.evidence import Evidence
from vaentropy.diagnosis.report import Finding, Level, Number

__all__ = ["Rule", "differs", "exceeds", "finding", "listed", "residuals", "worst"]

Rule = Callable[[Evidence], Finding | None]

# Latents and features that a line names.
NAMED = 5
# Residuals that are smaller than this fraction of the entropies are rounding, of float32 at least.
ROUNDING = 1e-6


def finding(
    e: Evidence,
    kind: str,
    verdict: str,
    *,
    nats: float,
    evidence: Sequence[Number],
    remedy: str,
    error: float | None = None,
    level: Level | None = None,
    least: float | None = None,
) -> Finding:
    """A finding; without `level` a problem where more is at stake than `least` (the tolerance) and its error."""
    serious = nats > (e.thresholds.tolerance if least is None else least) and exceeds(e, nats, error)
    return Finding(
        kind=kind,
        level=level or ("problem" if serious else "note"),
        nats=nats,
        error=error,
        verdict=verdict,
        evidence=tuple(evidence),
        remedy=remedy,
    )


def exceeds(e: Evidence, value: float, error: float | None, *, num_draws: int | None = None) -> bool:
    """Whether a value is larger than its error would make it.

    Args:
        e: with the number of errors that count.
        value: compared.
        error: of it; None or 0 where it has none.
        num_draws: that the error was estimated from, where these are few: it is then widened as Student's t is.
    """
    num_errors = e.thresholds.num_errors
    return value > (num_errors if num_draws is None else _as_student(num_errors, num_draws - 1)) * (error or 0.0)


def _as_student(z: float, freedom: int) -> float:
    """Quantile of Student's t of the probability that the normal distribution has at z, by Hill's expansion (1970)."""
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def differs(e: Evidence, residual: float, error: float | None) -> bool:
    """Whether a residual differs from 0 by more than its Monte Carlo error, and than rounding.

    Without an error (`None`: noise that points share) it is not known; an error of 0 is that of a closed form.
    """
    if error is None:
        return False
    h = e.train.entropies
    return exceeds(e, abs(residual) - ROUNDING * (abs(h.encoder) + abs(h.prior) + abs(h.decoder)), error)


def residuals(e: Evidence) -> list[Number]:
    """Those of prior and decoder, with their Monte Carlo errors."""
    mc = e.train.mc_stderr
    return [
        Number("prior residuals", e.train.prior_gap, None if mc is None else mc.prior_gap),
        Number("decoder residuals", e.train.decoder_gap, None if mc is None else mc.decoder_gap),
    ]


def worst(values: Tensor, what: str, number: int = NAMED) -> list[Number]:
    """The largest of the values by size, each with its index."""
    flat = values.flatten()
    order = flat.abs().argsort(descending=True)[:number].tolist()
    return [Number(f"{what} {index}", float(flat[index])) for index in order if float(flat[index])]


def listed(numbers: Sequence[int]) -> str:
    """A few of the numbers, with commas between them."""
    return ", ".join(map(str, numbers[:NAMED])) + (", ..." if len(numbers) > NAMED else "")
