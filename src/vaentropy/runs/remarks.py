"""What a user should know about a finished run, one line each."""

import math

from vaentropy.config import RunConfig
from vaentropy.data import Dataset
from vaentropy.data.source import first_rows
from vaentropy.training import History
from vaentropy.training.floor import explain_floor
from vaentropy.vae import VAE

__all__ = ["remarks_on"]

# Ratio of features' scales, or of a feature's mean to its standard deviation, above which scaling is advised.
UNSCALED = 20.0


def remarks_on(config: RunConfig, model: VAE, data: Dataset, history: History) -> tuple[str, ...]:
    """Remarks on what came of a training."""
    at_floor = float(history.rows[-1].get("at_floor", 0.0))
    floor = explain_floor(model, at_floor, data.train) if at_floor else None
    remarks = (_bits(data, history), _stopped(history), floor, _units(config, data))
    return tuple(remark for remark in remarks if remark)


def _bits(data: Dataset, history: History) -> str | None:
    """Bits per dimension, for data of which they mean something to others."""
    if not data.scaling.dequantised or history.train is None:
        return None
    held_out = "" if history.held_out is None else f", held out {history.held_out.bits_per_dim:.4f}"
    return f"bits per dimension of the dequantised data: {history.train.bits_per_dim:.4f}{held_out}"


def _units(config: RunConfig, data: Dataset) -> str | None:
    """Advice where features lie far from 0 or differ much in scale, which networks cannot make up for."""
    if config.scale is not None or not data.scaling.trivial:
        return None
    # Without the condition, which is behind the features.
    some = first_rows(data.train).double().flatten(1)[:, : math.prod(data.data_shape)]
    mean, deviation = some.nanmean(0), (some - some.nanmean(0)).square().nanmean(0).sqrt()
    varying = deviation[deviation > 0]
    if not varying.numel():
        return None
    apart = float(varying.max() / varying.min())
    far = float((mean.abs() / deviation.clamp(min=float(varying.min()))).max())
    if max(apart, far) < UNSCALED:
        return None
    return "features lie far from 0 or differ much in scale: a model of standardised data (scale standard) learns more"


def _stopped(history: History) -> str | None:
    if history.stopped is None:
        return None
    restored = history.rows[-1].get("restored_epoch")
    end = "" if restored is None else f"; the weights are those of epoch {int(restored)}, the best"
    return f"stopped after epoch {int(history.rows[-1]['epoch'])}: {history.stopped}{end}"
