"""Ctrl-C and SIGTERM from outside: exit status, what is said, and that resuming loses nothing."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file

SETTINGS = ["--epochs", "300", "--hidden", "8", "--batch-size", "20"]
COMMAND = [sys.executable, "-m", "vaentropy"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_run_to_resume(tmp_path, number, status):
    data, run = tmp_path / "data.npy", tmp_path / "run"
    np.save(data, np.random.default_rng(0).normal(size=(100, 5)))
    child = subprocess.Popen(
        [*COMMAND, "train", str(data), *SETTINGS, "--out", str(run)],
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
    for arguments in (["--resume", str(run)], [str(data), *SETTINGS, "--out", str(tmp_path / "whole")]):
        done = subprocess.run([*COMMAND, "train", *arguments, "--json"], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stderr == "", done.stderr
    ends = [load_file(folder / "model.safetensors") for folder in (run, tmp_path / "whole")]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[1])
    rows = [(folder / "history.jsonl").read_text().count("\n") for folder in (run, tmp_path / "whole")]
    assert rows == [300, 300]
