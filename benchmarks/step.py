"""How far a training step is from the floor: the same networks' forward, backward and Adam alone."""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr
from io import StringIO
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.measure import ratio, timed
from benchmarks.peers import PeerMissing, peer
from benchmarks.problems import images
from benchmarks.results import Result
from vaentropy import vae1
from vaentropy.data import load
from vaentropy.training import fit
from vaentropy.training.history import Row
from vaentropy.vae import VAE

NUM_POINTS, DATA_DIM, HIDDEN, LATENT_DIM = 19_200, 784, (512,), 10
BATCH_SIZES, SMALL_BATCH = (64, 256), 200


def bare_epoch(model: VAE, x: torch.Tensor, batch_size: int, optimizer: torch.optim.Optimizer) -> None:
    """Steps on one slice of a resident tensor after the other, as if written for this one model by hand: no shuffling,
    no sums, σ² = 1.
    """
    for start in range(0, len(x), batch_size):
        batch = x[start : start + batch_size]
        features = model.encoder(batch)
        mean, log_variance = model.latent_mean(features), model.latent_log_variance(features)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        reconstruction = model.head.mean(model.decoder(model.latent_layer(z)))
        squared_error = (batch - reconstruction).square().sum()
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = None
        (0.5 * (squared_error + kl) / len(batch)).backward()
        optimizer.step()


def beside_fit(
    model: VAE,
    x: torch.Tensor,
    batch_size: int,
    others: Mapping[str, Callable[[], object]],
    repetitions: int,
    **options,
) -> dict[str, list[float]]:
    """Seconds of each epoch of `fit` ("ours") and of each other candidate, which run between two epochs.

    The first epoch warms up, and the last one, which ends in an evaluation, is left out. A candidate that returns a
    number has measured its own seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in ("ours", *others)}
    own: list[float | None] = []
    begun = time.perf_counter()

    def end_epoch(row: Row) -> None:
        nonlocal begun
        seconds = {"ours": time.perf_counter() - begun}
        for name, call in others.items():
            taken = timed(lambda call=call: own.append(call()))
            seconds[name] = taken if own[-1] is None else own[-1]
        if 1 < row["epoch"] <= repetitions + 1:
            for name, each in seconds.items():
                times[name].append(each)
        begun = time.perf_counter()

    fit(model, x, epochs=repetitions + 2, batch_size=batch_size, on_epoch=end_epoch, **options)
    return times


def run(quick: bool) -> Result:
    """Milliseconds per step of `fit` with progress bar, history and entropies, as a ratio to those of the bare step."""
    num_points, repetitions = (640, 3) if quick else (NUM_POINTS, 15)
    x, rows, notes = images(num_points, DATA_DIM), [], []
    for batch_size in BATCH_SIZES:
        steps = math.ceil(num_points / batch_size)
        others: dict[str, Callable[[], float | None]] = {"bare": bare_epochs(x, HIDDEN, LATENT_DIM, batch_size)}
        with ExitStack() as stack:
            if not quick:
                notes += add_peer(stack, others, "pythae", batch_size=batch_size, steps=steps)
            # The bar is drawn, where nobody sees it.
            with redirect_stderr(_Terminal()) as terminal, patch.dict(os.environ, TERM="xterm"):
                model = vae1(DATA_DIM, LATENT_DIM, HIDDEN)
                seconds = beside_fit(model, x, batch_size, others, repetitions, progress=True)
        assert "/" in terminal.getvalue(), "no bar was drawn"
        rows.append(_row(f"784-512-10-512-784, batch {batch_size}", seconds, steps))
    small = load("digits").train.repeat(1 if quick else 10, 1)
    steps, others = math.ceil(len(small) / SMALL_BATCH), {"bare": bare_epochs(small, (50, 50), 2, SMALL_BATCH)}
    with ExitStack() as stack:
        if not quick:
            notes += add_peer(stack, others, "jax", batch_size=SMALL_BATCH, steps=steps)
        seconds = beside_fit(vae1(64, 2), small, SMALL_BATCH, others, repetitions, progress=False)
    rows.append(_row("digits, 64-50-50-2-50-50-64, batch 200", seconds, steps))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    rows = [{column: row.get(column, "") for column in columns} for row in rows]
    notes.append(
        "Each time is that of an epoch, measured between two others: ours, then each other one. The ratios are of "
        "medians, with the lowest and highest of two measured side by side. Bare: forward, backward and fused Adam on "
        "slices of a resident tensor, without shuffling, sums, history or a learned σ²."
    )
    return Result("A training step beside its floor", rows=rows, notes=list(dict.fromkeys(notes)))


class _Terminal(StringIO):
    """Takes what is written, and says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def bare_epochs(x: torch.Tensor, hidden: Sequence[int], latent_dim: int, batch_size: int) -> Callable[[], None]:
    """One epoch of bare steps at each call, of a model of its own."""
    model = vae1(x.shape[1], latent_dim, hidden)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    return lambda: bare_epoch(model, x, batch_size, optimizer)


def add_peer(
    stack: ExitStack, others: dict[str, Callable[[], float | None]], name: str, *, batch_size: int, steps: int
) -> list[str]:
    """Let a peer take part, for as long as the stack is open; a note where it cannot."""
    try:
        seconds_per_step = stack.enter_context(peer(name, threads=torch.get_num_threads()))
    except PeerMissing as error:
        return [f"{name} skipped: {error}"]
    others[name] = lambda: steps * seconds_per_step(batch_size=batch_size, steps=steps)
    return []


def _row(problem: str, seconds: Mapping[str, list[float]], steps: int) -> dict[str, Any]:
    ours, row = seconds["ours"], {"problem": problem, "ours ms": 1e3 * statistics.median(seconds["ours"]) / steps}
    for name, each in seconds.items():
        if name != "ours":
            row[f"{name} ms"] = 1e3 * statistics.median(each) / steps
            row["ours / bare" if name == "bare" else f"{name} / ours"] = str(
                ratio(ours, each) if name == "bare" else ratio(each, ours)
            )
    return row
