"""The benchmarks run, compare what they say they compare, and leave what others read. Nothing here is about a time."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu, step
from benchmarks.measure import interleaved, ratio
from benchmarks.problems import images
from benchmarks.results import Result
from vaentropy import vae1
from vaentropy.training.history import History


def test_a_ratio_is_that_of_medians_with_the_spread_of_pairs():
    found = ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0])
    assert (found.median, found.low, found.high) == (4.0, 2.0, 4.0)
    assert str(found) == "4 (2 to 4)"


def test_candidates_take_turns():
    calls = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, warmup=1)
    assert calls == ["a", "b"] * 3
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2}


def test_the_bare_step_descends_the_same_objective():
    torch.manual_seed(0)
    x, model = images(200, 6), vae1(6, 2, (5,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    torch.manual_seed(1)
    step.bare_epoch(model, x, 200, optimizer)
    moved = torch.cat([(b - p.detach()).flatten() for b, p in zip(before, model.parameters(), strict=True)]) / 1e-6
    for parameter, value in zip(model.parameters(), before, strict=True):
        parameter.data.copy_(value)
        parameter.grad = None
    torch.manual_seed(1)
    # σ² is 1 in both, where log σ² = 0.
    (-model.elbo_terms(x, torch.randn(1, 200, 2)).elbo.mean()).backward()
    names = [name for name, _ in model.named_parameters()]
    expected = torch.cat(
        [
            torch.zeros(parameter.numel()) if "head.log_variance" in name else parameter.grad.flatten()
            for name, parameter in zip(names, model.parameters(), strict=True)
        ]
    )
    assert torch.allclose(moved, expected, atol=0.02 * float(expected.abs().max()))


def test_epochs_of_fit_and_of_others_take_turns():
    calls = []
    times = step.beside_fit(
        vae1(6, 2, (5,)), images(20, 6), 10, {"other": lambda: calls.append(0), "own": lambda: 3.0}, 4, progress=False
    )
    assert len(times["ours"]) == len(times["other"]) == 4 and times["own"] == [3.0] * 4
    assert len(calls) == 6  # the first and the last do not count


def test_a_training_on_a_gpu_is_measured_after_a_shorter_one():
    calls = []

    def train(epochs):
        calls.append((epochs, torch.rand(()).item()))
        rows = [{"epoch": epoch, "seconds": 10.0 if epoch == 0 else 10.0 + epoch} for epoch in range(epochs)]
        return [History([*rows[:-1], rows[-1] | {"train_elbo": elbo}]) for elbo in (3.0, 1.0)]

    row = gpu.measured(train, 5, "cpu")
    assert [epochs for epochs, _ in calls] == [gpu.WARMUP_EPOCHS, 5] and calls[0][1] == calls[1][1]
    assert row["s an epoch"] == 1.0 and (row["worst ELBO"], row["best ELBO"]) == (1.0, 3.0)
    assert row["MB held"] == ""


def test_results_are_a_table_and_json(tmp_path):
    result = Result(
        "Title", [{"what": "a", "ms": 1.23456}], notes=["a note"], machine={"device": "here"}, data={"x": [1]}
    )
    result.save(tmp_path / "new", "name")
    text = (tmp_path / "new" / "name.md").read_text()
    assert "### Title" in text and "| a | 1.235 |" in text and "a note" in text and "Measured on: device here." in text
    stored = json.loads((tmp_path / "new" / "name.json").read_text())
    assert stored["rows"] == [{"what": "a", "ms": 1.23456}] and stored["data"] == {"x": [1]}


def test_rows_may_lack_what_others_have():
    text = Result("title", [{"a": "x"}, {"a": "y", "b": 2.0}]).markdown()
    assert "| a | b |" in text and "| x |  |" in text and "| y | 2 |" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "gpu"])
def test_the_command_runs_quickly_on_request(name, tmp_path):
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "### " in done.stdout and json.loads((tmp_path / f"{name}.json").read_text())["rows"]


def test_an_unknown_name_is_one_line():
    command = [sys.executable, "-m", "benchmarks", "stepp"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2 and "benchmark 'stepp' given, expected one of" in done.stderr
