"""What the pictures of a model need, computed once: a few hundred points with their latents and reconstructions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.distributions import Distribution, Independent

from vaentropy._typing import Float, Tensor
from vaentropy.answers import Latents, latents_of, likelihood_at
from vaentropy.checks import require_count, require_instance, require_seed
from vaentropy.conditions import bound_to, require_conditions
from vaentropy.data.given import Data, as_rows
from vaentropy.data.scaling import Scaling
from vaentropy.data.source import Rows, Source
from vaentropy.diagnosis.points import Reading
from vaentropy.distributions import (
    as_batch,
    diagonal_parameters,
    full_parameters,
    normal_kl,
    to_float64,
)
from vaentropy.errors import DataError, ModelError, UnsupportedError, UsageError, shown
from vaentropy.figures.pictures import require_names
from vaentropy.model import LatentVariableModel
from vaentropy.options import Missing
from vaentropy.passes import Batch
from vaentropy.rows import affordable, frame_columns
from vaentropy.seeding import generator_of

__all__ = ["View", "look"]

# Values of the data that are kept at the most, so that large images stay small in memory: fewer of them are looked at.
MOST_VALUES = 2**22
# But at least so many points, of whatever size.
FEWEST_POINTS = 16
# How far a traversal goes: from the quantile at which a normal variable is so many standard deviations below its mean
# to the one at which it is as many above.
TRAVERSED_DEVIATIONS = 2.0
# Standard normal nodes that stand for q(z|x) in the aggregate posterior, of which the quantiles are.
NODES = 101


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """Points, and what a model makes of them: all that the pictures of a model show. Tensors are on the CPU.

    P points are drawn; data are in the units of the data as stored if a scaling was given, else as the model sees them.
    The latents are flattened, H of them, in float64. K of them are shown where not all fit into a picture.

    Attributes:
        x: (P, *data_shape); NaN where a value is missing.
        reconstruction: mean of p(x|z) at the posterior mean, (P, *data_shape).
        samples: mean of p(x|z) at draws z ~ p(z), (P, *data_shape).
        latent_mean: posterior means ν, (P, H).
        latent_variance: posterior variances τ², (P, H); None where the posterior is not normal.
        order: numbers of the latents by use, (H,): those with the largest KL first; those with the largest variance of
            the posterior mean where `kl_per_latent` is None.
        shown_covariance: posterior covariance of the latents shown, (P, K, K); None where the posterior is not normal.
        kl_per_latent: KL(q(z_h|x) ‖ p(z_h)) of the points drawn, nats per data point, (H,); None where the posterior is
            not normal, or the prior is not normal with independent elements.
        prior_mean, prior_variance: m0 and α², (H,); None where the prior is not normal with independent elements, or
            each point has one of its own.
        levels: of the quantiles that the traversals go over, (steps,).
        traversed: values that each latent shown takes, (K, steps): these quantiles of the aggregate posterior.
        traversals: mean of p(x|z) there, all other latents at their mean over the points, (K, steps, *data_shape);
            of a conditional model, given the condition of the first point.
        labels: (P,), if given.
        columns: names of the features, () where they have none.
        num_points: data points that were given, of which P are drawn.
        latent_shape: shape of one latent before it was flattened.
    """

    x: Float[Tensor, "P *data"]
    reconstruction: Float[Tensor, "P *data"]
    samples: Float[Tensor, "P *data"]
    latent_mean: Float[Tensor, "P H"]
    latent_variance: Float[Tensor, "P H"] | None
    order: tuple[int, ...]
    shown_covariance: Float[Tensor, "P K K"] | None
    kl_per_latent: Float[Tensor, "H"] | None
    prior_mean: Float[Tensor, "H"] | None
    prior_variance: Float[Tensor, "H"] | None
    levels: Float[Tensor, "steps"]
    traversed: Float[Tensor, "K steps"]
    traversals: Float[Tensor, "K steps *data"]
    labels: np.ndarray | None
    columns: tuple[str, ...]
    num_points: int
    latent_shape: tuple[int, ...]

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one data point."""
        return tuple(self.x.shape[1:])

    @property
    def shown(self) -> tuple[int, ...]:
        """Numbers of the K most used latents, in the order of `order`."""
        return self.order[: len(self.traversed)]

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        shapes = f"data_shape={self.data_shape}, latent_shape={self.latent_shape}"
        return f"View({len(self)} of {self.num_points} points, {shapes})"


def look(
    model: LatentVariableModel,
    x: Data,
    *,
    labels: Tensor | np.ndarray | Sequence[Any] | None = None,
    columns: Sequence[str] = (),
    scaling: Scaling | None = None,
    num_points: int = 1000,
    num_latents: int = 8,
    num_steps: int = 7,
    missing: Missing = "error",
    seed: int = 0,
) -> View:
    """Points spread evenly over the data, their latents and reconstructions, draws and traversals, for the figures.

    One pass without gradients, in eval mode; the model and the global random number generators are left as they were.

    Args:
        model: anything with `posterior(x)`, `prior()` and `likelihood(z)`.
        x: (N, *data_shape), as the model sees them: a tensor, array, data frame, `Source` or map-style torch Dataset.
        labels: (N,) numbers or texts, by which points are coloured.
        columns: names of the features; those of a data frame or `Source` by default.
        scaling: of the data; pictures are then in the units of the data as stored.
        num_points: of the data, that are looked at; fewer of large ones, 2^22 values in all, but not below 16.
        num_latents: that traversals and pair plots show at the most.
        num_steps: of each traversal.
        missing: "ignore" takes NaN for a missing value, in whose place the encoder sees 0; "error" refuses it.
        seed: of which points are drawn, and of the draws from the prior.

    Raises:
        DataError: data that `evaluate` does not take, or that cannot be picked from, such as an iterable of batches.
        ModelError: the model returned something else than the interface asks for, or no finite numbers.
        UnsupportedError: the posterior or the likelihood has no mean.
        UsageError: an argument has a wrong value.
    """
    require_count("num_points", num_points)
    require_count("num_latents", num_latents)
    require_count("num_steps", num_steps, least=2)
    require_seed(seed)
    source = _source(x)
    require_conditions(model, source, "data")
    # As given, or those that the data bring.
    own = [name for name, _ in frame_columns(x) or ()] or source.columns
    names = require_names(columns, source.features_shape) or require_names(own, source.features_shape)
    _check_scaling(scaling, source.features_shape)
    rows = _spread(len(source), affordable(num_points, source.data_shape, MOST_VALUES, fewest=FEWEST_POINTS), seed)
    # Refused before the model has anything to do.
    chosen = None if labels is None else _as_labels(labels, len(source))[rows.numpy()]
    views: list[View] = []

    def keep(batch: Batch) -> None:
        about = {"labels": chosen, "columns": names, "num_points": len(source)}
        # What is drawn of one latent after the other has the condition of the first point.
        one = batch.model if batch.condition is None else bound_to(model, batch.rows[:1])[0]
        views.append(View(**_seen(batch, one, num_latents, num_steps, scaling), **about))

    # One batch, and all that is drawn is drawn in it: the global generators are seeded there, and put back afterwards.
    Reading(model, batch_size=max(1, len(rows)), missing=missing).each(_pick(source, rows), keep, seed=seed)
    return views[0]


# --- Which points ----------------------------------------------------------------------------------------------------


def _source(x: Any) -> Source:
    rows = as_rows(x)
    if rows is None:
        expected = "expected rows that points can be picked from: a tensor, array, data frame, Source or torch Dataset"
        raise DataError(f"{type(x).__name__} given as data, {expected}")
    if isinstance(rows, Source):
        return rows
    if rows.ndim == 0:
        raise DataError("a single number given as data, expected an array (N, *data_shape)")
    return Rows(rows)


def _check_scaling(scaling: Any, data_shape: tuple[int, ...]) -> None:
    require_instance("scaling", scaling, (Scaling, type(None)), "a Scaling, as a data set has it")
    if scaling is not None and tuple(scaling.scale.shape) not in ((), data_shape):
        given = f"a scaling of shape {tuple(scaling.scale.shape)} given"
        raise UsageError(f"{given}, expected one number, or one per feature {data_shape}; take that of these data")


def _spread(num_rows: int, num_points: int, seed: int) -> Tensor:
    """Numbers of the rows to draw, in order: a random one of each of `num_points` stretches of the data.

    Rows at equal distances would, of data in which the labels take turns, show some of the labels only.
    """
    num_points = min(num_rows, num_points)
    edges = torch.arange(num_points + 1, device="cpu") * num_rows // max(1, num_points)
    generator = generator_of(seed, "points")
    offsets = torch.rand(num_points, generator=generator, dtype=torch.float64, device="cpu") * edges.diff()
    return edges[:-1] + offsets.long()


def _pick(source: Source, rows: Tensor) -> Tensor:
    """The rows of these numbers, which are in order, (P, *data_shape); shards without any of them are not read."""
    parts, first = [], 0
    for shard, size in enumerate(source.shard_sizes):
        inside = rows[(rows >= first) & (rows < first + size)] - first
        if len(inside):
            parts.append(source.read(shard)[inside])
        first += size
    return torch.cat(parts) if parts else torch.empty(0, *source.data_shape, dtype=source.dtype, device="cpu")


def _as_labels(labels: Any, num_rows: int) -> np.ndarray:
    try:
        array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except ValueError:  # rows of different lengths
        array = np.empty(0)
    if array.shape != (num_rows,):
        given = f"labels of shape {array.shape}" if array.size else f"labels={shown(labels)}"
        raise UsageError(f"{given} given for {num_rows} data points, expected one label for each")
    # NaN is not equal to itself: as a label it is a text like others.
    plain = array.dtype.kind in "biuU" or (array.dtype.kind == "f" and not np.isnan(array).any())
    return array if plain else array.astype(str)


# --- What the model makes of them ------------------------------------------------------------------------------------


def _mean(distribution: Distribution, what: str) -> Tensor:
    """The mean of what the model returned; refused where there is none."""
    named = distribution
    while isinstance(named, Independent):
        named = named.base_dist
    try:
        mean = distribution.mean
    except NotImplementedError:
        mean = None
    if mean is None or not bool(mean.isfinite().all()):
        reason = "that has no mean, or one that is not finite"
        raise UnsupportedError(f"{what} is {type(named).__name__} {reason}: there is nothing to draw")
    return mean


def _seen(
    batch: Batch, one: LatentVariableModel, num_latents: int, num_steps: int, scaling: Scaling | None
) -> dict[str, Any]:
    """The fields of a view that the model decides; `one` is the model that traversals are of."""
    model, x, latents = batch.model, batch.x, latents_of(batch.model, batch.x)
    mean = _mean(latents.posterior, "the posterior")
    about = _latents(latents, mean, num_latents)

    def decode(model: LatentVariableModel, z: Tensor) -> Tensor:
        """(n, *data_shape) of z, n of them."""
        z = z.to(mean).reshape(len(z), *mean.shape[1:])
        return _for_pictures(_mean(as_batch(model.likelihood(z), len(z), "likelihood(z)"), "p(x|z)"), scaling)

    # First: it refuses a likelihood of data of another shape than x.
    reconstruction = _for_pictures(_mean(likelihood_at(model, mean, x), "p(x|z)"), scaling)
    prior = latents.prior
    drawn = prior.sample() if prior.batch_shape else prior.sample(torch.Size([len(x)]))
    levels, values, at = _traversals(about, num_latents, num_steps)
    # More of them than points, where these are large.
    parts = at.flatten(0, 1).split(affordable(values.numel(), x.shape[1:]))
    traversals = torch.cat([decode(one, part) for part in parts]).unflatten(0, values.shape)
    given = x if batch.observed is None else x.masked_fill(~batch.observed, torch.nan)
    return {
        **about,
        "x": _for_pictures(given, scaling),
        "reconstruction": reconstruction,
        "samples": decode(model, drawn),
        "levels": levels,
        "traversed": values,
        "traversals": traversals,
        "latent_shape": tuple(mean.shape[1:]),
    }


def _for_pictures(x: Tensor, scaling: Scaling | None) -> Tensor:
    """Data on the CPU, floating, in the units of the data as stored where a scaling is given."""
    x = x.detach().cpu()
    x = x if x.is_floating_point() else x.double()
    return x if scaling is None else scaling.undo(x)


def _latents(latents: Latents, mean: Tensor, num_latents: int) -> dict[str, Any]:
    """The fields of a view that speak of posterior and prior; `mean` (P, *latent_shape)."""
    mean = to_float64(mean).reshape(len(mean), -1).cpu()
    diagonal, full = diagonal_parameters(latents.posterior), full_parameters(latents.posterior)
    prior = None if latents.prior.batch_shape else diagonal_parameters(latents.prior)
    variance = cholesky = kl = prior_mean = prior_variance = None
    if diagonal is not None:
        variance = diagonal[1].exp().expand(diagonal[0].shape).reshape(mean.shape).cpu()
    elif full is not None:
        cholesky = full[1].cpu()
        variance = cholesky.square().sum(-1)
    if variance is not None and not bool(variance.isfinite().all()):
        raise ModelError("a posterior variance is not finite: there is nothing to draw; standardise the data")
    if prior is not None:
        latent_shape = latents.posterior.event_shape
        prior_mean, log_variance = (p.expand(latent_shape).flatten().cpu() for p in prior)
        prior_variance = log_variance.exp()
        if variance is not None:
            kl = normal_kl(mean, variance.log(), prior_mean, log_variance).mean(0)
    use = mean.var(0, correction=0) if kl is None else kl
    order = use.argsort(descending=True, stable=True)
    most_used = order[:num_latents]
    covariance = None
    if cholesky is not None:
        rows = cholesky[:, most_used]
        covariance = rows @ rows.mT
    elif variance is not None:
        covariance = torch.diag_embed(variance[:, most_used])
    return {
        "latent_mean": mean,
        "latent_variance": variance,
        "order": tuple(order.tolist()),
        "shown_covariance": covariance,
        "kl_per_latent": kl,
        "prior_mean": prior_mean,
        "prior_variance": prior_variance,
    }


def _traversals(about: Mapping[str, Any], num_latents: int, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Levels (steps,), values (K, steps) of the latents shown, and the latents (K, steps, H) that have them."""
    mean, variance = about["latent_mean"], about["latent_variance"]
    scale = torch.zeros_like(mean) if variance is None else variance.sqrt()
    between = (torch.arange(NODES, dtype=torch.float64, device="cpu") + 0.5) / NODES
    nodes = torch.special.ndtri(between).unsqueeze(1)
    reach = torch.linspace(-TRAVERSED_DEVIATIONS, TRAVERSED_DEVIATIONS, num_steps, dtype=torch.float64, device="cpu")
    levels = torch.special.ndtr(reach)
    chosen = about["order"][:num_latents]
    values = levels.new_empty(len(chosen), num_steps)
    z = mean.mean(0).repeat(*values.shape, 1)
    for k, latent in enumerate(chosen):
        aggregate = (mean[:, latent] + scale[:, latent] * nodes).flatten()
        # Not torch.quantile, which takes no more than 2^24 values. Hazen's: the nodes are midpoints of equal masses.
        values[k] = torch.from_numpy(np.quantile(aggregate.numpy(), levels.numpy(), method="hazen"))
        z[k, :, latent] = values[k]
    return levels, values, z
