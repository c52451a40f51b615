"""`vaentropy train` in several processes, as torchrun starts them: one run, one voice, one end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch.distributed as dist
from safetensors.torch import load_file

from vaentropy.cli import main
from vaentropy.cli.launched import _speaks
from vaentropy.errors import DataError
from vaentropy.world import FailedElsewhere

SETTINGS = ["--epochs", "60", "--hidden", "8", "--batch-size", "20", "--no-report"]
COMMAND = [sys.executable, "-m", "vaentropy"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A data file, and a run on it by one process."""
    folder = tmp_path_factory.mktemp("alone")
    np.save(folder / "data.npy", np.random.default_rng(0).normal(size=(100, 5)))
    assert main(["train", str(folder / "data.npy"), *SETTINGS, "--out", str(folder / "run")]) == 0
    return folder


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(*arguments, size=2, cwd=None):
    """So many processes with the variables that torchrun sets."""
    there = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": cwd}
    return [
        subprocess.Popen([*COMMAND, *arguments], env={**there, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **how)
        for rank in range(size)
    ]


def ended(processes):
    """Exit status, stdout and stderr of each."""
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, out, err) for process, (out, err) in zip(processes, said, strict=True)]


def wait_for(history):
    end = time.monotonic() + 60
    while not (history.exists() and history.stat().st_size) and time.monotonic() < end:
        time.sleep(0.01)


def same(run, other):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, other))
    return all(ours[name].numpy() == pytest.approx(theirs[name].numpy(), rel=1e-4, abs=1e-5) for name in theirs)


@pytest.mark.slow
def test_torchrun_leaves_one_run(alone, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "vaentropy", "train", str(alone / "data.npy"), *SETTINGS, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one object: one process speaks
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["data-vae1"]
    run = tmp_path / result["run"]
    assert {path.name for path in run.iterdir()} >= {"model.safetensors", "evaluation.json", "history.jsonl"}
    assert (run / "history.jsonl").read_text().count("\n") == 60 and same(run, alone / "run")
    theirs = json.loads((alone / "run" / "evaluation.json").read_text())["train"]
    assert result["elbo"] == pytest.approx(theirs["elbo"], rel=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_one_says_so(alone, tmp_path):
    run = tmp_path / "run"
    processes = start("train", str(alone / "data.npy"), *SETTINGS, "--epochs", "100000", "--out", str(run))
    wait_for(run / "history.jsonl")
    processes[1].send_signal(signal.SIGTERM)
    (first, out, err), (second, *silent) = ended(processes)
    assert (first, second, out, silent) == (143, 143, "", ["", ""])
    # click ends the line of the ^C.
    assert err.strip().startswith("vaentropy: interrupted after step ") and err.strip().count("\n") == 0
    assert err.strip().endswith(f"go on with: vaentropy train --resume {run}")
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_two_go_on_with_what_one_began(alone, tmp_path):
    run, many = tmp_path / "run", [*SETTINGS, "--epochs", "400", "--checkpoint-every", "20"]
    (process,) = start("train", str(alone / "data.npy"), *many, "--out", str(run), size=1)
    wait_for(run / "history.jsonl")
    process.send_signal(signal.SIGINT)
    ((status, _, err),) = ended([process])
    assert status == 130 and "interrupted after step" in err
    (first, out, _), (second, *silent) = ended(start("train", "--resume", str(run), "--no-report", "--json"))
    assert (first, second, silent) == (0, 0, ["", ""])
    assert json.loads(out)["run"] == str(run)
    assert (run / "history.jsonl").read_text().count("\n") == 400


@pytest.mark.slow
def test_a_finished_run_is_continued(alone, tmp_path):
    arguments = ["continue", str(alone / "run"), "--epochs", "5", "--no-report", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    results = ended(start(*arguments, "--out", str(tmp_path / "two")))
    assert [status for status, *_ in results] == [0, 0] and same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "text"),
    [(["--latent-dim", "0"], "latent_dim=0 given"), (["--out", "{taken}"], "exists and is not an empty folder")],
)
def test_a_mistake_is_said_once(alone, tmp_path, arguments, text):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("")
    arguments = [each.format(taken=tmp_path / "taken") for each in arguments]
    results = ended(start("train", str(alone / "data.npy"), *SETTINGS, *arguments, cwd=tmp_path))
    said = "".join(err for _, _, err in results)
    assert [status for status, *_ in results] == [2, 2]
    assert text in said and said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_all(alone, tmp_path, killed):
    run = tmp_path / "run"
    processes = start("train", str(alone / "data.npy"), *SETTINGS, "--epochs", "100000", "--out", str(run))
    wait_for(run / "history.jsonl")
    processes[killed].kill()
    results = ended(processes)
    status, out, err = results[1 - killed]
    assert (results[killed][0], status, out) == (-signal.SIGKILL, 2, "")
    # Beside lines of torch's own.
    assert f"vaentropy: process {1 - killed} of 2 has lost another one" in err and err.count("vaentropy: ") == 1
    if killed == 1:
        assert json.loads((run / "manifest.json").read_text())["status"].startswith("failed: process 0 of 2")


def test_the_process_that_has_met_a_failure_tells_of_it():
    """And not one that ends because of it, even where that one is faster."""
    # As torchrun has it: each process is a client of its own.
    port = free_port()
    first = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    second, spoke = dist.TCPStore("127.0.0.1", port), []
    elsewhere = FailedElsewhere("reading", 2)
    other = threading.Thread(target=lambda: spoke.append(_speaks(elsewhere, 1, second)))
    other.start()
    time.sleep(0.05)
    assert not spoke and _speaks(DataError("no number"), 0, first)
    other.join()
    assert spoke == [False]


def test_variables_that_hold_no_number_are_a_mistake(monkeypatch, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "digits"]) == 2
    assert capsys.readouterr().err == (
        "vaentropy: WORLD_SIZE='two' in the environment, expected a whole number as torchrun sets it\n"
    )


def test_one_process_of_torchrun_is_alone(monkeypatch, tmp_path, capsys):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "digits", "--epochs", "1", "--no-report", "--out", str(tmp_path / "run")]) == 0
