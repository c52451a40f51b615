"""The reference of the training times: what it optimises is the ELBO, by another route, and it does optimise it."""

import pytest
import torch

from benchmarks import published, time_to_elbo
from vaentropy import LinearVAE, MonteCarlo, evaluate
from vaentropy.moments import DataMoments

KINDS = {
    "vae1": {},
    "vae3": {"variance": "function"},
    "linear": {"hidden": ()},
}


def make(kind: str) -> tuple[published.PublishedVAE, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = published.PublishedVAE(5, 2, **KINDS[kind]).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model, torch.randn(150, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_objective_and_entropies_are_those_of_evaluate(kind):
    model, x = make(kind)
    elbo, encoder, prior, decoder = published.Training(model, x, num_samples=200).evaluate()
    other = evaluate(model, x, expectation=MonteCarlo(200, seed=7))
    # Two estimates, each with this error.
    assert elbo == pytest.approx(other.elbo, abs=4 * 2**0.5 * other.mc_stderr.elbo)
    assert encoder == pytest.approx(other.entropies.encoder, rel=1e-9)
    assert prior == pytest.approx(other.entropies.prior, rel=1e-9)
    assert decoder == pytest.approx(other.entropies.decoder, abs=4 * 2**0.5 * other.mc_stderr.elbo)


def test_objective_of_the_linear_model_is_the_closed_form():
    model, x = make("linear")
    closed = LinearVAE(5, 2).double()
    with torch.no_grad():
        closed.weight.copy_(model.mean.weight)
        closed.bias.copy_(model.mean.bias)
        closed.encoder_weight.copy_(model.latent_mean.weight)
        closed.encoder_bias.copy_(model.latent_mean.bias)
        closed.latent_log_variance.copy_(2 * torch.nn.functional.softplus(model.latent_scale).log())
        closed.log_variance.copy_(2 * torch.nn.functional.softplus(model.scale).log())
        exact = float(closed.elbo(DataMoments.of(x)))
    error = evaluate(model, x, expectation=MonteCarlo(200)).mc_stderr.elbo
    assert published.Training(model, x, num_samples=200).evaluate()[0] == pytest.approx(exact, abs=4 * error)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_finite_differences(kind):
    model, x = make(kind)
    noise = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model.terms(x[:20], noise).elbo.backward()
    for parameter in model.parameters():
        flat, gradient, step = parameter.detach().view(-1), parameter.grad.view(-1)[0], 1e-5
        values = []
        for shift in (step, -2 * step):
            flat[0] += shift
            values.append(float(model.terms(x[:20], noise).elbo.detach()))
        flat[0] += step
        assert float(gradient) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_training_raises_the_elbo_and_its_clock_runs(kind):
    model, x = make(kind)
    training = published.Training(model, x, num_samples=10)
    first = evaluate(model, x).elbo
    epochs = [training.epoch() for _ in range(5)]
    assert evaluate(model, x).elbo > first + 0.05
    assert 0 < epochs[0].seconds < epochs[1].seconds
    training.run_for(0.0)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def test_training_leaves_the_global_generator_alone_and_repeats_itself():
    before = torch.get_rng_state()
    elbos = [published.Training(*make("vae1"), num_samples=3, seed=seed).epoch().elbo for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert elbos[0] == elbos[1] != elbos[2]


@pytest.mark.slow
def test_quick_run_has_a_row_per_problem_and_skips_what_has_no_data(monkeypatch):
    monkeypatch.delenv("VAENTROPY_DATA", raising=False)
    result = time_to_elbo.run(quick=True)
    assert [row["problem"] for row in result.rows] == [p.name for p in time_to_elbo.PROBLEMS if p.data != "mnist"]
    assert any(note.startswith("Skipped: VAE-1, MNIST") for note in result.notes)
    assert len({tuple(row) for row in result.rows}) == 1
    assert all(row["ours s (epochs)"] != "not reached" for row in result.rows)
    assert all(way[0].epoch == 0 for problem in result.data for way in problem["reference"])
    assert "| linear VAE, digits, 2 latents |" in result.markdown()
