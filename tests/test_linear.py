"""Closed forms of the linear VAE against scikit-learn, torch.distributions, quadrature and autograd."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch.distributions import MultivariateNormal

from vaentropy.errors import DataError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite
from vaentropy.linear import DataMoments, LinearVAE

SIZES = st.tuples(st.integers(2, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
# Far apart; some pairs of them are saddles, and some have λ below σ² and are none.
EIGENVALUES = torch.tensor([9.0, 5.0, 3.0, 1.0, 0.5], dtype=torch.float64)


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(num_points=300, data_dim=6, seed=0):
    """Correlated points with a mean that is not zero."""
    return draw(num_points, data_dim, seed=seed) @ draw(data_dim, data_dim, seed=seed + 1) + 3


def random_model(data_dim, latent_dim, seed):
    model = LinearVAE(data_dim, latent_dim).double()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(0.7 * draw(*parameter.shape, seed=seed + i))
    return model


def with_spectrum(eigenvalues, seed=0):
    rotation = torch.linalg.qr(draw(len(eigenvalues), len(eigenvalues), seed=seed))[0]
    return DataMoments(draw(len(eigenvalues), seed=seed + 1), rotation * eigenvalues @ rotation.T, 100)


def gradient_norm(model, statistics):
    gradients = torch.autograd.grad(model.elbo(statistics), list(model.parameters()))
    return math.sqrt(sum(float(g.square().sum()) for g in gradients))


def curvatures(model, statistics):
    """Eigenvalues of the Hessian of -ELBO in all parameters, ascending."""
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        parameters = {n: part.reshape(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        # functional_call runs forward(); a module of one method needs no wrapper.
        return -torch.func.functional_call(_Elbo(model), {f"model.{n}": p for n, p in parameters.items()}, statistics)

    hessian = torch.autograd.functional.hessian(loss, flat)
    return torch.linalg.eigvalsh(hessian)


class _Elbo(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, statistics):
        return self.model.elbo(statistics)


def allowed(eigenvalues, chosen):
    left_out = [float(x) for i, x in enumerate(eigenvalues) if i not in chosen]
    return all(float(eigenvalues[i]) >= np.mean(left_out) for i in chosen)


# --- The optimum ------------------------------------------------------------------------------------------------------


@given(st.integers(2, 8), st.data(), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_at_the_optimum_elbo_entropy_sum_and_log_likelihood_are_one_number(data_dim, data, seed):
    latent_dim = data.draw(st.integers(1, data_dim - 1))
    x = points(200, data_dim, seed)
    statistics = DataMoments.of(x)
    model = LinearVAE.optimum(statistics, latent_dim)
    terms = model.elbo_terms(statistics)
    size = sum(float(t.detach().abs().sum()) for t in terms)
    assert abs(terms.elbo - terms.entropy_sum) <= 1e-12 * size
    assert abs(terms.elbo - model.mean_log_likelihood(statistics)) <= 1e-12 * size
    # theory §6: from the eigenvalues alone, here numpy's
    eigenvalues = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))[::-1]
    active, noise = eigenvalues[:latent_dim], eigenvalues[latent_dim:].mean()
    log_det = np.log(active).sum() + (data_dim - latent_dim) * np.log(noise)
    closed_form = -0.5 * (data_dim * np.log(2 * np.pi * np.e) + log_det)
    # Rounding of the covariance reaches the smallest eigenvalue in proportion to the largest.
    condition = eigenvalues[0] / eigenvalues[-1]
    assert abs(terms.elbo.item() - closed_form) <= 1e-12 * size + 1e-15 * condition


@pytest.mark.parametrize("latent_dim", [1, 3, 5])
def test_the_optimum_is_stationary_and_a_maximum(latent_dim):
    statistics = DataMoments.of(points(data_dim=6))
    model = LinearVAE.optimum(statistics, latent_dim)
    assert gradient_norm(model, statistics) <= 1e-10
    # No flat direction either: with a diagonal posterior W is unique up to signs and order.
    assert curvatures(model, statistics)[0] > 1e-4


def test_the_posterior_at_the_optimum_is_exact():
    x = points()
    model = LinearVAE.optimum(x, 3)
    z, q = draw(len(x), 3, seed=5), model.posterior(x)
    joint = model.prior().log_prob(z) + model.likelihood(z).log_prob(x)
    torch.testing.assert_close(joint - q.log_prob(z), model.log_likelihood(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("num_points", "data_dim", "latent_dim"), [(300, 6, 1), (300, 6, 4), (80, 40, 10)])
def test_the_optimum_is_the_model_of_scikit_learn(num_points, data_dim, latent_dim):
    # scikit-learn takes its eigenvalues from the covariance with 1/(N - 1), so its model is not the one of largest
    # likelihood: ddof=1 builds the very same. Its score is nevertheless a mean over the points, with 1/N.
    # N > D, since it takes σ² as the mean over the min(N, D) - H eigenvalues left, where the maximum has D - H.
    x, held_out = points(num_points, data_dim, 1), points(50, data_dim, 2)
    reference = PCA(n_components=latent_dim, svd_solver="full").fit(x.numpy())
    statistics = DataMoments.of(x)
    model = LinearVAE.optimum(statistics, latent_dim, ddof=1)
    assert model.log_likelihood(x).mean().item() == pytest.approx(reference.score(x.numpy()), rel=1e-9)
    assert model.mean_log_likelihood(statistics).item() == pytest.approx(reference.score(x.numpy()), rel=1e-9)
    np.testing.assert_allclose(
        model.log_likelihood(held_out).detach(), reference.score_samples(held_out.numpy()), rtol=1e-9
    )
    assert model.log_variance.exp().item() == pytest.approx(reference.noise_variance_, rel=1e-9)


def test_the_covariance_with_one_over_n_has_the_larger_likelihood():
    # Scaling S by N/(N - 1) scales C, so that the likelihood falls by exactly ½ D (r - 1 - log r), r = (N - 1)/N.
    x = points(30)
    best = LinearVAE.optimum(x, 2).log_likelihood(x).mean()
    other = LinearVAE.optimum(x, 2, ddof=1).log_likelihood(x).mean()
    ratio = 29 / 30
    assert (best - other).item() == pytest.approx(0.5 * 6 * (ratio - 1 - math.log(ratio)), rel=1e-9)


def test_a_rotated_decoder_with_its_best_diagonal_posterior_is_worse_by_the_posterior_s_divergence():
    statistics = DataMoments.of(points())
    best, rotated = LinearVAE.optimum(statistics, 2), LinearVAE.optimum(statistics, 2)
    angle = torch.tensor(0.4, dtype=torch.float64)
    rotation = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    variance = best.log_variance.exp()
    with torch.no_grad():
        rotated.weight.copy_(best.weight @ rotation)
        m = rotated.weight.T @ rotated.weight + variance * torch.eye(2, dtype=torch.float64)
        rotated.encoder_weight.copy_(torch.linalg.solve(m, rotated.weight.T))
        rotated.encoder_bias.copy_(-rotated.encoder_weight @ rotated.bias)
        rotated.latent_log_variance.copy_((variance / m.diagonal()).log())
    assert torch.isclose(
        rotated.mean_log_likelihood(statistics), best.mean_log_likelihood(statistics), rtol=1e-12, atol=0
    )
    divergence = 0.5 * (m.diagonal().log().sum() - m.logdet())
    lost = best.elbo(statistics) - rotated.elbo(statistics)
    assert divergence > 1e-2 and lost.item() == pytest.approx(divergence.item(), rel=1e-9)
    # τ_h² = σ²/M_hh is the best one: what is left of the gradient is not in τ.
    assert torch.autograd.grad(rotated.elbo(statistics), rotated.latent_log_variance)[0].abs().max() < 1e-12
    assert gradient_norm(rotated, statistics) > 1e-2


def test_gradient_ascent_from_random_weights_ends_at_the_optimum():
    statistics = with_spectrum(EIGENVALUES)
    torch.manual_seed(0)
    model = LinearVAE(5, 2).double()
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = -model.elbo(statistics)
        loss.backward()
        return loss

    optimiser.step(closure)
    best = LinearVAE.optimum(statistics, 2)
    assert model.elbo(statistics).item() == pytest.approx(best.elbo(statistics).item(), rel=1e-10)
    order = model.weight.square().sum(0).argsort(descending=True)
    torch.testing.assert_close(model.weight[:, order].abs(), best.weight.abs(), rtol=1e-4, atol=1e-4)


# --- Other stationary points ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [c for k in range(3) for c in itertools.permutations(range(5), k)])
def test_every_subset_is_a_saddle_or_refused(chosen):
    statistics = with_spectrum(EIGENVALUES)
    if not allowed(EIGENVALUES, chosen):
        with pytest.raises(UsageError, match="no stationary point has it"):
            LinearVAE.optimum(statistics, 2, eigenvectors=chosen)
        return
    model = LinearVAE.optimum(statistics, 2, eigenvectors=chosen)
    terms = model.elbo_terms(statistics)
    assert gradient_norm(model, statistics) <= 1e-10
    assert terms.elbo.item() == pytest.approx(terms.entropy_sum.item(), rel=1e-12)
    assert terms.elbo.item() == pytest.approx(model.mean_log_likelihood(statistics).item(), rel=1e-12)
    lowest, *_, highest = curvatures(model, statistics)
    if set(chosen) == {0, 1}:
        assert lowest > 1e-4
    else:
        assert lowest < -1e-3 and highest > 1e-3
        assert terms.elbo < LinearVAE.optimum(statistics, 2).elbo(statistics) - 1e-2


def test_both_kinds_of_subset_are_met():
    pairs = [allowed(EIGENVALUES, c) for c in itertools.permutations(range(5), 2)]
    assert 2 < sum(pairs) < len(pairs) - 2


def test_latents_without_an_eigenvector_are_collapsed():
    statistics = with_spectrum(EIGENVALUES)
    model = LinearVAE.optimum(statistics, 7, eigenvectors=[0, 1])
    assert gradient_norm(model, statistics) <= 1e-10
    assert (model.weight[:, 2:] == 0).all() and (model.encoder_weight[2:] == 0).all()
    assert (model.encoder_bias[2:] == 0).all() and (model.latent_log_variance[2:] == 0).all()
    kl = model.elbo_terms(statistics).kl
    assert (kl[:2] > 0.1).all() and (kl[2:].abs() < 1e-15).all()
    two = LinearVAE.optimum(statistics, 2)
    assert model.elbo(statistics).item() == pytest.approx(two.elbo(statistics).item(), rel=1e-14)


@pytest.mark.parametrize("eigenvalues", [[2.0, 2.0, 2.0, 2.0], [5.0, 2.0, 2.0, 2.0]])
def test_an_eigenvalue_equal_to_the_noise_gives_a_collapsed_latent(eigenvalues):
    statistics = with_spectrum(torch.tensor(eigenvalues, dtype=torch.float64))
    model = LinearVAE.optimum(statistics, 2)
    assert gradient_norm(model, statistics) <= 1e-7  # √ of the rounding of λ - σ² = 0
    assert model.weight[:, 1].abs().max() < 1e-6 and abs(model.latent_log_variance[1]) < 1e-12
    assert model.log_variance.item() == pytest.approx(math.log(2), rel=1e-12)


# --- Any parameters ---------------------------------------------------------------------------------------------------


@given(SIZES)
@settings(max_examples=25)
def test_elbo_from_moments_is_that_of_evaluate_by_quadrature(sizes):
    data_dim, latent_dim, seed = sizes
    x, model = points(20, data_dim, seed), random_model(data_dim, latent_dim, seed)
    statistics = DataMoments.of(x)
    terms = model.elbo_terms(statistics)
    # Two nodes per axis are exact for the quadratic log p(x|z).
    evaluation = evaluate(model, x, expectation=GaussHermite(2))
    size = sum(float(t.detach().abs().sum()) for t in terms)
    for name in ("elbo", "reconstruction", "entropy_sum"):
        assert abs(getattr(terms, name).item() - getattr(evaluation, name)) <= 1e-12 * size, name
    for name in ("encoder", "prior", "decoder"):
        given_entropy = getattr(terms, f"{name}_entropy").item()
        assert abs(given_entropy - getattr(evaluation.entropies, name)) <= 1e-12 * size, name
    torch.testing.assert_close(terms.kl.detach(), evaluation.kl_per_latent, rtol=1e-11, atol=1e-11)
    # theory §3: R_dec = -σ² ∂L/∂σ²
    by_log_variance = torch.autograd.grad(terms.elbo, model.log_variance)[0].item()
    assert abs(by_log_variance + evaluation.decoder_gap) <= 1e-12 * size
    assert (terms.elbo <= model.mean_log_likelihood(statistics) + 1e-12 * size).item()


@given(SIZES)
@settings(max_examples=25)
def test_log_likelihood_is_that_of_the_full_normal(sizes):
    data_dim, latent_dim, seed = sizes
    x, model = points(20, data_dim, seed), random_model(data_dim, latent_dim, seed)
    identity = torch.eye(data_dim, dtype=torch.float64)
    covariance = model.weight @ model.weight.T + model.log_variance.exp() * identity
    reference = MultivariateNormal(model.bias, covariance).log_prob(x)
    torch.testing.assert_close(model.log_likelihood(x), reference, rtol=1e-10, atol=1e-10)
    mean = model.mean_log_likelihood(DataMoments.of(x))
    torch.testing.assert_close(mean, reference.mean(), rtol=1e-10, atol=1e-10)


def test_log_likelihood_with_noise_far_below_the_signal():
    # σ²/λ = 1e-14, where C and WᵀW + σ² I are singular to rounding. By hand, with orthonormal columns of W:
    # xᵀ C⁻¹ x = Σ_h s_h²/(1 + σ²) + Σ_rest s²/σ².
    basis, std = torch.linalg.qr(draw(4, 4, seed=3))[0], 1e-7
    model = LinearVAE(4, 2).double()
    with torch.no_grad():
        model.weight.copy_(basis[:, :2])
        model.log_variance.fill_(2 * math.log(std))
    scores = draw(10, 4, seed=4) * torch.tensor([1, 1, std, std])
    mahalanobis = scores[:, :2].square().sum(1) / (1 + std**2) + (scores[:, 2:] / std).square().sum(1)
    log_det = 2 * math.log1p(std**2) + 2 * 2 * math.log(std)
    expected = -0.5 * (4 * math.log(2 * math.pi) + log_det + mahalanobis)
    torch.testing.assert_close(model.log_likelihood(scores @ basis.T).detach(), expected, rtol=1e-6, atol=0)


def test_log_likelihood_of_many_features_needs_no_matrix_of_their_square():
    # A D × D matrix would have 640 GB.
    model = LinearVAE(400_000, 2)
    assert torch.isfinite(model.log_likelihood(torch.zeros(3, 400_000))).all()


def test_single_precision():
    x = points(2000, 8)
    model = LinearVAE.optimum(x.float(), 3)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    statistics = DataMoments.of(x)
    exact = model.elbo(statistics).item()
    assert exact == pytest.approx(LinearVAE.optimum(x, 3).elbo(statistics).item(), rel=1e-9)
    assert model.log_likelihood(x.float()).dtype == torch.float64
    single = model.float()
    assert single.elbo(statistics).dtype == torch.float32
    assert single.elbo(statistics).item() == pytest.approx(exact, rel=1e-5)
    assert single.mean_log_likelihood(statistics).item() == pytest.approx(exact, rel=1e-5)


# --- The moments ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_moments_are_those_of_numpy_and_merge(counts, seed):
    x = points(sum(counts), 3, seed)
    merged, *others = [DataMoments.of(part) for part in x.split(counts)]
    for other in others:
        merged = merged.merge(other)
    assert merged.num_points == len(x)
    scale = float(x.abs().max())
    for statistics in (merged, DataMoments.of(x), DataMoments.of(x.numpy())):
        np.testing.assert_allclose(statistics.mean, x.numpy().mean(0), atol=1e-14 * scale)
        np.testing.assert_allclose(statistics.covariance, np.cov(x.numpy().T, bias=True), atol=1e-14 * scale**2)
        root = statistics.factor
        np.testing.assert_allclose(root @ root.T, statistics.covariance, atol=1e-13 * scale**2)


def test_integer_data():
    x = torch.randint(0, 255, (50, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    model = LinearVAE.optimum(x, 2)
    assert torch.equal(model.log_likelihood(x), model.log_likelihood(x.double()))
    assert model.bias.tolist() == pytest.approx(x.double().mean(0).tolist())


def test_the_model_and_the_global_generator():
    model = LinearVAE(5, 3)
    assert model.data_shape == (5,) and model.latent_shape == (3,)
    assert gradient_norm(model, DataMoments.of(points(data_dim=5))) > 0
    before = torch.get_rng_state()
    LinearVAE.optimum(points(), 2)
    assert torch.equal(torch.get_rng_state(), before)


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_dim": 6}, "6 latents given for 6 features"),
        ({"latent_dim": 9}, "9 latents given for 6 features"),
        ({"latent_dim": 6, "eigenvectors": range(6)}, "6 latents given for 6 features"),
        ({"latent_dim": 0}, "latent_dim=0 given"),
        ({"latent_dim": 2, "eigenvectors": [0, 0]}, r"eigenvectors=\[0, 0\] given"),
        ({"latent_dim": 2, "eigenvectors": [0, 6]}, "to 5"),
        ({"latent_dim": 2, "eigenvectors": [-1]}, "from 0"),
        ({"latent_dim": 2, "eigenvectors": [0, 1, 2]}, "at most latent_dim=2"),
        ({"latent_dim": 1, "eigenvectors": [5]}, "eigenvector 5 given, with eigenvalue"),
        ({"latent_dim": 2, "ddof": 300}, "ddof=300 given for 300 data points"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        LinearVAE.optimum(points(), **arguments)
    assert "\n" not in str(caught.value)


def test_data_on_a_plane_have_no_optimum():
    x = draw(500, 2, seed=0) @ draw(2, 6, seed=1) + 1
    assert math.isfinite(LinearVAE.optimum(x, 1).elbo(DataMoments.of(x)).item())
    for latent_dim in (2, 3):
        with pytest.raises(UsageError, match=f"{latent_dim} latents given for data of rank 2"):
            LinearVAE.optimum(x, latent_dim)
    with pytest.raises(UsageError, match="rank 0"):
        LinearVAE.optimum(torch.ones(10, 3), 1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(3, 2, 2), "flatten"),
        (torch.zeros(0, 2), r"shape \(0, 2\)"),
        (torch.tensor([[0.0, 1.0], [0.0, math.nan]]), "row 1, column 1"),
    ],
)
def test_data_that_are_no_matrix_of_numbers(x, message):
    with pytest.raises(DataError, match=message):
        DataMoments.of(x)


def test_statistics_of_other_data():
    with pytest.raises(UsageError, match="4 features given, expected 6"):
        LinearVAE.optimum(points(), 2).elbo(DataMoments.of(points(data_dim=4)))
