"""The paper's larger trainings on a GPU: VAE-1 on MNIST, 100 samples, 200 epochs, and 100 VAE-3 on PCA-ring, 3,000."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks.measure import timed
from benchmarks.problems import images
from benchmarks.published import BATCH_SIZE, NUM_SAMPLES
from benchmarks.results import Result
from vaentropy import MonteCarlo, vae1, vae3
from vaentropy.data import load
from vaentropy.errors import VaentropyError
from vaentropy.training import fit, fit_replicates
from vaentropy.training.history import History

NUM_POINTS, EPOCHS, LATENT_DIM, LARGE_BATCH = 60_000, 200, 2, 2000
# Ours, until they have converged, and the paper's.
REPLICATES, REPLICATE_EPOCHS, REPLICATE_LATENTS = 100, {BATCH_SIZE: 100, LARGE_BATCH: 3000}, 2
# Options of `fit`.
WAYS: tuple[dict[str, Any], ...] = (
    {"batch_size": BATCH_SIZE},
    {"batch_size": LARGE_BATCH, "compile": False},
    {"batch_size": LARGE_BATCH},
    {"batch_size": LARGE_BATCH, "compile": True},
    {"batch_size": LARGE_BATCH, "precision": "bf16"},
)
# Of a training of the same sizes, off the clock: kernels are loaded and chosen, memory is taken.
WARMUP_EPOCHS = 2
QUICK_POINTS, QUICK_EPOCHS, QUICK_REPLICATES = 200, 3, 3

Train = Callable[[int], Iterable[History]]


def run(quick: bool) -> Result:
    """Wall-clock seconds and memory of whole trainings."""
    title = "The paper's larger trainings on a GPU"
    if not torch.cuda.is_available() and not quick:
        return Result(title, rows=[], notes=["Skipped: there is no GPU here."])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[dict[str, Any]] = []
    x, missing = _mnist(QUICK_POINTS if quick else NUM_POINTS)
    for way in WAYS:
        row = {"problem": "VAE-1, MNIST", "samples": NUM_SAMPLES, "batch": way["batch_size"], "how": _how(way)}
        rows.append(_told(row | measured(_alone(x.to(device), way), QUICK_EPOCHS if quick else EPOCHS, device)))
    ring = load("pca-ring").train[: QUICK_POINTS if quick else None].to(device)
    number = QUICK_REPLICATES if quick else REPLICATES
    for batch_size, epochs in REPLICATE_EPOCHS.items():
        row = {"problem": f"VAE-3, pca-ring, {number} replicates", "samples": 1, "batch": batch_size, "how": ""}
        train = _replicates(ring, number, batch_size)
        rows.append(_told(row | measured(train, QUICK_EPOCHS if quick else epochs, device)))
    notes = [missing] if missing else []
    notes.append(
        f"Seconds of whole trainings on {device}, evaluations included, after {WARMUP_EPOCHS} epochs of the same that "
        "do not count; and of an epoch between the first and the last, without evaluations. MB: the most that tensors "
        "took on the GPU, data included, and the most that PyTorch held there. ELBO of the training data at the end."
    )
    return Result(title, rows=rows, notes=notes)


def _mnist(num_points: int) -> tuple[torch.Tensor, str | None]:
    """Images (N, 784), and a note where they are none."""
    try:
        return load("mnist").train[:num_points].flatten(1), None
    except VaentropyError as error:
        return images(num_points, 784), f"Random numbers in the place of MNIST: {error}"


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """What has been measured is seen at once."""
    print(*row.values(), file=sys.stderr, flush=True)
    return row


def _how(way: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in way.items() if name != "batch_size")


def _alone(x: torch.Tensor, way: dict[str, Any]) -> Train:
    options: dict[str, Any] = {"expectation": MonteCarlo(NUM_SAMPLES), **way}
    return lambda epochs: [fit(vae1(x.shape[1], LATENT_DIM).to(x.device), x, epochs=epochs, **options)]


def _replicates(x: torch.Tensor, number: int, batch_size: int) -> Train:
    def train(epochs: int) -> Iterable[History]:
        models = [vae3(x.shape[1], REPLICATE_LATENTS).to(x.device) for _ in range(number)]
        return fit_replicates(models, x, epochs=epochs, batch_size=batch_size)

    return train


def measured(train: Train, epochs: int, device: str) -> dict[str, Any]:
    """Columns of a row.

    Args:
        train: makes models and trains them for so many epochs.
        epochs: that count.
        device: whose work is waited for.
    """
    cuda, histories = device == "cuda", []
    if cuda:
        torch.cuda.empty_cache()  # what the row before has left
    torch.manual_seed(0)
    train(WARMUP_EPOCHS)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    seconds = timed(lambda: histories.extend(train(epochs)), device)
    ends, elbos = histories[0]["seconds"], [history["train_elbo"][-1] for history in histories]
    return {
        "epochs": epochs,
        "s": seconds,
        "s an epoch": (ends[-2] - ends[0]) / (epochs - 2),
        "MB of tensors": torch.cuda.max_memory_allocated() / 1e6 if cuda else "",
        "MB held": torch.cuda.max_memory_reserved() / 1e6 if cuda else "",
        "worst ELBO": min(elbos),
        "best ELBO": max(elbos),
    }
