"""From fitted candidates to what a `Selection` says of them."""

import math
from collections.abc import Mapping, Sequence

from vaentropy.errors import UsageError
from vaentropy.selection.candidates import Fitted, Parts
from vaentropy.selection.compare import Evidence, Score, bic_penalty, decide, training_noise
from vaentropy.selection.report import Candidate, Selection

__all__ = ["summarise"]

# Nats of the gap that say that training has not ended, whether the choice hangs on them or not; as in `diagnose`.
TOLERANCE = 0.1


def summarise(
    fitted: Sequence[Fitted],
    failures: Mapping[int, str],
    parts: Parts,
    *,
    model: str,
    data: str,
    num_errors: float,
) -> Selection:
    """The table and the decision.

    Args:
        fitted: candidates.
        failures: why others are not possible, by latent_dim.
        parts: training and held-out data.
        model, data: what they are called.
        num_errors: standard errors that a difference has to have to count.

    Raises:
        UsageError: no candidate has a finite ELBO.
    """
    finite = {f.latent_dim: f for f in fitted if _is_finite(f)}
    failures = {**failures, **{f.latent_dim: "its ELBO is not finite" for f in fitted if f.latent_dim not in finite}}
    if not finite:
        raise UsageError("no candidate has a finite ELBO, expected one at least; standardise the data")
    known = _Known(finite, parts, num_errors)
    decision = known.decision
    candidates = sorted(map(known.candidate, finite.values()), key=lambda c: known.rank(c.latent_dim))
    impossible = [Candidate(latent_dim=h, remarks=(reason,)) for h, reason in sorted(failures.items())]
    return Selection(
        candidates=(*candidates, *impossible),
        supported=decision.supported,
        undecided=decision.undecided,
        used=decision.used,
        score="bic" if parts.held_out is None else "held_out",
        model=model,
        data=data,
        num_train=len(parts.train),
        num_held_out=0 if parts.held_out is None else len(parts.held_out),
        num_errors=num_errors,
        training_noise=known.evidence.score.noise,
        models={h: f.model for h, f in finite.items()},
    )


def _is_finite(f: Fitted) -> bool:
    values = [float(f.train.sum()), 0.0 if f.held_out is None else float(f.held_out.sum())]
    return all(map(math.isfinite, values))


class _Known:
    """The candidates side by side.

    Args:
        fitted: by latent_dim.
        parts: training and held-out data.
        num_errors: standard errors that a difference has to have to count.
    """

    def __init__(self, fitted: Mapping[int, Fitted], parts: Parts, num_errors: float):
        each, num_train = fitted.items(), len(parts.train)
        noise = training_noise([f.train_elbos for f in fitted.values()])
        self.held_out = parts.held_out is not None
        self.train = Score({h: f.train for h, f in each}, noise)
        bic = Score({h: f.train - bic_penalty(f.num_parameters, num_train) for h, f in each}, noise)
        score = bic
        if self.held_out:
            noise = training_noise([f.held_out_elbos for f in fitted.values()])
            score = Score({h: f.held_out for h, f in each if f.held_out is not None}, noise)
        self.evidence = Evidence(score, bic, {h: f.active for h, f in each}, num_errors)
        self.decision = decide(self.evidence)

    def rank(self, latent_dim: int) -> tuple[float, int]:
        """The best first."""
        return -self.evidence.score.mean(latent_dim), latent_dim

    def candidate(self, f: Fitted) -> Candidate:
        """Its row."""
        h, score, bic = f.latent_dim, self.evidence.score, self.evidence.bic
        below, bic_below = score.difference(score.best, h), bic.difference(bic.best, h)
        moving, astray = self._moving(f), self._astray(f)
        reliable = not astray and not self._would_change(f)
        return Candidate(
            latent_dim=h,
            active=f.active,
            num_parameters=f.num_parameters,
            seed=f.seeds[0] if f.seeds else None,
            elbo=score.mean(h) if self.held_out else None,
            stderr=score.stderr(h) if self.held_out else None,
            elbo_diff=below.value if self.held_out else None,
            elbo_error=below.error if self.held_out else None,
            spread=max(f.held_out_elbos) - min(f.held_out_elbos) if len(f.held_out_elbos) > 1 else None,
            train_elbo=self.train.mean(h),
            entropy_sum=f.entropy_sum,
            gap=f.gap,
            bic=bic.mean(h),
            bic_diff=bic_below.value,
            bic_error=bic_below.error,
            reliable=reliable,
            remarks=(*f.remarks, *filter(None, (self._collapsed(f), moving, astray, self._place(h)))),
        )

    def _collapsed(self, f: Fitted) -> str | None:
        surplus = f.latent_dim - f.active
        return f"{surplus} of its latents {'is' if surplus == 1 else 'are'} collapsed" if surplus else None

    def _left(self, f: Fitted) -> float:
        """Nats that either part of the gap clearly has, beyond its Monte Carlo noise."""
        return max((abs(value) - self.evidence.num_errors * error for value, error in f.residuals), default=0.0)

    def _would_change(self, f: Fitted) -> bool:
        """Whether the choice would be another if training brought as many nats as the gap has."""
        left = self._left(f)
        return left > 0 and decide(self.evidence.with_more(f.latent_dim, left)).supported != self.decision.supported

    def _moving(self, f: Fitted) -> str | None:
        matters = self._would_change(f)
        if not matters and self._left(f) <= TOLERANCE:
            return None
        parts = " and ".join(f"{value:.4f}" for value, _ in f.residuals)
        what = f"residuals of {parts} nats: training has not reached a stationary point"
        return f"{what}{', and as much would change the choice' if matters else ''}; train longer"

    def _astray(self, f: Fitted) -> str | None:
        """Where it is below the best since it was trained worse than a smaller one, which it contains."""
        h, num_errors, score = f.latent_dim, self.evidence.num_errors, self.evidence.score
        smaller = [other for other in self.train.values if other < h and self.train.below(h, other, num_errors)]
        if not f.seeds or not smaller or not score.below(h, score.best, num_errors):
            return None
        apart = self.train.difference(smaller[0], h).value
        what = f"trained {apart:.4f} nats worse than {smaller[0]}, which it contains"
        return f"{what}: it ended in a bad optimum; use more seeds or epochs"

    def _place(self, h: int) -> str | None:
        """Where what is supported is not what comes first."""
        (supported, _, used), num_errors = self.decision, self.evidence.num_errors
        score, bic, active = self.evidence.score, self.evidence.bic, self.evidence.active
        if h == supported and score.below(h, score.best, num_errors):
            other = next(o for o in active if active[o] == used and not score.below(o, score.best, num_errors))
            return f"clearly below {other}, which uses no more latents: prune models[{other}], or use more seeds"
        if h == bic.best and bic.below(supported, h, num_errors):
            return "clearly the best by BIC"
        return None
