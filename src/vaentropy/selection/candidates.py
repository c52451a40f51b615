"""Candidates: trained or in closed form, and measured on the same points with the same noise."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from vaentropy._typing import Float, Tensor
from vaentropy.data.source import Source, pieces
from vaentropy.diagnosis.latents import num_active
from vaentropy.engines import Lost
from vaentropy.errors import TrainingError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Expectation
from vaentropy.likelihoods import GaussianHead
from vaentropy.linear import LinearVAE
from vaentropy.model import LatentVariableModel
from vaentropy.moments import DataMoments
from vaentropy.passes import shard_seed
from vaentropy.progress import Report
from vaentropy.results import Evaluation
from vaentropy.seeding import seeded
from vaentropy.selection.aligned import Aligned
from vaentropy.training import History, fit
from vaentropy.training.floor import explain_floor
from vaentropy.training.history import Row
from vaentropy.vae import VAE

__all__ = [
    "Fitted",
    "Measured",
    "Parts",
    "Trainer",
    "data_moments",
    "fit_linear",
    "num_linear_parameters",
    "num_parameters",
]

CPU = torch.device("cpu")


class Parts(NamedTuple):
    """What all candidates see: rows to train on, and rows to be judged by, None without any."""

    train: Tensor | Source
    held_out: Tensor | Source | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A candidate and what it comes to, nats per data point.

    Attributes:
        latent_dim: H.
        model: as it was fitted; of several seeds the one with the best ELBO of the training data. Choosing by held-out
            data would make its held-out ELBO too high.
        num_parameters: of decoder, likelihood and prior.
        active: latents that are not collapsed.
        train: ELBO of each training point, (N,).
        held_out: ELBO of each point held out, (M,); None without any.
        entropy_sum: of the training data.
        gap: ELBO - entropy sum of the training data.
        residuals: parts of the gap that training can bring to 0, each with its Monte Carlo error.
        seeds: the best trained first; () for a closed form.
        train_elbos: of the seeds.
        held_out_elbos: of the seeds.
        remarks: what else happened.
    """

    latent_dim: int
    model: VAE | LinearVAE
    num_parameters: int
    active: int
    train: Float[Tensor, "N"]
    held_out: Float[Tensor, "M"] | None
    entropy_sum: float
    gap: float
    residuals: tuple[tuple[float, float], ...] = ()
    seeds: tuple[int, ...] = ()
    train_elbos: tuple[float, ...] = ()
    held_out_elbos: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()


def num_parameters(model: VAE) -> int:
    """What BIC counts: free numbers of p(x) or p(x|c), those of latent layer, decoder, likelihood and prior alone.

    A column of fixed norm has one number less.
    """
    parts = [model.latent_layer, model.decoder, model.head]
    parts += [model.condition_layer] if model.condition_width else []
    parameters = [p for part in parts for p in part.parameters()]
    if isinstance(model.prior_log_variance, torch.nn.Parameter):
        parameters.append(model.prior_log_variance)
    distinct = {id(p): p.numel() for p in parameters if p.requires_grad}
    return sum(distinct.values()) - (0 if model.columns == "free" else model.latent_shape[0])


def _copied(rows: Tensor | Source) -> Tensor | Source:
    return rows if isinstance(rows, Tensor) else rows.only(range(len(rows.shard_sizes)))


def _pieces(rows: Tensor | Source) -> Iterator[Tensor]:
    return (piece for _, piece in pieces(rows)) if isinstance(rows, Tensor) else iter(rows)


# --- In closed form -------------------------------------------------------------------------------------------------


def data_moments(rows: Tensor | Source) -> DataMoments:
    """Mean and covariance of all rows."""
    first, *others = map(DataMoments.of, _pieces(rows))
    for other in others:
        first = first.merge(other)
    return first


def num_linear_parameters(data_dim: int, latent_dim: int) -> int:
    """What BIC counts of a linear VAE: W, b and σ², less a rotation of z, which leaves p(x) as it is."""
    return data_dim * (latent_dim + 1) + 1 - latent_dim * (latent_dim - 1) // 2


def fit_linear(latent_dim: int, moments: DataMoments, parts: Parts) -> Fitted:
    """The optimum of the linear VAE, whose ELBO is the log-likelihood, of data seen in training or not.

    Args:
        latent_dim: H; 0 for independent noise of one variance.
        moments: of the training data.
        parts: training and held-out data.

    Raises:
        UsageError: no variance is left for the noise.
    """
    # Without an eigenvector its one latent is collapsed.
    model = LinearVAE.optimum(moments, max(1, latent_dim), eigenvectors=range(latent_dim))
    data_dim = len(moments.mean)
    with torch.no_grad():
        terms = model.elbo_terms(moments)
        train, held_out = (
            None if rows is None else torch.cat([model.log_likelihood(piece).cpu() for piece in _pieces(rows)])
            for rows in parts
        )
    assert train is not None
    entropy_sum = float(terms.entropy_sum)
    return Fitted(
        latent_dim=latent_dim,
        model=model,
        num_parameters=num_linear_parameters(data_dim, latent_dim),
        active=num_active(terms.kl),
        train=train,
        held_out=held_out,
        entropy_sum=entropy_sum,
        gap=float(terms.elbo) - entropy_sum,
    )


# --- Trained --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains and measures candidates, each from the same seeds: what an engine does with latent_dim and seed.

    Attributes:
        make: an untrained VAE for a latent_dim, its weights drawn from the global generator.
        parts: training and held-out data.
        largest: latent_dim.
        expectation: of evaluations.
        settings: of `fit`.
    """

    make: Callable[[int], VAE]
    parts: Parts
    largest: int
    expectation: Expectation
    settings: Mapping[str, Any]

    def __call__(self, task: tuple[int, int], report: Report) -> "Measured":
        """Train from one seed and measure.

        Raises:
            TrainingError: training diverged.
        """
        latent_dim, seed = task
        with seeded(seed, CPU):
            model = self.make(latent_dim)

        def show(row: Row) -> None:
            report(f"latent_dim {latent_dim}, seed {seed}")

        how = {"evaluation_expectation": self.expectation, "seed": seed, "progress": False, "on_epoch": show}
        return self._measured(model, fit(model, self.parts.train, **how, **self.settings), seed)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: with copies of rows, since a view is sent with all that it is a view of."""
        train, held_out = self.parts
        return {**vars(self), "parts": Parts(_copied(train), None if held_out is None else _copied(held_out))}

    def best(self, latent_dim: int, trained: Sequence["Measured"], errors: Mapping[int, TrainingError]) -> Fitted:
        """Keep the best of a candidate's trainings.

        Args:
            latent_dim: of the candidate.
            trained: its trainings, in any order.
            errors: of the seeds that diverged.

        Raises:
            TrainingError: every seed diverged.
        """
        if not trained:
            raise errors[min(errors)]
        measured = sorted(trained, key=lambda each: (-each.train.elbo, each.seed))
        best, e = measured[0], measured[0].train
        remarks = [
            f"seed {seed} {'was lost' if isinstance(errors[seed], Lost) else 'diverged'}" for seed in sorted(errors)
        ]
        if floor := explain_floor(best.model, best.at_floor, self.parts.train):
            remarks.append(floor)
        assert e.kl_per_latent is not None
        return Fitted(
            latent_dim=latent_dim,
            model=best.model,
            num_parameters=num_parameters(best.model),
            active=num_active(e.kl_per_latent),
            train=best.train_elbo,
            held_out=best.held_out_elbo,
            entropy_sum=e.entropy_sum,
            gap=e.gap,
            residuals=_residuals(best.model, e),
            seeds=tuple(each.seed for each in measured),
            train_elbos=tuple(each.train.elbo for each in measured),
            held_out_elbos=tuple(float(m.held_out_elbo.mean()) for m in measured if m.held_out_elbo is not None),
            remarks=tuple(remarks),
        )

    def _measured(self, model: VAE, history: History, seed: int) -> "Measured":
        assert history.train is not None and history.train.kl_per_latent is not None
        aligned = Aligned(model.eval(), history.train.kl_per_latent, self.largest)
        train, train_elbo = self._evaluate(aligned, self.parts.train)
        held_out = None if self.parts.held_out is None else self._evaluate(aligned, self.parts.held_out)[1]
        return Measured(model, seed, float(history.rows[-1].get("at_floor", 0.0)), train, train_elbo, held_out)

    def _evaluate(self, model: LatentVariableModel, rows: Tensor | Source) -> tuple[Evaluation, Tensor]:
        """The evaluation, and the ELBO of each point, (N,)."""
        evaluations, elbos = [], []
        for number, piece in enumerate(_pieces(rows)):
            noise = self.expectation
            # Those of `evaluate` of a source, which would keep more than the ELBO of each point.
            noise = noise.with_seed(shard_seed(noise.seed, number)) if noise.independent else noise
            e = evaluate(model, piece, expectation=noise, missing=self.settings["missing"], pointwise=True)
            assert e.pointwise is not None
            elbos.append(e.pointwise["elbo"].double())
            evaluations.append(replace(e, pointwise=None))
        return Evaluation.merge(evaluations), torch.cat(elbos)


@dataclass(frozen=True, eq=False)
class Measured:
    """One training and what came of it; fraction of the variances at their floor, ELBO of each point."""

    model: VAE
    seed: int
    at_floor: float
    train: Evaluation
    train_elbo: Tensor
    held_out_elbo: Tensor | None

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which may have no GPU."""
        return {**vars(self), "model": self.model.cpu()}


def _residuals(model: VAE, e: Evaluation) -> tuple[tuple[float, float], ...]:
    """The two parts of the gap, which could cancel; a fixed σ² leaves that of the decoder as it is."""
    mc, fixed = e.mc_stderr, isinstance(model.head, GaussianHead) and not model.head.variance_parameters()
    prior = (e.prior_gap, 0.0 if mc is None else mc.prior_gap)
    return (prior,) if fixed else (prior, (e.decoder_gap, 0.0 if mc is None else mc.decoder_gap))
