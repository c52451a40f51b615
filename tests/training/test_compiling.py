"""Compiled steps are the same steps; where they cannot be compiled, training goes on without."""

import shutil
import subprocess
import sys

import pytest
import torch

from vaentropy import fit, vae1
from vaentropy.training import loop
from vaentropy.training.compiling import Compiled

X = torch.rand(105, 6, generator=torch.Generator().manual_seed(0))

# In a process of its own: the checks of types that tests run under cannot be compiled.
SCRIPT = """
import copy, logging, sys
import torch
from vaentropy import fit, vae1, vae3

logging.basicConfig(format="LOG %(name)s: %(message)s", stream=sys.stdout)
if len(sys.argv) > 1:
    import torch._inductor.config as inductor
    inductor.cpp.cxx = (None, sys.argv[1])
x = torch.rand(105, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
for make in (vae1, vae3):
    torch.manual_seed(0)
    eager = make(6, 2, (5,)).double()
    model = copy.deepcopy(eager)
    expected = fit(eager, x, epochs=4, batch_size=50)["running_elbo"]
    elbos = fit(model, x, epochs=4, batch_size=50, compile=True)["running_elbo"]
    apart = max(float((a - b).abs().max()) for a, b in zip(model.parameters(), eager.parameters()))
    print("apart", max(apart, *(abs(a - b) for a, b in zip(elbos, expected))))
"""


def run(*arguments):
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    apart = [float(line.removeprefix("apart ")) for line in lines if line.startswith("apart ")]
    return apart, [line for line in lines if line.startswith("LOG ")]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_compiled_training_goes_the_same_way():
    apart, log = run()
    assert not log  # it was compiled
    assert len(apart) == 2 and all(0 < each < 1e-10 for each in apart)  # and rounds in another order


@pytest.mark.slow
def test_without_a_compiler_the_log_says_so_once_and_training_goes_on():
    apart, log = run("no-such-compiler")
    assert apart == [0, 0]
    assert len(log) == 2  # one for each training
    assert all("goes on without torch.compile" in line and "no-such-compiler" in line for line in log)


def test_an_error_of_the_models_own_is_not_taken_for_one_of_the_compiler(monkeypatch):
    def broken(*args, **options):
        raise ArithmeticError("of its own")

    monkeypatch.setattr(torch, "compile", lambda call: call)
    with pytest.raises(ArithmeticError, match="of its own"):
        Compiled(broken)()


@pytest.mark.parametrize(
    ("asked", "steps_worth_it", "expected"), [(None, 7, False), (None, 6, True), (False, 1, False)]
)
def test_long_trainings_are_compiled_unless_told_otherwise(monkeypatch, asked, steps_worth_it, expected):
    made = []

    class Fake(Compiled):
        def __init__(self):
            made.append(self)
            super().__init__()
            self._call = self._original

    monkeypatch.setattr(loop, "Compiled", Fake)
    monkeypatch.setattr(loop, "COMPILING_PAYS", steps_worth_it)
    fit(vae1(6, 2, (5,)), X, epochs=2, batch_size=40, compile=asked)  # 2 epochs of 3 steps
    assert bool(made) is expected
