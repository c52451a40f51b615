"""`Applied`: what a user does with a trained VAE, in eval mode whichever mode it is in."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributions import Distribution

from vaentropy._typing import Float, Num, Tensor
from vaentropy.checks import require_choice, require_count, require_seed
from vaentropy.conditions import Given, checked_condition, require_condition
from vaentropy.errors import DataError
from vaentropy.modes import in_mode
from vaentropy.rows import REMEDY, affordable, fill_missing, require_finite
from vaentropy.seeding import seeded

__all__ = ["Applied"]

BATCH_SIZE = 1024


class Applied(nn.Module):
    """From data to latents and back, and draws; of a `VAE`, which has the three methods of the model interface."""

    data_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    condition_width: int
    prior_log_variance: Tensor

    @abstractmethod
    def posterior(self, x: Tensor, condition: Tensor | None = None) -> Distribution:
        """q(z|x) or q(z|x, c)."""

    @abstractmethod
    def prior(self) -> Distribution:
        """p(z)."""

    @abstractmethod
    def likelihood(self, z: Tensor, condition: Tensor | None = None) -> Distribution:
        """p(x|z) or p(x|z, c)."""

    def given(self, condition: Num[Tensor, "b k"]) -> Given:
        """p(x|c) for a batch: a model with these three methods.

        Args:
            condition: c (B, k), one for each point of the batch, or (1, k) for all.

        Raises:
            UsageError: the model takes no condition.
            DataError: a condition of another width, or not finite.
        """
        return Given(self, checked_condition(self, condition))

    def _batch_size(self, batch_size: int | None) -> int:
        return (
            affordable(BATCH_SIZE, self.data_shape) if batch_size is None else require_count("batch_size", batch_size)
        )

    def _parts(self, x: Tensor, shape: tuple[int, ...], batch_size: int) -> Sequence[Tensor]:
        if not isinstance(x, Tensor) or tuple(x.shape[1:]) != shape:
            given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
            raise DataError(f"rows of {given} given, expected a Tensor (N, {', '.join(map(str, shape))})")
        return x.split(batch_size)

    def _to_model(self, x: Tensor) -> Tensor:
        return x.to(device=self.prior_log_variance.device, dtype=self.prior_log_variance.dtype)

    def _conditions(self, condition: Tensor | None, num_rows: int, batch_size: int) -> Sequence[Tensor | None]:
        """Those of each part; None for a model without."""
        if condition is None:
            require_condition(self, None)
            return [None] * max(1, math.ceil(num_rows / batch_size))
        condition = checked_condition(self, condition, num_rows)
        return condition.expand(num_rows, -1).split(batch_size)

    @torch.no_grad()
    def encode(
        self,
        x: Num[Tensor, "N *data"],
        *,
        condition: Num[Tensor, "*n k"] | None = None,
        missing: str = "error",
        batch_size: int | None = None,
    ) -> Float[Tensor, "N H"]:
        """Posterior means ν(x), (N, H), of x (N, *data_shape).

        `posterior(x)` has the variances too; of a conditional model `given(condition).posterior(x)`.

        Args:
            x: data as in training, scaled in the same way.
            condition: of a conditional model, (N, k), or (k,) for all rows.
            missing: "ignore" takes NaN for a missing value, as in training; "error" refuses it.
            batch_size: rows per forward pass; None takes 1,024, and fewer of large ones.

        Raises:
            DataError: data of another shape, or not finite.
            UsageError: a condition for a model without one, or none for a conditional one, or another wrong argument.
        """
        batch_size = self._batch_size(batch_size)
        parts = self._parts(x, self.data_shape, batch_size)
        require_choice("missing", missing, ("error", "ignore"))
        if missing == "ignore":
            parts = [fill_missing(part)[0] for part in parts]
        for part in parts:
            require_finite(part, "the data", remedy=f'{REMEDY}, or take NaN for missing values by missing="ignore"')
        pairs = zip(parts, self._conditions(condition, len(x), batch_size), strict=True)
        with in_mode(self, "eval"):
            return torch.cat([self.posterior(self._to_model(part), c).mean for part, c in pairs])

    @torch.no_grad()
    def decode(
        self,
        z: Float[Tensor, "N H"],
        *,
        condition: Num[Tensor, "*n k"] | None = None,
        batch_size: int | None = None,
    ) -> Float[Tensor, "N *data"]:
        """Means of p(x|z), (N, *data_shape), of z (N, H); `condition` is that of `encode`."""
        batch_size = self._batch_size(batch_size)
        parts = self._parts(z, self.latent_shape, batch_size)
        pairs = zip(parts, self._conditions(condition, len(z), batch_size), strict=True)
        with in_mode(self, "eval"):
            return torch.cat([self.likelihood(self._to_model(part), c).mean for part, c in pairs])

    def reconstruct(
        self,
        x: Num[Tensor, "N *data"],
        *,
        condition: Num[Tensor, "*n k"] | None = None,
        missing: str = "error",
        batch_size: int | None = None,
    ) -> Float[Tensor, "N *data"]:
        """Means of p(x|z) at the posterior means, (N, *data_shape); arguments and errors are those of `encode`."""
        z = self.encode(x, condition=condition, missing=missing, batch_size=batch_size)
        return self.decode(z, condition=condition, batch_size=batch_size)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Num[Tensor, "*n k"] | None = None,
        noise: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Float[Tensor, "N *data"]:
        """Draws (num_samples, *data_shape) from the model; equal seeds give equal draws.

        Args:
            num_samples: how many.
            condition: of a conditional model, (num_samples, k), or (k,) for all draws.
            noise: draw x from p(x|z); by default its mean is returned, as is usual for images.
            seed: of the draws; global generators are left alone.
            batch_size: rows per forward pass; None takes 1,024, and fewer of large ones.
        """
        require_count("num_samples", num_samples, least=0)
        batch_size = self._batch_size(batch_size)
        require_seed(seed)
        with in_mode(self, "eval"), seeded(seed, self.prior_log_variance.device):
            z = self.prior().sample(torch.Size([num_samples]))
            if not noise:
                return self.decode(z, condition=condition, batch_size=batch_size)
            pairs = zip(z.split(batch_size), self._conditions(condition, num_samples, batch_size), strict=True)
            return torch.cat([self.likelihood(part, c).sample() for part, c in pairs])
