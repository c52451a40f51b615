import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from vaentropy.errors import UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen
from vaentropy.families import vae1
from vaentropy.figures import plot_estimates, plot_terms
from vaentropy.likelihoods import Poisson
from vaentropy.linear import LinearVAE
from vaentropy.networks import MLPDecoder, MLPEncoder
from vaentropy.vae import VAE

X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def model(latent_dim=3):
    torch.manual_seed(0)
    return vae1(4, latent_dim, hidden=(8,)).double()


def ends(axes):
    """Where the bars of a waterfall begin and end."""
    return [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]


def errors(axes):
    """Half widths of the error bars."""
    return sorted(float(np.ptp(collection.get_segments()[0][:, 0]) / 2) for collection in axes.collections)


def test_the_bars_lead_from_zero_to_the_entropy_sum_and_on_to_the_elbo():
    e = evaluate(model(), X)
    left, right = plot_terms(e).axes
    bars = ends(left)
    assert bars[0] == (0, pytest.approx(e.entropies.encoder, abs=1e-4))
    assert bars[-1][1] == pytest.approx(e.entropy_sum, abs=1e-4)
    assert all(end == pytest.approx(start) for (_, end), (start, _) in pairwise(bars))
    bars = ends(right)
    assert len(bars) == 3 + 1  # a residual for each latent, and the decoder's
    steps = [end - start for start, end in bars]
    assert steps[:3] == pytest.approx(e.prior_residuals.tolist(), abs=1.1e-4)
    assert bars[0][0] == pytest.approx(e.entropy_sum, abs=1e-4) and bars[-1][1] == pytest.approx(e.elbo, abs=1e-4)


def test_the_numbers_are_those_of_the_ledger():
    e = evaluate(model(), X)
    left, right = plot_terms(e).axes
    ledger = repr(e)
    for axes in (left, right):
        for text in axes.get_yticklabels():
            name, value = text.get_text().rsplit("  ", 1)
            if "prior residual " not in name:
                line = next(line for line in ledger.splitlines() if line.startswith(name))
                assert line.removeprefix(name).split()[0] == value


def test_errors_are_those_of_the_evaluation():
    e = evaluate(model(), X)
    _, right = plot_terms(e).axes
    expected = [
        e.stderr.entropy_sum, *e.stderr.prior_residuals.tolist(), e.stderr.decoder_gap, e.stderr.elbo,
        *[error for error in (e.mc_stderr.entropy_sum, *e.mc_stderr.prior_residuals.tolist()) if error > 0],
        e.mc_stderr.decoder_gap, e.mc_stderr.elbo,
    ]  # fmt: skip
    assert errors(right) == pytest.approx(sorted(expected))


def test_estimates_fall_with_the_square_root_of_the_number_of_points():
    e = evaluate(model(), X, pointwise=True)
    elbo, entropy_sum = plot_estimates(e).axes
    lines = {line.get_label(): line.get_xydata() for line in elbo.lines}
    at, total = lines["of the estimate"].T
    assert total == pytest.approx(e.stderr.elbo * np.sqrt(200 / at)) and (at[0], at[-1]) == (10, 200)
    parts = lines["from the choice of points"][:, 1] ** 2 + lines["from draws of z"][:, 1] ** 2
    assert np.sqrt(parts) == pytest.approx(total)
    # What random drawings vary by is had without that formula: 400 of them know it to 3.5 %.
    for axes, line in ((elbo, total), (entropy_sum, entropy_sum.lines[0].get_ydata())):
        assert axes.lines[-1].get_ydata() == pytest.approx(line, rel=0.15)


@pytest.mark.parametrize("many", [1, 100])
def test_other_numbers_of_latents(many):
    e = evaluate(model(many), X)
    _, right = plot_terms(e).axes
    assert [end - start for start, end in ends(right)] == pytest.approx([e.prior_gap, e.decoder_gap], abs=2e-4)


def test_other_models_are_drawn():
    linear = LinearVAE.optimum(X, 2)
    torch.manual_seed(0)
    counts = VAE(MLPEncoder(4, (8,)), MLPDecoder((8,)), data_shape=4, latent_dim=2, likelihood=Poisson()).double()
    cases = [
        (linear, X, Frozen(0, 4)),
        (counts, X.abs().round(), Frozen(0, 4)),
    ]
    for each, x, expectation in cases:
        e = evaluate(each, x, expectation=expectation)
        for figure in (plot_terms(e), plot_estimates(e)):
            for axes in figure.axes:
                assert axes.get_xlabel()
            figure.savefig(io.BytesIO(), format="png")


def test_an_error_of_nothing_leaves_the_axis_to_the_other():
    e = evaluate(LinearVAE.optimum(X, 2), X, pointwise=True)
    assert e.stderr.entropy_sum < 1e-12  # one posterior variance for all points
    elbo, entropy_sum = plot_estimates(e).axes
    assert not entropy_sum.lines and entropy_sum.texts[0].get_text().startswith("0")
    assert elbo.get_ylim()[0] > 0.5 * e.mc_stderr.elbo


def test_the_legend_tells_of_errors_and_of_entropies_that_are_estimates():
    frozen = evaluate(model(), X, expectation=Frozen(0, 4))
    with_errors, without = (plot_terms(e).legends[0] for e in (evaluate(model(), X), frozen))
    assert "Monte Carlo error" in [text.get_text() for text in with_errors.texts]
    assert [text.get_text() for text in without.texts] == ["adds", "takes away", "standard error"]
    figure = plot_terms(replace(frozen, sampled=("encoder",)))
    assert figure.legends[0].texts[-1].get_text() == "is an estimate itself"
    starred = [text.get_text().strip().split("  ")[0] for text in figure.axes[0].get_yticklabels()]
    assert starred == ["encoder entropy*", "- prior entropy", "- decoder entropy", "= entropy sum"]


def test_errors_of_one_point_are_unknown():
    with pytest.raises(UsageError, match="evaluate more points"):
        plot_estimates(evaluate(model(), X[:1]))
