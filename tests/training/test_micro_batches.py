"""A batch in parts takes the step of the whole batch, in the memory of a part."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vaentropy import Gaussian, MonteCarlo, vae1, vae3
from vaentropy.errors import UsageError
from vaentropy.expectation import GaussHermite
from vaentropy.likelihoods import Poisson
from vaentropy.networks import ConvDecoder, ConvEncoder
from vaentropy.training import Checkpoints, compiling, fit, loop
from vaentropy.training.compiling import Compiled
from vaentropy.training.division import nearly_equal_parts
from vaentropy.training.fit import prepared
from vaentropy.training.micro_batches import gradients_in_parts
from vaentropy.training.step import gradients, objective

from .together import OPTIONS, X, built, convolutional, made, train, with_holes

COUNTS = X.abs().mul(3).floor()
# What makes a model, data, draws, and options of a step.
CASES = {
    "vae1": (made, X, MonteCarlo(1), {}),
    "vae3": (lambda: made(vae3), X, MonteCarlo(1), {}),
    "vae3, missing values": (lambda: made(vae3), with_holes(X), MonteCarlo(2), {}),
    "a variance for each feature, missing values": (
        lambda: built(Gaussian(variance="per_feature")),
        with_holes(X),
        MonteCarlo(1),
        {},
    ),
    "learned prior, a penalty on columns, β": (lambda: built(columns="penalty"), X, MonteCarlo(1), {"beta": 0.3}),
    "many draws": (lambda: built(Gaussian(variance="per_feature")), X, MonteCarlo(50), {}),
    "draws of unequal weight that all share": (lambda: made(vae3), X, GaussHermite(3), {}),
    "learned variances": (lambda: made(vae3), X, MonteCarlo(1), {"adapt": 0.0}),
    "Poisson": (lambda: built(Poisson()), COUNTS, MonteCarlo(1), {}),
    "conditional": (lambda: made(vae1, condition=2), torch.cat([X, X[:, :2]], 1), MonteCarlo(3), {}),
    "convolutions": (convolutional, torch.rand(10, 1, 8, 8, dtype=torch.float64), MonteCarlo(1), {}),
}


def same(ours, theirs, what="", relative=1e-10):
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=relative / 100, msg=lambda text: f"{what}: {text}")


def step(case, count, rows=None):
    """What a step on so many points leaves: gradients and parameters, the epoch's sums."""
    make, x, expectation, options = case
    model, x = make(), x[:count]
    generator = torch.Generator().manual_seed(1)
    nodes = expectation.nodes(count, model.latent_shape, generator=generator, dtype=x.dtype)
    options = {"adapt": 0.4, "observed": ~x.isnan() if bool(x.isnan().any()) else None, **options}
    how = {} if rows is None else {"rows": rows}
    with prepared(model, "analytic" if options["adapt"] else "learned"):
        call = gradients if rows is None else gradients_in_parts
        sums = call(model, x.nan_to_num(nan=0.0), nodes.noise, nodes.step_weights, **how, **options)
    named = dict(model.named_parameters())
    grads = {f"gradient of {name}": p.grad for name, p in named.items() if p.grad is not None}
    return {**grads, **{name: p.detach() for name, p in named.items()}, "sums": sums}


@pytest.mark.parametrize("name", CASES)
def test_parts_add_up_to_the_whole(name):
    whole = step(CASES[name], 10)
    for rows in (4, 1):
        parts = step(CASES[name], 10, rows)
        assert parts.keys() == whole.keys()
        for key, value in whole.items():
            same(parts[key], value, key)


def test_one_part_is_the_whole_to_the_bit():
    whole, one = step(CASES["vae3"], 10), step(CASES["vae3"], 10, 10)
    assert all(torch.equal(one[key], value) for key, value in whole.items())


def test_parts_are_few_and_of_nearly_equal_size():
    assert [len(part) for part in nearly_equal_parts(10, 4)] == [3, 3, 4]
    assert nearly_equal_parts(3, 1) == [range(1), range(1, 2), range(2, 3)]
    assert nearly_equal_parts(3, 7) == [range(3)]
    # Of all batches of an epoch, which differ by a row: each size is compiled by itself, and eight are kept.
    for rows, batch in itertools.product(range(1, 20), range(1, 60)):
        sizes = {len(part) for size in (batch, batch + 1) for part in nearly_equal_parts(size, rows)}
        assert len(sizes) <= 3


@pytest.mark.parametrize(
    "name", ["vae2", pytest.param("vae3", marks=pytest.mark.slow), pytest.param("clipped", marks=pytest.mark.slow)]
)
def test_a_training_in_parts_is_the_training(name):
    few = {"epochs": 2, "evaluation_expectation": MonteCarlo(2)}
    whole, history = train(name, **few)
    parts, in_parts = train(name, **few, micro_batch_size=7)
    for key, value in whole.state_dict().items():
        same(parts.state_dict()[key], value, key, relative=1e-8)
    for name in ("running_elbo", "running_gap", "train_elbo", "held_out_elbo"):
        assert in_parts[name] == pytest.approx(history[name], rel=1e-8, nan_ok=True)


def test_training_goes_on_with_other_parts(tmp_path):
    class Stop(Exception):
        pass

    def stop(row):
        if row["epoch"] == 2:
            raise Stop

    few = {"epochs": 3, "batch_size": 70, "evaluation_expectation": MonteCarlo(2)}
    folder = Checkpoints(tmp_path / "run", every=5)
    with pytest.raises(Stop):
        train("vae1", checkpoints=folder, on_epoch=stop, **few)
    _, history = train("vae1", checkpoints=folder, resume=True, micro_batch_size=30, **few)
    _, expected = train("vae1", **few)
    assert history["train_elbo"][-1] == pytest.approx(expected["train_elbo"][-1], rel=1e-8)


# --- Memory -----------------------------------------------------------------------------------------------------------


def kept_for_backward(model, x, **how):
    """The most bytes that are kept for backward passes at a time, beside the parameters and what is given."""
    noise = torch.zeros(1, len(x), *model.latent_shape)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), x, noise)}
    now, most = {}, [0]

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            now[storage.data_ptr()] = storage.nbytes()
            most[0] = max(most[0], sum(now.values()))
        return tensor

    def one(model, x, *args, **options):
        # Of the part before nothing is left: its backward pass is done.
        now.clear()
        return objective(model, x, *args, **options)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gradients_in_parts(model, x, noise, adapt=0.5, of=one, **how)
    return most[0]


def images(channels=(8, 16, 16), size=32, activation=nn.ReLU, family=vae1, **options):
    torch.manual_seed(0)
    networks = (
        ConvEncoder((3, size, size), channels, activation, **options),
        ConvDecoder((3, size, size), channels[::-1], activation, **options),
    )
    return family((3, size, size), 4, networks=networks)


def test_no_more_is_kept_than_a_part_needs():
    x = torch.rand(12, 3, 32, 32)
    whole, three = kept_for_backward(images(), x, rows=None), kept_for_backward(images(), x[:3], rows=None)
    # Each row needs a quarter as much; so does the pass that moves σ², which keeps nothing.
    assert kept_for_backward(images(), x, rows=3) == three
    assert whole == pytest.approx(4 * three, rel=0.01)


# --- Layers that draw or remember -------------------------------------------------------------------------------------


def test_dropout_draws_the_same_when_variances_move_and_when_weights_do():
    class Seen(nn.Module):
        def forward(self, features):
            seen.append(features.detach().clone())
            return features

    seen = []
    model = built(encoder=[nn.Dropout(0.5), Seen()])
    seen.clear()
    torch.manual_seed(3)
    gradients_in_parts(model, X[:6], torch.zeros(1, 6, 2, dtype=X.dtype), rows=2, adapt=0.5)
    moving, learning = seen[:3], seen[3:]
    assert len(learning) == 3 and all(torch.equal(a, b) for a, b in zip(moving, learning, strict=True))
    assert not torch.equal(learning[0] == 0, learning[1] == 0)


def test_layers_that_remember_are_moved_once():
    """A buffer ends where one forward pass takes it, and each part meets it as it was."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("passes", torch.zeros((), dtype=torch.float64))

        def forward(self, features):
            self.passes += 1
            return features * self.passes

    model = built(encoder=[Counting()])
    (counting,) = (module for module in model.modules() if isinstance(module, Counting))
    before = float(counting.passes)
    gradients_in_parts(model, X[:6], torch.zeros(1, 6, 2, dtype=X.dtype), rows=2, adapt=0.5)
    assert float(counting.passes) == before + 1


def test_batch_norm_is_refused_and_dropout_is_not():
    options = {**OPTIONS, "epochs": 1, "batch_size": 100, "micro_batch_size": 50}
    with pytest.raises(UsageError, match=r"^encoder\.1 is BatchNorm1d, whose statistics .* with micro_batch_size; "):
        fit(built(encoder=[nn.BatchNorm1d(8)]), X, **options)
    normed = built(encoder=[nn.BatchNorm1d(8)])
    normed.encoder[1].eval()
    for model in (normed, built(encoder=[nn.Dropout(0.2)])):
        assert math.isfinite(fit(model, X, **options)["train_elbo"][-1])


@pytest.mark.parametrize(("batch_size", "rows"), [(100, 100), (100, 101), (500, 203)])
def test_a_batch_that_is_no_larger_than_a_part_is_taken_as_a_whole(monkeypatch, batch_size, rows):
    def never(*args, **options):
        raise AssertionError

    monkeypatch.setattr(loop, "gradients_in_parts", never)
    options = {**OPTIONS, "epochs": 1, "batch_size": batch_size}
    whole, one = (
        fit(built(encoder=[nn.BatchNorm1d(8)]), X, **options, **parts) for parts in ({}, {"micro_batch_size": rows})
    )
    assert whole["running_elbo"] == one["running_elbo"]
    with pytest.raises(AssertionError):
        fit(built(), X, **options, micro_batch_size=rows - 2)


def test_batches_of_a_loader_may_be_larger_than_a_batch():
    loader = DataLoader(TensorDataset(X), batch_size=50)
    with pytest.raises(UsageError, match="with micro_batch_size; "):
        fit(built(encoder=[nn.BatchNorm1d(8)]), loader, **{**OPTIONS, "epochs": 1, "micro_batch_size": 20})


def test_a_compiled_step_that_fails_in_a_later_part_is_taken_anew(monkeypatch):
    calls = []

    def compiled(original):
        def call(*args, **options):
            calls.append(1)
            if len(calls) == 3:
                raise RuntimeError("no code for this size")
            return original(*args, **options)

        return call

    monkeypatch.setattr(compiling, "_compiled", compiled)
    whole, model = made(vae3), made(vae3)
    noise = torch.zeros(1, 10, 2, dtype=X.dtype)
    with prepared(whole, "analytic"), prepared(model, "analytic"):
        sums = gradients(whole, X[:10], noise, adapt=0.4)
        anew = Compiled(step=partial(gradients_in_parts, rows=3))(model, X[:10], noise, adapt=0.4)
    assert len(calls) == 3
    same(anew, sums)
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        same(ours, theirs)
        if theirs.grad is not None:
            same(ours.grad, theirs.grad)
