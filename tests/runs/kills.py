"""Kills a training run with SIGKILL at random instants, resumes it each time, and compares how it ends.

    python tests/runs/kills.py --kills 100

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

from vaentropy import runs  # noqa: F401  # likewise
from vaentropy.cli import main as command
from vaentropy.files import ASIDE, read_tensors

EPOCHS = 40
SETTINGS = ["--epochs", str(EPOCHS), "--batch-size", "100", "--hidden", "8", "--latent-dim", "2", "--checkpoint-every"]
LONGEST = 0.7  # seconds that an attempt lives at most


def attempt(arguments: list[str], seconds: float | None) -> bool:
    """Run the command in a process of its own; kill it after so long. True where it was killed."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os._exit(command(arguments))
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
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


def main(kills: int, every: str, seed: int) -> dict:
    chance, made, when, endings = random.Random(seed), 0, Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        data, whole = Path(folder) / "data.npy", Path(folder) / "whole"
        np.save(data, np.random.default_rng(0).normal(size=(500, 10)))
        settings = [str(data), *SETTINGS, every]
        attempt(["train", *settings, "--out", str(whole)], None)
        weights, rows = ending(whole)
        assert len(rows) == EPOCHS
        while made < kills:
            run = Path(folder) / f"run-{endings}"
            killed = True
            while killed:
                known = (run / "config.yaml").exists()
                arguments = ["--resume", str(run)] if known else [*settings, "--out", str(run)]
                killed = attempt(["train", *arguments], chance.uniform(0, LONGEST) if made < kills else None)
                if killed:
                    made += 1
                    when[check_files(run)] += 1
                if made % 10 == 0 and killed:
                    print(f"{made} kills", file=sys.stderr)
            final, final_rows = ending(run)
            assert final.keys() == weights.keys() and all((final[name] == weights[name]).all() for name in weights)
            assert final_rows == rows, "history differs"
            endings += 1
    return {"kills": made, "when": dict(when), "runs_finished": endings, "identical": True}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--every", default="1", help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(main(**vars(parser.parse_args()))))
