"""Linear VAEs as rows of shared tensors, against each by itself and against torch.distributions."""

import torch
from torch.distributions import Normal, kl_divergence

from vaentropy.linear import DataMoments, LinearVAE, linear_elbo_terms
from vaentropy.seeding import seeded
from vaentropy.studies.linear import sampled_elbo, stacked


def models(number):
    with seeded(0, torch.device("cpu")):
        made = [LinearVAE(4, 3).double() for _ in range(number)]
        for parameter in (p for model in made for p in model.parameters()):
            torch.nn.init.normal_(parameter, std=0.7)
    return made


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_terms_of_several_models_on_several_data_are_those_of_each():
    every, x = models(6), draw(2, 50, 4)
    parameters = stacked(every, (2, 3))
    mean = x.mean(1, keepdim=True)
    terms = linear_elbo_terms(parameters, mean, (x - mean).mT.unsqueeze(1) / 50**0.5)
    assert terms.kl.shape == (2, 3, 3)
    (-terms.elbo.sum()).backward()
    for number, model in enumerate(every):
        row, column = divmod(number, 3)
        own = model.elbo_terms(DataMoments.of(x[row]))
        torch.testing.assert_close(terms.elbo[row, column], own.elbo)
        torch.testing.assert_close(terms.entropy_sum[row, column], own.entropy_sum)
        (-own.elbo).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameters[name].grad[row, column], parameter.grad)


def test_stacked_parameters_are_learned_where_the_models_are():
    every = models(2)
    for model in every:
        model.log_variance.requires_grad_(False)
    parameters = stacked(every)
    assert not parameters["log_variance"].requires_grad
    assert all(p.is_leaf and p.requires_grad for name, p in parameters.items() if name != "log_variance")
    with torch.no_grad():
        parameters["weight"].zero_()
    assert every[0].weight.abs().min() > 0  # memory of their own


def test_the_sampled_elbo_is_that_of_torch_distributions():
    every, x, noise = models(2), draw(2, 7, 4), draw(5, 2, 7, 3)
    found = sampled_elbo(stacked(every), x, noise)
    for number, model in enumerate(every):
        std = torch.exp(0.5 * model.latent_log_variance)
        q = Normal(x[number] @ model.encoder_weight.T + model.encoder_bias, std)
        z = q.mean + std * noise[:, number]
        likelihood = Normal(z @ model.weight.T + model.bias, torch.exp(0.5 * model.log_variance))
        kl = kl_divergence(q, Normal(torch.zeros(3).double(), torch.ones(3).double())).sum(-1)
        expected = (likelihood.log_prob(x[number]).sum(-1).mean(0) - kl).mean()
        torch.testing.assert_close(found[number], expected)


def test_many_samples_come_to_the_exact_elbo():
    model, x = models(1)[0], draw(7, 4)
    few = sampled_elbo(stacked([model]), x, draw(20_000, 1, 7, 3))
    assert abs(float((few - model.elbo(DataMoments.of(x))).detach())) < 0.02 * abs(float(few.detach()))
