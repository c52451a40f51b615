"""Ctrl-C and SIGTERM from outside: exit status, what is said, and that resuming loses nothing."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file

from vaentropy.cli import main

SETTINGS = ["--epochs", "200", "--hidden", "8", "--batch-size", "20"]
COMMAND = [sys.executable, "-m", "vaentropy"]


def train(*arguments):
    assert main(["train", *arguments, "--json", "--no-report"]) == 0


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """A data file, and a run on it that was not interrupted."""
    folder = tmp_path_factory.mktemp("left_alone")
    np.save(folder / "data.npy", np.random.default_rng(0).normal(size=(100, 5)))
    train(str(folder / "data.npy"), *SETTINGS, "--out", str(folder / "run"))
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_run_to_resume(left_alone, tmp_path, number, status, capfd):
    run = tmp_path / "run"
    child = subprocess.Popen(
        [*COMMAND, "train", str(left_alone / "data.npy"), *SETTINGS, "--out", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    history = run / "history.jsonl"
    end = time.monotonic() + 60
    while not (history.exists() and history.stat().st_size) and time.monotonic() < end:
        time.sleep(0.01)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == status
    # click ends the line of the ^C.
    assert out == "" and err.strip().startswith("vaentropy: interrupted after step ")
    assert err.strip().endswith(f"go on with: vaentropy train --resume {run}") and err.strip().count("\n") == 0
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"
    capfd.readouterr()
    train("--resume", str(run))
    assert capfd.readouterr().err == ""
    ends = [load_file(folder / "model.safetensors") for folder in (run, left_alone / "run")]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[1])
    rows = [(folder / "history.jsonl").read_text().count("\n") for folder in (run, left_alone / "run")]
    assert rows == [200, 200]
