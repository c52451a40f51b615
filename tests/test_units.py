"""The ELBO in the units of the data as stored, against models that are written in these units."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal

from vaentropy.calibration import calibrate
from vaentropy.data.scaling import Scaling, Statistics
from vaentropy.data.source import Rows
from vaentropy.errors import UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import Frozen, GaussHermite
from vaentropy.model import from_functions
from vaentropy.results import Evaluation

from .models import F64, NORMAL_LIKELIHOODS, Toy, as_torch, base_of, close

FROZEN = Frozen(4, 5)
SCALE = torch.tensor([0.1, 3.0, 255.0], dtype=F64)


def in_data_units(model, shift, scale):
    """The same model of x = shift + scale · y."""

    def decode(z):
        p = base_of(as_torch(model.likelihood(z)))
        return Independent(Normal(shift + scale * p.mean, scale * p.stddev), 1)

    return from_functions(lambda x: model.posterior((x - shift) / scale), decode, prior=model.prior())


def size(e):
    h = e.entropies
    return abs(e.reconstruction) + abs(e.kl) + abs(h.encoder) + abs(h.decoder) + abs(e.log_jacobian) + 10


@pytest.mark.parametrize("likelihood", NORMAL_LIKELIHOODS)
@given(seed=st.integers(0, 2**31), weighted=st.booleans())
@settings(max_examples=5)
def test_a_change_of_variables(likelihood, seed, weighted):
    model = Toy(seed, likelihood=likelihood)
    y, shift = model.data(9), torch.tensor([1.0, -2.0, 0.0], dtype=F64)
    x, w = shift + SCALE * y, torch.rand(9, generator=model.generator) + 0.1 if weighted else None
    e = evaluate(model, y, log_jacobian=-SCALE.log(), expectation=FROZEN, sample_weight=w)
    direct = evaluate(in_data_units(model, shift, SCALE), x, expectation=FROZEN, sample_weight=w)
    assert close(e.data_elbo, direct.elbo, size(e)) and close(e.log_jacobian, -SCALE.log().sum(), 10.0)
    assert close(e.bits_per_dim, -direct.elbo / (3 * math.log(2)), size(e))
    assert direct.log_jacobian == 0 and direct.data_elbo == direct.elbo
    # Nothing else knows of it.
    plain = evaluate(model, y, expectation=FROZEN, sample_weight=w)
    assert plain.elbo == e.elbo and plain.decoder_gap == e.decoder_gap and plain.entropy_sum == e.entropy_sum


@pytest.mark.parametrize("likelihood", NORMAL_LIKELIHOODS)
def test_a_change_of_variables_of_observed_values(likelihood):
    model = Toy(3, likelihood=likelihood)
    y, w = model.data(30), torch.rand(30, generator=model.generator, dtype=F64) + 0.1
    observed = torch.rand(y.shape, generator=model.generator) > 0.4
    y = torch.where(observed, y, math.nan)
    options = {"missing": "ignore", "expectation": FROZEN, "sample_weight": w, "batch_size": 7}
    e = evaluate(model, y, log_jacobian=-SCALE.log(), **options)
    # Without a shift 0 stands for a missing value in either unit.
    direct = evaluate(in_data_units(model, 0.0, SCALE), SCALE * y, **options)
    assert close(e.data_elbo, direct.elbo, size(e)) and close(e.bits_per_dim, direct.bits_per_dim, size(e))
    number = (w @ observed.to(F64)).sum() / w.sum()
    assert close(e.bits_per_dim, -direct.elbo / (number * math.log(2)), size(e))
    # Its error: point by point the sum differs. Draws of z have no part in it.
    each = (observed * -SCALE.log()).sum(1)
    mean, n = np.average(each, weights=w), float(w.sum() ** 2 / (w**2).sum())
    error = ((w**2 * (each - mean) ** 2).sum() * n / (n - 1)).sqrt() / w.sum()
    assert close(e.log_jacobian, mean, 10.0) and close(e.stderr.log_jacobian, error, 1.0)
    known = evaluate(model, y, log_jacobian=-SCALE.log(), missing="ignore", pointwise=True)
    assert known.mc_stderr.log_jacobian == 0 and close(known.pointwise["log_jacobian"], each, 10.0)


def test_a_number_counts_once_per_feature():
    model = Toy(0, data_shape=(1, 4, 4), latent_shape=(2,))
    x = model.data(5)
    for log_jacobian in (math.log(1 / 255), torch.tensor(-math.log(255)), np.full((1, 4, 4), -math.log(255.0))):
        e = evaluate(model, x, log_jacobian=log_jacobian, expectation=FROZEN)
        assert close(e.log_jacobian, -16 * math.log(255), tolerance=1e-7)
        assert close(e.bits_per_dim, -e.elbo / (16 * math.log(2)) + 8, 100.0, 1e-3)  # log2 255 = 7.994
    x[0, 0, 0, 0] = math.nan
    e = evaluate(model, x, log_jacobian=1.0, missing="ignore", expectation=FROZEN)
    assert close(e.log_jacobian, 15.8) and close(e.bits_per_dim, -e.data_elbo / (15.8 * math.log(2)))


def test_bits_of_uniform_bytes_in_closed_form():
    # Dequantised whole numbers u + k of [0, 256), scaled to [0, 1), under N(½, 1/12): the cross entropy is
    # ½ log2(2πe/12) + 8 bits, more than the 8 bits of the uniform distribution.
    numbers = torch.arange(256, dtype=F64)
    u = (torch.arange(64, dtype=F64) + 0.5) / 64
    x = (numbers[:, None] + u).flatten()[:, None]
    scaling = Scaling.by(256.0, dequantised=True)
    model = from_functions(lambda y: (0 * y, 0 * y), lambda z: 0 * z + 0.5, variance=1 / 12)
    e = evaluate(model, scaling.apply(x), log_jacobian=scaling.log_jacobian, expectation=GaussHermite(1))
    assert close(e.bits_per_dim, 8 + 0.5 * math.log2(2 * math.pi * math.e / 12), tolerance=1e-6)
    assert e.bits_per_dim > 8


def test_the_scaling_of_data_fits():
    generator = torch.Generator().manual_seed(0)
    x = 5 + SCALE * torch.randn((50, 3), generator=generator, dtype=F64)
    x[3, 1] = math.nan
    scaling = Scaling.fit("standard", Statistics.of(Rows(x)))
    model = Toy(1)
    e = evaluate(model, scaling.apply(x), log_jacobian=scaling.log_jacobian, missing="ignore", expectation=FROZEN)
    expected = scaling.log_jacobian.sum() - scaling.log_jacobian[1] / 50
    assert close(e.log_jacobian, expected, 10.0)


def test_parts_merge():
    model = Toy(2)
    y = model.data(11)
    y[:4, 1] = math.nan
    options = {"log_jacobian": -SCALE.log(), "expectation": FROZEN, "missing": "ignore"}
    whole = evaluate(model, y, **options)
    merged = Evaluation.merge([evaluate(model, part, **options) for part in y.split(3)])
    for name in ("log_jacobian", "data_elbo", "bits_per_dim"):
        assert close(getattr(merged, name), getattr(whole, name), size(whole)), name
    assert close(merged.stderr.log_jacobian, whole.stderr.log_jacobian, 1.0)


def test_calibrate_takes_it():
    model = Toy(2)
    y = model.data(11)
    one, two = (calibrate(model, y, expectation=FROZEN, **o) for o in ({}, {"log_jacobian": 2.0}))
    assert torch.equal(one.variance_factor, two.variance_factor)


def test_it_is_printed_and_in_the_dictionary():
    model = Toy(2)
    e = evaluate(model, model.data(11), log_jacobian=-SCALE.log())
    assert f"in the units of the data as stored: ELBO {e.data_elbo:.4f} nats" in str(e)
    read = json.loads(json.dumps(e.to_dict(), allow_nan=False))
    assert (read["log_jacobian"], read["data_elbo"]) == (e.log_jacobian, e.data_elbo)
    assert read["bits_per_dim"] == e.bits_per_dim and abs(read["stderr"]["log_jacobian"]) < 1e-12
    assert "as stored" not in str(evaluate(model, model.data(11)))


def test_labels_count_as_one_dimension():
    model = Toy(2, likelihood="one hot")
    e = evaluate(model, model.data(11))
    assert close(e.bits_per_dim, -e.elbo / (3 * math.log(2)))


WRONG = {
    "another shape": (
        torch.ones(2),
        r"shape \(2,\) given, expected one number, or one per feature \(3,\)",
    ),
    "one per value": (torch.ones(11, 3), r"log_jacobian of shape \(11, 3\) given"),
    "one in a list": (torch.ones(1), r"log_jacobian of shape \(1,\) given"),
    "infinite": (torch.tensor([0.0, math.inf, 0.0]), "log_jacobian holds a non-finite number"),
    "NaN": (math.nan, "log_jacobian holds a non-finite number"),
    "text": (np.array(["a"]), "log_jacobian of type ndarray given, expected a number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_was_given_in_one_line(name):
    log_jacobian, words = WRONG[name]
    with pytest.raises(UsageError, match=words) as caught:
        evaluate(Toy(2), Toy(2).data(11), log_jacobian=log_jacobian)
    assert "\n" not in str(caught.value)
