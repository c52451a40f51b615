"""The paper's MNIST trainings on a GPU: VAE-1 with 100 samples for 200 epochs, and 100 replicates of its VAE-3."""

import time

import torch

from benchmarks.problems import images
from benchmarks.results import Result
from vaentropy import MonteCarlo, vae1, vae3
from vaentropy.data import load
from vaentropy.errors import VaentropyError
from vaentropy.training import fit, fit_replicates

NUM_POINTS, EPOCHS, SAMPLES, REPLICATES, LATENT_DIM, BATCH_SIZE = 60_000, 200, 100, 100, 10, 2000


def run(quick: bool) -> Result:
    """Wall-clock seconds of the whole trainings, evaluations included."""
    title = "The paper's MNIST trainings on one GPU"
    if not torch.cuda.is_available() and not quick:
        return Result(title, rows=[], notes=["Skipped: there is no GPU here."])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    num_points, epochs, replicates = (200, 2, 3) if quick else (NUM_POINTS, EPOCHS, REPLICATES)
    notes = []
    try:
        x = load("mnist").train[:num_points].flatten(1)
    except VaentropyError as error:
        x = images(num_points, 784)
        notes.append(f"Random numbers in the place of images: {error}")
    x = x.to(device)
    rows = []
    for precision in ("full", "bf16"):
        model, start = vae1(784, LATENT_DIM).to(device), time.perf_counter()
        history = fit(
            model, x, epochs=epochs, batch_size=BATCH_SIZE, expectation=MonteCarlo(SAMPLES), precision=precision
        )
        rows.append(_row(f"VAE-1, {SAMPLES} samples, {precision}", epochs, start, history["train_elbo"]))
    models, start = [vae3(784, LATENT_DIM).to(device) for _ in range(replicates)], time.perf_counter()
    histories = fit_replicates(models, x, epochs=epochs, batch_size=BATCH_SIZE)
    rows.append(_row(f"VAE-3, {replicates} replicates", epochs, start, [h["train_elbo"][-1] for h in histories]))
    return Result(title, rows=rows, notes=notes)


def _row(problem: str, epochs: int, start: float, elbos: list[float]) -> dict[str, object]:
    seconds = time.perf_counter() - start
    return {"problem": problem, "epochs": epochs, "seconds": seconds, "ELBO (best)": max(elbos)}
