"""`evaluate` on what is unusual: equal seeds, entropies by draws, probability 0, tiny numbers, modes, odd arrays."""

import math
import re

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, MixtureSameFamily, Normal, Poisson

from vaentropy.entropy import factor_terms
from vaentropy.errors import DataError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen, GaussHermite, MonteCarlo, Sobol
from vaentropy.likelihoods import Poisson as PoissonLikelihood
from vaentropy.model import from_functions
from vaentropy.networks import MLPDecoder, MLPEncoder
from vaentropy.results import Evaluation
from vaentropy.vae import VAE

F64 = torch.float64


def near(actual, expected):
    return float(actual) == pytest.approx(float(expected), rel=1e-9)


def plain():
    """A model of two features whose decoder is the identity."""
    return from_functions(lambda x: (x, torch.zeros_like(x)), lambda z: z, variance=torch.tensor(1.0, dtype=F64))


def test_parts_with_equal_seeds_have_equal_noise_and_so_no_mc_error():
    model = plain()
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    equal = [evaluate(model, part, expectation=MonteCarlo(4)) for part in x.split(10)]
    assert Evaluation.merge(equal).mc_stderr is None
    own = [evaluate(model, part, expectation=MonteCarlo(4, seed)) for seed, part in enumerate(x.split(10))]
    merged = Evaluation.merge(own)
    noise = sum((10 * part.mc_stderr.elbo) ** 2 for part in own)
    assert near(merged.mc_stderr.elbo, math.sqrt(noise) / 40)
    with pytest.raises(UsageError, match="expectation"):
        Evaluation.merge([equal[0], evaluate(model, x, expectation=MonteCarlo(5))])


def test_the_entropy_of_a_prior_without_closed_form_is_drawn_for_each_point():
    # One draw for all points would be noise that they share, and its error would be claimed √N times too small.
    prior = MixtureSameFamily(
        Categorical(torch.ones(2, dtype=F64)), Independent(Normal(torch.tensor([[-2.0], [2.0]], dtype=F64), 1.0), 1)
    )
    model = from_functions(
        lambda x: (x, torch.zeros_like(x)), lambda z: z, prior=prior, variance=torch.tensor(1.0, dtype=F64)
    )
    x = torch.zeros(256, 1, dtype=F64)
    results = [evaluate(model, x, expectation=MonteCarlo(4, seed)) for seed in range(40)]
    spread = np.std([e.entropies.prior for e in results], ddof=1)
    claimed = np.mean([e.mc_stderr.entropies.prior for e in results])
    assert 0.7 < spread / claimed < 1.4


@pytest.mark.parametrize("where", [0, 5, 9])
def test_data_of_probability_0_make_the_elbo_minus_infinity(where):
    p = torch.tensor([0.5, 1.0], dtype=F64)
    model = from_functions(
        lambda x: (x, torch.zeros_like(x)),
        lambda z: Independent(Bernoulli(probs=p.expand(len(z), 2), validate_args=False), 1),
    )
    x = torch.ones(10, 2, dtype=F64)
    x[where, 1] = 0
    e = evaluate(model, x, expectation=MonteCarlo(4), batch_size=3)
    assert e.elbo == -math.inf and "probability 0" in str(e)
    assert math.isfinite(evaluate(model, torch.ones(10, 2, dtype=F64), batch_size=3).elbo)


def test_variance_ratios_keep_their_digits():
    x = 1e-9 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    model = from_functions(lambda x: (0 * x, 0 * x), lambda z: 0 * z, variance=1.0)
    e = evaluate(model, x)
    assert near(e.variance_ratio, x.square().mean())
    assert near(e.gains.variance, 2 * 0.5 * (e.variance_ratio - 1 - math.log(e.variance_ratio)))


def test_networks_behind_functions_run_in_eval_mode_when_they_are_named():
    encoder = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    decoder = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.9))
    model = from_functions(lambda x: encoder(x).chunk(2, -1), decoder, variance=1.0, modules=[encoder])
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).double()  # goes to the networks' float32
    statistics = encoder[0].running_mean.clone()
    first, second = evaluate(model, x, expectation=Frozen()), evaluate(model, x, expectation=Frozen())
    assert first.elbo == second.elbo and encoder.training and decoder.training
    assert torch.equal(encoder[0].running_mean, statistics)


def test_bound_models_run_in_eval_mode_too():
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2)).double()
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=F64)

    def bind(batch):
        return from_functions(lambda x: (network(x), 0 * x), lambda z: z, variance=1.0, modules=[network]), batch

    statistics = network[0].running_mean.clone()
    evaluate(plain(), [x], bind=bind)
    assert torch.equal(network[0].running_mean, statistics) and network.training


def test_counts_may_come_as_integers():
    torch.manual_seed(0)
    model = VAE(MLPEncoder(3, (4,)), MLPDecoder((4,)), data_shape=3, latent_dim=2, likelihood=PoissonLikelihood())
    counts = torch.tensor([[0, 1, 2], [3, 0, 1]])
    expected = evaluate(model, counts.float(), expectation=Frozen())
    assert evaluate(model, counts, expectation=Frozen()).elbo == expected.elbo
    assert model.encode(counts).shape == (2, 2)
    with pytest.raises(DataError, match="convert them as for its training"):
        evaluate(from_functions(torch.nn.Linear(3, 4), torch.nn.Linear(2, 3)), counts)


@pytest.mark.parametrize(
    ("likelihood", "x"), [("bernoulli", torch.tensor([[0.0, 1.5]])), ("poisson", torch.tensor([[0.0, -1.0]]))]
)
def test_data_that_a_likelihood_cannot_have_made_are_refused(likelihood, x):
    made = {"bernoulli": lambda z: Bernoulli(logits=z), "poisson": lambda z: Poisson(z.exp())}[likelihood]
    model = from_functions(lambda x: (x, torch.zeros_like(x)), lambda z: made(z))
    with pytest.raises(DataError, match="likelihood"):
        evaluate(model, x)


def test_numpy_arrays_of_any_layout_are_taken():
    model = plain()
    x = np.random.default_rng(0).normal(size=(7, 2))
    expected = evaluate(model, torch.tensor(x), expectation=Frozen()).elbo
    readonly = x.copy()
    readonly.setflags(write=False)
    for array in (np.asfortranarray(x), x[::-1][::-1], x.astype(">f8"), readonly):
        assert evaluate(model, array, expectation=Frozen()).elbo == expected


def test_a_poisson_posterior_has_the_right_kl():
    # Its pseudo entropy is not its entropy: KL(Poisson(3)² || Poisson(2)²) is what torch says.
    q, p = Poisson(torch.full((2000, 2), 3.0, dtype=F64)), Poisson(torch.full((2,), 2.0, dtype=F64))
    model = from_functions(lambda x: q, lambda z: 0 * z, prior=p, variance=1.0)
    e = evaluate(model, torch.zeros(2000, 2, dtype=F64), expectation=MonteCarlo(16), batch_size=2000)
    expected = 2 * float(torch.distributions.kl_divergence(q, p)[0, 0])
    assert abs(e.kl - expected) < 4 * e.mc_stderr.kl and e.mc_stderr.kl < 0.02
    assert near(e.gap, e.elbo - e.entropy_sum)


def test_certain_bernoullis_keep_their_digits():
    made = factor_terms(Bernoulli(logits=torch.tensor([[21.0, 40.0]], dtype=F64)), torch.ones(1, 2, dtype=F64))
    assert made.log_prob[0].tolist() == pytest.approx(
        [-math.log1p(math.exp(-21)), -math.log1p(math.exp(-40))], rel=1e-6
    )
    d = Bernoulli(probs=torch.zeros(1, 1, dtype=F64), validate_args=False)
    d.log_prob(torch.ones(1, 1, dtype=F64))  # makes torch keep clamped logits
    assert factor_terms(d, torch.ones(1, 1, dtype=F64)).log_prob.item() == -math.inf


def test_categories_of_hardly_any_and_of_no_probability():
    d = Categorical(logits=torch.tensor([[0.0, -800.0, -math.inf]], dtype=F64))
    assert near(factor_terms(d, torch.tensor([1])).log_prob, -800.0)
    excluded = factor_terms(d, torch.tensor([2]))
    assert excluded.log_prob.item() == excluded.residual.item() == -math.inf


def test_a_prior_that_excludes_a_draw_gives_minus_infinity():
    uniform = Independent(torch.distributions.Uniform(-torch.ones(2), torch.ones(2), validate_args=False), 1)
    model = from_functions(lambda x: (3 + 0 * x, 0 * x), lambda z: z, prior=uniform, variance=1.0)
    assert evaluate(model, torch.zeros(6, 2), expectation=MonteCarlo(4), batch_size=2).elbo == -math.inf


def test_large_errors_do_not_run_into_each_other():
    model = from_functions(lambda x: (x, 0 * x), lambda z: 1000 * z, variance=1.0)
    e = evaluate(model, 100 * torch.randn(10, 2, generator=torch.Generator().manual_seed(0)), expectation=MonteCarlo(2))
    line = next(line for line in str(e).splitlines() if line.startswith("= ELBO"))
    assert len(line.split()) == 5


def test_a_single_number_is_no_data():
    with pytest.raises(DataError, match="a single number given"):
        evaluate(plain(), torch.tensor(1.0))


def test_nodes_cannot_be_spoiled_by_their_user():
    for expectation in (Frozen(0, 4), Sobol(4), GaussHermite(3)):
        first = expectation.nodes(2, (2,), generator=expectation.generator(), dtype=F64)
        kept = first.noise.clone()
        first.noise.zero_()
        again = expectation.nodes(2, (2,), generator=expectation.generator(), dtype=F64)
        assert torch.equal(again.noise, kept)
    assert GaussHermite(1).nodes(2, (100,), generator=Frozen().generator(), dtype=F64).noise.shape == (1, 1, 100)


def test_the_remarks_agree_with_the_ledger():
    for seed in range(30):
        e = evaluate(plain(), torch.randn(7, 2, generator=torch.Generator().manual_seed(seed), dtype=F64))
        text = str(e)
        elbo = round(float(re.search(r"= ELBO +(-?[\d.]+)", text)[1]) * 1e4)
        parts = [round(float(x) * 1e4) for x in re.search(r"reconstruction (-?[\d.]+) - KL (-?[\d.]+)", text).groups()]
        entropy_sum = round(float(re.search(r"= entropy sum +(-?[\d.]+)", text)[1]) * 1e4)
        gap = round(float(re.search(r"entropy sum = (-?[\d.]+)", text)[1]) * 1e4)
        assert parts[0] - parts[1] == elbo and elbo - entropy_sum == gap
