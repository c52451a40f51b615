"""Linear VAEs of studies: several of them as one, whose parameters are rows of shared tensors."""

from collections.abc import Mapping, Sequence

import torch

from vaentropy._typing import Float, Tensor
from vaentropy.distributions import normal_kl, normal_log_prob
from vaentropy.linear import LinearVAE

__all__ = ["sampled_elbo", "stacked"]


def stacked(models: Sequence[LinearVAE], shape: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Parameters by name, as `linear_elbo_terms` takes them: leaves, with gradients where the first model's have.

    Args:
        models: of one size.
        shape: of the axes that stand for the models; by default one.
    """
    shape = [len(models)] if shape is None else list(shape)
    parameters = {}
    for name, parameter in models[0].named_parameters():
        rows = torch.stack([model.get_parameter(name).detach() for model in models])
        parameters[name] = rows.unflatten(0, shape).requires_grad_(parameter.requires_grad)
    return parameters


def sampled_elbo(
    parameters: Mapping[str, Tensor], x: Float[Tensor, "*#M B D"], noise: Float[Tensor, "S *M B H"]
) -> Float[Tensor, "*M"]:
    """The ELBO of a batch from draws of z, as the published code has it; the KL divergence is exact.

    Args:
        parameters: (*M, …) each, by name.
        x: a batch.
        noise: standard normal, S draws for each point.
    """
    latent_log_variance = parameters["latent_log_variance"].unsqueeze(-2)
    latent_mean = x @ parameters["encoder_weight"].mT + parameters["encoder_bias"].unsqueeze(-2)
    z = latent_mean + torch.exp(0.5 * latent_log_variance) * noise
    data_mean = z @ parameters["weight"].mT + parameters["bias"].unsqueeze(-2)
    log_prob = normal_log_prob(x, data_mean, parameters["log_variance"][..., None, None])
    kl = normal_kl(latent_mean, latent_log_variance, None, torch.zeros_like(latent_log_variance))
    return log_prob.sum(-1).mean((0, -1)) - kl.sum(-1).mean(-1)
