"""Optimal variances and their gains, with errors, read off the mergeable sums; values may be missing.

The sums of a feature are over the points at which it is observed, a fraction f_d of all. With ρ_d, the mean there of
(x_d - μ_d)²/σ_d² (equation (18) of docs/mathematics.md):

    residual R_d = f_d ½ (1 - ρ_d),   gain_d = f_d ½ (ρ_d - 1 - log ρ_d),   one factor for all: ρ = Σ f_d ρ_d / Σ f_d

A feature that is never observed has ρ_d = 1: its σ_d² stays as it is, residual and gain are 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from vaentropy._typing import Tensor
from vaentropy.moments import Moment

__all__ = [
    "DecoderVariances",
    "decoder_residuals",
    "decoder_variance_errors",
    "decoder_variances",
    "observed_fraction",
    "ratios_of_features",
    "scale_gain",
    "scale_gain_error",
]

# Reads the mean or an error off a moment.
Pick = Callable[[Moment], Tensor]

# Fractions nearer to 1 than this are 1: sums of the same weights in another order differ by rounding.
ROUNDING = 1e-12


class DecoderVariances(NamedTuple):
    """What the sums say of σ², or the errors of that; float64.

    Attributes:
        feature_variance: σ_d²*, data_shape.
        ratio: optimal factor on all σ², ().
        gain: of that factor, (), nats per data point.
        feature_gains: of a factor for each feature, data_shape, nats per data point.
    """

    feature_variance: Tensor
    ratio: Tensor
    gain: Tensor
    feature_gains: Tensor


def scale_gain(ratio: Tensor) -> Tensor:
    """½ (ρ - 1 - log ρ), element by element: nats gained by multiplying a Gaussian variance by its optimal factor ρ.

    Zero at ρ = 1, infinite at ρ = 0, where the ELBO has no upper bound.
    """
    return 0.5 * (ratio - 1 - ratio.log())


def scale_gain_error(ratio: Tensor, error: Tensor) -> Tensor:
    """Standard error of `scale_gain(ratio)` where the ratio has the standard error `error`.

    By the delta method to second order: the first derivative, ½ (1 - 1/ρ), is 0 at ρ = 1, where good models are. There
    the gain is also biased upward, by ½ · error²/(2ρ²).
    """
    return _to_second_order(_slope(ratio) * error, ratio, error)


def _slope(ratio: Tensor) -> Tensor:
    """Derivative of `scale_gain`."""
    return 0.5 * (1 - 1 / ratio)


def _to_second_order(linear: Tensor, ratio: Tensor, error: Tensor, fraction: Tensor | float = 1.0) -> Tensor:
    """Error of fraction · gain, which to first order is `linear`, from the standard error of the ratio."""
    curvature = fraction * 0.5 / ratio.square()
    return (linear.square() + 0.5 * curvature.square() * error.pow(4)).sqrt()


def _linear_gain(ratios: Moment, ratio: Tensor) -> Moment:
    """Moment of gain + slope · (r - ρ) for ratios r around ρ: the gain to first order."""
    slope = _slope(ratio)
    return ratios.affine(slope, scale_gain(ratio) - slope * ratio)


def observed_fraction(moments: Mapping[str, Moment]) -> Tensor | None:
    """f_d, fraction of the data points, by weight, that have a value of feature d; None where none is missing."""
    features = moments.get("decoder_ratios", moments.get("decoder_residuals"))
    if features is None:
        return None
    fraction = features.weight / moments["elbo"].weight
    fraction = torch.where(1 - fraction < ROUNDING, 1.0, fraction)
    return None if bool((fraction == 1).all()) else fraction


def decoder_residuals(moments: Mapping[str, Moment], pick: Pick) -> Tensor | None:
    """R_d, or their error, data_shape; None where the likelihood does not factorise."""
    if "decoder_ratios" in moments:
        # As ½ (1 - ρ), each of them would have lost the digits of a small ρ.
        residuals = moments["decoder_ratios"].affine(-0.5, 0.5)
    elif "decoder_residuals" in moments:
        residuals = moments["decoder_residuals"]
    else:
        return None
    missing = observed_fraction(moments) is not None
    return pick(residuals.with_zeros(moments["elbo"]) if missing else residuals)


def ratios_of_features(moments: Mapping[str, Moment]) -> Tensor:
    """ρ_d, optimal factors on σ_d², data_shape; 1 where the feature is never observed."""
    ratios = moments["decoder_ratios"]
    return torch.where(ratios.weight == 0, 1.0, ratios.mean)


def _shared_ratio(moments: Mapping[str, Moment]) -> Tensor:
    ratios = moments["decoder_ratios"]
    return (ratios.weight * ratios.mean).sum() / ratios.weight.sum()


def decoder_variances(moments: Mapping[str, Moment]) -> DecoderVariances | None:
    """Optimal variances and gains; None without a normal likelihood."""
    if "decoder_ratios" not in moments:
        return None
    squared_error, fraction = moments["squared_error"], observed_fraction(moments)
    as_it_is = moments["log_variance"].mean.exp()
    ratio, gains = _shared_ratio(moments), scale_gain(ratios_of_features(moments))
    return DecoderVariances(
        feature_variance=torch.where(squared_error.weight == 0, as_it_is, squared_error.mean),
        ratio=ratio,
        gain=(gains.numel() if fraction is None else fraction.sum()) * scale_gain(ratio),
        feature_gains=gains if fraction is None else fraction * gains,
    )


def decoder_variance_errors(moments: Mapping[str, Moment], pick: Pick) -> DecoderVariances | None:
    """Errors of `decoder_variances`, of the kind that `pick` reads; 0 where a feature is never observed."""
    if "decoder_ratios" not in moments:
        return None
    ratios, ratio, fraction = moments["decoder_ratios"], _shared_ratio(moments), observed_fraction(moments)
    error = pick(moments["mean_ratio"])
    if fraction is None:
        feature_variance = pick(moments["squared_error"])
        gain = ratios.mean.numel() * scale_gain_error(ratio, error)
        return DecoderVariances(feature_variance, error, gain, scale_gain_error(ratios.mean, pick(ratios)))
    never, each = ratios.weight == 0, ratios_of_features(moments)
    # The fractions are estimates as well.
    linear = pick(_linear_gain(ratios, each).with_zeros(moments["elbo"]))
    return DecoderVariances(
        feature_variance=torch.where(never, 0.0, pick(moments["squared_error"])),
        ratio=error,
        gain=_shared_gain_error(moments, pick, ratio, fraction.mean()),
        feature_gains=_to_second_order(linear, each, torch.where(never, 0.0, pick(ratios)), fraction),
    )


def _shared_gain_error(moments: Mapping[str, Moment], pick: Pick, ratio: Tensor, fraction: Tensor) -> Tensor:
    """Error of the gain of one factor, where a fraction of all values is observed.

    To first order that gain is D times the mean over points of q (gain + slope · (r - ρ)), with q the fraction of its
    features that a point has and r their mean ratio.
    """
    points, ratios = _linear_gain(moments["mean_ratio"], ratio), _linear_gain(moments["decoder_ratios"], ratio)
    # The moment of r has the weights w q, so that it knows Σ w² q² (…)²; Σ w² q (…) is a mean over the features.
    squares = points.spread_squared + 2 * points.mean * points.lean + points.mean.square() * points.weight_squared
    cross = (ratios.lean + ratios.mean * ratios.weight_squared).mean()
    mean, every = fraction * scale_gain(ratio), moments["elbo"]
    linear = replace(
        points,
        weight=every.weight,
        weight_squared=every.weight_squared,
        mean=mean,
        spread_squared=squares - 2 * mean * cross + mean.square() * every.weight_squared,
    )
    return ratios.mean.numel() * _to_second_order(pick(linear), ratio, pick(moments["mean_ratio"]), fraction)
