"""`evaluate`: one pass over data, one set of mergeable sums, every read-out from them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from vaentropy._typing import Tensor
from vaentropy.checks import require_instance
from vaentropy.data.given import Data
from vaentropy.decomposition import decompose
from vaentropy.engines import Engine
from vaentropy.errors import DataError
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.model import LatentVariableModel
from vaentropy.modes import Mode
from vaentropy.options import Missing
from vaentropy.passes import Batch, Counted, Pass
from vaentropy.results import Evaluation, read_out
from vaentropy.sharded import Recipe, through
from vaentropy.sums import Sums

__all__ = ["Accumulator", "evaluate"]


class Accumulator(Pass):
    """An evaluation whose batches come one at a time, as a training loop of one's own has them.

        accumulator = Accumulator(model)
        with accumulator.running():
            accumulator.take(batch)
        accumulator.evaluation()

    Batches in the order of the data give what `evaluate` gives.

    Args:
        model: as for `evaluate`; with `bind` any module, whose mode, device and dtype are those of the evaluation.
        expectation: how to average over the posterior.
        pointwise: also keep the values per data point.
        how: `sample_weight`, `bind`, `missing`, `log_jacobian` and `mode`, as for `evaluate`.

    Raises:
        UsageError: an argument has a wrong value.
    """

    def __init__(
        self, model: object, *, expectation: Expectation = MonteCarlo(16), pointwise: bool = False, **how: Any
    ):
        require_instance("expectation", expectation, Expectation, "an Expectation such as MonteCarlo(16)")
        super().__init__(model, seed=expectation.seed, **how)
        self.expectation = expectation
        self._sums = Sums(pointwise=pointwise)
        self._sampled: set[str] = set()
        self._latent_shape: tuple[int, ...] = ()

    def measure(self, batch: Batch) -> None:
        """Add the terms of a batch.

        Raises:
            DataError: its data are of another shape than those before.
        """
        if self.num_points and tuple(batch.x.shape[1:]) != self.data_shape:
            given = f"a batch of shape {tuple(batch.x.shape)} given after data of shape {self.data_shape}"
            raise DataError(f"{given}, expected one shape; evaluate each shape on its own")
        decomposition = decompose(batch.model, batch.x, self.expectation, batch.generator, batch.observed)
        self._sums.add(decomposition.terms, batch, decomposition.scaled)
        self._sampled.update(decomposition.sampled)
        self._latent_shape = decomposition.latent_shape

    def counted(self) -> Counted:
        """What was counted so far, for another one to take in."""
        more = (frozenset(self._sampled), self._latent_shape)
        return super().counted()._replace(sums=self._sums.packed(), more=more)

    def take_in(self, counted: Counted) -> None:
        """Count what another one has counted, of data points that come next."""
        super().take_in(counted)
        self._sums.take_in(counted.sums)
        sampled, self._latent_shape = counted.more
        self._sampled |= sampled

    def skip(self, num_rows: int, latent_shape: tuple[int, ...]) -> None:
        """Let rows go by that another process counts, and the noise that these have there.

        Args:
            num_rows: of one batch.
            latent_shape: of the model.
        """
        device, dtype = self._device or torch.device("cpu"), self._dtype or torch.get_default_dtype()
        self.expectation.nodes(num_rows, latent_shape, generator=self._generator(device), dtype=dtype)
        self._seen += num_rows

    def evaluation(self) -> Evaluation:
        """The evaluation of all batches so far.

        Raises:
            DataError: there was no data point yet, or none with a value that is observed.
            UsageError: there were more weights than data points.
        """
        self.end()
        return self.part()

    def part(self) -> Evaluation:
        """As `evaluation`, of at least one point, of data that other processes have as well."""
        return read_out(
            self._sums.moments,
            num_points=self.num_points,
            data_shape=self.data_shape,
            latent_shape=self._latent_shape,
            latent_moments=self._sums.latent_moments,
            expectation=self.expectation,
            mode=self.mode,
            sampled=tuple(sorted(self._sampled)),
            pointwise=self._sums.pointwise,
        )


def evaluate(
    model: LatentVariableModel,
    data: Data,
    *,
    expectation: Expectation = MonteCarlo(16),
    batch_size: int | None = None,
    sample_weight: Tensor | np.ndarray | Sequence[float] | None = None,
    bind: Callable[[Any], tuple[LatentVariableModel, Tensor]] | None = None,
    missing: Missing = "error",
    log_jacobian: Tensor | np.ndarray | float = 0.0,
    pointwise: bool = False,
    mode: Mode = "eval",
    on_batch: Callable[[int], None] | None = None,
    engine: Engine | None = None,
) -> Evaluation:
    """ELBO, the three entropies, the gap between them term by term, and what optimal variances would bring.

    One pass without gradients. The model is left as it was: mode, BatchNorm statistics and the global random number
    generators are restored. Data go to the device and floating dtype of the model's parameters.

    Draws of a tensor or an iterable are one stream. Each shard of a `Source` has a stream of its own, made of the seed
    and its number, so that it does not matter who has done the shards before. With an `engine` the shards are shared
    out among its workers and the sums merged: the numbers are those of one process, to rounding, however many there
    are. Rows in memory are cut into shards for it, of 2²⁰ values; of more than one shard the draws are other ones than
    without an engine. Model and options, `bind` too, are sent to the workers, so their classes and functions have names
    in a module; a torch Dataset is read here.

    Args:
        model: anything with `posterior(x)`, `prior()` and `likelihood(z)`.
        data: (N, *data_shape), a tensor, array or data frame; a `Source` or map-style torch Dataset, read shard by
            shard; or an iterable of batches (a DataLoader), each the data or [data, labels]. For a conditional model
            `given(x, c)`, or batches [data, condition].
        expectation: how to average over the posterior.
        batch_size: rows per forward pass; None takes more of small ones. An iterable brings its own.
        sample_weight: (N,), at least 0, in the order of the data; None means 1.
        bind: turns a batch into (model for this batch, x), where the model needs more than x (labels, batch effects).
        missing: "error" refuses NaN; "ignore" takes NaN for a missing value, whose terms count for nothing: the ELBO is
            that of log p(x_observed). Encoder and likelihood see 0 in its place, so standardise the data; the
            likelihood has to factorise over the features. Infinite values are errors in any case.
        log_jacobian: log |dy/dx| per feature, (), once for each feature, or data_shape, of the map from data x as
            stored to data y as the model sees them (`Scaling.log_jacobian`). The ELBO stays that of y; `data_elbo` and
            `bits_per_dim` of the result are those of x.
        pointwise: also keep the values per data point.
        mode: run the networks in "eval" or "train" mode. With BatchNorm or dropout these are two objectives, and the
            theorem holds in the one that was trained.
        on_batch: called with the number of rows after each batch; with an engine after each shard, and with a number
            below 0 where a lost worker's rows are done again.
        engine: where the work is done; None does it here. See `vaentropy.engines`.

    Returns:
        Evaluation, nats per data point.

    Raises:
        DataError: no data, or data that are not finite numbers or of several shapes, or no value is observed.
        ModelError: the model returned something else than the interface asks for.
        UnsupportedError: values are missing and the likelihood does not factorise over the features.
        UsageError: an argument has a wrong value, or the expectation does not fit the posterior.
    """
    how = {"expectation": expectation, "bind": bind, "missing": missing, "mode": mode}
    how |= {"log_jacobian": log_jacobian, "pointwise": pointwise}
    accumulator = Accumulator(model, sample_weight=sample_weight, **how)
    through(accumulator, Recipe(Accumulator, model, how), data, batch_size, on_batch, engine)
    return accumulator.evaluation()
