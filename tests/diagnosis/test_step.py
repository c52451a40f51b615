"""The Gauss-Newton step against a linear system whose matrix comes from Hessians of torch's divergences."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from vaentropy.diagnosis.outputs import outputs_of
from vaentropy.diagnosis.points import Reading
from vaentropy.diagnosis.step import Direction, along_gradient, best_step, uphill
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite
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
    step = uphill(outputs, parameters, gradient, beta=beta).vector
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
    assert step.vector.tolist() == pytest.approx([0.1 / (2.0 * 0.5)])


def test_a_step_along_the_gradient_is_as_long_as_the_parameters():
    parameters, gradient = [draw(2, 3), draw(seed=1)], draw(7, seed=2)
    step = along_gradient(parameters, gradient)
    length = torch.cat([parameters[0].flatten(), parameters[1].reshape(1)]).norm()
    assert float(step.vector.norm()) == pytest.approx(float(length), rel=1e-12)
    assert float(step.vector @ gradient) == pytest.approx(float(length * gradient.norm()), rel=1e-12)
    # From a quarter of the parameters down to a part that no network feels.
    assert max(step.lengths) == 0.25 and min(step.lengths) < 1e-4 and step.kind == "gradient"
    assert not along_gradient(parameters, torch.zeros(7, dtype=F64)).vector.any()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_length_is_taken_and_none_downhill(sign):
    x, made = draw(200, DATA_DIM) + 3, model()
    parameters = [made.bias]
    before, start = evaluate(made, x, expectation=GaussHermite(2)).elbo, made.bias.detach().clone()
    q = made.posterior(x)
    # The best bias is the mean of what the latents leave; downhill is the other way.
    best = (x - q.mean @ made.weight.T).mean(0).detach() - start
    direction = Direction(sign * 4 * best, (1.0, 0.5, 0.25, 0.1), "Gauss-Newton")
    step = best_step(Reading(made), x, parameters, direction, beta=1.0, seeds=(1, 2))
    assert torch.equal(made.bias, start)
    if sign < 0:
        assert (step.gain, step.gain_error, step.length) == (0.0, 0.0, 0.0)
        return
    assert step.length == 0.25
    with torch.no_grad():
        made.bias.add_(best)
    gained = evaluate(made, x, expectation=GaussHermite(2)).elbo - before
    assert step.gain == pytest.approx(gained, abs=4 * step.gain_error) and step.gain > 10 * step.gain_error
