"""Parts merge into the whole, and the read-outs are numpy's."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaentropy.moments import DataMoments, Moment, merge

from .models import F64, close

values = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))
weights = st.one_of(st.just(0.0), st.floats(1e-2, 1e2))


@st.composite
def samples(draw, min_size=1):
    """Values (N, 2), weights None, (N,) or (N, 2), noise variances None or (N, 2); NaN where the weight is 0."""
    num = draw(st.integers(min_size, 9))

    def array(elements, *shape):
        flat = draw(st.lists(elements, min_size=math.prod(shape), max_size=math.prod(shape)))
        return torch.tensor(flat, dtype=F64).reshape(shape)

    # An offset shows whether digits are lost to cancellation.
    x = array(values, num, 2) + draw(st.sampled_from([0.0, 1e4]))
    kind = draw(st.sampled_from(["none", "per point", "per element"]))
    w = None if kind == "none" else array(weights, num) if kind == "per point" else array(weights, num, 2)
    noise = array(st.floats(0, 10), num, 2) if draw(st.booleans()) else None
    if w is not None:
        missing = (w if w.ndim == 2 else w[:, None].expand(num, 2)) == 0
        x = torch.where(missing & draw(st.booleans()), math.nan, x)
        if noise is not None:
            noise = torch.where(missing, math.nan, noise)
    return x, w, noise


def part(sample, rows):
    return [None if part is None else part[rows] for part in sample]


def absolute_terms(x, w):
    """What rounding errors of each field are relative to: the sums of its absolute terms.

    Merging moves sums to another mean, so that the terms are those of deviations as large as the data's range.
    """
    x = torch.where(w == 0, 0.0, x)
    low, high = (torch.where(w == 0, sign * math.inf, x) for sign in (1, -1))
    span = (high.amax(0) - low.amin(0)).clamp(min=0)
    # Deviations carry the rounding errors of the values.
    largest = x.abs().amax(0) + 1e-9
    span = span + 1e-3 * largest
    first, second = w.sum(0), w.square().sum(0)
    return {
        "weight": first,
        "weight_squared": second,
        "mean": largest,
        "spread": first * span**2,
        "lean": second * largest,
        "spread_squared": second * span**2,
    }


def expand(w, x):
    return torch.ones_like(x) if w is None else (w if w.ndim == 2 else w[:, None].expand(x.shape))


@given(sample=samples(), data=st.data())
@settings(max_examples=150)
def test_any_parts_in_any_order_merge_into_the_whole(sample, data):
    x, w, noise = sample
    whole = Moment.of(*sample)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(x) - 1)))) if len(x) > 1 else []
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    parts = [Moment.of(*part(sample, rows)) for rows in torch.tensor_split(order, cuts)]
    while len(parts) > 1:
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        second = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        parts.append(first.merge(second))
    (merged,) = parts
    for name, scale in absolute_terms(x, expand(w, x)).items():
        assert close(getattr(merged, name), getattr(whole, name), scale), name
    assert (merged.noise is None) == (whole.noise is None) == (noise is None)
    if noise is not None:
        assert close(merged.noise, whole.noise)


@given(sample=samples(min_size=2))
@settings(max_examples=150)
def test_the_read_outs_are_numpys(sample):
    x, w, noise = sample
    moment = Moment.of(*sample)
    w = expand(w, x)
    scales = absolute_terms(x, w)
    for h in range(2):
        seen = (w[:, h] > 0).numpy()
        v, u = x[:, h].numpy()[seen], w[:, h].numpy()[seen]
        if not seen.any():
            assert float(moment.weight[h]) == float(moment.mean[h]) == float(moment.variance[h]) == 0
            assert math.isnan(moment.stderr[h])
            continue
        mean = np.average(v, weights=u)
        deviation = v - mean
        span = float(scales["spread"][h] / scales["weight"][h])
        assert close(moment.mean[h], mean, scales["mean"][h])
        assert close(moment.variance[h], np.average(deviation**2, weights=u), span)
        if noise is not None:
            direct = np.sqrt((u**2 * noise[:, h].numpy()[seen]).sum()) / u.sum()
            assert moment.mc_stderr is not None and close(moment.mc_stderr[h], direct)
        effective = u.sum() ** 2 / (u**2).sum()
        if len(u) == 1:
            assert math.isnan(moment.stderr[h])
        elif effective > 1 + 1e-6:
            # The sandwich formula, with the correction that makes it sd/√N for equal weights.
            squared = effective / (effective - 1) * (u**2 * deviation**2).sum() / u.sum() ** 2
            # Errors of the squares, where the root has an infinite slope.
            scale = effective / (effective - 1) * float(scales["spread_squared"][h]) / u.sum() ** 2
            assert close(moment.stderr[h] ** 2, squared, scale, tolerance=1e-11)
            if len(set(u)) == 1:
                assert close(moment.stderr[h] ** 2, (np.std(v, ddof=1) / len(v) ** 0.5) ** 2, scale, tolerance=1e-11)


def test_images_and_numbers():
    x = torch.randn(7, 2, 3, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    moment = Moment.of(x, torch.arange(7.0))
    direct = np.average(x.numpy(), axis=0, weights=np.arange(7.0))
    assert close(moment.mean, direct, 1.0)
    assert all(getattr(moment, f.name).shape == (2, 3, 1) for f in fields(Moment) if f.name != "noise")
    numbers = Moment.of(x[:, 0, 0, 0])
    assert close(numbers.mean, float(x[:, 0, 0, 0].mean()), 1.0)
    assert close(numbers.stderr, float(x[:, 0, 0, 0].std()) / 7**0.5, 1.0)


def test_sums_are_float64_on_the_cpu_whatever_comes_in():
    for dtype in (torch.float32, torch.float16, torch.int64):
        moment = Moment.of(torch.tensor([[1], [2], [4]]).to(dtype), torch.tensor([1.0, 1.0, 2.0]))
        assert moment.mean.dtype == F64 and moment.mean.device.type == "cpu"
        assert close(moment.mean, [2.75])


def test_digits_are_not_lost_to_an_offset():
    x = torch.randn(3000, dtype=F64, generator=torch.Generator().manual_seed(0))
    parts = [Moment.of(rows + 1e8) for rows in x.split(37)]
    merged = merge({"x": p} for p in parts)["x"]
    # The values are rounded to 1.5e-8; a difference of raw sums of squares would have no digit right.
    assert close(merged.variance, float(x.var(correction=0)), 1.0, tolerance=1e-7)
    assert close(merged.stderr, float(x.std()) / 3000**0.5, 1.0, tolerance=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_many_parts_merge_at_once(weighted):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, dtype=F64, generator=generator) + torch.arange(60.0)[:, None]
    w = torch.randint(0, 3, (60,), generator=generator) if weighted else torch.ones(60, dtype=torch.int64)
    w[7:9] = 0 if weighted else 1  # all of a part
    noise = torch.rand(60, 2, dtype=F64, generator=generator)
    cuts = [7, 9, 20, 21, 50]
    parts = [Moment.of(*part) for part in zip(*(t.tensor_split(cuts) for t in (x, w, noise)), strict=True)]
    merged, u = parts[0].merge(*parts[1:]), w.numpy()[:, None]
    mean = np.average(x.numpy(), axis=0, weights=w.numpy())
    deviation = x.numpy() - mean
    for name, expected in {
        "weight": (u + 0 * deviation).sum(0),
        "weight_squared": (u**2 + 0 * deviation).sum(0),
        "mean": mean,
        "spread": (u * deviation**2).sum(0),
        "lean": (u**2 * deviation).sum(0),
        "spread_squared": (u**2 * deviation**2).sum(0),
        "noise": (u**2 * noise.numpy()).sum(0),
    }.items():
        assert close(getattr(merged, name), expected, 1e4), name


def test_rows_that_are_one_row_expanded():
    row, noise = torch.tensor([1.5, -2.0], dtype=F64), torch.ones(7, 2, dtype=F64)
    found, expected = Moment.of(row.expand(7, 2), noise=noise), Moment.of(row.repeat(7, 1), noise=noise)
    for f in fields(Moment):
        assert close(getattr(found, f.name), getattr(expected, f.name), 10.0), f.name


def test_a_part_without_weight_changes_nothing():
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    whole = Moment.of(x, torch.rand(5), noise=torch.rand(5, 2))
    nothing = Moment.of(torch.full((3, 2), math.nan), torch.zeros(3), noise=torch.full((3, 2), math.nan))
    for merged in (whole.merge(nothing), nothing.merge(whole)):
        for f in fields(Moment):
            assert torch.equal(getattr(merged, f.name), getattr(whole, f.name)), f.name
    empty = nothing.merge(nothing)
    assert torch.equal(empty.mean, torch.zeros(2, dtype=F64)) and bool(empty.stderr.isnan().all())


def test_weights_are_relative():
    x = torch.randn(6, dtype=F64, generator=torch.Generator().manual_seed(0))
    w = torch.rand(6, dtype=F64, generator=torch.Generator().manual_seed(1))
    one, many = Moment.of(x, w, noise=w), Moment.of(x, 1000 * w, noise=w)
    for name in ("mean", "variance", "stderr", "mc_stderr"):
        assert close(getattr(one, name), getattr(many, name)), name


def test_one_point_has_no_standard_error():
    assert math.isnan(Moment.of(torch.tensor([2.0])).stderr)
    assert math.isnan(Moment.of(torch.tensor([2.0, 3.0, 5.0]), torch.tensor([0.0, 0.3, 0.0])).stderr)


def test_unknown_noise_stays_unknown():
    known, unknown = Moment.of(torch.ones(2), noise=torch.ones(2)), Moment.of(torch.ones(2))
    assert unknown.mc_stderr is None
    assert known.merge(unknown).mc_stderr is None and unknown.merge(known).mc_stderr is None


def test_named_moments_merge_by_name():
    x = torch.arange(6.0, dtype=F64)
    parts = [{"a": Moment.of(rows), "b": Moment.of(-rows)} for rows in x.split([1, 3, 2])]
    merged = merge(parts)
    assert list(merged) == ["a", "b"] and close(merged["a"].mean, 2.5) and close(merged["b"].mean, -2.5)
    assert torch.equal(merge(parts[:1])["a"].mean, parts[0]["a"].mean)
    with pytest.raises(ValueError, match=r"different terms.*'b'"):
        merge([parts[0], {"a": parts[1]["a"]}])


@given(sample=samples(min_size=2), slope=st.floats(-3, 3), shift=st.floats(-3, 3))
def test_an_affine_map_of_the_values(sample, slope, shift):
    x, w, noise = sample
    slope, shift = torch.tensor([slope, 1.5], dtype=F64), torch.tensor([shift, -1.0], dtype=F64)
    found = Moment.of(x, w, noise).affine(slope, shift)
    expected = Moment.of(slope * x + shift, w, None if noise is None else slope**2 * noise)
    every = expand(w, x)
    # A rounding error of a value grows by the slope, and the shift may cancel it.
    scale = absolute_terms(torch.where(every == 0, 0.0, 4 * x.abs() + 4), every)
    empty = every.sum(0) == 0
    for name in ("weight", "weight_squared", "mean", "spread", "lean", "spread_squared"):
        one, two = (torch.where(empty, 0.0, getattr(m, name)) for m in (found, expected))
        assert close(one, two, 10 * scale[name] + 1), name
    assert (found.noise is None) == (noise is None)
    assert found.noise is None or close(found.noise, expected.noise, 1e6 + expected.noise)


@given(sample=samples(min_size=2), data=st.data())
def test_missing_values_count_as_zeros(sample, data):
    x, _, noise = sample
    x = x.nan_to_num(0.0)
    noise = None if noise is None else noise.nan_to_num(0.0)
    w = torch.tensor(data.draw(st.lists(st.floats(0.1, 10), min_size=len(x), max_size=len(x))), dtype=F64)
    observed = torch.tensor(data.draw(st.lists(st.booleans(), min_size=x.numel(), max_size=x.numel()))).reshape(x.shape)
    found = Moment.of(x, w[:, None] * observed, noise).with_zeros(Moment.of(torch.ones(len(x)), w))
    zeros = None if noise is None else torch.where(observed, noise, 0.0)
    expected = Moment.of(torch.where(observed, x, 0.0), w, zeros)
    scale = absolute_terms(torch.where(observed, x, 0.0), expand(w, x))
    for name in ("weight", "weight_squared", "mean", "spread", "lean", "spread_squared"):
        assert close(getattr(found, name), getattr(expected, name), 10 * scale[name]), name
    assert found.noise is None or close(found.noise, expected.noise, 1e6)


def test_covariance_of_weighted_parts_is_that_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64) + 100
    weights = torch.randint(0, 4, (30,), generator=generator)
    whole = np.cov(x.numpy(), rowvar=False, fweights=weights.numpy(), ddof=0)
    parts = [DataMoments.of(x[:7], weights[:7]), DataMoments.of(x[7:], weights[7:])]
    merged = parts[0].merge(parts[1])
    assert np.allclose(merged.covariance.numpy(), whole, rtol=1e-10, atol=0)
    assert np.allclose(merged.mean.numpy(), np.average(x.numpy(), axis=0, weights=weights.numpy()), rtol=1e-12)
    assert merged.num_points == weights.sum()


def test_moments_given_labels_are_those_within_each_label():
    g = torch.Generator().manual_seed(0)
    x, labels = torch.randn(60, 4, generator=g, dtype=F64), torch.arange(60) % 3
    x = x + labels.unsqueeze(1)
    one_hot = torch.nn.functional.one_hot(labels).double()
    given, rank = DataMoments.of(torch.cat([x, one_hot], 1)).given_last(3)
    within = torch.cat([x[labels == k] - x[labels == k].mean(0) for k in range(3)])
    torch.testing.assert_close(given.covariance, within.T @ within / 60)
    # Three labels, one of which the other two tell.
    assert rank == 2 and given.num_points == 60 and bool((given.mean == 0).all())
