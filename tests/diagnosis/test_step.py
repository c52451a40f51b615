"""The Gauss-Newton step against a linear system whose matrix comes from Hessians of torch's divergences."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vaentropy.diagnosis.outputs import outputs_of
from vaentropy.diagnosis.step import uphill
from vaentropy.linear import LinearVAE

F64 = torch.float64
DATA_DIM, LATENT_DIM = 3, 1


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def model() -> LinearVAE:
    made = LinearVAE(DATA_DIM, LATENT_DIM).double()
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(0.5 * draw(*p.shape, seed=i))
    return made


class Parts:
    """The distributions of the linear VAE as functions of its parameters in one vector."""

    def __init__(self, x: Tensor, noise: Tensor):
        self.x, self.noise = x, noise

    def posterior(self, vector: Tensor) -> Normal:
        _, _, encoder, shift, log_variance, _ = vector.split([3, 3, 3, 1, 1, 1])
        mean = (self.x @ encoder + shift).unsqueeze(1)
        return Normal(mean, torch.exp(0.5 * log_variance).expand(mean.shape))

    def decoder(self, vector: Tensor) -> Normal:
        weight, bias, *_, log_variance = vector.split([3, 3, 3, 1, 1, 1])
        q = self.posterior(vector)
        mean = (q.loc + q.scale * self.noise) * weight + bias
        return Normal(mean, torch.exp(0.5 * log_variance).expand(mean.shape))


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_the_step_solves_the_system_of_the_divergences(beta):
    x, made = draw(40, DATA_DIM, seed=9), model()
    parameters = list(made.parameters())
    vector = torch.cat([p.detach().flatten() for p in parameters])
    outputs = outputs_of(made, x, seed=0)
    noise = ((outputs.z - outputs.mean) / torch.exp(0.5 * outputs.log_variance)).detach()
    parts, prior = Parts(x, noise), Normal(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))
    as_it_is = parts.decoder(vector)

    def of_decoder(v: Tensor) -> Tensor:
        return kl_divergence(as_it_is, parts.decoder(v)).sum(1).mean()

    def of_posterior(v: Tensor) -> Tensor:
        return kl_divergence(parts.posterior(v), prior).sum(1).mean()

    # ν and log τ² are linear in the parameters: the Hessian of the KL term is that of Gauss and Newton.
    hessian = torch.autograd.functional.hessian
    matrix = hessian(of_decoder, vector) + beta * hessian(of_posterior, vector)
    gradient = matrix @ draw(len(vector), seed=10)
    step = uphill(outputs, parameters, gradient, beta=beta)
    assert torch.allclose(matrix @ step, gradient, atol=1e-6 * float(gradient.norm()))
    assert torch.allclose(step, torch.linalg.solve(matrix, gradient), rtol=1e-4, atol=1e-4)


def test_the_curvature_of_a_learned_prior():
    class Model(LinearVAE):
        def __init__(self):
            super().__init__(DATA_DIM, LATENT_DIM)
            self.prior_log_variance = torch.nn.Parameter(torch.tensor([0.3]))

        def prior(self) -> Normal:
            return Normal(torch.zeros(1, dtype=F64), torch.exp(0.5 * self.prior_log_variance))

    made = Model().double()
    outputs = outputs_of(made, draw(40, DATA_DIM), seed=0)
    # Of KL in log α² it is ½ where α² is at its optimum, and a step of g/½ for a gradient g.
    step = uphill(outputs, [made.prior_log_variance], torch.tensor([0.1], dtype=F64), beta=2.0)
    assert step.tolist() == pytest.approx([0.1 / (2.0 * 0.5)])
