"""Whether the learning rate that suits small networks suits wide ones and convolutions: goes on from `defaults`."""

import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.defaults import BUDGETS, Problem, Run, Setting, runs
from benchmarks.results import Result
from vaentropy.data import load
from vaentropy.errors import VaentropyError

RATES = (2e-3, 5e-3, 1e-2, 2e-2)
SEEDS = (0, 1)
# Steps of the convolutions: they take ten times as long as those of an MLP.
CONVOLUTIONAL_STEPS = 300
WIDE = (512,)
NUM_TRAIN, NUM_HELD_OUT, NUM_CONVOLUTIONAL = 12_000, 2_000, 3_000


def problems(*, quick: bool = False) -> Iterator[Problem]:
    """Networks of 512 units on MNIST (VAE-1) and Fashion-MNIST (VAE-3), and convolutions (VAE-1); where files are."""
    choices = [("mnist", "vae1", False), ("fashion-mnist", "vae3", False), ("fashion-mnist", "vae1", True)]
    for name, family, convolutional in choices:
        try:
            data = load(name, stream=False, dequantise=True)
        except VaentropyError:
            continue
        number = 200 if quick else NUM_CONVOLUTIONAL if convolutional else NUM_TRAIN
        train, held_out = (
            torch.as_tensor(x[:count]).float()  # type: ignore[index]
            for x, count in ((data.train, number), (data.held_out, min(number, NUM_HELD_OUT)))
        )
        shape = (1, 28, 28) if convolutional else (28 * 28,)
        kind = "convolutions 32-64" if convolutional else "784-512-10"
        parts = train.reshape(-1, *shape), held_out.reshape(-1, *shape)
        yield Problem(f"{name}, {family}, {kind}", family, 10, *parts, hidden=WIDE, convolutional=convolutional)


def run(quick: bool) -> Result:
    """Final ELBO for each rate, problem and budget."""
    chosen = [Setting(f"{rate:g}", {"learning_rate": rate}) for rate in RATES]
    on, done = list(problems(quick=quick)), []
    for budget, steps in {"short": 5}.items() if quick else BUDGETS.items():
        some = [problem for problem in on if not problem.convolutional or steps <= CONVOLUTIONAL_STEPS]
        done += runs(chosen, some, budget, SEEDS, steps=steps)
    notes = [
        f"Held-out ELBO, nats per data point (training data in brackets), means of {len(SEEDS)} seeds; one-cycle "
        f"schedule, batches of 200. Steps: {', '.join(f'{name} {steps:,}' for name, steps in BUDGETS.items())}."
    ]
    return Result("Learning rates of wide networks", _rows(done), notes, data=[asdict(each) for each in done])


def _rows(done: list[Run]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for each in done:
        found.setdefault((each.problem, each.budget), {}).setdefault(each.setting, []).append(each)

    def shown(of_rate: list[Run]) -> str:
        held_out, train = (statistics.fmean(getattr(each, part) for each in of_rate) for part in ("held_out", "train"))
        rollbacks = sum(each.rollbacks for each in of_rate)
        note = f", {rollbacks} rollbacks" if rollbacks else ""
        return f"{held_out:.1f} ({train:.1f}){note}" if math.isfinite(train) else "diverged"

    return [
        {"problem": problem, "budget": budget, **{rate: shown(of_rate) for rate, of_rate in rates.items()}}
        for (problem, budget), rates in found.items()
    ]
