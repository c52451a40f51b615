"""What a model says of some data points, as tensors with gradients: the parameters of its distributions.

Each comes with the root of its Fisher information, so that half the squared length of a small change of all of them is
the Kullback-Leibler divergence that it makes (in sum over the points).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.distributions import Bernoulli, Distribution, Independent, Poisson

from vaentropy._typing import Tensor
from vaentropy.distributions import LogRatePoisson, as_batch, as_prior, diagonal_parameters, to_float64
from vaentropy.errors import UnsupportedError
from vaentropy.model import LatentVariableModel, placement
from vaentropy.seeding import generator_of

__all__ = ["Outputs", "natural_parameters", "num_strangers", "outputs_of", "roots_of_fisher"]

HALF_ROOT = math.sqrt(0.5)  # of ½, the Fisher information of log σ²


@dataclass(frozen=True)
class Outputs:
    """Parameters of the distributions at points x (B, *data_shape), float64, with gradients.

    Attributes:
        mean: ν, (B, *latent_shape).
        log_variance: log τ², of that shape.
        prior_mean: m0, latent_shape.
        prior_log_variance: log α², latent_shape.
        z: draws, (B, *latent_shape), with gradients to ν and τ.
        model: that it is of.
    """

    mean: Tensor
    log_variance: Tensor
    prior_mean: Tensor
    prior_log_variance: Tensor
    z: Tensor
    model: LatentVariableModel

    def likelihood_at(self, z: Tensor) -> dict[str, Tensor]:
        """Natural parameters of p(x|z), each (B, *data_shape)."""
        device, dtype = placement(self.model)
        z = z.to(device, dtype or torch.get_default_dtype())
        likelihood = as_batch(self.model.likelihood(z), len(z), "likelihood(z)")
        named = natural_parameters(likelihood)
        if named is None:
            raise UnsupportedError(f"a likelihood {likelihood} given, expected a normal, Bernoulli or Poisson one")
        return named


def natural_parameters(distribution: Distribution) -> dict[str, Tensor] | None:
    """Mean and log-variance of a normal, logits or log-rates, element by element, float64; None of anything else."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if (parameters := diagonal_parameters(distribution)) is not None:
        mean, log_variance = parameters
        return {"mean": mean, "log_variance": log_variance.expand(mean.shape)}
    if isinstance(distribution, Bernoulli):
        return {"logits": to_float64(distribution.logits)}
    if isinstance(distribution, LogRatePoisson):
        return {"log_rate": to_float64(distribution.log_rate)}
    if isinstance(distribution, Poisson):
        return {"log_rate": to_float64(distribution.rate).log()}
    return None


def roots_of_fisher(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Roots of the Fisher information of `natural_parameters`, without gradients."""
    roots = {}
    for name, value in parameters.items():
        if name == "mean":
            roots[name] = torch.exp(-0.5 * parameters["log_variance"])
        elif name == "log_variance":
            roots[name] = torch.full_like(value, HALF_ROOT)
        elif name == "logits":
            p = value.sigmoid()
            roots[name] = (p * (1 - p)).sqrt()
        else:
            roots[name] = torch.exp(0.5 * value)
    return {name: root.detach() for name, root in roots.items()}


def outputs_of(model: LatentVariableModel, x: Tensor, seed: int) -> Outputs:
    """What the model says at points x, with one draw of z for each.

    Raises:
        UnsupportedError: posterior or prior are not normal with independent elements.
    """
    posterior = as_batch(model.posterior(x), len(x), "posterior(x)")
    prior = as_prior(model.prior(), len(x), posterior.event_shape)
    encoded, latents = diagonal_parameters(posterior), diagonal_parameters(prior)
    if encoded is None or latents is None or prior.batch_shape:
        raise UnsupportedError("posterior or prior given is not normal with independent elements, expected both to be")
    mean, log_variance = encoded
    log_variance = log_variance.expand(mean.shape)
    prior_mean, prior_log_variance = (p.to(mean.device).expand(mean.shape[1:]) for p in latents)
    noise = torch.randn(mean.shape, generator=generator_of(seed, "outputs"), dtype=torch.float64).to(mean.device)
    z = mean + torch.exp(0.5 * log_variance) * noise
    return Outputs(mean, log_variance, prior_mean, prior_log_variance, z, model)


def num_strangers(outputs: Outputs, parameters: Sequence[Tensor]) -> int:
    """How many tensors that want gradients take part in the outputs and are none of the parameters."""
    known = {id(parameter) for parameter in parameters}
    decoder = outputs.likelihood_at(outputs.z).values()
    waiting = [t.grad_fn for t in (outputs.mean, outputs.log_variance, outputs.prior_log_variance, *decoder)]
    seen, strangers = set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            strangers.add(id(leaf))
        waiting += [following for following, _ in node.next_functions]
    return len(strangers)
