"""Compiled steps are the same steps; where they cannot be compiled, training goes on without."""

import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from vaentropy import VAE, fit, vae1
from vaentropy.networks import MLPDecoder, MLPEncoder
from vaentropy.training import Checkpoints, loop, warmup
from vaentropy.training.compiling import Compiled

X = torch.rand(105, 6, generator=torch.Generator().manual_seed(0))
OPTIONS = {"epochs": 4, "batch_size": 40}  # of 3 steps

# In a process of its own: the checks of types that tests run under cannot be compiled.
SCRIPT = """
import copy, logging, sys, tempfile
import torch
from torch._dynamo.backends.common import aot_autograd
from vaentropy import fit, vae1, vae3
from vaentropy.training import Checkpoints, warmup

def broken(graph, inputs):
    raise RuntimeError("no backward pass here")

def stop(row):
    if row["epoch"] == 2:
        raise EOFError

def apart(a, b):
    return max(float((x - y).abs().max()) for x, y in zip(a.parameters(), b.parameters()))

logging.basicConfig(format="LOG %(name)s: %(message)s", stream=sys.stdout)
how = sys.argv[1] if len(sys.argv) > 1 else ""
if how == "backward":
    real, backend = torch.compile, aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=broken)
    torch.compile = lambda call, **options: real(call, backend=backend, **options)
elif how:
    import torch._inductor.config as inductor
    inductor.cpp.cxx = (None, how)
x = torch.rand(105, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
for make, beta, parts in ((vae1, 1.0, {}), (vae3, warmup(1.0), {}), (vae3, 1.0, {"micro_batch_size": 20})):
    torch.manual_seed(0)
    eager, options = make(6, 2, (5,)).double(), {"epochs": 4, "batch_size": 50, "beta": beta, **parts}
    model, resumed = copy.deepcopy(eager), copy.deepcopy(eager)
    expected = fit(eager, x, **options)["running_elbo"]
    elbos = fit(model, x, **options, compile=True)["running_elbo"]
    print("apart", max(apart(model, eager), *(abs(a - b) for a, b in zip(elbos, expected))))
    if not how:
        with tempfile.TemporaryDirectory() as folder:
            at_each_step, other = Checkpoints(folder, every=1), copy.deepcopy(resumed)
            try:
                fit(other, x, **options, compile=True, checkpoints=at_each_step, on_epoch=stop)
            except EOFError:
                fit(resumed, x, **options, compile=True, checkpoints=at_each_step, resume=True)
        print("resumed", apart(model, resumed))
"""


def run(*arguments):
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()

    def numbers(word):
        return [float(line.removeprefix(word)) for line in lines if line.startswith(word)]

    return numbers("apart "), numbers("resumed "), [line for line in lines if line.startswith("LOG ")]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_compiled_training_goes_the_same_way():
    apart, resumed, log = run()
    assert not log  # it was compiled
    assert len(apart) == 3 and all(0 < each < 1e-10 for each in apart)  # and rounds in another order
    assert resumed == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "reason"), [("no-such-compiler", "no-such-compiler"), ("backward", "no backward pass")]
)
def test_where_compiling_fails_the_log_says_so_once_and_training_goes_on(how, reason):
    apart, _, log = run(how)
    assert apart == [0, 0, 0]
    assert len(log) == 3  # one for each training
    assert all("goes on without torch.compile" in line and reason in line for line in log)


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("the backend has no code\nfor this")


def with_batch_norm():
    torch.manual_seed(0)
    encoder = nn.Sequential(MLPEncoder(6, (5,)), nn.BatchNorm1d(5))
    return VAE(encoder, MLPDecoder((5,)), data_shape=6, latent_dim=2)


def require_same(model, other):
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("step", [1, 5])
def test_a_backward_pass_that_fails_leaves_no_half_of_a_step(monkeypatch, caplog, step):
    calls = []

    def compiled(call, **_):
        def failing(*args, **options):
            calls.append(1)
            loss, sums = call(*args, **options)
            return FailsBackward.apply(loss) if len(calls) == step else loss, sums

        return failing

    model, eager = with_batch_norm(), with_batch_norm()
    monkeypatch.setattr(torch, "compile", compiled)
    history = fit(model, X, **OPTIONS, compile=True)
    expected = fit(eager, X, **OPTIONS, compile=False)
    require_same(model, eager)  # running means and σ², which the forward pass moves, among it
    assert history["running_elbo"] == expected["running_elbo"]
    assert len(calls) == step  # for good
    messages = [record.message for record in caplog.records]
    assert messages == ["training goes on without torch.compile, which failed: the backend has no code"]


def test_a_compiled_training_is_resumed_as_one(monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: compiled.append(call) or call)
    whole, cut, resumed = with_batch_norm(), with_batch_norm(), with_batch_norm()
    expected = fit(whole, X, **OPTIONS, compile=True)
    every_step, real, done = Checkpoints(tmp_path, every=1), loop.training_step, []

    def step(*args, **options):
        if len(done) == 5:
            raise EOFError
        done.append(1)
        return real(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(EOFError):
        patch.setattr(loop, "training_step", step)
        fit(cut, X, **OPTIONS, compile=True, checkpoints=every_step)
    history = fit(resumed, X, **OPTIONS, compile=True, checkpoints=every_step, resume=True)
    require_same(whole, resumed)
    assert history["running_elbo"] == expected["running_elbo"] and len(compiled) == 3


def test_a_beta_that_moves_is_not_compiled_anew_at_each_step(monkeypatch):
    numbers = set()

    def compiled(call, **_):
        def seen(*args, **options):
            # What torch.compile takes for constants: all but tensors.
            numbers.add((len(args[1]), *((k, v) for k, v in options.items() if not isinstance(v, torch.Tensor))))
            return call(*args, **options)

        return seen

    monkeypatch.setattr(torch, "compile", compiled)
    model, eager = with_batch_norm().double(), with_batch_norm().double()
    history = fit(model, X.double(), **OPTIONS, compile=True, beta=warmup(0.5))
    assert len(numbers) == 2 and len(set(history["beta"])) > 2  # while it moves, and when it is 1
    fit(eager, X.double(), **OPTIONS, compile=False, beta=warmup(0.5))
    assert torch.allclose(model.latent_mean.weight, eager.latent_mean.weight, rtol=0, atol=1e-12)


def test_an_error_of_the_models_own_is_not_taken_for_one_of_the_compiler(monkeypatch):
    def broken(*args, **options):
        raise ArithmeticError("of its own")

    monkeypatch.setattr(torch, "compile", lambda call: call)
    with pytest.raises(ArithmeticError, match="of its own"):
        Compiled(broken)(vae1(6, 2, (5,)), X, torch.zeros(1, 1, 2))


@pytest.mark.parametrize(
    ("asked", "steps_worth_it", "expected"), [(None, 7, False), (None, 6, True), (False, 1, False)]
)
def test_long_trainings_are_compiled_unless_told_otherwise(monkeypatch, asked, steps_worth_it, expected):
    made = []

    class Fake(Compiled):
        def __init__(self, **options):
            made.append(self)
            super().__init__(**options)
            self._call = self._original

    monkeypatch.setattr(loop, "Compiled", Fake)
    monkeypatch.setattr(loop, "COMPILING_PAYS", steps_worth_it)
    fit(vae1(6, 2, (5,)), X, epochs=2, batch_size=40, compile=asked)  # 2 epochs of 3 steps
    assert bool(made) is expected
