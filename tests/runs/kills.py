"""Kills a training run with SIGKILL at each of its first writes and at random instants, resumes it each time, and
compares how it ends.

    python tests/runs/kills.py --kills 100 [--continued]

prints one JSON object: kills made, what the runs were doing then, and whether they ended as one that was left alone.
Every attempt is a process of its own, forked from this one, which has imported everything but computed nothing.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch._dynamo  # noqa: F401  # which the optimiser imports: once, before the forks
from safetensors.torch import load_file

from vaentropy import (
    files,
    runs,  # noqa: F401  # likewise
)
from vaentropy.cli import main as command
from vaentropy.files import ASIDE, read_tensors
from vaentropy.training import checkpoint

EPOCHS = 40
SETTINGS = ["--epochs", str(EPOCHS), "--batch-size", "100", "--hidden", "8", "--latent-dim", "2", "--checkpoint-every"]
LONGEST = 0.7  # seconds that an attempt lives at most
FIRST_WRITES = 12  # up to the first checkpoint, two for each file: before it has its name, and after


def dies_at_write(number: int) -> None:
    """Have this process killed when it waits for the disk for the so-manieth time."""
    real, count = files.flush_to_disk, 0

    def flush(path: Path) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)

    files.flush_to_disk = checkpoint.flush_to_disk = flush


def attempt(arguments: list[str], seconds: float | None = None, write: int | None = None) -> bool:
    """Run the command in a process of its own; kill it after so long, or at a write. True where it was killed."""
    child = os.fork()
    if child == 0:
        if write is not None:
            dies_at_write(write)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os._exit(command(arguments))
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if write is not None and os.WIFSIGNALED(status):
                return True
            assert os.waitstatus_to_exitcode(status) == 0, f"{arguments} ended with {status}"
            return False
        if end is not None and time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.001)


def check_files(run: Path) -> str:
    """Every file of a killed run is whole; what the run was doing when it was killed."""
    if not (run / "config.yaml").exists():
        return "before its settings were written"
    states = list((run / "checkpoints").glob("*.safetensors")) if (run / "checkpoints").exists() else []
    for path in states:
        read_tensors(path)
    history = run / "history.jsonl"
    if history.exists():
        # The last line may have been cut off; resuming drops it.
        for line in history.read_text().split("\n")[:-1]:
            json.loads(line)
    if any(run.rglob(f"*{ASIDE}")):
        return "while a file was written"
    return "in training" if states else "before its first checkpoint"


def ending(run: Path) -> tuple[dict, list]:
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return load_file(run / "model.safetensors"), [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def main(kills: int, every: str, seed: int, continued: bool) -> dict:
    chance, made, when, endings = random.Random(seed), 0, Counter(), 0
    first: Counter[str] = Counter()

    def go_on(run: Path) -> list[str]:
        return ["train", "--resume", str(run)] if (run / "config.yaml").exists() else [*start, "--out", str(run)]

    def check_ending(run: Path) -> None:
        final, final_rows = ending(run)
        assert final.keys() == weights.keys() and all((final[name] == weights[name]).all() for name in weights)
        assert final_rows == rows, "history differs"

    with tempfile.TemporaryDirectory() as folder:
        data, whole = Path(folder) / "data.npy", Path(folder) / "whole"
        np.save(data, np.random.default_rng(0).normal(size=(500, 10)))
        start = ["train", str(data), *SETTINGS, every]
        if continued:
            # Of a model whose σ² is fixed: the weights to begin with are made, not copied.
            attempt([*start, "--model", "vae0", "--out", str(Path(folder) / "first")])
            start = ["continue", str(Path(folder) / "first"), "--model", "vae1"]
        attempt([*start, "--out", str(whole)])
        weights, rows = ending(whole)
        assert len(rows) == EPOCHS
        for write in range(1, FIRST_WRITES + 1):
            run = Path(folder) / f"write-{write}"
            assert attempt(go_on(run), write=write)
            first[check_files(run)] += 1
            attempt(go_on(run))
            check_ending(run)
        while made < kills:
            run = Path(folder) / f"run-{endings}"
            killed = True
            while killed:
                killed = attempt(go_on(run), chance.uniform(0, LONGEST) if made < kills else None)
                if killed:
                    made += 1
                    when[check_files(run)] += 1
                if made % 10 == 0 and killed:
                    print(f"{made} kills", file=sys.stderr)
            check_ending(run)
            endings += 1
    return {
        "kills": made,
        "at_first_writes": dict(first),
        "when": dict(when),
        "runs_finished": endings,
        "identical": True,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--every", default="1", help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--continued", action="store_true", help="kill runs that go on from another's weights")
    print(json.dumps(main(**vars(parser.parse_args()))))
