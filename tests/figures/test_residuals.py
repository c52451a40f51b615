"""Residuals and gains per feature: what is drawn are the evaluation's numbers, under their names."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from vaentropy.errors import UsageError
from vaentropy.evaluation import evaluate
from vaentropy.figures.residuals import plot_residuals
from vaentropy.model import from_functions

from ..models import F64, Toy, close
from .hostile import HOSTILE, holds_hostile


def svg(figure: Figure) -> str:
    """The figure as a report has it."""
    out = io.BytesIO()
    figure.savefig(out, format="svg")
    return out.getvalue().decode()


def test_residuals_per_feature():
    toy = Toy(4, data_shape=(5,))
    evaluation = evaluate(toy, toy.data(50))
    figure = plot_residuals(evaluation, ["a", "b", "c", "d", "e"])
    expected = evaluation.decoder_residuals, evaluation.gains.feature_variance
    errors = evaluation.mc_stderr.decoder_residuals, evaluation.mc_stderr.gains.feature_variance
    for axes, values, error in zip(figure.axes, expected, errors, strict=True):
        assert close([bar.get_width() for bar in axes.containers[0]], values)
        lengths = [np.ptp(segment[:, 0]) / 2 for segment in axes.collections[0].get_segments()]
        assert close(lengths, 2 * error, scale=1.0)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "c", "d", "e"]


def test_the_largest_residuals_of_many_features():
    toy = Toy(4, data_shape=(100,))
    evaluation = evaluate(toy, toy.data(20))
    axes = plot_residuals(evaluation).axes[0]
    largest = evaluation.decoder_residuals.abs().argsort(descending=True)[:40].sort().values
    assert [int(t.get_text()) for t in axes.get_yticklabels()] == largest.tolist()
    assert close([bar.get_width() for bar in axes.containers[0]], evaluation.decoder_residuals[largest])
    assert "the 40 of 100" in axes.get_ylabel()


def test_residuals_as_a_map():
    toy = Toy(4, data_shape=(3, 2, 4))
    evaluation = evaluate(toy, toy.data(20))
    figure = plot_residuals(evaluation)
    for image, values in zip(
        [axes.images[0].get_array() for axes in figure.axes[:2]],
        (evaluation.decoder_residuals, evaluation.gains.feature_variance),
        strict=True,
    ):
        # Nats of the channels of a pixel add up.
        assert close(image, values.sum(0), scale=values.abs().sum())
    for axes in figure.axes[:2]:
        low, high = axes.images[0].get_clim()
        assert low == -high and high == np.abs(axes.images[0].get_array()).max()
    figure.draw_without_rendering()


def test_a_pixel_reproduced_exactly_has_an_unbounded_gain():
    def decode(z):
        return torch.stack([torch.zeros_like(z[:, 0]), z[:, 0], z[:, 0], z[:, 0]], 1)

    model = from_functions(lambda x: (x[:, 1:2], torch.zeros_like(x[:, 1:2])), decode, variance=1.0)
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    x[:, 0] = 0.0
    evaluation = evaluate(model, x)
    assert evaluation.gains.feature_variance[0] == torch.inf
    bars = plot_residuals(evaluation)
    assert [text.get_text() for text in bars.axes[1].texts] == [" ∞"] and "∞" in svg(bars)
    maps = plot_residuals(evaluation, shape=(2, 2))
    assert "unbounded" in maps.axes[1].get_title(loc="left") and "unbounded" in svg(maps)
    assert np.isfinite(maps.axes[1].images[0].get_clim()).all()


def test_of_a_bernoulli_model_there_are_residuals_alone():
    toy = Toy(5, likelihood="bernoulli")
    figure = plot_residuals(evaluate(toy, toy.data(20)))
    assert len(figure.axes) == 1 and figure.axes[0].get_title(loc="left") == "residual R_d"


def test_hostile_names_are_text():
    toy = Toy(2, data_shape=(6,))
    assert holds_hostile(svg(plot_residuals(evaluate(toy, toy.data(9)), HOSTILE)))


def test_errors():
    toy = Toy(7, likelihood="full normal")
    with pytest.raises(UsageError, match="does not factorise"):
        plot_residuals(evaluate(toy, toy.data(5)))
    with pytest.raises(UsageError, match="2 names given as columns"):
        plot_residuals(evaluate(Toy(7), Toy(7).data(5)), ["a", "b"])
